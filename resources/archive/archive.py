"""The tables: writing the agent's rows, each once however often a step is run.

Lives here: what an archive promises, on any platform.
Add here: a further way to write the tables that both platforms have.
Not here: Delta by delta-rs (`delta_archive.py`), Unity Catalog (`databricks/archive/archive.py`), columns
(`tables.py`), maintenance (`upkeep/upkeep.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from lifecycle_assets.spec_file import Agent
from resources.archive.row_changes import Written
from resources.worker import Progress


@dataclass(frozen=True)
class ArchivedDay:
    """A day, or some days, after archiving.

    `settled`: traces the platform holds that had ended; `absent`: ids of those the table lacks; `written`: rows by
    table; `newest_ms`: start of the newest trace in the table, epoch milliseconds, 0 without one; `quarantined`: traces
    that could not be made into rows, which are not `absent`; `unchanged`: nothing was read, because nothing came since
    all was there; `rows`: rows the tables should have of these days, by table, where that is known without counting.
    """

    settled: int
    absent: tuple[str, ...]
    written: dict[str, Written]
    newest_ms: int
    quarantined: int = 0
    unchanged: bool = False
    rows: dict[str, int] = field(default_factory=dict)


class Archive(ABC):
    """Writes the agent's tables, each row once however often a step is run. `prefix` is `catalog.schema.prefix_`."""

    @abstractmethod
    def archive_day(
        self, agent: Agent, day: date, *, settled_before_ms: int, progress: Progress, anew: bool = False
    ) -> ArchivedDay:
        """Bring `spans`, `assessments`, then `traces` of `day` up to the production traces the platform holds.

        Taken are traces that started on `day` (UTC) and ended before `settled_before_ms`; text is redacted as
        declared before it is written; only rows that differ are written. An assessment that is gone becomes invalid,
        but for a score of ours that MLflow does not have yet. `anew` compares every row, whatever was noted.
        """

    def archive_days(
        self, agent: Agent, first: date, last: date, *, settled_before_ms: int, progress: Progress
    ) -> ArchivedDay:
        """The same for the days from `first` to `last`, both included."""
        days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
        found = [self.archive_day(agent, day, settled_before_ms=settled_before_ms, progress=progress) for day in days]
        written: dict[str, Written] = {}
        for one in found:
            for table, rows in one.written.items():
                written[table] = written.get(table, Written(0, 0)) + rows
        return ArchivedDay(
            settled=sum(one.settled for one in found),
            absent=tuple(trace_id for one in found for trace_id in one.absent),
            written=written,
            newest_ms=max((one.newest_ms for one in found), default=0),
            quarantined=sum(one.quarantined for one in found),
            unchanged=all(one.unchanged for one in found),
        )

    @abstractmethod
    def replace_day(self, prefix: str, table: str, day: date, rows: Sequence[Mapping[str, Any]]) -> Written:
        """Make `rows` the table's rows of `day`; no commit when they already are."""

    def undouble_day(self, prefix: str, table: str, day: date) -> int:
        """Keep one row of each key of `day`; returns how many rows went. Where it cannot be done: 0."""
        return 0

    @abstractmethod
    def append_once(self, prefix: str, table: str, row: Mapping[str, Any], *, key: Sequence[str]) -> bool:
        """Append `row` unless a row with the same values of `key` is there; False then."""

    @abstractmethod
    def version(self, prefix: str, table: str) -> int:
        """Delta version of a table, -1 when it does not exist; changes with every commit."""
