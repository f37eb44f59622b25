"""The tables: Delta by delta-rs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from resources.trace_store import TraceRows


@dataclass(frozen=True)
class Written:
    """Rows of one table that a write inserted and updated; both 0 when the table was up to date (no commit then)."""

    inserted: int
    updated: int


class Archive(ABC):
    """Writes the agent's tables, each row once however often a step is run. `prefix` is `catalog.schema.prefix_`."""

    @abstractmethod
    def upsert_day(self, prefix: str, day: date, traces: Sequence[TraceRows]) -> dict[str, Written]:
        """Bring `spans`, `assessments`, then `traces` of `day` up to date; only rows that differ are written."""

    @abstractmethod
    def replace_day(self, prefix: str, table: str, day: date, rows: Sequence[Mapping[str, Any]]) -> Written:
        """Make `rows` the table's rows of `day`; no commit when they already are."""

    @abstractmethod
    def append_once(self, prefix: str, table: str, row: Mapping[str, Any], *, key: Sequence[str]) -> bool:
        """Append `row` unless a row with the same values of `key` is there; False then."""

    @abstractmethod
    def trace_ids(self, prefix: str, day: date) -> set[str]:
        """Ids in `traces` of `day`; empty when the table does not exist."""

    @abstractmethod
    def version(self, prefix: str, table: str) -> int:
        """Delta version of a table, -1 when it does not exist; changes with every commit."""
