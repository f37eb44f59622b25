"""What a range of days owes to some scorers, counted in the archive by one query.

Lives here: the query, for DuckDB and a warehouse alike, and its rows as numbers by day and scorer.
Add here: a rule of which archived traces a scorer owes a score.
Not here: what is made of the numbers (`backfill_plan.py`), filters as SQL (`resources/sql/filters.py`).

The query costs what the range holds of ids, tags and scores: payloads are not read.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from lifecycle_assets.records import ScorerVersion
from resources.scoring.sampling import hash_bound, least_expected
from resources.scoring.trace_scores import OWED_AGAIN_SQL
from resources.sql.filters import condition_of

_SESSIONS = """by_day AS (
            SELECT *, row_number() OVER (PARTITION BY session_id, trace_date ORDER BY request_ms, trace_id) AS place
            FROM seen WHERE session_id <> ''
        ),
        begun AS (
            SELECT *, lag(trace_date) OVER (PARTITION BY session_id ORDER BY trace_date) AS before
            FROM by_day WHERE place = 1
        ),
        firsts AS (SELECT * FROM begun WHERE before IS NULL OR date_diff('day', before, trace_date) > 1),"""
"""The first trace of each session: it carries the session's score, and its day is the session's. See
`resources/scoring/units.py`: after a whole day without a trace a session is a new one."""

MAX_ROWS = 100_000
"""Rows of one answer: twenty scorers on every day of thirteen years."""

_REQUEST_MS = "date_diff('millisecond', CAST('1970-01-01 00:00:00+00' AS TIMESTAMPTZ), t.request_time)"
_COLUMNS = (
    "t.trace_date, t.trace_id, t.session_id, t.state, t.execution_ms, t.tags, t.metadata, "
    f"{_REQUEST_MS} AS request_ms, {_REQUEST_MS} + t.execution_ms AS ended_ms"
)


@dataclass(frozen=True)
class DayCount:
    """One scorer on one day: traces (of a session scorer: sessions) its filter takes, sampled, and what became of them.

    `scored` and `errored` are by its present version; `errored` are errors that stay. `to_score` are the sampled ones
    without either: the calls a backfill makes.
    """

    matching: int
    sampled: int
    scored: int
    errored: int
    to_score: int


@dataclass(frozen=True)
class Counts:
    """Numbers of a range: traces by day, distinct traces to score by day, and `DayCount` by day and scorer.

    Where the workspace samples, `to_score` of a day are its calls.
    """

    traces: dict[str, int]
    to_score: dict[str, int]
    by_scorer: dict[tuple[str, str], DayCount]

    def of(self, day: str, scorer: ScorerVersion) -> DayCount:
        """The numbers of a scorer on a day; zeros where it has none."""
        return self.by_scorer.get((day, scorer.registered_name), DayCount(0, 0, 0, 0, 0))

    def only(self, days: Collection[str]) -> "Counts":
        """The same numbers, of which only these days have something to score."""
        return replace(self, to_score={day: number for day, number in self.to_score.items() if day in days})


def counts(
    query: Callable[[str, Sequence[Any]], Sequence[dict[str, Any]]],
    scorers: Sequence[ScorerVersion],
    first: date,
    last: date,
    *,
    by_hash: bool,
) -> Counts:
    """Count the days `first` to `last` (UTC, both included). `query` answers SQL over the agent's tables.

    A scorer whose version is empty has no score yet. `by_hash`: traces are sampled as `scoring/sampling.py` says;
    else (production monitoring of a workspace decides by itself) the sample is what its rate makes expected, and it is
    complete from `least_expected` scores on. Raises `Refused` for a filter that cannot be counted.
    """
    if not scorers:
        return Counts({}, {}, {})
    sql, parameters = statement(scorers, first, last, by_hash=by_hash)
    traces, to_score, by_scorer = {}, {}, {}
    for row in query(sql, parameters):
        day, number = str(row["trace_date"]), row["n"]
        if number is None:
            to_score[day] = int(row["to_score"])
        elif number < 0:
            traces[day] = int(row["matching"])
        else:
            scorer = scorers[number]
            found = DayCount(*(int(row[name]) for name in DayCount.__dataclass_fields__))
            by_scorer[day, scorer.registered_name] = found if by_hash else _expected(scorer, found)
    if not by_hash:  # There, budgets count every call for a trace.
        to_score = dict.fromkeys((day for day, _ in by_scorer), 0)
        for (day, _), found in by_scorer.items():
            to_score[day] += found.to_score
    return Counts(traces, {day: n for day, n in to_score.items() if n}, by_scorer)


def _expected(scorer: ScorerVersion, found: DayCount) -> DayCount:
    """The numbers where the workspace sampled: one backfill samples all matching traces of the day again."""
    answered, sampled = found.scored + found.errored, round(found.matching * scorer.sample_rate)
    is_complete = answered >= least_expected(found.matching, scorer.sample_rate) and bool(answered or not sampled)
    return DayCount(
        found.matching, max(sampled, answered), found.scored, found.errored, 0 if is_complete else max(sampled, 1)
    )


def statement(
    scorers: Sequence[ScorerVersion], first: date, last: date, *, by_hash: bool
) -> tuple[str, list[str | float]]:
    """The query and its parameters.

    Rows: `n` is the scorer's place, -1 all traces of the day, null the distinct traces any scorer is still to score;
    `trace_date`; then the fields of `DayCount`.
    """
    has_sessions = any(one.level == "session" for one in scorers)
    # Whether a session goes on from the day before decides whose day it is.
    days = [(first - timedelta(days=int(has_sessions))).isoformat(), last.isoformat()]
    in_range = "trace_date BETWEEN CAST(? AS DATE) AND CAST(? AS DATE)"
    asked, parameters = [], []
    for number, scorer in enumerate(scorers):
        asked.append(f"SELECT {number} AS n, CAST(? AS VARCHAR) AS name, CAST(? AS VARCHAR) AS version")
        parameters += [scorer.registered_name, scorer.version]
    seen = f"SELECT {_COLUMNS}, NULL AS judged FROM traces t WHERE t.{in_range}"  # noqa: S608 texts of ours
    if any("feedback" in s.filter.lower() or "expectation" in s.filter.lower() for s in scorers):
        seen = f"""SELECT {_COLUMNS}, j.judged FROM traces t LEFT JOIN (
            SELECT trace_id, trace_date, array_agg(DISTINCT kind || '.' || name) AS judged FROM assessments
            WHERE valid AND {in_range} GROUP BY trace_id, trace_date
        ) j ON j.trace_id = t.trace_id AND j.trace_date = t.trace_date WHERE t.{in_range}"""  # noqa: S608
        parameters += days
    parameters += days
    units = ["SELECT -1 AS n, trace_date, trace_id, trace_id AS unit, false AS sampled FROM seen"]
    for number, scorer in enumerate(scorers):
        text, values = _units(number, scorer, by_hash=by_hash)
        units.append(text)
        parameters += values
    parameters += [*days, first.isoformat()]
    sql = f"""
        WITH asked AS ({" UNION ALL ".join(asked)}), seen AS ({seen}),
        {_SESSIONS if has_sessions else ""}
        units AS ({" UNION ALL ".join(units)}),
        answers AS (
            SELECT q.n, a.trace_id, bool_or(error IS NULL) AS scored,
                bool_or(error IS NOT NULL AND NOT ({OWED_AGAIN_SQL})) AS errored
            FROM assessments a JOIN asked q ON a.name = q.name AND a.scorer_version = q.version
            WHERE a.valid AND a.kind = 'feedback' AND a.source_type <> 'HUMAN' AND a.{in_range}
            GROUP BY q.n, a.trace_id
        ),
        marked AS (
            SELECT u.n, u.trace_date, u.unit, u.sampled, coalesce(a.scored, false) AS scored,
                coalesce(a.errored, false) AND NOT coalesce(a.scored, false) AS errored
            FROM units u LEFT JOIN answers a ON a.n = u.n AND a.trace_id = u.trace_id
            WHERE u.trace_date >= CAST(? AS DATE)
        )
        SELECT n, trace_date, count(*) AS matching, count(*) FILTER (WHERE sampled) AS sampled,
            count(*) FILTER (WHERE sampled AND scored) AS scored,
            count(*) FILTER (WHERE sampled AND errored) AS errored,
            count(DISTINCT CASE WHEN sampled AND NOT scored AND NOT errored THEN unit END) AS to_score
        FROM marked GROUP BY GROUPING SETS ((n, trace_date), (trace_date)) ORDER BY trace_date, n"""  # noqa: S608
    return sql, parameters


def _units(number: int, scorer: ScorerVersion, *, by_hash: bool) -> tuple[str, list[str | float]]:
    """What one scorer looks at in the range, and whether it samples it."""
    is_there = "CASE WHEN list_contains(judged, {key}) THEN 1 END"
    condition, values = condition_of(scorer.filter, judged=is_there).positional()
    unit, place = ("session_id", "firsts") if scorer.level == "session" else ("trace_id", "seen")
    sampled, parameters = "true" if scorer.sample_rate > 0 else "false", []
    if by_hash and 0 < scorer.sample_rate < 1:
        sampled = f"substr(sha256({unit} || ':' || ?), 1, 16) < ?"
        parameters = [scorer.registered_name, hash_bound(scorer.sample_rate)]
    text = f"SELECT {number}, trace_date, trace_id, {unit}, {sampled} FROM {place} WHERE {condition}"  # noqa: S608
    return text, [*parameters, *values]
