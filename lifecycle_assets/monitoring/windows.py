"""A model's production numbers by window of hours, beside those of another model at the same hours of the week.

Lives here: windows (pure), the SQL that reads their numbers, one query for all windows.
Add here: a number that a window of production traces has.
Not here: what follows from them (`sensors/rollback.py`), the numbers by day (`quality.py`).

Windows are cut from Monday 00:00 UTC on, so that every week has the same ones; a length that does not divide a week
makes its last window shorter. Units are those of the table `quality_metrics`: latency in seconds, error_rate 0..1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from resources.needs import SqlEngine

MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
"""A Monday, from which weeks are counted."""

WEEK_HOURS = 168

BASELINE_DAYS = 56
"""How far back the other model's figures are read, in days: eight of each hour of the week."""

ERROR_RATE, LATENCIES = "error_rate", ("latency/p50", "latency/p95")
"""Numbers of traces themselves; every other one is `<scorer>/mean`."""

OF_WINDOWS = """
    list_contains(?, t.trace_date)
    AND (t.model_id = ? AND t.request_time >= ? AND t.request_time < ? OR t.model_id = ? AND t.request_time >= ?)
"""
ARCHIVED_SQL = "SELECT max(archived_at) AS until FROM traces WHERE trace_date >= ?"
TRACES_SQL = f"""
SELECT week, slot, count(*) AS n, avg(failed) AS error_rate, count(execution_ms) AS timed,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY execution_ms) AS p50,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY execution_ms) AS p95
FROM (
    SELECT execution_ms, failed,
           CAST(CASE WHEN model_id = ? THEN floor(hours / 168) ELSE -1 END AS BIGINT) AS week,
           CAST(floor((hours % 168) / ?) AS BIGINT) AS slot
    FROM (
        SELECT t.model_id, t.execution_ms, CASE WHEN t.state = 'OK' THEN 0.0 ELSE 1.0 END AS failed,
               date_diff('hour', CAST(? AS TIMESTAMPTZ), t.request_time) AS hours
        FROM traces t WHERE {OF_WINDOWS}
    ) found
) cut
WHERE list_contains(?, slot) GROUP BY week, slot ORDER BY week, slot
"""  # noqa: S608 - put together from constants
SCORES_SQL = f"""
SELECT name, scorer_version, week, slot, count(*) AS n, avg(value) AS mean
FROM (
    SELECT name, scorer_version, value,
           CAST(CASE WHEN model_id = ? THEN floor(hours / 168) ELSE -1 END AS BIGINT) AS week,
           CAST(floor((hours % 168) / ?) AS BIGINT) AS slot
    FROM (
        SELECT t.model_id, a.name, coalesce(a.scorer_version, '') AS scorer_version, a.value_number AS value,
               date_diff('hour', CAST(? AS TIMESTAMPTZ), t.request_time) AS hours
        FROM assessments a JOIN traces t USING (trace_id, trace_date)
        WHERE {OF_WINDOWS} AND list_contains(?, a.name) AND a.value_number IS NOT NULL
            AND a.valid AND a.kind = 'feedback' AND a.source_type <> 'HUMAN'
        QUALIFY row_number() OVER (
            PARTITION BY a.trace_id, a.name, a.scorer_version ORDER BY a.updated_at DESC, a.assessment_id
        ) = 1
    ) found
) cut
WHERE list_contains(?, slot) GROUP BY name, scorer_version, week, slot ORDER BY name, scorer_version, week, slot
"""  # noqa: S608 - put together from constants


@dataclass(frozen=True)
class Window:
    """Hours `start` to `end` (UTC, the end excluded): the `slot`th window of the `week`th week."""

    week: int
    slot: int
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Reading:
    """One number of one window, and how many traces it rests on."""

    value: float
    n: int


@dataclass(frozen=True)
class Compared:
    """One number of one window: the model's and the other model's, None where there is not a single trace."""

    window: Window
    ours: Reading | None
    theirs: Reading | None


