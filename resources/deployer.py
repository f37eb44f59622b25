"""Handing the champion to the runtime that serves it.

Lives here: the gateway, what is handed over, and the environment every runtime must set.
Add here: a variable of the runtime; a target, with its fields in `lifecycle_assets/spec_runtime.py`.
Not here: `lifecycle serve` as a runtime (`local_deployer.py`), a receiver of your own (`webhook_deployer.py`), files
for runtimes nobody tells (`hand_off.py`), the runtimes of a workspace (`databricks/deployment/deployer.py`), proof of
what runs (it is read from the traces).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from lifecycle_assets.records import DeploymentRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_secrets import secret_reference
from resources.mlflow_store import SETTINGS, experiment_id
from resources.platform import Platform
from resources.worker import Progress

Runtime = Literal["here", "workspace", "endpoint", "elsewhere"]
"""Where variables are set: a process of this machine, an app or a job of the workspace, a serving endpoint, or a
process nobody here knows."""

MODEL_URI = "LIFECYCLE_MODEL_URI"
"""Variable that says which version a runtime has to load."""


@dataclass(frozen=True)
class Move:
    """The version a runtime is to run, and the move of `champion` that asks for it.

    `at` is when champion moved there (UTC ISO 8601) and names the move: the same version has another one after it was
    rolled back to. `previous` was champion before; the digest and the commit name what the version rests on. Each but
    the first two may be empty.
    """

    version: str
    model_id: str
    at: str = ""
    previous: str = ""
    evidence_digest: str = ""
    git_commit: str = ""


def silent(line: str) -> None:
    """Progress nobody looks at."""


def variables(agent: Agent, platform: Platform, *, model_id: str, runtime: Runtime) -> dict[str, str]:
    """What a runtime sets so that its traces reach the agent's experiment and name the model.

    `here` is a process of this machine: declared references to secrets are left to its shell, and
    `MLFLOW_TRACKING_URI` is left out when it would hold one; `elsewhere` keeps the references for whoever resolves
    them. `workspace` is an app or a job. `endpoint` is a serving endpoint, which MLflow runs on a local store and sends
    its traces to the experiment by id, once they are enabled.
    """
    declared = agent.spec.deployment.environment
    env = {"MLFLOW_ACTIVE_MODEL_ID": model_id, "LIFECYCLE_ENVIRONMENT": platform.environment}
    if runtime == "endpoint":
        env["ENABLE_MLFLOW_TRACING"] = "true"
    else:
        env["MLFLOW_EXPERIMENT_NAME"] = agent.spec.experiment
    if runtime == "workspace" or (runtime == "elsewhere" and platform.is_databricks):
        env |= {"MLFLOW_TRACKING_URI": "databricks", "MLFLOW_REGISTRY_URI": "databricks-uc"}
    if runtime == "here":
        env["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = SETTINGS["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"]
        declared = {name: value for name, value in declared.items() if not secret_reference(value)}
    if (runtime == "here" or (runtime == "elsewhere" and not platform.is_databricks)) and not _may_hold_secret(
        platform.tracking_uri
    ):
        env["MLFLOW_TRACKING_URI"] = platform.tracking_uri
    if platform.is_databricks:
        from resources.databricks.tracing.tracing import DatabricksTracing

        env["MLFLOW_EXPERIMENT_ID"] = experiment_id(platform, agent.spec.experiment)
        destination = DatabricksTracing(platform).destination(agent)
        if destination:
            env["MLFLOW_TRACING_DESTINATION"] = destination
    return {**declared, **env}


def variables_elsewhere(agent: Agent, platform: Platform, *, version: str, model_id: str) -> dict[str, str]:
    """What a runtime nobody here knows sets: see `variables`, and the version it loads."""
    env = variables(agent, platform, model_id=model_id, runtime="elsewhere")
    return {**env, MODEL_URI: f"models:/{agent.spec.model_name}/{version}"}


def nothing_handed_over(agent: Agent) -> Refused:
    """The refusal of a question about a hand-off that was never made."""
    return Refused(
        f"{agent.name}: no version was handed to the runtime; materialize {agent.name}/deployment first "
        f"(job {agent.name}_release)."
    )


class Deployer(ABC):
    """Hands a version to the runtime and says what was handed over last."""

    @abstractmethod
    def hand_off(self, agent: Agent, move: Move, *, progress: Progress = silent) -> DeploymentRecord:
        """Hand this version over; repeating with the same move changes nothing and returns the same record.

        What the runtime has now decides, never that it had this version before: a version that is gone back to is
        handed over like a new one. The record's target is what really was handed to, and its location the file or the
        page where that is seen.
        """

    @abstractmethod
    def current(self, agent: Agent) -> DeploymentRecord | None:
        """What was handed over last; None when nothing was, or the declared target is `none`."""

    @abstractmethod
    def environment(self, agent: Agent) -> dict[str, str]:
        """Variables the runtime sets before it loads the model; none when the declared target is `none`.

        Raises `Refused` when nothing was handed over.
        """


class TargetDeployer(Deployer):
    """Hands over to the runtime of the declared target: one of `runtimes`, by the target's name."""

    def __init__(self, runtimes: Mapping[str, Deployer]) -> None:
        self._runtimes = runtimes

    def hand_off(self, agent: Agent, move: Move, *, progress: Progress = silent) -> DeploymentRecord:
        """See the runtime of the declared target."""
        return self._of(agent).hand_off(agent, move, progress=progress)

    def current(self, agent: Agent) -> DeploymentRecord | None:
        """As the runtime of the declared target has it."""
        return self._of(agent).current(agent)

    def environment(self, agent: Agent) -> dict[str, str]:
        """As the runtime of the declared target has it; a secret is a reference or not shown."""
        return self._of(agent).environment(agent)

    def _of(self, agent: Agent) -> Deployer:
        return self._runtimes[agent.spec.deployment.target]


def _may_hold_secret(uri: str) -> bool:
    """Whether a URI names a user, or has a query in which drivers accept passwords."""
    parts = urlsplit(uri)
    return "@" in parts.netloc or bool(parts.query)
