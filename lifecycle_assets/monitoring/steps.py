"""The partitioned steps of monitoring, as functions of plain values and gateways.

Lives here: what `trace_scores`, `archived_traces` and `quality_metrics` do with one day, without Dagster's context,
so that the same code runs in this process and in a job on Databricks.
Add here: a step whose asset has daily partitions, and its name in `STEPS`.
Not here: the assets (`assets.py`, `tables.py`), SQL and arithmetic (`quality.py`), where a step runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from lifecycle_assets.monitoring.quality import HISTORY_SQL, daily_rows, hold
from lifecycle_assets.monitoring.settled import settled_before_ms
from lifecycle_assets.outcome import Check, Outcome
from lifecycle_assets.records import ArchiveRecord, ScorersRecord, ScoresRecord, digest
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.text import lines_plot, table
from resources.archive import Archive
from resources.model_registry import ModelRegistry
from resources.platform import Platform
from resources.scoring import Scoring
from resources.sql_engine import SqlEngine
from resources.worker import Progress

COUNTS_SQL = """
SELECT 'traces' AS name, count(*) AS n, count(DISTINCT trace_id) AS keys FROM traces WHERE trace_date = ?
UNION ALL
SELECT 'spans', count(*), count(DISTINCT (trace_id, span_id)) FROM spans WHERE trace_date = ?
UNION ALL
SELECT 'assessments', count(*), count(DISTINCT (trace_id, assessment_id)) FROM assessments WHERE trace_date = ?
"""

PLOT_DAYS = 30
"""Days of history shown in the picture of `quality_metrics`."""


@dataclass(frozen=True)
class DayStep:
    """One step for one agent and one UTC day: the records it builds on as JSON, the gateways it asks, its progress."""

    agent: Agent
    day: date
    inputs: Mapping[str, Any]
    gateways: Mapping[str, Any]
    progress: Progress


def trace_scores(step: DayStep) -> Outcome:
    """Close the gaps of the day's scores. Input: the record of `registered_scorers`."""
    scoring: Scoring = step.gateways["scoring"]
    registered = ScorersRecord.from_json(step.inputs["registered_scorers"])
    scores = scoring.score_day(
        step.agent,
        step.day,
        registered.versions,
        settled_before_ms=settled_before_ms(step.agent),
        progress=step.progress,
    )
    record = ScoresRecord(step.day.isoformat(), registered.digest, scores.traces, scores.coverage)
    rows = [
        (name, c["version"], c["sampled"], c["scored"], c["errored"], c["waiting"])
        for name, c in sorted(scores.coverage.items())
    ]
    return Outcome(
        data_version=digest(record.to_json()),
        metadata={
            "traces": scores.traces,
            "written": scores.written,
            "coverage": table(["scorer", "version", "sampled", "scored", "errored", "waiting"], rows),
        },
        checks=[coverage_check(record)],
        record=record.to_json(),
    )


def coverage_check(record: ScoresRecord) -> Check:
    """Passed when nothing sampled is waiting and nothing errored; an error of a scorer is a warning."""
    waiting = {name: c["waiting"] for name, c in record.coverage.items() if c["waiting"]}
    errored = {name: c["errored"] for name, c in record.coverage.items() if c["errored"]}
    sentences = [f"{name} has not scored {n} sampled traces: run the day again." for name, n in sorted(waiting.items())]
    sentences += [f"{name} failed on {n} traces: see the errors in assessments." for name, n in sorted(errored.items())]
    said = " ".join(sentences) or f"Every sampled trace of {record.day} is scored."
    return Check("coverage", not sentences, said, is_error=bool(waiting))


def archived_traces(step: DayStep) -> Outcome:
    """Bring the day's rows of `traces`, `spans` and `assessments` up to date, and count them."""
    archive: Archive = step.gateways["archive"]
    prefix = step.agent.spec.table_prefix
    archived = archive.archive_day(
        step.agent, step.day, settled_before_ms=settled_before_ms(step.agent), progress=step.progress
    )
    counts, doubled = count_rows(step.gateways["sql"], prefix, step.day)
    record = ArchiveRecord(
        day=step.day.isoformat(),
        traces=counts["traces"],
        spans=counts["spans"],
        assessments=counts["assessments"],
        watermark_ms=archived.newest_ms,
    )
    absent = f"; missing {', '.join(archived.absent[:5])}: run the day again." if archived.absent else "."
    return Outcome(
        data_version=digest(record.to_json()),
        metadata={
            "dagster/row_count": record.traces,
            "dagster/partition_row_count": record.traces,
            "dagster/table_name": f"{prefix}traces",
            "written": table(
                ["table", "inserted", "updated"],
                [(name, w.inserted, w.updated) for name, w in archived.written.items()],
            ),
            "rows": table(["table", "rows"], sorted(counts.items())),
        },
        checks=[
            Check(
                "complete",
                not archived.absent,
                f"{archived.settled} in MLflow, {record.traces} in the table{absent}",
            ),
            Check(
                "no_duplicates",
                not doubled,
                f"More rows than keys in {', '.join(doubled)}." if doubled else "One row a key.",
            ),
        ],
        record=record.to_json(),
    )


def count_rows(sql: SqlEngine, prefix: str, day: date) -> tuple[dict[str, int], list[str]]:
    """Rows of a day in each table, and the tables in which a key stands twice."""
    rows = sql.query(prefix, COUNTS_SQL, [day, day, day]).dicts()
    return {row["name"]: row["n"] for row in rows}, [row["name"] for row in rows if row["n"] != row["keys"]]


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


STEPS: dict[str, Callable[[DayStep], Outcome]] = {
    "trace_scores": trace_scores,
    "archived_traces": archived_traces,
    "quality_metrics": quality_metrics,
}
"""Asset name to its step."""

GATEWAYS_OF = {
    "trace_scores": ("scoring",),
    "archived_traces": ("archive", "sql"),
    "quality_metrics": ("archive", "sql", "registry"),
}
"""Asset name to the gateways its step asks, by resource key."""
