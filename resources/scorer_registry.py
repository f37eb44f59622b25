"""Registered scorers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from lifecycle_assets.gate import Outcome
from lifecycle_assets.records import ScorerVersion
from lifecycle_assets.spec_file import Agent
from resources.worker import Progress

ScoreTrace = Callable[[Any], Outcome]
"""Scores one MLflow trace; an `Outcome` with neither value nor error means 'not applicable'. Never raises for
a fault of the scorer: that is `Outcome(error=...)`."""


class ScorerRegistry(ABC):
    """Registers scorers as declared and hands back the registered copies."""

    @abstractmethod
    def try_alone(self, agent: Agent, *, progress: Progress) -> dict[str, str]:
        """Declared scorers that do not stand alone: name to a sentence naming what is missing; empty is well."""

    @abstractmethod
    def register(self, agent: Agent) -> list[ScorerVersion]:
        """Register the active scorers; the same source digest keeps its version, rates and filters are updated."""

    @abstractmethod
    def registered(self, agent: Agent) -> list[ScorerVersion]:
        """What is registered for the agent now, by name."""

    @abstractmethod
    def load(self, agent: Agent, scorer: ScorerVersion) -> ScoreTrace:
        """The registered copy of that version, ready to score traces."""
