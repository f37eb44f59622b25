"""The step of `quality_metrics`: a day's numbers, the rules on them, and the last hours against earlier weeks.

Lives here: what the asset does with one day, without Dagster's context.
Add here: something its materialization should say.
Not here: counting (`quality.py`), rules (`alert_rules.py`), anomalies (`anomaly_step.py`).
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from lifecycle_assets.monitoring.alert_rules import hold, waiting_for
from lifecycle_assets.monitoring.anomalies import CHECKS
from lifecycle_assets.monitoring.anomaly_step import anomaly_checks, never_judged
from lifecycle_assets.monitoring.coverage import awaited, coverage_rows
from lifecycle_assets.monitoring.day_step import DayStep
from lifecycle_assets.monitoring.quality import ROWS, daily_rows
from lifecycle_assets.monitoring.quality_sql import HISTORY_SQL
from lifecycle_assets.outcome import Check, Outcome
from lifecycle_assets.records import ArchivedUntil, ScoresRecord, digest
from lifecycle_assets.retention import is_expired, oldest_scored, today
from lifecycle_assets.spec import AlertRule
from lifecycle_assets.text import Point, lines_plot, table, with_gaps
from resources.archive.row_changes import Written
from resources.needs import Archive, ModelRegistry, SqlEngine
from resources.platform import Platform

PLOT_DAYS = 30
"""Days of history shown in the picture of `quality_metrics`."""

SHOWN = 200
"""Numbers shown on the asset's page; the table holds all."""

_DRAWN = ("/mean", "latency/p50", "latency/p95", "error_rate", "traces", "cost_usd/sum", "positive_rate")
_NOT_DRAWN = ("input_tokens/", "output_tokens/", "cost_usd/mean")


def quality_metrics(step: DayStep) -> Outcome:
    """Compute the day's numbers, replace its rows when they differ, and hold the alert rules against them.

    Inputs: the records of `trace_scores` for the day, and how far the archive is; a missing one is waited for.
    """
    archive: Archive = step.gateways["archive"]
    sql: SqlEngine = step.gateways["sql"]
    registry: ModelRegistry = step.gateways["registry"]
    agent, day, prefix = step.agent, step.day, step.agent.spec.table_prefix
    versions = {v.model_id: v.version for v in registry.versions(agent.spec.model_name)}
    scorer_prefix = f"{Platform.from_env().environment}_{agent.name}_"
    monitoring = agent.spec.monitoring
    rows = daily_rows(
        sql,
        prefix,
        day,
        scorer_prefix=scorer_prefix,
        versions=versions,
        slices=monitoring.slices,
        max_slice_values=monitoring.max_slice_values,
    )
    # The numbers stay when the upkeep has removed the rows they were counted from.
    is_kept = not is_expired(agent.spec.archive, day, today())
    written = archive.replace_day(prefix, "quality_metrics", day, rows) if is_kept else Written(0, 0)
    if is_kept and (given := step.inputs.get("trace_scores")):
        archive.replace_day(prefix, "scorer_days", day, coverage_rows(ScoresRecord.from_json(given), day))
    step.progress(f"{day}: {len(rows)} numbers, {written.inserted + written.updated} of them new or changed")
    series = history(sql, prefix, day, agent.spec.alerts.rules)
    waiting = waits(step, scorer_prefix)
    checks = []
    for rule in agent.spec.alerts.rules:
        values = [(point[0], point[1]) for point in series.get(rule.metric, [])]
        breach = hold(rule, values, day.isoformat(), awaited=waiting_for(rule.metric, waiting))
        checks.append(Check(rule.name, not breach.breached, breach.sentence, is_error=not breach.unknown))
    compared, page = _anomalies(step, sql, scorer_prefix, waiting)
    since = (day - timedelta(days=PLOT_DAYS)).isoformat()
    drawn = {name: [point for point in series[name] if point[0] > since] for name in series if "{" not in name}
    shown = {name: with_gaps(drawn[name]) for name in sorted(drawn) if drawn[name] and _is_drawn(name)}
    listed = sorted(rows, key=lambda row: ("{" in row["metric"], row["model_id"], row["metric"]))[:SHOWN]
    return Outcome(
        data_version=digest(rows),
        metadata={
            "dagster/row_count": len(rows),
            "dagster/table_name": f"{prefix}quality_metrics",
            "written": written.inserted + written.updated,
            "numbers": table(
                ["version", "metric", "value", "n", "low", "high"],
                [(r["version"], r["metric"], r["value"], r["n"], r["ci_low"], r["ci_high"]) for r in listed],
            ),
            **({"plot": lines_plot(f"{agent.name}, {PLOT_DAYS} days to {day}", shown, unit="value")} if shown else {}),
            **page,
        },
        checks=[*checks, *compared],
    )


def history(sql: SqlEngine, prefix: str, day: date, rules: Sequence[AlertRule]) -> dict[str, list[Point]]:
    """Metric to its last days, oldest first: `(day, value, low, high)`; as many days as a rule or the picture needs.

    Numbers of all traces, and of slices those that a rule is about.
    """
    days = max([PLOT_DAYS, *(rule.n for rule in rules)])
    values = [day - timedelta(days=days), day, [rule.metric for rule in rules]]
    series: dict[str, list[Point]] = {}
    for row in sql.query(prefix, HISTORY_SQL, values, limit=ROWS).dicts():
        series.setdefault(row["metric"], []).append((row["day"], row["value"], row["low"], row["high"]))
    return series


def waits(step: DayStep, scorer_prefix: str) -> dict[str, str]:
    """Declared scorer to why its numbers of the day are not to be judged yet, empty where they are."""
    if step.day < oldest_scored(step.agent.spec.archive, today()):
        return {}  # No score will come.
    given = step.inputs.get("trace_scores")
    coverage: Mapping[str, Any] = ScoresRecord.from_json(given).coverage if given else {}
    target, found = step.agent.spec.monitoring.coverage, {}
    for scorer in step.agent.spec.scorers:
        counted = coverage.get(scorer_prefix + scorer.name)
        found[scorer.name] = (
            awaited(counted, target)
            if counted
            else f"nobody counted its scores of {step.day}: run {step.agent.name}_monitor for the day"
        )
    return found


def _anomalies(
    step: DayStep, sql: SqlEngine, scorer_prefix: str, awaiting: Mapping[str, str]
) -> tuple[list[Check], dict[str, Any]]:
    spec, given = step.agent.spec, step.inputs.get("archived_traces")
    if not spec.anomalies.enabled:
        return [], {}
    if never := never_judged(spec.anomalies, spec.archive.retention_days):
        return [Check(name, False, never, is_error=False) for name in CHECKS], {}
    if not given:
        why = (
            f"Not judged: {step.agent.name}/archived_traces has not run for {step.day}; run {step.agent.name}_monitor."
        )
        return [Check(name, True, why, is_error=False) for name in CHECKS], {}
    archived = datetime.fromtimestamp(ArchivedUntil.from_json(given).at_ms / 1000, UTC)
    return anomaly_checks(
        sql,
        spec.table_prefix,
        step.day,
        until=archived - timedelta(minutes=spec.archive.settle_minutes),
        declared=spec.anomalies,
        scorers={scorer.name: scorer_prefix + scorer.name for scorer in spec.scorers if scorer.sample_rate > 0},
        awaited=awaiting,
    )


def _is_drawn(metric: str) -> bool:
    left_out = metric.endswith("/error_rate") or metric.startswith(_NOT_DRAWN)
    return metric.endswith(_DRAWN) and not left_out
