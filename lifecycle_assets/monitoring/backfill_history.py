"""What Dagster remembers of backfills: who asked for which run, what that may have cost, and how it ended.

Lives here: the tags of a backfill's runs, and what is read from runs and materializations.
Add here: a further fact that has to outlive a cursor.
Not here: the plan (`backfill_plan.py`), asking for runs (`sensors/scorer_backfill.py`, `cli/backfill.py`).

A budget that lived in a cursor would be spent again after a reset: so every run says what was planned for it, and
what was spent today is the sum over the runs of today, whatever became of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from lifecycle_assets.edges import RECORD_KEY, recent_records
from lifecycle_assets.monitoring.backfill_plan import DayPlan
from lifecycle_assets.records import ScorerVersion, ScoresRecord, digest

USD, TRACES, REASON = "lifecycle/backfill_usd", "lifecycle/backfill_traces", "lifecycle/backfill_reason"
"""Tags of a run: what it may take at most, and why it was asked for."""

SET, FACT, ANSWERED = "lifecycle/backfill_set", "lifecycle/backfill_fact", "lifecycle/backfill_answered"
"""Tags of a run: the scorers it was planned for, what exactly it was planned from, calls of its day answered before."""

CANARY, BY = "lifecycle/backfill_canary", "lifecycle/backfill_by"
"""Tags of a run: whether it goes before the rest, who asked for it."""

SENSOR, COMMAND = "sensor", "command"
"""Values of `BY`."""

MAX_RUNS = 2000
"""Runs of one UTC day that are read: more than a backfill of a year asks for."""

MAX_EVENTS = 200
"""Materializations since the last tick that are looked at one by one."""

MEASURED = 20
"""Materializations over which the time of a call is measured."""

UNFINISHED = frozenset(
    {
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    }
)


@dataclass(frozen=True)
class AskedRun:
    """A run of the backfill: its day, what was planned for it, and where it stands."""

    run_id: str
    day: str
    scorers: str
    fact: str
    is_canary: bool
    by: str
    usd: float
    traces: int
    answered: int
    status: dg.DagsterRunStatus

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status not in UNFINISHED

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self.status == dg.DagsterRunStatus.SUCCESS


def set_of(scorers: Sequence[ScorerVersion]) -> str:
    """Names scorers by source, rate, filter and level: what makes them owe other scores."""
    return digest(sorted((one.registered_name, one.digest, one.sample_rate, one.filter, one.level) for one in scorers))


def tags_of(
    day: DayPlan, *, scorers: str, registered: str, answered: int, reasons: Sequence[str], is_canary: bool, by: str
) -> dict[str, str]:
    """The tags of the run of one planned day.

    `scorers` is `set_of` the backfill's scorers, `registered` the digest of the registered ones, which is another one
    each time a source changes there and back; `answered` are the day's calls that have their answer before the run.
    """
    return {
        USD: f"{day.usd:.6f}",
        TRACES: str(day.traces),
        REASON: ",".join(sorted(set(reasons))),
        SET: scorers,
        FACT: digest([scorers, registered, day.day, day.scorers, day.calls, day.is_cut]),
        ANSWERED: str(answered),
        CANARY: str(is_canary).lower(),
        BY: by,
    }


def asked_since(instance: dg.DagsterInstance, agent: str, since: datetime) -> list[AskedRun]:
    """The backfill's runs created since then, newest first."""
    wanted = dg.RunsFilter(job_name=f"{agent}_scorer_backfill", created_after=since)
    return [_asked(record.dagster_run) for record in instance.get_run_records(wanted, limit=MAX_RUNS)]


def runs_of_set(instance: dg.DagsterInstance, agent: str, scorers: str, *, canaries: bool) -> list[AskedRun]:
    """The newest run for these scorers that was a canary, or that was none: a list of one, or empty."""
    wanted = dg.RunsFilter(job_name=f"{agent}_scorer_backfill", tags={SET: scorers, CANARY: str(canaries).lower()})
    return [_asked(run) for run in instance.get_runs(wanted, limit=1)]


def unfinished_days(instance: dg.DagsterInstance, agent: str) -> set[str]:
    """The days a run of the backfill is queued or running for."""
    wanted = dg.RunsFilter(job_name=f"{agent}_scorer_backfill", statuses=list(UNFINISHED))
    return {_asked(run).day for run in instance.get_runs(wanted, limit=MAX_RUNS)}


def last_change(instance: dg.DagsterInstance, agent: str) -> str:
    """When a run of the backfill last changed its state, as text to compare; empty when there is none. One query."""
    wanted = dg.RunsFilter(job_name=f"{agent}_scorer_backfill")
    newest = instance.get_run_records(wanted, limit=1, order_by="update_timestamp")
    return newest[0].update_timestamp.isoformat() if newest else ""


def days_since(instance: dg.DagsterInstance, agent: str, storage_id: int) -> set[str]:
    """The days that were scored since that event; with an empty day when they are too many to look at."""
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey([agent, "trace_scores"]), after_storage_id=storage_id)
    events = instance.fetch_materializations(wanted, limit=MAX_EVENTS).records
    return {event.partition_key or "" for event in events} | ({""} if len(events) == MAX_EVENTS else set())


def midnight(now: datetime) -> datetime:
    """The beginning of the UTC day of `now`."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def record_of_day(instance: dg.DagsterInstance, agent: str, day: str) -> ScoresRecord | None:
    """What was last recorded of a day's scores."""
    found = recent_records(instance, dg.AssetKey([agent, "trace_scores"]), ScoresRecord, limit=1, partitions=[day])
    return found[0] if found else None


def record_of_run(instance: dg.DagsterInstance, agent: str, run_id: str) -> ScoresRecord | None:
    """What a run recorded of its day's scores; None when it did not get so far."""
    key = dg.AssetKey([agent, "trace_scores"])
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
        event = entry.asset_materialization
        if event is not None and event.asset_key == key and RECORD_KEY in event.metadata:
            value: Any = event.metadata[RECORD_KEY].value
            return ScoresRecord.from_json(value)
    return None


def seconds_per_call(instance: dg.DagsterInstance, agent: str) -> float | None:
    """Seconds one call of a scorer took over the last materializations; None when none of them says."""
    events = instance.fetch_materializations(dg.AssetKey([agent, "trace_scores"]), limit=MEASURED).records
    measured = [_measured(event.asset_materialization.metadata) for event in events if event.asset_materialization]
    calls = sum(number for number, _ in measured)
    return sum(seconds for _, seconds in measured) / calls if calls else None


def _measured(metadata: Mapping[str, Any]) -> tuple[int, float]:
    calls, seconds = (getattr(metadata.get(name), "value", None) for name in ("calls", "seconds"))
    known = isinstance(calls, int) and isinstance(seconds, int | float)
    return (calls, float(seconds)) if known and calls > 0 else (0, 0.0)


def _asked(run: dg.DagsterRun) -> AskedRun:
    def number(tag: str) -> float:
        try:
            return float(run.tags.get(tag) or 0)
        except ValueError:  # Somebody wrote the tag by hand.
            return 0.0

    return AskedRun(
        run.run_id,
        run.tags.get("dagster/partition", ""),
        run.tags.get(SET, ""),
        run.tags.get(FACT, ""),
        run.tags.get(CANARY) == "true",
        run.tags.get(BY, ""),
        number(USD),
        int(number(TRACES)),
        int(number(ANSWERED)),
        run.status,
    )