def window_of(moment: datetime, hours: int) -> Window:
    """The window of `hours` that `moment` (aware) lies in."""
    passed = int((moment - MONDAY) // timedelta(hours=1))
    week, hour = divmod(passed, WEEK_HOURS)
    slot = hour // hours
    start = MONDAY + timedelta(hours=week * WEEK_HOURS + slot * hours)
    return Window(week, slot, start, min(start + timedelta(hours=hours), start_of(week + 1)))


def start_of(week: int) -> datetime:
    """When the `week`th week begins."""
    return MONDAY + timedelta(weeks=week)


def complete_windows(*, since: datetime, until: datetime, hours: int, at_most: int) -> list[Window]:
    """The last windows that began at or after `since` and ended by `until`, oldest first."""
    found: list[Window] = []
    window = window_of(window_of(until, hours).start - timedelta(microseconds=1), hours)
    while window.start >= since and len(found) < at_most:
        found.append(window)
        window = window_of(window.start - timedelta(microseconds=1), hours)
    return found[::-1]


def archived_until(sql: SqlEngine, prefix: str, *, since: date, settle: timedelta) -> datetime | None:
    """Up to when traces of the days from `since` on are archived; None when there are none.

    A trace is archived `settle` after its end: what was written at a moment is complete up to `settle` before it.
    """
    (row,) = sql.query(prefix, ARCHIVED_SQL, [since]).dicts()
    return row["until"] - settle if row["until"] else None


def compare_windows(
    sql: SqlEngine,
    prefix: str,
    *,
    windows: Sequence[Window],
    hours: int,
    model_id: str,
    other_model_id: str,
    metrics: Sequence[str],
    scorer_names: Mapping[str, str],
) -> dict[str, list[Compared]]:
    """Each metric's readings by window, oldest first.

    The other model's reading is over all its traces of the last `BASELINE_DAYS` at the same hours of the week.
    `scorer_names` maps a declared scorer to its registered name. A mean is over the scores of one version of its
    scorer, the newest that scored `model_id`: scores of different versions cannot be compared.
    """
    if not windows:
        return {metric: [] for metric in metrics}
    first, last = windows[0].start, windows[-1].end
    oldest = first - timedelta(days=BASELINE_DAYS)
    slots = sorted({window.slot for window in windows})
    cut = [model_id, hours, MONDAY]
    within = [_days(windows), model_id, first, last, other_model_id, oldest]
    found: dict[tuple[str, int, int], Reading] = {}
    for row in sql.query(prefix, TRACES_SQL, [*cut, *within, slots]).dicts():
        place = (int(row["week"]), int(row["slot"]))
        found[(ERROR_RATE, *place)] = Reading(float(row["error_rate"]), row["n"])
        for metric, column in zip(LATENCIES, ("p50", "p95"), strict=True):
            if row["timed"]:
                found[(metric, *place)] = Reading(float(row[column]) / 1000, row["timed"])
    scorers = {scorer_names[metric.removesuffix("/mean")]: metric for metric in metrics if metric.endswith("/mean")}
    rows = sql.query(prefix, SCORES_SQL, [*cut, *within, sorted(scorers), slots]).dicts() if scorers else []
    for name, metric in scorers.items():
        of_scorer = [row for row in rows if row["name"] == name]
        versions = {row["scorer_version"] for row in of_scorer if row["week"] >= 0}
        newest = max(versions, key=lambda version: (int(version) if version.isdigit() else -1, version), default=None)
        for row in of_scorer:
            if row["scorer_version"] == newest:
                found[(metric, int(row["week"]), int(row["slot"]))] = Reading(float(row["mean"]), row["n"])
    return {
        metric: [
            Compared(window, found.get((metric, window.week, window.slot)), found.get((metric, -1, window.slot)))
            for window in windows
        ]
        for metric in metrics
    }


def _days(windows: Sequence[Window]) -> list[date]:
    """The days the windows lie on, and the same days of the weeks before."""
    days = set()
    for window in windows:
        day = window.start.date()
        while day <= (window.end - timedelta(microseconds=1)).date():
            days |= {day - timedelta(weeks=week) for week in range(BASELINE_DAYS // 7 + 1)}
            day += timedelta(days=1)
    return sorted(days)
