"""Which traces something came to since some marks, as the tracking database tells.

Lives here: marks and the queries behind them, and digests of all that traces say.
Add here: a further sign of a change.
Not here: what the archive does about it (`trace_reader.py` says what is promised).

Assessments carry the time of their last update. SQLite numbers rows as they come, so that new tags and spans are those
with higher numbers; a row that is written again in place, such as a tag with another value, keeps its number and shows
nothing. Rows that were deleted give their numbers back: then the greatest number falls below the mark, and everything
counts as touched. Numbers that others were given before this is asked again show nothing: heads have to be compared,
or the digests of all they say. PostgreSQL has no such numbers: there only assessments tell.
"""

import hashlib
import time
from collections.abc import Sequence

from resources.reading import database_sql
from resources.reading.database import Database, Query
from resources.reading.trace_reader import Marks, Touched

_AT_ONCE = 1  # Milliseconds: an assessment may come in the one in which the mark was taken.
_SETTLED_MS = 60_000  # After which nobody writes with a time so old, but for clocks that are wrong by more.


def touched(database: Database, experiment_id: int, since_ms: int, until_ms: int, marks: Marks) -> Touched:
    """See `TraceReader.touched`."""
    now = _marks(database)
    if not marks.seen:
        return Touched(frozenset(), frozenset(), now)
    inside = f"t.experiment_id = {experiment_id} AND t.timestamp_ms >= {since_ms} AND t.timestamp_ms < {until_ms}"
    said = _ids(
        database, "assessments", "trace_id", f"c.last_updated_timestamp >= {_since(marks, 'assessments')}", inside
    )
    if not database.numbers:
        return Touched(said, frozenset(), now)
    tagged = _numbered(database, "trace_tags", "request_id", marks, now, inside)
    noted = _numbered(database, "trace_request_metadata", "request_id", marks, now, inside)
    spans = _numbered(database, "spans", "trace_id", marks, now, inside)
    return Touched(said | tagged | noted | spans, spans, now)


def digests(database: Database, experiment_id: int, ids: Sequence[str]) -> Sequence[int] | None:
    """See `TraceReader.digests`; where rows are numbered, which is SQLite."""
    import orjson

    if not database.numbers:
        return None
    found = database.query(database_sql.said(database, experiment_id), (orjson.dumps(ids).decode(),))
    numbers = [0] * len(ids)
    for nth, said in zip(*(column.to_pylist() for column in found.columns), strict=True):
        numbers[nth] = int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest())
    return numbers


def _marks(database: Database) -> Marks:
    asked = "SELECT coalesce(max(last_updated_timestamp), 0) AS n FROM assessments"
    last, now_ms = _number(database, asked), int(time.time() * 1000)
    if last > now_ms:
        # Clients stamp what they say: a time to come must not hide what others say until then.
        last = _number(database, f"{asked} WHERE last_updated_timestamp <= {now_ms}") or last
    # All of a moment long past have been seen: the trace it belongs to is not looked at again and again.
    seen = {"assessments": last + 1 + _AT_ONCE if 0 < last < now_ms - _SETTLED_MS else last}
    for table in database.numbers:
        seen[table] = _number(database, f"SELECT coalesce(max(rowid), 0) AS n FROM {table}")  # noqa: S608
    return Marks(seen)


def _number(database: Database, asked: str) -> int:
    return database.query(Query(asked, (("n", "i"),))).column("n")[0].as_py()


def _since(marks: Marks, name: str) -> int:
    return marks.seen.get(name, 0) - _AT_ONCE


def _numbered(database: Database, table: str, key: str, marks: Marks, now: Marks, inside: str) -> frozenset[str]:
    """Traces with rows beyond the mark; all traces when rows were deleted, since their numbers are given again."""
    mark = marks.seen.get(table, 0)
    since = mark + 1 if now.seen[table] >= mark else 0
    return _ids(database, table, key, f"c.rowid >= {since}", inside)


def _ids(database: Database, table: str, key: str, changed: str, inside: str) -> frozenset[str]:
    join = "JOIN" if changed.endswith(">= 0") else database.join  # What changed is few, and leads.
    query = (
        f"SELECT DISTINCT t.request_id AS trace_id FROM {table} AS c {join} trace_info AS t "  # noqa: S608
        f"ON t.request_id = c.{key} WHERE {changed} AND {inside}"
    )
    return frozenset(database.query(Query(query, (("trace_id", "s"),))).column("trace_id").to_pylist())
