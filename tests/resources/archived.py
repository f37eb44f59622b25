"""Tables with rows of some traces, written as the archive writes them: by appends.

Lives here: rows and tables for tests of what happens to tables. Add here: a further shape of table.
Not here: archiving itself (`test_archive.py`).
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from resources.delta.write import append_rows, table_to_write
from resources.platform import Platform
from resources.tables import arrow_table

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


def filled_tables(platform: Platform) -> None:
    """Fifteen traces of `DAY` in three commits, and three of the next day."""
    for first in (0, 5, 10):
        append_traces(platform, range(first, first + 5))
    append_traces(platform, range(20, 23), DAY + timedelta(days=1))
