"""What scorers owe of a day: the traces and sessions they sample, and which of them have their answer.

Lives here: sampling and the anti-join, in DuckDB over Arrow, and what a session is.
Add here: a rule of which traces or sessions a scorer looks at.
Not here: reading them (`reading/reading.py`), scores in tables (`score_table.py`), calling (`crew.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, NamedTuple

from lifecycle_assets.records import ScorerVersion
from resources.reading.trace_reader import Listing, TraceReader
from resources.scoring.sampling import hash_bound
from resources.scoring.score_table import select
from resources.scoring.trace_scores import OWED_AGAIN_SQL

if TYPE_CHECKING:
    import pyarrow as pa

DAY_MS = 86_400_000

SESSION_BUFFER_MS = 5 * 60_000
"""A session is complete this long after its last trace: MLflow's own buffer (online scoring, mlflow 3.17)."""

MOST_OF_A_SESSION = 500
"""Traces of one session that a scorer is given, the newest: as many as MLflow's online scoring takes in one job."""

_UNITS = f"""
SELECT u.trace_id, u.unit, u.ended_ms, u.size, h.error AS former, h.created_at,
    h.trace_id IS NULL OR h.again OR coalesce(h.size < u.size, false) AS owed,
    CASE WHEN coalesce(h.size < u.size, false) OR h.again THEN NULL ELSE h.answered_ms END AS answered_ms,
    coalesce(h.failed, false) AS failed
FROM units u LEFT JOIN (
    SELECT trace_id, bool_and(coalesce({OWED_AGAIN_SQL}, false)) AS again, bool_and(error IS NOT NULL) AS failed,
        max(error) AS error, max(created_at) AS created_at,
        epoch_ms(min(updated_at) FILTER (NOT coalesce({OWED_AGAIN_SQL}, false))) AS answered_ms,
        max(TRY_CAST(regexp_extract(rationale, '^([0-9]+) trace', 1) AS INT)) AS size
    FROM scores WHERE name = '{{name}}' AND scorer_version = '{{version}}' GROUP BY trace_id
) h USING (trace_id)
WHERE substr(sha256(u.unit || ':' || '{{name}}'), 1, 16) < '{{bound}}'"""  # noqa: S608 names, versions and numbers of ours


@dataclass(frozen=True)
class Units:
    """Traces (or sessions) of a day that may be scored.

    `traces`: trace_id (of a session its first), unit (what is sampled: the trace's id or the session's), ended_ms,
    size (traces of a session, 0 for a trace). `members` are the traces of each session, in order, by its first trace.
    """

    traces: "pa.Table"
    members: Mapping[str, tuple[str, ...]]


class Owing(NamedTuple):
    """One sampled trace or session of a scorer, newest first.

    `former` is the transient error to try again, `created_ms` when that score was first written; `answered_ms` is None
    while a score is owed.
    """

    trace_id: str
    unit: str
    ended_ms: int
    size: int
    is_owed: bool
    answered_ms: int | None
    failed: bool
    former: str | None
    created_ms: int | None


def window(day: date) -> tuple[int, int]:
    """First millisecond of a UTC day, and of the next one."""
    start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    return start, start + DAY_MS


def of_traces(listing: Listing) -> Units:
    """Every listed trace by itself."""
    units = "SELECT trace_id, trace_id AS unit, ended_ms, 0 AS size FROM ends"
    return Units(select(units, ends=listing.ends), {})


def of_sessions(reader: TraceReader, day: date, settled_before_ms: int, now_ms: int) -> Units:
    """The complete sessions whose first trace started on `day`.

    Traces of the day before and of the day after are looked at too. So a session over midnight belongs to the day of
    its first trace, and one that goes on after more than a day without a trace is a new one.
    """
    start, end = window(day)
    traces = _with_sessions(reader, start - DAY_MS, end + DAY_MS)
    complete = min(settled_before_ms, now_ms - SESSION_BUFFER_MS)
    found = select(
        f"""SELECT first.trace_id, session_id AS unit, ended_ms, size, members FROM (
            SELECT session_id, min(request_ms) AS began, max(ended_ms) AS ended_ms, CAST(count(*) AS INT) AS size,
                list(trace_id ORDER BY request_ms, trace_id) AS members
            FROM traces WHERE session_id <> '' GROUP BY session_id
        ) s, LATERAL (SELECT members[1] AS trace_id) first
        WHERE began >= {start} AND began < {end} AND ended_ms < {complete}""",  # noqa: S608 numbers of ours
        traces=traces,
    )
    firsts, members = found.column("trace_id").to_pylist(), found.column("members").to_pylist()
    kept = {
        first: tuple(ids if len(ids) <= MOST_OF_A_SESSION else [first, *ids[1 - MOST_OF_A_SESSION :]])
        for first, ids in zip(firsts, members, strict=True)
    }
    return Units(found.drop_columns(["members"]), kept)


def _with_sessions(reader: TraceReader, since_ms: int, until_ms: int) -> "pa.Table":
    import pyarrow as pa

    listing = reader.list(since_ms, until_ms, settled_before_ms=2**53)
    empty = pa.array([], pa.string())
    heads = [one.traces.select(["trace_id", "session_id"]) for one in reader.heads(listing.traces)]
    heads = heads or [pa.table({"trace_id": empty, "session_id": empty})]
    return select(
        "SELECT trace_id, session_id, request_ms, ended_ms FROM listing JOIN ends USING (trace_id) "
        "JOIN heads USING (trace_id)",
        listing=listing.traces,
        ends=listing.ends,
        heads=pa.concat_tables(heads),
    )


def only(units: Units, trace_ids: Sequence[str]) -> Units:
    """Those whose trace, of a session its first, is among `trace_ids`."""
    import pyarrow as pa

    chosen = pa.table({"trace_id": pa.array(trace_ids, pa.string())})
    kept = select("SELECT * FROM units SEMI JOIN chosen USING (trace_id)", units=units.traces, chosen=chosen)
    return Units(kept, units.members)


def sampled(units: Units, scores: "pa.Table", scorer: ScorerVersion) -> list[Owing]:
    """What a scorer samples, newest first, with what its version said of it (`scores` as of `ScoreTable.scores`)."""
    name, version = (text.replace("'", "''") for text in (scorer.registered_name, scorer.version))
    sql = _UNITS.format(name=name, version=version, bound=hash_bound(scorer.sample_rate))
    found = select(
        f"SELECT trace_id, unit, ended_ms, size, owed, answered_ms, failed, CASE WHEN owed THEN former END, "  # noqa: S608
        f"epoch_ms(created_at) FROM ({sql}) ORDER BY ended_ms DESC, trace_id",
        units=units.traces,
        scores=scores,
    )
    return [*map(Owing._make, zip(*(column.to_pylist() for column in found.columns), strict=True))]
