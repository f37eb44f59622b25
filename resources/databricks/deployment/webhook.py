"""Handing over from a workspace to a receiver of your own.

Lives here: where a workspace keeps what was told: on the version itself, as tags.
Add here: a fact about the hand-off that another machine has to know.
Not here: the message and when it is posted (`resources/webhook_deployer.py`).

The machine a run of Dagster ends on may be gone with the next one; the registry stays.
"""

from datetime import UTC, datetime

from lifecycle_assets.records import DeploymentRecord
from lifecycle_assets.spec_file import Agent
from resources.databricks.registry.model_registry import UnityModelRegistry
from resources.deployer import Move, nothing_handed_over
from resources.hand_off import deployment_tags
from resources.model_registry import RegisteredVersion
from resources.platform import Platform
from resources.run_marks import page
from resources.webhook_deployer import WebhookDeployer

EVENT = "lifecycle.deployment_event"
"""Version tag: the id of the message that handed it over last."""


class WorkspaceWebhookDeployer(WebhookDeployer):
    """Keeps what was told as tags of the version. The message's id is written last: it makes the rest count."""

    def __init__(self, platform: Platform, *, backoff_seconds: float = 1.0) -> None:
        super().__init__(platform, backoff_seconds=backoff_seconds)
        self._registry = UnityModelRegistry(platform)

    def current(self, agent: Agent) -> DeploymentRecord | None:
        """The version whose tags say that it was handed over last, None when that was to another target."""
        last = max(self._registry.versions(agent.spec.model_name), key=_handed_at, default=None)
        return self._record(last) if last is not None and _is_told(last) else None

    def environment(self, agent: Agent) -> dict[str, str]:
        """What the receiver has its runtime set now; references to secrets as they are declared."""
        found = self.current(agent)
        if found is None:
            raise nothing_handed_over(agent)
        return self._variables(agent, found.version, found.model_id)

    def _told(self, agent: Agent, move: Move, event: str) -> DeploymentRecord | None:
        found = self._registry.version(agent.spec.model_name, move.version)
        return self._record(found) if found.tags.get(EVENT) == event and _is_told(found) else None

    def _keep(self, agent: Agent, move: Move, env: dict[str, str], event: str) -> DeploymentRecord:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        record = DeploymentRecord("webhook", "", move.version, move.model_id, now)
        tags = {**deployment_tags(agent, record), EVENT: event}
        return self._record(self._registry.tag_version(agent.spec.model_name, move.version, tags))

    def _record(self, version: RegisteredVersion) -> DeploymentRecord:
        where = page(self._platform, f"models/{version.name}/versions/{version.version}")
        return DeploymentRecord("webhook", where, version.version, version.model_id, _handed_at(version))


def _handed_at(version: RegisteredVersion) -> str:
    return version.tags.get("lifecycle.deployed_at", "")


def _is_told(version: RegisteredVersion) -> bool:
    """Whether it was a webhook that this version was handed to last."""
    return version.tags.get("lifecycle.deployed_to") == "webhook" and bool(version.tags.get(EVENT))
