"""Handing the champion to the runtime that serves it.

Lives here: what is handed over, the file the local runtime reads, and the environment every runtime must set.
Add here: a variable of the runtime; a target, with its fields in `lifecycle_assets/spec_runtime.py`.
Not here: serving (`lifecycle serve`), proof of what runs (it is read from the traces), the runtimes of a workspace
(`resources/databricks/deployment/deployer.py`).
"""

import json
import os
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lifecycle_assets.records import DeploymentRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_secrets import secret_reference
from resources.explain import explained
from resources.mlflow_store import SETTINGS, experiment_id
from resources.platform import Platform
from resources.worker import Progress

Runtime = Literal["here", "workspace", "endpoint"]
"""Where variables are set: a process of this machine, an app or a job of the workspace, a serving endpoint."""


def silent(line: str) -> None:
    """Progress nobody looks at."""


def variables(agent: Agent, platform: Platform, *, model_id: str, runtime: Runtime) -> dict[str, str]:
    """What a runtime sets so that its traces reach the agent's experiment and name the model.

    `here` is a process of this machine: declared references to secrets are left to its shell, and
    `MLFLOW_TRACKING_URI` is left out when it would hold one. `workspace` is an app or a job. `endpoint` is a serving
    endpoint, which MLflow runs on a local store and sends its traces to the experiment by id, once they are enabled.
    """
    declared = agent.spec.deployment.environment
    env = {"MLFLOW_ACTIVE_MODEL_ID": model_id, "LIFECYCLE_ENVIRONMENT": platform.environment}
    if runtime == "endpoint":
        env["ENABLE_MLFLOW_TRACING"] = "true"
    else:
        env["MLFLOW_EXPERIMENT_NAME"] = agent.spec.experiment
    if runtime == "workspace":
        env |= {"MLFLOW_TRACKING_URI": "databricks", "MLFLOW_REGISTRY_URI": "databricks-uc"}
    if runtime == "here":
        env["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = SETTINGS["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"]
        declared = {name: value for name, value in declared.items() if not secret_reference(value)}
        if not _may_hold_secret(platform.tracking_uri):
            env["MLFLOW_TRACKING_URI"] = platform.tracking_uri
    if platform.is_databricks:
        from resources.databricks.tracing.tracing import DatabricksTracing

        env["MLFLOW_EXPERIMENT_ID"] = experiment_id(platform, agent.spec.experiment)
        destination = DatabricksTracing(platform).destination(agent)
        if destination:
            env["MLFLOW_TRACING_DESTINATION"] = destination
    return {**declared, **env}


def nothing_handed_over(agent: Agent) -> Refused:
    """The refusal of a question about a hand-off that was never made."""
    return Refused(
        f"{agent.name}: no version was handed to the runtime; materialize {agent.name}/deployment first "
        f"(job {agent.name}_release)."
    )


class Deployer(ABC):
    """Hands a version to the runtime and says what was handed over last."""

    @abstractmethod
    def hand_off(self, agent: Agent, *, version: str, model_id: str, progress: Progress = silent) -> DeploymentRecord:
        """Hand this version over; repeating with the same version changes nothing and returns the same record.

        The record's target is what really was handed to, and its location the file or the page where that is seen.
        """

    @abstractmethod
    def current(self, agent: Agent) -> DeploymentRecord | None:
        """What was handed over last; None when nothing was, or the declared target is `none`."""

    @abstractmethod
    def environment(self, agent: Agent) -> dict[str, str]:
        """Variables the runtime sets before it loads the model; none when the declared target is `none`.

        Raises `Refused` when nothing was handed over.
        """


class LocalDeployer(Deployer):
    """Writes the hand-off as `$LIFECYCLE_HOME/deployments/<agent>.json`, which `lifecycle serve` reads.

    A declared databricks_* target is handed over the same way, and the record says `local`.

    The file appears whole or not at all, and is not touched when it would say the same: a rerun after a kill anywhere
    leaves one file and the moment of the first hand-off.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def hand_off(self, agent: Agent, *, version: str, model_id: str, progress: Progress = silent) -> DeploymentRecord:
        """Write the hand-off. Target `none` removes a former hand-off and gives a record without place or time.

        Raises `Refused` when the file cannot be written, or holds something that is no hand-off.
        """
        file = self._file(agent)
        with explained(str(file)):
            if agent.spec.deployment.target == "none":
                file.unlink(missing_ok=True)
                return DeploymentRecord("none", "", version, model_id, "")
            content = self._content(agent, version, model_id)
            former = self._read(agent)
            if former is None or {**former, "handed_at": ""} != {**content, "handed_at": ""}:
                _write(file, content)
                former = content
        return _record(file, former)

    def current(self, agent: Agent) -> DeploymentRecord | None:
        """The record of the file. Raises `Refused` when the file holds something that is no hand-off."""
        if agent.spec.deployment.target == "none":
            return None
        found = self._read(agent)
        return None if found is None else _record(self._file(agent), found)

    def environment(self, agent: Agent) -> dict[str, str]:
        """The variables of the file; `MLFLOW_TRACKING_URI` is not among them when it would hold a secret."""
        if agent.spec.deployment.target == "none":
            return {}
        found = self._read(agent)
        if found is None:
            raise nothing_handed_over(agent)
        return dict(found["env"])

    def _content(self, agent: Agent, version: str, model_id: str) -> dict[str, Any]:
        return {
            "target": "local",
            "agent": agent.name,
            "model_uri": f"models:/{agent.spec.model_name}/{version}",
            "model_name": agent.spec.model_name,
            "version": version,
            "model_id": model_id,
            "port": agent.spec.deployment.port,
            "handed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "env": variables(agent, self._platform, model_id=model_id, runtime="here"),
        }

    def _file(self, agent: Agent) -> Path:
        return self._platform.home / "deployments" / f"{agent.name}.json"

    def _read(self, agent: Agent) -> dict[str, Any] | None:
        file = self._file(agent)
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
        return found


def _record(file: Path, content: dict[str, Any]) -> DeploymentRecord:
    return DeploymentRecord(content["target"], str(file), content["version"], content["model_id"], content["handed_at"])


def _may_hold_secret(uri: str) -> bool:
    """Whether a URI names a user, or has a query in which drivers accept passwords."""
    parts = urlsplit(uri)
    return "@" in parts.netloc or bool(parts.query)


def _write(file: Path, content: dict[str, Any]) -> None:
    """Replace `file` so that a reader sees the former content or the new one, and a power cut leaves one of them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=2)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
