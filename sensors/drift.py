"""Drift: what was changed in MLflow by somebody else.

Lives here: the pure comparison of what the graph left with what is there, and the sensor that reports it.
Add here: a further thing people change by hand.
Not here: undoing it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from lifecycle_assets.edges import latest
from lifecycle_assets.jobs import is_run_of
from lifecycle_assets.records import ScorersRecord, ScorerVersion, digest
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.release.promotion import last_move
from lifecycle_assets.spec_file import Agent
from resources.model_registry import ModelRegistry, RegisteredVersion
from resources.scorer_registry import ScorerRegistry
from resources.sql_engine import SqlEngine
from resources.webhook import Webhook, configured
from sensors.bounded import bounded
from sensors.watermark import DriftCursor


@dataclass(frozen=True)
class Drift:
    """One thing that is not as the graph left it: the asset it belongs to, its state now, and a sentence."""

    asset: str
    state: str
    sentence: str


def find_drift(
    *,
    champion: str,
    last_to: str,
    versions: Sequence[RegisteredVersion],
    recorded: Sequence[ScorerVersion],
    registered: Mapping[str, ScorerVersion],
) -> list[Drift]:
    """Alias, versions and scorers against the ledger, the tags and the record of the graph."""
    drift = []
    if champion != last_to:
        now, was = (champion and f"version {champion}") or "nobody", (last_to and f"version {last_to}") or "nobody"
        drift.append(Drift("champion_alias", champion or "none", f"champion is {now}; the graph left it at {was}."))
    foreign = [version.version for version in versions if "lifecycle.eval_run_id" not in version.tags]
    if foreign:
        text = f"registered outside the graph, without an evaluation: version {', '.join(foreign)}."
        drift.append(Drift("uc_model_version", foreign[-1], text))
    changed = [s.registered_name for s in recorded if registered.get(s.registered_name) != s]
    if changed:
        text = f"not as the graph registered them: {', '.join(sorted(changed))}."
        now_there = [registered[name].to_json() if name in registered else name for name in sorted(changed)]
        drift.append(Drift("registered_scorers", digest(now_there), text))
    return drift


def champion_drift_sensor(agent: Agent) -> dg.SensorDefinition:
    """Declare `<agent>_champion_drift_sensor`."""

    @dg.sensor(
        name=f"{agent.name}_champion_drift_sensor",
        target=dg.AssetSelection.assets(dg.AssetKey([agent.name, "deployment"])),
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fires when the champion, a version or a scorer was changed outside Dagster. Records an "
        "observation on the asset and sends an alert. Never twice: the cursor holds the drift already reported.",
    )
    @bounded
    def sensor(
        context: dg.SensorEvaluationContext,
        registry: dg.ResourceParam[ModelRegistry],
        scorers: dg.ResourceParam[ScorerRegistry],
        sql: dg.ResourceParam[SqlEngine],
    ) -> dg.SensorResult | dg.SkipReason:
        move = last_move(sql, agent.spec.table_prefix)
        recorded = latest(context.instance, dg.AssetKey([agent.name, "registered_scorers"]), ScorersRecord)
        drift = find_drift(
            champion=registry.aliases(agent.spec.model_name).get(CHAMPION, ""),
            last_to=move["to_version"] if move else "",
            versions=registry.versions(agent.spec.model_name),
            recorded=recorded.versions if recorded else [],
            registered={s.registered_name: s for s in scorers.registered(agent)} if recorded else {},
        )
        now = DriftCursor(digest([(d.asset, d.state) for d in drift]) if drift else "")
        if now == DriftCursor.from_json(context.cursor):
            return dg.SkipReason(drift[0].sentence if drift else "Everything is as the graph left it.")
        if drift and _under_way(context.instance, agent.name):
            # Between moving an alias and writing the ledger, what the graph does itself looks like drift.
            return dg.SkipReason(f"A run of {agent.name} is under way: what it changes is compared when it has ended.")
        _alert(agent, drift, now)
        return dg.SensorResult(
            asset_events=[observation(agent.name, found) for found in drift],
            skip_reason=" ".join(found.sentence for found in drift) or "Everything is as the graph left it again.",
            cursor=now.to_json(),
        )

    return sensor


def _under_way(instance: dg.DagsterInstance, agent: str) -> bool:
    running = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    return any(is_run_of(agent, run) for run in instance.get_runs(dg.RunsFilter(statuses=running), limit=100))


def observation(agent: str, found: Drift) -> dg.AssetObservation:
    """The drift as an event on the asset's page, with the data version that makes what depends on it stale."""
    return dg.AssetObservation(
        asset_key=dg.AssetKey([agent, found.asset]),
        description=found.sentence,
        metadata={"drift": found.sentence, "state": found.state},
        tags={"dagster/data_version": found.state},
    )


def _alert(agent: Agent, drift: Sequence[Drift], now: DriftCursor) -> None:
    if drift and configured(agent.spec.alerts.webhook_env):
        text = f"{agent.name}: " + " ".join(found.sentence for found in drift)
        Webhook(agent.spec.alerts.webhook_env).post(
            {"id": f"{agent.name}:drift:{now.reported}", "agent": agent.name, "kind": "drift", "text": text}
        )
