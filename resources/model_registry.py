"""Logged models and registered versions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from lifecycle_assets.records import SourceRecord
from lifecycle_assets.spec_file import Agent
from resources.worker import Progress


@dataclass(frozen=True)
class LoggedModel:
    """A logged model and what was seen when it was logged.

    `created` is False when an existing model of the same source digest was found. `answer` is the shortened output
    of the smoke prediction, `smoke_seconds` its duration; `requirements` as stored with the model.
    """

    model_id: str
    run_id: str
    experiment_id: str
    created: bool
    has_signature: bool
    requirements: tuple[str, ...]
    resources: int
    answer: str
    smoke_seconds: float
    url: str = ""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model; `model_id` is empty when nothing links it to a logged model."""

    name: str
    version: str
    model_id: str
    tags: Mapping[str, str]
    created_ms: int


class ModelRegistry(ABC):
    """Logs agents as models, registers them, and moves aliases."""

    @abstractmethod
    def log(self, agent: Agent, source: SourceRecord, *, progress: Progress) -> LoggedModel:
        """The logged model of this source digest: the existing one, or a new one after a smoke prediction.

        Raises `Refused` when the agent has no `set_model`, does not import, or fails its smoke prediction.
        """

    @abstractmethod
    def register(self, name: str, model_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """The version of this logged model under `name`: the existing one with its tags completed, or a new one."""

    @abstractmethod
    def loads_back(self, version: RegisteredVersion, request: Mapping[str, object], *, progress: Progress) -> str:
        """Load the version from the registry in a process of its own, predict, and return the shortened answer."""

    @abstractmethod
    def versions(self, name: str) -> list[RegisteredVersion]:
        """Every version, oldest first; empty only when the registered model does not exist or has none."""

    @abstractmethod
    def aliases(self, name: str) -> dict[str, str]:
        """Alias to version; empty only when the registered model does not exist or has none."""

    @abstractmethod
    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point `alias` at `version`; no write when it is there already."""
