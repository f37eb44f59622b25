"""The numbers of windows of hours, read from the archive.

Lives here: two statements for all windows, the one that finds the worst traces, and which hours are judged.
Add here: a number of windows. Not here: judging them (`anomalies.py`), what is said of it (`anomaly_step.py`).
"""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from lifecycle_assets.monitoring.anomalies import HOURS, WEEK
from lifecycle_assets.monitoring.windows import MONDAY
from resources.sql.engine import SqlEngine

TRACES_SQL = f"""
SELECT place, count(*) AS n, count(*) FILTER (WHERE state <> 'OK') AS errors, count(ms) AS timed,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) AS p50, percentile_cont(0.95) WITHIN GROUP (ORDER BY ms) AS p95
FROM (
    SELECT state, CASE WHEN state = 'OK' THEN execution_ms END AS ms,
        CAST(floor(date_diff('hour', CAST(? AS TIMESTAMPTZ), request_time) / {HOURS}) AS BIGINT) AS place
    FROM traces WHERE trace_date >= ? AND trace_date <= ?
) t WHERE place <= ? GROUP BY place ORDER BY place
"""  # noqa: S608 - put together from constants
SCORES_SQL = f"""
SELECT name, scorer_version, place, count(*) AS n, sum(value) AS total,
    coalesce(bool_and(value = 0 OR value = 1), false) AS passes
FROM (
    SELECT a.name, coalesce(a.scorer_version, '') AS scorer_version, a.value_number AS value,
        CAST(floor(date_diff('hour', CAST(? AS TIMESTAMPTZ), t.request_time) / {HOURS}) AS BIGINT) AS place
    FROM assessments a JOIN traces t USING (trace_id, trace_date)
    WHERE a.trace_date >= ? AND a.trace_date <= ? AND t.trace_date >= ? AND t.trace_date <= ?
        AND list_contains(?, a.name) AND a.value_number IS NOT NULL
        AND a.valid AND a.kind = 'feedback' AND a.source_type <> 'HUMAN'
    QUALIFY row_number() OVER (
        PARTITION BY a.trace_id, a.name, a.scorer_version ORDER BY a.updated_at DESC, a.assessment_id
    ) = 1
) s WHERE place <= ? GROUP BY name, scorer_version, place ORDER BY name, scorer_version, place
"""  # noqa: S608 - put together from constants
WORST_SQL = {
    "volume_anomaly": """
SELECT t.trace_id, t.experiment_id FROM traces t WHERE t.trace_date = ? AND t.request_time >= ? AND t.request_time < ?
ORDER BY t.request_time DESC, t.trace_id LIMIT ?""",
    "error_rate_anomaly": """
SELECT t.trace_id, t.experiment_id FROM traces t WHERE t.trace_date = ? AND t.request_time >= ? AND t.request_time < ?
    AND t.state <> 'OK' ORDER BY t.request_time DESC, t.trace_id LIMIT ?""",
    "latency_anomaly": """
SELECT t.trace_id, t.experiment_id FROM traces t WHERE t.trace_date = ? AND t.request_time >= ? AND t.request_time < ?
    AND t.state = 'OK' AND t.execution_ms IS NOT NULL ORDER BY t.execution_ms DESC, t.trace_id LIMIT ?""",
    "score_anomaly": """
SELECT t.trace_id, t.experiment_id FROM traces t JOIN assessments a USING (trace_id, trace_date)
WHERE t.trace_date = ? AND t.request_time >= ? AND t.request_time < ? AND a.name = ?
    AND coalesce(a.scorer_version, '') = ? AND a.valid AND a.value_number IS NOT NULL
ORDER BY a.value_number, t.trace_id LIMIT ?""",
}
"""The traces to look at when a check alarms, the worst first."""


@dataclass(frozen=True)
class Hours:
    """The window that is judged: its number, and its hours on a day, UTC."""

    place: int

    @property
    def start(self) -> datetime:
        """When it began."""
        return start_of(self.place)

    def __str__(self) -> str:
        end = self.start + timedelta(hours=HOURS)
        return f"{self.start:%Y-%m-%d}, {self.start:%H:%M} to {end:%H:%M} UTC"


@dataclass
class Read:
    """What the two statements answered, by window."""

    traces: dict[int, dict[str, Any]] = field(default_factory=dict)
    scores: dict[tuple[str, str], dict[int, dict[str, Any]]] = field(default_factory=dict)


def last_hours(day: date, until: datetime) -> Hours | None:
    """The last window of the day that ended by `until`, None while none did."""
    midnight = datetime.combine(day, time(), UTC)
    ended = (min(until, midnight + timedelta(days=1)) - midnight) // timedelta(hours=HOURS)
    return Hours(_place(midnight) + ended - 1) if ended > 0 else None


def start_of(place: int) -> datetime:
    """When a window begins."""
    return MONDAY + timedelta(hours=HOURS * place)


def _place(moment: datetime) -> int:
    return (moment - MONDAY) // timedelta(hours=HOURS)


def read_hours(sql: SqlEngine, prefix: str, hours: Hours, weeks: int, names: list[str]) -> Read:
    """The numbers of all windows that the last one is compared with, and of itself; `names` are registered scorers."""
    oldest, last = start_of(hours.place - (weeks + 1) * WEEK - 1).date(), hours.start.date()
    read = Read()
    rows = sql.query(prefix, TRACES_SQL, [MONDAY, oldest, last, hours.place]).dicts()
    read.traces = {int(row["place"]): row for row in rows}
    if names:
        values = [MONDAY, oldest, last, oldest, last, names, hours.place]
        for row in sql.query(prefix, SCORES_SQL, values, limit=100_000).dicts():
            of_version = read.scores.setdefault((row["name"], row["scorer_version"]), {})
            of_version[int(row["place"])] = row
    return read
