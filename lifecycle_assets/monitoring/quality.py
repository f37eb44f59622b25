"""The daily numbers: from the tables to rows of `quality_metrics`, and alert rules over them.

Lives here: SQL over the archive and pure functions over its answers.
Add here: a number people should watch every day.
Not here: the asset (`monitoring.py`), views for ad-hoc questions (`resources/tables.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from lifecycle_assets.gate import aggregate
from lifecycle_assets.monitoring.intervals import mean_interval, share_interval
from lifecycle_assets.spec import AlertRule
from resources.feedback import FEEDBACK_NAME
from resources.sql_engine import SqlEngine

TRACES_SQL = "SELECT trace_id, model_id, state, execution_ms FROM traces WHERE trace_date = ? ORDER BY trace_id"
SCORES_SQL = """
SELECT a.trace_id, t.model_id, a.name, a.value_number AS value, a.error <> '' AND a.error IS NOT NULL AS failed
FROM assessments a JOIN traces t USING (trace_id, trace_date)
WHERE a.trace_date = ? AND a.valid AND a.kind = 'feedback' AND a.source_type <> 'HUMAN'
QUALIFY row_number() OVER (
    PARTITION BY a.trace_id, a.name ORDER BY try_cast(a.scorer_version AS INTEGER) DESC NULLS LAST, a.updated_at DESC
) = 1
ORDER BY a.trace_id, a.name
"""
FEEDBACK_SQL = """
SELECT a.trace_id, t.model_id, a.value_number AS value
FROM assessments a JOIN traces t USING (trace_id, trace_date)
WHERE a.trace_date = ? AND a.valid AND a.name = ? AND a.value_number IS NOT NULL ORDER BY a.trace_id
"""
HISTORY_SQL = """
SELECT CAST(trace_date AS VARCHAR) AS day, metric, sum(value * n) / sum(n) AS value, min(ci_low) AS low,
       max(ci_high) AS high, CAST(sum(n) AS BIGINT) AS n
FROM quality_metrics WHERE n > 0 AND trace_date > ? AND trace_date <= ? GROUP BY trace_date, metric ORDER BY metric, day
"""


def daily_rows(
    sql: SqlEngine, prefix: str, day: date, *, scorer_prefix: str, versions: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Rows of `quality_metrics` for one day, one for each model and metric.

    `scorer_prefix` is cut from registered scorer names; `versions` maps model id to registered version.
    """
    models: dict[str, dict[str, list[float]]] = {}
    shares: dict[str, dict[str, list[float]]] = {}
    for row in sql.query(prefix, TRACES_SQL, [day], limit=1_000_000).dicts():
        if row["execution_ms"] is not None:
            models.setdefault(row["model_id"], {}).setdefault("latency_seconds", []).append(row["execution_ms"] / 1000)
        shares.setdefault(row["model_id"], {}).setdefault("error_rate", []).append(float(row["state"] != "OK"))
    for row in sql.query(prefix, SCORES_SQL, [day], limit=1_000_000).dicts():
        name = str(row["name"])
        if not name.startswith(scorer_prefix):
            continue
        scorer = name.removeprefix(scorer_prefix)
        shares.setdefault(row["model_id"], {}).setdefault(f"{scorer}/error_rate", []).append(float(bool(row["failed"])))
        if row["value"] is not None:
            models.setdefault(row["model_id"], {}).setdefault(f"{scorer}/mean", []).append(row["value"])
    for row in sql.query(prefix, FEEDBACK_SQL, [day, FEEDBACK_NAME], limit=1_000_000).dicts():
        shares.setdefault(row["model_id"], {}).setdefault("negative_feedback_rate", []).append(
            float(row["value"] < 0.5)
        )
    rows = []
    for model_id in sorted({*models, *shares}):
        numbers = [*_of_means(models.get(model_id, {})), *_of_shares(shares.get(model_id, {}))]
        for metric, value, n, interval in numbers:
            low, high = interval or (None, None)
            rows.append(
                {
                    "trace_date": day,
                    "model_id": model_id,
                    "version": versions.get(model_id, ""),
                    "metric": metric,
                    "value": value,
                    "n": n,
                    "ci_low": low,
                    "ci_high": high,
                }
            )
    return rows


Number = tuple[str, float, int, tuple[float, float] | None]


def _of_means(values: Mapping[str, Sequence[float]]) -> list[Number]:
    numbers: list[Number] = []
    for metric, found in sorted(values.items()):
        if metric == "latency_seconds":
            for percentile in ("p50", "p95"):
                number = aggregate(found, percentile)
                assert number is not None  # The list exists because a value was put in.
                numbers.append((f"latency/{percentile}", number, len(found), None))
            continue
        numbers.append((metric, sum(found) / len(found), len(found), _interval(found)))
    return numbers


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Wilson's interval for pass or fail, Student's for numbers."""
    if set(values) <= {0.0, 1.0}:
        return share_interval(round(sum(values)), len(values))
    return mean_interval(values)


def _of_shares(values: Mapping[str, Sequence[float]]) -> list[Number]:
    numbers: list[Number] = []
    for metric, found in sorted(values.items()):
        numbers.append((metric, sum(found) / len(found), len(found), share_interval(round(sum(found)), len(found))))
        if metric == "error_rate":
            numbers.append(("traces", float(len(found)), len(found), None))
    return numbers


@dataclass(frozen=True)
class Breach:
    """How an alert rule stands.

    `breached` when k of the last n days, the newest included, lie beyond the line; `unknown` when there is no value
    to judge, which is no pass either.
    """

    breached: bool
    sentence: str
    unknown: bool = False


def hold(rule: AlertRule, days: Sequence[tuple[str, float]], day: str) -> Breach:
    """Hold the daily values `(day, value)`, oldest first, against `rule` on `day`.

    Without a value of that very day nothing is known, whatever earlier days say.
    """
    recent = [point for point in days if point[0] <= day][-rule.n :]
    if not recent or recent[-1][0] != day:
        return Breach(True, f"{rule.metric} has no value on {day}: score and archive the day first.", unknown=True)
    limit, word = (rule.at_least, "at least") if rule.at_least is not None else (rule.at_most, "at most")
    assert limit is not None  # AlertRule holds exactly one of the two.

    def beyond(value: float) -> bool:
        return value < limit if rule.at_least is not None else value > limit

    count = sum(1 for _, value in recent if beyond(value))
    value = recent[-1][1]
    sentence = f"{rule.metric} is {value:.4g} on {day}, {word} {limit:g}; beyond it on {count} of {len(recent)} days."
    return Breach(count >= rule.k and beyond(value), sentence)
