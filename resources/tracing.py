"""Where an agent's traces are kept, and that they arrive there.

Lives here: the gateway `Tracing` and its local implementation.
Add here: a question about the place of traces.
Not here: reading traces (`trace_store.py`), tables of ours (`archive/archive.py`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lifecycle_assets.spec_file import Agent
from resources.explain import explained
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from resources.worker import Progress


@dataclass(frozen=True)
class TraceLocation:
    """Where traces go: `kind` is experiment, unity_catalog or unity_schema (the older location).

    `destination` is what an application sets as MLFLOW_TRACING_DESTINATION, empty for an experiment; `tables` are the
    full names of the tables traces are in; `granted` are the GRANT statements this call carried out; `linked` says
    whether this call linked the experiment.
    """

    kind: str
    destination: str = ""
    tables: tuple[str, ...] = ()
    granted: tuple[str, ...] = ()
    linked: bool = False


class Tracing(ABC):
    """Makes sure that traces of an agent have a place, and that whoever has to may write and read there."""

    @abstractmethod
    def ensure(self, agent: Agent, *, progress: Progress) -> TraceLocation:
        """Link the experiment to the declared place once, grant what is needed, and read a trace back.

        Repeating changes nothing. Raises `Refused` when the experiment is linked elsewhere, or a grant is missing that
        this principal may not give.
        """

    @abstractmethod
    def destination(self, agent: Agent) -> str:
        """What an application sets as MLFLOW_TRACING_DESTINATION; empty when traces go to the experiment."""

    @abstractmethod
    def missing_grants(self, agent: Agent) -> list[str] | None:
        """GRANT statements for what the agent's graph needs and this principal lacks; None where nothing is granted.

        Changes nothing. Raises `Refused` when grants cannot be read.
        """

    @abstractmethod
    def otlp_environment(self, agent: Agent) -> dict[str, str]:
        """Variables with which an OpenTelemetry SDK anywhere sends its spans to the agent's place.

        No secret is in them. Empty where only MLflow's own tracing writes.
        """


class LocalTracing(Tracing):
    """Traces are kept in the experiment, by MLflow's tracking store."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def ensure(self, agent: Agent, *, progress: Progress) -> TraceLocation:
        """The experiment, which is created when absent."""
        with explained(self._platform.tracking_uri):
            experiment_id(self._platform, agent.spec.experiment)
        return TraceLocation("experiment")

    def destination(self, agent: Agent) -> str:
        """No destination: the experiment is named by MLFLOW_EXPERIMENT_NAME."""
        return ""

    def missing_grants(self, agent: Agent) -> list[str] | None:
        """Nobody grants anything on a laptop."""
        return None

    def otlp_environment(self, agent: Agent) -> dict[str, str]:
        """None: applications use MLflow's tracing."""
        return {}
