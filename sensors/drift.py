"""Drift: what was changed in MLflow by somebody else.

Lives here: reading what is there, and the events and the alert that report it.
Add here: a further reader.
Not here: the comparison (`lifecycle_assets/release/drift.py`), undoing it.

An observation says what was seen. Dagster takes the data version of an asset that it materializes from its last
materialization alone, so that an observation makes nothing stale: the change itself, which did happen to the asset, is
reported as a materialization too, with the state as its data version and everything else as the graph left it. When
the state is back, the data version is reported back, and what was stale for this reason only is fresh again.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from lifecycle_assets.edges import latest, readable_records
from lifecycle_assets.spec_file import Agent
from resources.needs import AliasLedger, Entry, ModelRegistry, ScorerRegistry
from sensors.bounded import bounded
from sensors.look import Look, under_way
from sensors.opened import gateway, instance_of
from sensors.watermark import DriftCursor

if TYPE_CHECKING:
    from lifecycle_assets.release.drift import Drift

ASSETS = ("uc_model_version", "champion_alias", "registered_scorers")
"""The assets whose state somebody else can change."""

DATA_VERSION = "dagster/data_version"
LEFT = "left_by_the_graph"
"""Metadata of an event that reports a drift: the data version before it."""

RECORDS = 100
"""Records of `uc_model_version` that are looked at when a version's tags are not those of its move."""

SAID = 500
"""Characters of a drift's sentences that the cursor keeps, to be said again while nothing changes."""

Event = dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation


def champion_drift_sensor(agent: Agent) -> dg.SensorDefinition:
    """Declare `<agent>_champion_drift_sensor`."""

    @dg.sensor(
        name=f"{agent.name}_champion_drift_sensor",
        target=dg.AssetSelection.assets(dg.AssetKey([agent.name, "deployment"])),
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fires when an alias, a version, its tags or a scorer was changed outside Dagster. Records an "
        "observation on the asset, makes what depends on it stale and sends an alert; changes nothing. When it is as "
        "the graph left it again, that is recorded too. Never twice: the cursor holds the drift already reported.",
    )
    @bounded
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from lifecycle_assets.records import digest

        before, look = DriftCursor.from_json(context.cursor), look_at(agent, context)
        if unchanged := look.unchanged(before):
            return dg.SensorResult(skip_reason=before.said, cursor=unchanged.to_json())
        registry: ModelRegistry = gateway(context, "registry")
        ledger: AliasLedger = gateway(context, "ledger")
        scorers: ScorerRegistry = gateway(context, "scorers")
        instance, entries = instance_of(context), ledger.entries(agent)
        drift = read_drift(instance, agent, entries, registry, scorers)
        said = " ".join(found.sentence for found in drift)
        now = DriftCursor(
            digest([(d.asset, d.state) for d in drift]) if drift else "", (said or _as_left(entries))[:SAID]
        )
        if context.cursor and now.reported == before.reported:
            return dg.SensorResult(skip_reason=now.said, cursor=look.noted(now).to_json())
        # Between a move's claim and its end, what the graph does itself looks like drift.
        if drift and (under_way(instance, agent.name) or _named(ledger.entries(agent)) != _named(entries)):
            return dg.SkipReason(f"A run of {agent.name} is under way: what it changes is compared when it has ended.")
        last = {asset: _last(instance, agent.name, asset) for asset in ASSETS}
        _alert(agent, [found for found in drift if not _is_reported(found, last[found.asset])], now)
        return dg.SensorResult(
            asset_events=events_of(agent.name, drift, last),
            skip_reason=said or _as_left(entries, again=bool(context.cursor)),
            cursor=look.noted(now).to_json(),
        )

    return sensor


def look_at(agent: Agent, context: dg.SensorEvaluationContext) -> Look:
    """A look at what a drift is read from: aliases, versions, the ledger, scorers, and what the graph recorded."""
    from lifecycle_assets.release.drift import IDENTITY
    from resources import store_glance
    from resources.alias_ledger import LEDGER, deciding_experiment
    from resources.scorer_registry import TAG

    name = agent.spec.model_name
    watched = (
        store_glance.aliases(name),
        store_glance.versions(name, IDENTITY),
        store_glance.run_named_by(name, deciding_experiment(agent), LEDGER),
        store_glance.experiment_tags(agent.spec.experiment, TAG),
    )
    return Look(agent, context, assets=ASSETS, watched=watched)


