"""Tables with rows of some traces, written as the archive writes them: by appends, or compared with what is held.

Lives here: rows and tables for tests of what happens to tables. Add here: a further shape of table.
Not here: archiving itself (`test_archive.py`).
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from resources.archive.marks import Days
from resources.archive.row_changes import Written
from resources.archive.snapshots import ArchiveTables
from resources.archive.upsert import Upsert
from resources.delta.write import append_rows, retried, table_to_write
from resources.platform import Platform
from resources.reading.row_batches import batch_of
from resources.tables import arrow_table
from resources.trace_rows import TraceRows

PREFIX = "main.agents.tiny_"
DAY = date(2026, 11, 1)


def trace_rows(number: int, day: date = DAY) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """A trace, its two spans and its assessment."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(seconds=number)
    key: dict[str, Any] = {"trace_id": f"tr-{number:06}", "trace_date": day}
    trace = key | {"experiment_id": "1", "request_time": start, "state": "OK", "execution_ms": 100}
    trace |= {"request": f"question {number}", "tags": {"n": str(number)}, "archived_at": start}
    spans = [key | {"span_id": f"{number:x}-{k}", "name": "s", "start_time": start} for k in range(2)]
    said = key | {"assessment_id": f"h-{number}", "name": "good", "kind": "feedback", "valid": True}
    return trace, spans, [said | {"source_type": "HUMAN", "value_text": "yes", "created_at": start}]


def append_traces(
    platform: Platform, numbers: Iterable[int], day: date = DAY, *, notes: dict[str, int] | None = None
) -> None:
    """One commit a table, children first."""
    found = [trace_rows(number, day) for number in numbers]
    rows = {
        "spans": [span for _, spans, _ in found for span in spans],
        "assessments": [said for *_, assessments in found for said in assessments],
        "traces": [trace for trace, *_ in found],
    }
    for table, of_table in rows.items():
        append_rows(table_to_write(platform.table_uri(PREFIX + table), table), arrow_table(table, of_table), notes)


def upsert_day(platform: Platform, day: date, traces: Sequence[TraceRows]) -> dict[str, Written]:
    """Bring the tables up to some traces of a day; of one that is given twice the last counts."""
    distinct = {rows.trace["trace_id"]: rows for rows in traces}
    batch = batch_of(list(distinct.values()), with_spans=True)

    def attempt() -> dict[str, Written]:
        tables = ArchiveTables(platform, PREFIX, "1")
        upsert = Upsert(tables, Days(day, day), batch.traces.column("trace_id"), whole=True)
        upsert.write([batch])
        return upsert.written

    return retried(platform.table_uri(f"{PREFIX}traces"), attempt)


def filled_tables(platform: Platform) -> None:
    """Fifteen traces of `DAY` in three commits, and three of the next day."""
    for first in (0, 5, 10):
        append_traces(platform, range(first, first + 5))
    append_traces(platform, range(20, 23), DAY + timedelta(days=1))
