"""Traces with negative feedback, of all days or, after an earlier answer, of those that changed since.

Lives here: the SQL, what is kept of an answer, and the pure union of what was known with what was found.
Add here: another sign that a trace was not liked.
Not here: choosing among rules (`choosing.py`), which days changed (`resources/delta/changed_days.py`).

Feedback comes as late as people give it, so that no day is ever done with. But a day whose files are as they were has
the answer it had, and an archive has many such days.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Self

from lifecycle_assets.records import digest
from resources.feedback import FEEDBACK_NAME
from resources.labeling_desk import QUEUED_TAG
from resources.needs import SqlEngine

NEGATIVE_SQL = """
SELECT DISTINCT t.trace_id, t.request_time, t.trace_date
FROM traces t JOIN assessments a USING (trace_id, trace_date)
WHERE a.valid AND a.name = ? AND a.source_type = 'HUMAN' AND a.value_number < 0.5 AND t.tags[?] IS NULL
ORDER BY t.request_time DESC, t.trace_id LIMIT ?
"""
KEPT_BYTES = 8_000
"""Of an answer at most, some 120 traces: Dagster stores a cursor with every tick."""

MANY_DAYS = 31
"""More changed days than these are as good as all."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Known:
    """Traces that have negative feedback and were never in a session, newest first.

    Each is a text: the UTC day it is kept under, its time in microseconds of the epoch, its id. `whole`: there are no
    others; else there may be, all of them after the last.
    """

    traces: tuple[str, ...] = ()
    whole: bool = False

    @property
    def trace_ids(self) -> list[str]:
        """Their ids, newest first."""
        return [trace.split(" ", 2)[2] for trace in self.traces]

    def kept(self) -> Self:
        """As many of them as a cursor holds."""
        size, few = 0, []
        for trace in self.traces:
            size += len(trace.encode())
            if size > KEPT_BYTES:
                return type(self)(tuple(few), whole=False)
            few.append(trace)
        return self


def asking() -> str:
    """Names what is asked: what an earlier release found by another question is no answer."""
    return digest([NEGATIVE_SQL, FEEDBACK_NAME, QUEUED_TAG], length=8)


def negative_traces(
    sql: SqlEngine, prefix: str, limit: int, *, known: Known | None = None, changed: Collection[date] | None = None
) -> Known:
    """The newest `limit` traces with negative feedback that were never in a session.

    `known` is an earlier answer and `changed` the days written since it began; with None for the latter, or when the
    known ones do not suffice, all days are asked.
    """
    if known is not None and changed is not None and len(changed) <= MANY_DAYS:
        some = _found(sql, prefix, limit, sorted(changed)) if changed else []
        united = unite(known, changed, some, limit)
        if united is not None:
            return united
    found = _found(sql, prefix, limit)
    return Known(tuple(found), whole=len(found) < limit)


def unite(known: Known, changed: Collection[date], found: Sequence[str], limit: int) -> Known | None:
    """The newest `limit` of those known of other days and those found of the changed ones; None when it cannot be told.

    `found` are at most `limit`, newest first: as many mean that there may be more.
    """
    days = {day.isoformat() for day in changed}
    others = [trace for trace in known.traces if trace.partition(" ")[0] not in days]
    newest = sorted([*others, *found], key=_place)
    if known.whole:
        return Known(tuple(newest[:limit]), whole=len(found) < limit and len(newest) <= limit)
    # Of the other days nothing is known beyond the last one known.
    if len(newest) < limit or not known.traces or _place(newest[limit - 1]) > _place(known.traces[-1]):
        return None
    return Known(tuple(newest[:limit]), whole=False)


def _found(sql: SqlEngine, prefix: str, limit: int, days: Sequence[date] = ()) -> list[str]:
    query = NEGATIVE_SQL
    if days:
        among = ", ".join("?" * len(days))
        query = query.replace("WHERE", f"WHERE t.trace_date IN ({among}) AND a.trace_date IN ({among}) AND", 1)
    rows = sql.query(prefix, query, [*days, *days, FEEDBACK_NAME, QUEUED_TAG, limit]).dicts()
    return [f"{row['trace_date']} {_micros(row['request_time'])} {row['trace_id']}" for row in rows]


def _micros(moment: datetime | None) -> int:
    """Microseconds of the epoch; who wrote a trace without its time has it last."""
    return (moment - _EPOCH) // timedelta(microseconds=1) if moment else 0


def _place(trace: str) -> tuple[int, str]:
    """What the SQL orders by: the newest first, then by id."""
    _, micros, trace_id = trace.split(" ", 2)
    return -int(micros), trace_id
