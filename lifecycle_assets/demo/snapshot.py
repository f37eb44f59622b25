"""What exists: counted before and after, so that the demo can say what changed.

Lives here: the counts. Add here: a kind of thing a second run must not make again.
Not here: making them.
"""

from dataclasses import asdict, dataclass

import dagster as dg

from lifecycle_assets.edges import latest
from lifecycle_assets.records import ScorersRecord
from lifecycle_assets.review.assets import sessions_of
from lifecycle_assets.spec_file import Agent
from resources.census import count
from resources.model_registry import MlflowModelRegistry
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine


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


def take(agent: Agent, instance: dg.DagsterInstance, platform: Platform) -> Snapshot:
    """Count what there is of the agent now."""
    rows = DuckDbEngine(platform).tables(agent.spec.table_prefix)
    scorers = latest(instance, dg.AssetKey([agent.name, "registered_scorers"]), ScorersRecord)
    held = count(platform, agent)
    return Snapshot(
        logged_models=held.logged_models,
        model_versions=len(MlflowModelRegistry(platform).versions(agent.spec.model_name)),
        alias_moves=rows.get("promotions", 0),
        scorer_versions=sum(int(scorer.version) for scorer in scorers.versions) if scorers else 0,
        traces=held.traces,
        assessments=held.assessments,
        labeling_sessions=len(sessions_of(instance, agent.name)),
        table_rows=sum(rows.values()),
    )
