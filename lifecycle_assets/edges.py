"""Edges of the graph: records written as metadata, read back from Dagster's own events.

Lives here: how an asset of ours is declared, how its record is stored, how the next asset finds it.
Add here: a rule that every asset follows.
Not here: the records (`records.py`), what an asset does.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg

from lifecycle_assets.refused import Refused
from resources.explain import explained
from resources.platform import Platform

if TYPE_CHECKING:
    from lifecycle_assets.records import Record

RECORD_KEY = "lifecycle/record"
"""Metadata key of the record in a materialization or observation."""

RecordT = TypeVar("RecordT", bound="Record")
_EVENTS = {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION}


def lifecycle_asset(
    agent: str,
    *,
    group: str,
    deps: Sequence[str] = (),
    kinds: set[str],
    blocking: Mapping[str, str] | None = None,
    checks: Mapping[str, str] | None = None,
    partitions: dg.PartitionsDefinition | None = None,
    pool: str | None = None,
    skippable: bool = False,
) -> Callable[[Callable[..., dg.MaterializeResult | None]], dg.AssetsDefinition]:
    """Declare the decorated function as the asset `<agent>/<function name>`.

    `deps` are names of the same agent's assets; `blocking` and `checks` map check name to its description.
    Known faults of the environment become `Refused`; a refusal that answers a check reports that check as failed
    before the step stops, so that the asset's page shows which line was not reached. A `skippable` one may return None:
    it is not materialized, what depends on it in that run is not run, and nothing has failed.
    """

    def decorate(fn: Callable[..., dg.MaterializeResult | None]) -> dg.AssetsDefinition:
        key = dg.AssetKey([agent, fn.__name__])  # ty: ignore[missing-attribute]
        specs = [
            dg.AssetCheckSpec(name, asset=key, blocking=blocks, description=description)
            for blocks, declared in ((True, blocking or {}), (False, checks or {}))
            for name, description in declared.items()
        ]
        return dg.asset(
            key=key,
            description=inspect.getdoc(fn),
            deps=[dg.AssetKey([agent, name]) for name in deps],
            group_name=group,
            kinds=kinds,
            check_specs=specs,
            partitions_def=partitions,
            pool=pool,
            output_required=not skippable,
        )(_refusing(fn, key))

    return decorate


def _refusing(fn: Callable[..., dg.MaterializeResult | None], key: dg.AssetKey) -> Callable[..., Iterator[Any]]:
    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            with explained(Platform.from_env().tracking_uri):
                result = fn(*args, **kwargs)
        except Refused as refusal:
            if refusal.check:
                yield dg.AssetCheckResult(
                    passed=False, check_name=refusal.check, asset_key=key, description=str(refusal)
                )
            raise refusal.with_traceback(None) from None
        if result is not None:
            yield result

    # Dagster infers outputs from the signature: what the function returns is yielded instead.
    signature = inspect.signature(fn)
    run.__signature__ = signature.replace(return_annotation=inspect.Signature.empty)  # ty: ignore[missing-attribute]
    run.__annotations__ = {name: value for name, value in fn.__annotations__.items() if name != "return"}
    run.__doc__ = None  # It is the description: Dagster would parse it for parameters, which an asset does not have.
    del run.__wrapped__
    return run


def result(
    record: "Record",
    *,
    data_version: str,
    metadata: Mapping[str, Any] | None = None,
    checks: Sequence[dg.AssetCheckResult] = (),
) -> dg.MaterializeResult:
    """A materialization that carries `record`."""
    return dg.MaterializeResult(
        metadata={**(metadata or {}), RECORD_KEY: dg.MetadataValue.json(record.to_json())},
        data_version=dg.DataVersion(data_version),
        check_results=list(checks),
    )


def upstream(context: dg.AssetExecutionContext, asset: str, kind: type[RecordT]) -> RecordT:
    """The record of the sibling `asset`: of this run when it ran in it, else its latest.

    Raises `Refused` when there is none, or when it was written by another release.
    """
    key = dg.AssetKey([context.asset_key.path[0], asset])
    record = _of_run(context.instance, context.run.run_id, key, kind) or latest(context.instance, key, kind)
    if record is None:
        raise Refused(f"{key.to_user_string()} was never materialized: materialize it first.")
    return record


def latest(instance: dg.DagsterInstance, key: dg.AssetKey, kind: type[RecordT]) -> RecordT | None:
    """The record of the newest materialization or observation of `key`, None when there is none."""
    recent = recent_records(instance, key, kind, limit=1)
    return recent[0] if recent else None


def recent_records(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    kind: type[RecordT],
    *,
    limit: int,
    partitions: Sequence[str] | None = None,
) -> list[RecordT]:
    """Records of the last `limit` materializations (for an observed asset: observations) of `key`, newest first."""
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=partitions) if partitions else key
    events = instance.fetch_materializations(wanted, limit=limit).records
    events = events or instance.fetch_observations(wanted, limit=limit).records
    found = [record_in(event.event_log_entry, key, kind) for event in events]
    return [record for record in found if record is not None]


def readable_records(
    instance: dg.DagsterInstance, key: dg.AssetKey, kind: type[RecordT], *, limit: int
) -> list[RecordT]:
    """Records of the last `limit` materializations of `key`, newest first; those of other releases are left out."""
    found = []
    for event in instance.fetch_materializations(key, limit=limit).records:
        try:
            record = record_in(event.event_log_entry, key, kind)
        except Refused:
            continue  # Of another release: what it said cannot be compared.
        if record is not None:
            found.append(record)
    return found


def _of_run(instance: dg.DagsterInstance, run_id: str, key: dg.AssetKey, kind: type[RecordT]) -> RecordT | None:
    for entry in reversed(instance.all_logs(run_id, of_type=_EVENTS)):
        event = entry.dagster_event
        if event is not None and event.asset_key == key:
            return record_in(entry, key, kind)
    return None


def record_in(entry: dg.EventLogEntry, key: dg.AssetKey, kind: type[RecordT]) -> RecordT | None:
    """The record an event carries, None when it carries none. Raises `Refused` for one of another release."""
    event = entry.asset_materialization or entry.asset_observation
    value = event.metadata.get(RECORD_KEY) if event else None
    if value is None:
        return None
    try:
        return kind.from_json(value.value)  # ty: ignore[invalid-argument-type]
    except ValueError as error:
        raise Refused(
            f"{key.to_user_string()}: its record was written by another release ({error}): materialize it again."
        ) from None
