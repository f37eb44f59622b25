"""Production traces: reading them, and writing assessments and tags on them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from lifecycle_assets.gate import Outcome
from lifecycle_assets.records import ScorerVersion


@dataclass(frozen=True)
class TraceInfo:
    """A production trace without its spans. `scored` holds `(registered scorer name, version)` of its assessments
    that carry a value or say 'not applicable'; `errored` those that carry an error."""

    trace_id: str
    request_ms: int
    ended_ms: int
    state: str
    model_id: str
    session_id: str
    tags: Mapping[str, str]
    scored: frozenset[tuple[str, str]]
    errored: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class TraceRows:
    """One trace in the columns of the archive: a row of `traces`, rows of `spans` and of `assessments`."""

    trace: dict[str, Any]
    spans: list[dict[str, Any]]
    assessments: list[dict[str, Any]]


class TraceStore(ABC):
    """The experiment's production traces: not those of evaluations, not those still in progress."""

    @abstractmethod
    def infos(
        self, experiment: str, day: date, *, settled_before_ms: int, filter_string: str = ""
    ) -> list[TraceInfo]:
        """Traces that started on `day` (UTC) and ended before `settled_before_ms`, oldest first."""

    @abstractmethod
    def read(self, trace_ids: Sequence[str]) -> Iterator[Any]:
        """The MLflow traces with spans, a page at a time, in the given order. Raises `Refused` for a missing one."""

    @abstractmethod
    def rows(self, trace: Any) -> TraceRows:
        """A trace in the columns of the archive."""

    @abstractmethod
    def newest(self, experiment: str, *, model_id: str = "") -> TraceInfo | None:
        """The newest production trace, of any model or of one; None when there is none."""

    @abstractmethod
    def write_score(self, trace_id: str, scorer: ScorerVersion, outcome: Outcome) -> bool:
        """Write the outcome as an assessment under an id of (trace, scorer, version); False when it was there."""

    @abstractmethod
    def tag(self, trace_id: str, key: str, value: str) -> None:
        """Set a tag on a trace."""
