"""Traces that could not be made into rows: kept by id with the reason, so that one of them stops nobody.

Lives here: which traces of some days are in quarantine, before and after a run.
Add here: nothing about why a trace fails (the readers say it).
Not here: when one is tried again (`run.py`).
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from resources.archive.marks import Days
from resources.delta.days import replace_day
from resources.delta.table import open_table, rows_of_day
from resources.platform import Platform
from resources.reading.trace_reader import Batch, Quarantined
from resources.tables import PARTITION
from resources.trace_rows import day_of

_TABLE = "quarantine"
_REASON_CHARS = 500


class Quarantine:
    """The quarantine of some days. `prefix` is `catalog.schema.prefix_`."""

    def __init__(self, platform: Platform, prefix: str, experiment_id: str, days: Days) -> None:
        self._where, self._experiment_id, self._days = platform.table_uri(prefix + _TABLE), experiment_id, days
        self._tried: set[str] = set()
        self._noted: dict[str, dict[str, Any]] = {}

    @cached_property
    def held(self) -> dict[str, dict[str, Any]]:
        """Rows by trace id, as they were when this was first asked."""
        target = open_table(self._where)
        if target is None:
            return {}
        rows = (row for day in self._days for row in rows_of_day(target, _TABLE, day).to_pylist())
        return {row["trace_id"]: row for row in rows}

    @property
    def now(self) -> dict[str, dict[str, Any]]:
        """Rows by trace id as they will be: who was tried and did not fail again has left."""
        return {one: row for one, row in self.held.items() if one not in self._tried} | self._noted

    def tried(self, trace_ids: Iterable[str]) -> None:
        """These are read again, or are gone: they leave, unless they are noted."""
        self._tried |= set(trace_ids) & set(self.held)

    def note(self, failed: Sequence[Quarantined]) -> None:
        """These failed. One that failed so before keeps its date."""
        for one in failed:
            known, reason = self.held.get(one.trace_id, {}), one.reason[:_REASON_CHARS]
            row = {
                "trace_id": one.trace_id,
                PARTITION: day_of(one.request_ms),
                "experiment_id": self._experiment_id,
                "reason": reason,
                "at": datetime.now(UTC),
            }
            self._noted[one.trace_id] = known if known.get("reason") == reason else row

    def noting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, noting who failed."""
        for batch in batches:
            self.note(batch.quarantined)
            yield batch

    def write(self) -> None:
        """Bring the table up to date; no commit when nobody came or left."""
        now = self.now
        if now == self.held:
            return
        for day in {row[PARTITION] for row in [*now.values(), *self.held.values()]}:
            replace_day(self._where, _TABLE, day, [row for row in now.values() if row[PARTITION] == day])
