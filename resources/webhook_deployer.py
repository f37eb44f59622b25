"""Handing over to a receiver of your own: a signed POST that says which version to run.

Lives here: the message, the name of the event, and the file that keeps what was told.
Add here: a further fact the receiver needs; no secret.
Not here: posting, trying again, signing (`webhook.py`), where a workspace keeps what was told
(`databricks/deployment/webhook.py`).
"""

from typing import Any

from lifecycle_assets.records import DeploymentRecord, digest
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.deployer import Deployer, Move, TargetDeployer, nothing_handed_over, silent, variables_elsewhere
from resources.explain import explained
from resources.local_deployer import HandOffFile, LocalDeployer
from resources.platform import Platform
from resources.webhook import Webhook
from resources.worker import Progress

TYPE = "lifecycle.deployment"
"""Type of the message (Standard Webhooks 1.0.0, payload structure)."""


class LaptopDeployer(TargetDeployer):
    """Hands over to a file, or to the declared receiver; a databricks_* target is handed over as `local`."""

    def __init__(self, platform: Platform) -> None:
        local = LocalDeployer(platform)
        workspace = ("databricks_serving", "databricks_app", "databricks_job")
        super().__init__({**dict.fromkeys(("none", "local", *workspace), local), "webhook": WebhookDeployer(platform)})


class WebhookDeployer(Deployer):
    """Posts the hand-off, and keeps it as told once the receiver has accepted it, see `HandOffFile`.

    Why a rerun is safe: the id of the message names agent, version and the move of `champion`. It is the same for a
    repeat, also when this was killed before it was kept or the answer was lost, so that the receiver can leave what it
    has done. Going back to a former version is another move and another id.
    """

    def __init__(self, platform: Platform, *, backoff_seconds: float = 1.0) -> None:
        self._platform = platform
        self._backoff = backoff_seconds
        self._file = HandOffFile(platform, "webhook")

    def hand_off(self, agent: Agent, move: Move, *, progress: Progress = silent) -> DeploymentRecord:
        """Post this move unless it was the last that was accepted.

        Raises `Refused` when nothing names the move or a variable holds nothing usable (nothing is posted), when the
        receiver does not accept, and when what was told cannot be kept (it is posted again, under the same id).
        """
        if not move.at:
            raise Refused(
                f"champion of {agent.name} was pointed at version {move.version} outside the graph: no move names it, "
                "and its receiver could not tell a repeat from going back; promote or roll back with the graph."
            )
        env = self._variables(agent, move.version, move.model_id)
        event = event_of(agent, move, env)
        told = self._told(agent, move, event)
        if told is not None:
            return told
        declared = agent.spec.deployment
        webhook = Webhook(declared.url_env, self._backoff, secret_env=declared.secret_env)
        webhook.require()
        progress(f"version {move.version} is handed to the receiver {declared.url_env} names, message {event}")
        webhook.post(message_of(agent, move, env), event=event)
        progress(f"the receiver accepted version {move.version}")
        return self._keep(agent, move, env, event)

    def current(self, agent: Agent) -> DeploymentRecord | None:
        """What the receiver accepted last."""
        found = self._file.read(agent)
        return None if found is None else self._file.record(agent, found)

    def environment(self, agent: Agent) -> dict[str, str]:
        """The variables the receiver was told; references to secrets as they are declared."""
        found = self._file.read(agent)
        if found is None:
            raise nothing_handed_over(agent)
        return dict(found["env"])

    def _variables(self, agent: Agent, version: str, model_id: str) -> dict[str, str]:
        return variables_elsewhere(agent, self._platform, version=version, model_id=model_id)

    def _told(self, agent: Agent, move: Move, event: str) -> DeploymentRecord | None:
        """The hand-off when this message is the last that was accepted."""
        found = self._file.read(agent)
        return self._file.record(agent, found) if found is not None and found.get("event") == event else None

    def _keep(self, agent: Agent, move: Move, env: dict[str, str], event: str) -> DeploymentRecord:
        with explained(str(self._file.path(agent))):
            return self._file.record(agent, self._file.write(agent, move, env, event=event))


def event_of(agent: Agent, move: Move, env: dict[str, str]) -> str:
    """The id of the message: the same for the same version, move and variables, and another for any other."""
    said = [agent.name, agent.spec.model_name, move.version, move.model_id, move.at, env]
    return f"{agent.name}-{move.version}-{digest(said, length=32)}"


def message_of(agent: Agent, move: Move, env: dict[str, str]) -> dict[str, Any]:
    """What the receiver is told; a repeat says the same, to the byte."""
    return {
        "type": TYPE,
        "timestamp": move.at,
        "data": {
            "agent": agent.name,
            "model_name": agent.spec.model_name,
            "version": move.version,
            "model_id": move.model_id,
            "model_uri": f"models:/{agent.spec.model_name}/{move.version}",
            "environment": env,
            "previous_version": move.previous,
            "git_commit": move.git_commit,
            "evidence_digest": move.evidence_digest,
        },
    }