def read_drift(
    instance: dg.DagsterInstance,
    agent: Agent,
    entries: Sequence[Entry],
    registry: ModelRegistry,
    scorers: ScorerRegistry,
) -> "list[Drift]":
    """The drift now: a few questions to MLflow and one to Dagster. Raises when one of them has no answer."""
    from lifecycle_assets.records import ScorersRecord, VersionRecord
    from lifecycle_assets.release.drift import find_drift, named

    name, key = agent.spec.model_name, dg.AssetKey([agent.name, "uc_model_version"])
    recorded = latest(instance, dg.AssetKey([agent.name, "registered_scorers"]), ScorersRecord)
    aliases = registry.aliases(name)
    return find_drift(
        aliases=aliases,
        entries=entries,
        versions=registry.versions(name, anew=named(aliases, entries)),
        recorded_versions=lambda: readable_records(instance, key, VersionRecord, limit=RECORDS),
        recorded=recorded.versions if recorded else [],
        registered={s.registered_name: s for s in scorers.registered(agent)} if recorded else {},
    )


def events_of(agent: str, drift: "Sequence[Drift]", last: Mapping[str, dg.AssetMaterialization | None]) -> list[Event]:
    """What is recorded: each drift that was not yet, and each asset that is as the graph left it again.

    `last` maps asset to its last materialization, which says by itself whether it reported a drift.
    """
    events: list[Event] = []
    drifted = {found.asset: found for found in drift}
    for asset in ASSETS:
        found, before = drifted.get(asset), last.get(asset)
        left = _left_at(before)
        if found and not _is_reported(found, before):
            marks = {LEFT: _version(before) if left is None else left}
            events += _said(agent, asset, found.state, found.sentence, before, marks)
        if not found and left is not None:
            events += _said(agent, asset, left, "It is as the graph left it again.", before, {})
    return events


def _left_at(before: dg.AssetMaterialization | None) -> str | None:
    """The data version the graph left an asset at whose last event reports a drift; None when it reports none."""
    return str(before.metadata[LEFT].value) if before and LEFT in before.metadata else None


def _is_reported(found: "Drift", before: dg.AssetMaterialization | None) -> bool:
    return _left_at(before) is not None and _version(before) == found.state


def _said(
    agent: str, asset: str, state: str, sentence: str, before: dg.AssetMaterialization | None, marks: dict[str, str]
) -> list[Event]:
    """The observation, and the change for what depends on the asset; nothing can on one never materialized."""
    key, said = dg.AssetKey([agent, asset]), {"drift": sentence, "state": state}
    events: list[Event] = [
        dg.AssetObservation(asset_key=key, description=sentence, metadata=said, tags={DATA_VERSION: state})
    ]
    if before is not None:
        kept = {name: value for name, value in before.metadata.items() if name not in (LEFT, *said)}
        tags = {**(before.tags or {}), DATA_VERSION: state}
        changed = {**kept, **said, **marks}
        events.append(dg.AssetMaterialization(asset_key=key, description=sentence, metadata=changed, tags=tags))
    return events


def _version(before: dg.AssetMaterialization | None) -> str:
    return (before.tags or {}).get(DATA_VERSION, "") if before else ""


def _last(instance: dg.DagsterInstance, agent: str, asset: str) -> dg.AssetMaterialization | None:
    entry = instance.get_latest_materialization_event(dg.AssetKey([agent, asset]))
    return entry.asset_materialization if entry else None


def _as_left(entries: Sequence[Entry], *, again: bool = False) -> str:
    from lifecycle_assets.release.drift import unfinished

    begun = unfinished(entries)
    if begun:
        move = begun[-1].move
        return f"A move ({move.decision}) of {move.at} was begun and not finished: the next run carries it out."
    return f"Everything is as the graph left it{' again' if again else ''}."


def _named(entries: Sequence[Entry]) -> list[tuple[int, bool]]:
    return [(entry.number, entry.done) for entry in entries]


def _alert(agent: Agent, drift: "Sequence[Drift]", now: DriftCursor) -> None:
    from resources.webhook import Webhook, configured

    if drift and configured(agent.spec.alerts.webhook_env):
        text = f"{agent.name}: " + " ".join(found.sentence for found in drift)
        Webhook(agent.spec.alerts.webhook_env).post(
            {"id": f"{agent.name}:drift:{now.reported}", "agent": agent.name, "kind": "drift", "text": text}
        )
