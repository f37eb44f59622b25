"""Scoring a day of production traces: which pairs are missing, scoring them, counting.

Lives here: the gateway `Scoring`, what it may spend, and what it answers.
Add here: something every platform can be asked of a day's scores.
Not here: how (`local_scoring.py`, `databricks/scoring/scoring.py`), registering scorers (`scorer_registry.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from lifecycle_assets.records import Record, ScorerVersion
from lifecycle_assets.spec_file import Agent
from resources.worker import Progress


@dataclass(frozen=True)
class ScoreLimits(Record):
    """What one run may do of a day: declared names of scorers (empty: all), traces or sessions, USD; 0 is no cap."""

    scorers: list[str] = field(default_factory=list)
    max_traces: int = 0
    max_cost_usd: float = 0.0


NO_LIMITS = ScoreLimits()
"""All scorers, all traces, at any price."""


@dataclass(frozen=True)
class DayScores:
    """A day after scoring: traces seen, scores written (or asked for), and coverage per registered scorer name.

    Coverage is that of `lifecycle_assets.monitoring.coverage.tally`, in traces, of a session scorer in sessions.
    `calls` and `seconds` are scorer calls and the wall time they took; `left` are pairs a cap left, by registered name;
    `pending` are scores MLflow does not have yet, the oldest since `pending_minutes`, and `unpublished` says why.
    """

    traces: int
    written: int
    coverage: dict[str, dict[str, Any]]
    calls: int = 0
    seconds: float = 0.0
    left: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    pending_minutes: float = 0.0
    unpublished: str = ""


class Scoring(ABC):
    """Brings the scores of a day up to the current scorer versions, and says how complete they are."""

    @abstractmethod
    def score_day(
        self,
        agent: Agent,
        day: date,
        scorers: Sequence[ScorerVersion],
        *,
        settled_before_ms: int,
        progress: Progress,
        limits: ScoreLimits = NO_LIMITS,
    ) -> DayScores:
        """Close the gaps of `day` (UTC): sampled traces that ended before `settled_before_ms` without a score.

        Repeating asks for nothing that is there or under way. Only the scorers `limits` names are called; coverage is
        of all. Raises `Refused` when a filter is not understood.
        """
