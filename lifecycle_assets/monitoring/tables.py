"""The assets of `monitoring` that are tables: the archive and the daily numbers.

Lives here: `archived_traces` and `quality_metrics`, thin over their steps.
Add here: a table that follows production traces.
Not here: scoring (`assets.py`), what the steps do (`steps.py`), SQL and arithmetic (`quality.py`).
"""

import dagster as dg

from lifecycle_assets.edges import lifecycle_asset
from lifecycle_assets.monitoring.dispatch import materialize
from lifecycle_assets.spec_file import Agent
from resources.archive import Archive
from resources.compute import Compute
from resources.model_registry import ModelRegistry
from resources.sql_engine import SqlEngine


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
        return materialize(context, agent, compute, gateways={"archive": archive, "sql": sql})

    return archived_traces


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
        compute: dg.ResourceParam[Compute],
        archive: dg.ResourceParam[Archive],
        sql: dg.ResourceParam[SqlEngine],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.MaterializeResult:
        """The day's numbers by model version: scores with intervals, latency, errors, feedback; 30 days as a picture.

        Safe to run again: the day's rows are replaced as a whole, and only when they differ.
        """
        return materialize(context, agent, compute, gateways={"archive": archive, "sql": sql, "registry": registry})

    return quality_metrics
