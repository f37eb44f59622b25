"""The step of `quality_metrics`: a day's numbers, and the rules held against them.

Lives here: what the asset does with one day, without Dagster's context.
Add here: something its materialization should say. Not here: SQL and arithmetic (`quality.py`).
"""

from datetime import timedelta

from lifecycle_assets.monitoring.day_step import DayStep
from lifecycle_assets.monitoring.quality import HISTORY_SQL, daily_rows, hold
from lifecycle_assets.outcome import Check, Outcome
from lifecycle_assets.records import digest
from lifecycle_assets.text import lines_plot, table
from resources.archive import Archive
from resources.model_registry import ModelRegistry
from resources.platform import Platform
from resources.sql_engine import SqlEngine

PLOT_DAYS = 30
"""Days of history shown in the picture of `quality_metrics`."""


def quality_metrics(step: DayStep) -> Outcome:
    """Compute the day's numbers, replace its rows when they differ, and hold the alert rules against them."""
    archive: Archive = step.gateways["archive"]
    sql: SqlEngine = step.gateways["sql"]
    registry: ModelRegistry = step.gateways["registry"]
    agent, day, prefix = step.agent, step.day, step.agent.spec.table_prefix
    versions = {v.model_id: v.version for v in registry.versions(agent.spec.model_name)}
    scorer_prefix = f"{Platform.from_env().environment}_{agent.name}_"
    rows = daily_rows(sql, prefix, day, scorer_prefix=scorer_prefix, versions=versions)
    written = archive.replace_day(prefix, "quality_metrics", day, rows)
    history = sql.query(prefix, HISTORY_SQL, [day - timedelta(days=PLOT_DAYS), day]).dicts()
    series: dict[str, list[tuple[str, float, float | None, float | None]]] = {}
    for row in history:
        series.setdefault(row["metric"], []).append((row["day"], row["value"], row["low"], row["high"]))
    checks = []
    for rule in agent.spec.alerts.rules:
        values = [(point[0], point[1]) for point in series.get(rule.metric, [])]
        breach = hold(rule, values, day.isoformat())
        checks.append(Check(rule.name, not breach.breached, breach.sentence, is_error=not breach.unknown))
    shown = {name: series[name] for name in sorted(series) if not name.endswith("/error_rate")}
    return Outcome(
        data_version=digest(rows),
        metadata={
            "dagster/row_count": len(rows),
            "dagster/table_name": f"{prefix}quality_metrics",
            "written": written.inserted + written.updated,
            "numbers": table(
                ["version", "metric", "value", "n", "low", "high"],
                [(r["version"], r["metric"], r["value"], r["n"], r["ci_low"], r["ci_high"]) for r in rows],
            ),
            **({"plot": lines_plot(f"{agent.name}, last {PLOT_DAYS} days", shown, unit="value")} if shown else {}),
        },
        checks=checks,
    )
