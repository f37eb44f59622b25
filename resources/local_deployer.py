"""Handing over to `lifecycle serve`, by a file.

Lives here: the file of a hand-off, and the deployer that writes nothing else.
Add here: a fact the local runtime needs.
Not here: the variables (`deployer.py`), serving (`lifecycle serve`).
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lifecycle_assets.records import DeploymentRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.deployer import Deployer, Move, nothing_handed_over, silent, variables
from resources.explain import explained
from resources.hand_off import replace_file
from resources.platform import Platform
from resources.worker import Progress


class HandOffFile:
    """`$LIFECYCLE_HOME/deployments/<agent>.json`: the hand-off as it was last told to `target`.

    The file appears whole or not at all. One about another target is nothing told to this one.
    """

    def __init__(self, platform: Platform, target: str) -> None:
        self._platform = platform
        self._target = target

    def path(self, agent: Agent) -> Path:
        """Where it is."""
        return self._platform.home / "deployments" / f"{agent.name}.json"

    def read(self, agent: Agent) -> dict[str, Any] | None:
        """Its content, None when nothing was told to the target. Raises `Refused` when it is no hand-off."""
        file = self.path(agent)
        with explained(str(file)):
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            except ValueError:
                found = None
        texts = ("target", "agent", "model_uri", "model_name", "version", "model_id", "handed_at")
        if (
            not isinstance(found, dict)
            or not all(isinstance(found.get(name), str) for name in texts)
            or not isinstance(found.get("port"), int)
            or not isinstance(found.get("env"), dict)
        ):
            raise Refused(f"{file}: is not a hand-off; delete it, then materialize {agent.name}/deployment again.")
        return found if found["target"] == self._target else None

    def write(self, agent: Agent, move: Move, env: Mapping[str, str], **more: str) -> dict[str, Any]:
        """Make it say `move`, `env` and `more`; it is not touched when it says so already. Returns its content."""
        content = {
            "target": self._target,
            "agent": agent.name,
            "model_uri": f"models:/{agent.spec.model_name}/{move.version}",
            "model_name": agent.spec.model_name,
            "version": move.version,
            "model_id": move.model_id,
            "port": agent.spec.deployment.port,
            "handed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "env": dict(env),
            **more,
        }
        former = self.read(agent)
        if former is not None and {**former, "handed_at": ""} == {**content, "handed_at": ""}:
            return former
        replace_file(self.path(agent), json.dumps(content, indent=2) + "\n")
        return content

    def remove(self, agent: Agent) -> None:
        """Forget what was told."""
        self.path(agent).unlink(missing_ok=True)

    def record(self, agent: Agent, content: Mapping[str, Any]) -> DeploymentRecord:
        """What a content says, as the record of the hand-off."""
        told = (content["version"], content["model_id"], content["handed_at"])
        return DeploymentRecord(self._target, str(self.path(agent)), *told)


class LocalDeployer(Deployer):
    """Writes the hand-off to the file `lifecycle serve` reads, see `HandOffFile`.

    A declared databricks_* target is handed over the same way, and the record says `local`.

    The file is not touched when it would say the same: a rerun after a kill anywhere leaves one file and the moment of
    the first hand-off.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._file = HandOffFile(platform, "local")

    def hand_off(self, agent: Agent, move: Move, *, progress: Progress = silent) -> DeploymentRecord:
        """Write the hand-off. Target `none` removes a former hand-off and gives a record without place or time.

        Raises `Refused` when the file cannot be written, or holds something that is no hand-off.
        """
        with explained(str(self._file.path(agent))):
            if agent.spec.deployment.target == "none":
                self._file.remove(agent)
                return DeploymentRecord("none", "", move.version, move.model_id, "")
            env = variables(agent, self._platform, model_id=move.model_id, runtime="here")
            return self._file.record(agent, self._file.write(agent, move, env))

    def current(self, agent: Agent) -> DeploymentRecord | None:
        """The record of the file. Raises `Refused` when the file holds something that is no hand-off."""
        if agent.spec.deployment.target == "none":
            return None
        found = self._file.read(agent)
        return None if found is None else self._file.record(agent, found)

    def environment(self, agent: Agent) -> dict[str, str]:
        """The variables of the file; `MLFLOW_TRACKING_URI` is not among them when it would hold a secret."""
        if agent.spec.deployment.target == "none":
            return {}
        found = self._file.read(agent)
        if found is None:
            raise nothing_handed_over(agent)
        return dict(found["env"])
