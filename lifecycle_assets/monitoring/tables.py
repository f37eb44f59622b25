"""The assets of `monitoring` that are tables: the archive and the daily numbers.

Lives here: `archived_traces` and `quality_metrics`, thin over their steps.
Add here: a table that follows production traces.
Not here: scoring (`assets.py`), what the steps do (`steps.py`), SQL and arithmetic (`quality.py`).
"""

from typing import TYPE_CHECKING

import dagster as dg

from lifecycle_assets.edges import lifecycle_asset, recent_records
from lifecycle_assets.monitoring.anomalies import CHECKS as ANOMALY_CHECKS
from lifecycle_assets.spec_file import Agent
from resources.needs import Archive, Compute, ModelRegistry, SqlEngine

if TYPE_CHECKING:
    from lifecycle_assets.records import Record


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
        compute: dg.ResourceParam[Compute],
        archive: dg.ResourceParam[Archive],
        sql: dg.ResourceParam[SqlEngine],
    ) -> dg.MaterializeResult:
        """A day's production traces, spans and assessments in Delta tables.

        Text is redacted before it is written. Late assessments and changed tags are upserted. Safe to run again:
        rows are merged by key, children before traces, and a day that is up to date gets no commit.
        """
        from lifecycle_assets.monitoring.dispatch import materialize

        return materialize(context, agent, compute, gateways={"archive": archive, "sql": sql})

    return archived_traces


def quality_metrics(agent: Agent, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """Declare `<agent>/quality_metrics`."""

    @lifecycle_asset(
        agent.name,
        group="monitoring",
        deps=["archived_traces"],
        kinds={"duckdb", "deltalake"},
        checks={
            **{rule.name: f"Alert rule on {rule.metric}." for rule in agent.spec.alerts.rules},
            **(ANOMALY_CHECKS if agent.spec.anomalies.enabled else {}),
        },
        partitions=days,
        pool=f"{agent.name}_tables",
    )
    def quality_metrics(
        context: dg.AssetExecutionContext,
        compute: dg.ResourceParam[Compute],
        archive: dg.ResourceParam[Archive],
        sql: dg.ResourceParam[SqlEngine],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.MaterializeResult:
        """The day's numbers by model version and slice, with intervals.

        Scores, latency, tokens, cost, errors and feedback; 30 days as a picture. Alert rules on a scorer wait until its
        sampled traces are scored. The last complete hours are held against the same hours of earlier weeks. Safe to
        run again: the day's rows are replaced as a whole, and only when they differ.
        """
        from lifecycle_assets.monitoring.dispatch import materialize

        gateways = {"archive": archive, "sql": sql, "registry": registry}
        return materialize(context, agent, compute, gateways=gateways, inputs=_of_day(context))

    return quality_metrics


def _of_day(context: dg.AssetExecutionContext) -> "dict[str, Record]":
    """The day's coverage, and when the day was archived, as far as they are known."""
    from lifecycle_assets.records import ArchivedUntil, Record, ScoresRecord

    day, agent = context.partition_key, context.asset_key.path[0]
    found: dict[str, Record] = {}
    scores = recent_records(
        context.instance, dg.AssetKey([agent, "trace_scores"]), ScoresRecord, limit=1, partitions=[day]
    )
    if scores:
        found["trace_scores"] = scores[0]
    archived = dg.AssetRecordsFilter(asset_key=dg.AssetKey([agent, "archived_traces"]), asset_partitions=[day])
    for event in context.instance.fetch_materializations(archived, limit=1).records:
        found["archived_traces"] = ArchivedUntil(int(event.timestamp * 1000))
    return found
