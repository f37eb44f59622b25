"""What exists: counted before and after, so that the demo can say what changed.

Lives here: the counts. Add here: a kind of thing a second run must not make again.
Not here: making them.
"""

from dataclasses import asdict, dataclass

import dagster as dg

from lifecycle_assets.edges import latest
from lifecycle_assets.records import ScorersRecord
from lifecycle_assets.review import sessions_of
from lifecycle_assets.spec_file import Agent
from resources.model_registry import ModelRegistry
from resources.sql_engine import SqlEngine
from resources.trace_store import TraceStore

TABLES = ("traces", "spans", "assessments", "promotions", "quality_metrics")


@dataclass(frozen=True)
class Snapshot:
    """Counts of what the lifecycle makes."""

    logged_models: int
    model_versions: int
    alias_moves: int
    scorer_versions: int
    traces: int
    assessments: int
    labeling_sessions: int
    table_rows: int

    def changes(self, before: "Snapshot") -> dict[str, tuple[int, int]]:
        """`(before, after)` of every count."""
        was = asdict(before)
        return {name: (was[name], value) for name, value in asdict(self).items()}


def take(
    agent: Agent, instance: dg.DagsterInstance, registry: ModelRegistry, traces: TraceStore, sql: SqlEngine
) -> Snapshot:
    """Count what there is of the agent now."""
    rows = {name: sql.query(agent.spec.table_prefix, f"SELECT count(*) FROM {name}").rows[0][0] for name in TABLES}  # noqa: S608
    scorers = latest(instance, dg.AssetKey([agent.name, "registered_scorers"]), ScorersRecord)
    stored = traces.count(agent.spec.experiment)
    return Snapshot(
        logged_models=registry.count_models(agent),
        model_versions=len(registry.versions(agent.spec.model_name)),
        alias_moves=rows["promotions"],
        scorer_versions=sum(int(scorer.version) for scorer in scorers.versions) if scorers else 0,
        traces=stored.traces,
        assessments=stored.assessments,
        labeling_sessions=len(sessions_of(instance, agent.name)),
        table_rows=sum(rows.values()),
    )
