"""The assets of `monitoring` that are tables: the archive and the daily numbers.

Lives here: `archived_traces` and `quality_metrics`, thin over `quality.py` and the gateways.
Add here: a table that follows production traces.
Not here: scoring (`assets.py`), SQL and arithmetic (`quality.py`).
"""

from datetime import date, timedelta

import dagster as dg

from lifecycle_assets.edges import lifecycle_asset, result
from lifecycle_assets.monitoring.quality import HISTORY_SQL, daily_rows, hold
from lifecycle_assets.monitoring.settled import settled_before_ms
from lifecycle_assets.records import ArchiveRecord, digest
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.text import lines_plot, table
from resources.archive import Archive
from resources.model_registry import ModelRegistry
from resources.platform import Platform
from resources.sql_engine import SqlEngine

COUNTS_SQL = """
SELECT 'traces' AS name, count(*) AS n, count(DISTINCT trace_id) AS keys FROM traces WHERE trace_date = ?
UNION ALL
SELECT 'spans', count(*), count(DISTINCT (trace_id, span_id)) FROM spans WHERE trace_date = ?
UNION ALL
SELECT 'assessments', count(*), count(DISTINCT (trace_id, assessment_id)) FROM assessments WHERE trace_date = ?
"""

PLOT_DAYS = 30
"""Days of history shown in the picture of `quality_metrics`."""


def archived_traces(agent: Agent, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """Declare `<agent>/archived_traces`."""

    @lifecycle_asset(
        agent.name,
        group="monitoring",
        deps=["production_traces", "trace_scores"],
        kinds={"deltalake"},
        checks={
            "complete": "Every settled production trace of the day is in the table.",
            "no_duplicates": "Each trace, span and assessment is there once.",
        },
        partitions=days,
        pool=f"{agent.name}_tables",
    )
    def archived_traces(
        context: dg.AssetExecutionContext,
        archive: dg.ResourceParam[Archive],
        sql: dg.ResourceParam[SqlEngine],
    ) -> dg.MaterializeResult:
        """A day's production traces, spans and assessments in Delta tables.

        Text is redacted before it is written. Late assessments and changed tags are upserted. Safe to run again:
        rows are merged by key, children before traces, and a day that is up to date gets no commit.
        """
        day, prefix = date.fromisoformat(context.partition_key), agent.spec.table_prefix
        archived = archive.archive_day(
            agent, day, settled_before_ms=settled_before_ms(agent), progress=context.log.info
        )
        counts, doubled = count_rows(sql, prefix, day)
        record = ArchiveRecord(
            day=context.partition_key,
            traces=counts["traces"],
            spans=counts["spans"],
            assessments=counts["assessments"],
            watermark_ms=archived.newest_ms,
        )
        return result(
            record,
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
                dg.AssetCheckResult(
                    check_name="complete",
                    passed=not archived.absent,
                    description=f"{archived.settled} in MLflow, {record.traces} in the table"
                    + (f"; missing {', '.join(archived.absent[:5])}: run the day again." if archived.absent else "."),
                ),
                dg.AssetCheckResult(
                    check_name="no_duplicates",
                    passed=not doubled,
                    description=f"More rows than keys in {', '.join(doubled)}." if doubled else "One row a key.",
                ),
            ],
        )

    return archived_traces


def count_rows(sql: SqlEngine, prefix: str, day: date) -> tuple[dict[str, int], list[str]]:
    """Rows of a day in each table, and the tables in which a key stands twice."""
    rows = sql.query(prefix, COUNTS_SQL, [day, day, day]).dicts()
    return {row["name"]: row["n"] for row in rows}, [row["name"] for row in rows if row["n"] != row["keys"]]


def quality_metrics(agent: Agent, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """Declare `<agent>/quality_metrics`."""

    @lifecycle_asset(
        agent.name,
        group="monitoring",
        deps=["archived_traces"],
        kinds={"duckdb", "deltalake"},
        checks={rule.name: f"Alert rule on {rule.metric}." for rule in agent.spec.alerts.rules},
        partitions=days,
        pool=f"{agent.name}_tables",
    )
    def quality_metrics(
        context: dg.AssetExecutionContext,
        archive: dg.ResourceParam[Archive],
        sql: dg.ResourceParam[SqlEngine],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.MaterializeResult:
        """The day's numbers by model version: scores with intervals, latency, errors, feedback; 30 days as a picture.

        Safe to run again: the day's rows are replaced as a whole, and only when they differ.
        """
        day, prefix = date.fromisoformat(context.partition_key), agent.spec.table_prefix
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
            breach = hold(rule, values, context.partition_key)
            severity = dg.AssetCheckSeverity.WARN if breach.unknown else dg.AssetCheckSeverity.ERROR
            checks.append(
                dg.AssetCheckResult(
                    check_name=rule.name, passed=not breach.breached, severity=severity, description=breach.sentence
                )
            )
        shown = {name: series[name] for name in sorted(series) if not name.endswith("/error_rate")}
        return dg.MaterializeResult(
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
            data_version=dg.DataVersion(digest(rows)),
            check_results=checks,
        )

    return quality_metrics
