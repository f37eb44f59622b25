"""Scorer backfill: days whose traces lack a score of a scorer's present source.

Lives here: the pure plan, and the sensor that asks for its runs.
Add here: a further reason to score a day again.
Not here: scoring (`lifecycle_assets/scoring.py`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg

from lifecycle_assets.edges import latest, recent_records
from lifecycle_assets.records import ScorersRecord, ScorerVersion, ScoresRecord, digest
from lifecycle_assets.spec import BackfillPolicy
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform
from resources.scorer_source import DeclaredScorer, declared_scorers
from sensors.watermark import BackfillCursor


@dataclass(frozen=True)
class DayRequest:
    """One day to score again, by which scorers, and what it is expected to take (calls are traces times scorers)."""

    day: str
    scorers: tuple[str, ...]
    run_key: str
    traces: int
    usd: float


@dataclass(frozen=True)
class Plan:
    """Days within budget, newest first, and days left out because a cap was reached."""

    requests: tuple[DayRequest, ...]
    left: tuple[str, ...]


def plan_backfill(
    declared: Sequence[DeclaredScorer],
    registered: Sequence[ScorerVersion],
    days: Mapping[str, ScoresRecord],
    policy: BackfillPolicy,
    *,
    asked: Collection[str] = (),
    spent_usd: float = 0.0,
    spent_traces: int = 0,
) -> Plan:
    """The days of `days` that lack scores, newest first, until a cap of `policy` is reached.

    A day lacks scores of a scorer when it was scored by another version than the present source's, never by it, or
    when sampled traces are still waiting. Days that hold no trace lack nothing. A request whose run key is in `asked`
    was made and paid for before: its run may still be waiting in the queue.
    """
    versions = {version.registered_name: version for version in registered}
    requests, left = [], []
    for day in sorted(days, reverse=True):
        record = days[day]
        lacking = [scorer for scorer in declared if scorer.spec.sample_rate > 0 and _lacks(scorer, versions, record)]
        if not lacking or not record.traces:
            continue
        run_key = _run_key(day, lacking, record)
        if run_key in asked:
            continue
        traces = max(_owed(scorer, record) for scorer in lacking)
        usd = sum(_owed(scorer, record) * scorer.spec.cost_per_call for scorer in lacking)
        if spent_usd + usd > policy.max_cost_usd or spent_traces + traces > policy.max_traces:
            left.append(day)
            continue
        spent_usd, spent_traces = spent_usd + usd, spent_traces + traces
        requests.append(DayRequest(day, tuple(s.name for s in lacking), run_key, traces, usd))
    return Plan(tuple(requests), tuple(left))


def _lacks(scorer: DeclaredScorer, versions: Mapping[str, ScorerVersion], record: ScoresRecord) -> bool:
    version = versions.get(scorer.registered_name)
    covered = record.coverage.get(scorer.registered_name)
    if version is None or version.digest != scorer.digest or covered is None:
        return True
    return covered["version"] != version.version or covered["waiting"] > 0


def _owed(scorer: DeclaredScorer, record: ScoresRecord) -> int:
    """Traces of the day the scorer is expected to score: what it sampled before, else its rate."""
    covered = record.coverage.get(scorer.registered_name)
    return int(covered["sampled"]) if covered else round(record.traces * scorer.spec.sample_rate)


def _run_key(day: str, lacking: Sequence[DeclaredScorer], record: ScoresRecord) -> str:
    """Names the fact: these sources on this day; with a short coverage also how many traces wait."""
    fact: list[Any] = sorted((scorer.registered_name, scorer.digest) for scorer in lacking)
    waiting = sum(int(covered["waiting"]) for covered in record.coverage.values())
    return f"backfill:{day}:{digest([fact, waiting])}"


def scorer_backfill_sensor(agent: Agent) -> dg.SensorDefinition:
    """Declare `<agent>_scorer_backfill_sensor`."""
    scores = dg.AssetKey([agent.name, "trace_scores"])

    @dg.sensor(
        name=f"{agent.name}_scorer_backfill_sensor",
        job_name=f"{agent.name}_scorer_backfill",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fires when a scorer is new or its source changed, or when a scored day is short of scores. Asks "
        "for scorer_backfill by day, newest first, within the declared budget. Never twice: the run key names sources "
        "and day.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        before = BackfillCursor.from_json(context.cursor)
        declared = declared_scorers(agent, Platform.from_env().environment)
        registered = latest(context.instance, dg.AssetKey([agent.name, "registered_scorers"]), ScorersRecord)
        newest = context.instance.fetch_materializations(scores, limit=1).records
        if registered is None or not newest:
            return dg.SkipReason(f"No day has been scored: run {agent.name}_monitor first.")
        sources = digest(sorted((scorer.registered_name, scorer.digest) for scorer in declared))
        if (sources, newest[0].storage_id) == (before.scorers, before.scores_event):
            return dg.SkipReason("No scorer and no score has changed since the last tick.")
        budget = before if before.scorers == sources else BackfillCursor(scorers=sources)
        days = scored_days(context.instance, scores, agent.spec.backfill.lookback_days, today=datetime.now(UTC).date())
        plan = plan_backfill(
            declared, registered.versions, days, agent.spec.backfill,
            asked=budget.asked, spent_usd=budget.spent_usd, spent_traces=budget.spent_traces,
        )  # fmt: skip
        if plan.left:
            context.log.warning(f"the backfill budget is used up; left are {', '.join(plan.left)}")
        after = replace(
            budget,
            scores_event=newest[0].storage_id,
            asked=(*budget.asked, *(request.run_key for request in plan.requests)),
            spent_usd=budget.spent_usd + sum(request.usd for request in plan.requests),
            spent_traces=budget.spent_traces + sum(request.traces for request in plan.requests),
        )
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=r.run_key, partition_key=r.day) for r in plan.requests],
            skip_reason=None if plan.requests else _why_not(plan, bool(budget.asked)),
            cursor=after.to_json(),
        )

    return sensor


def _why_not(plan: Plan, asked: bool) -> str:
    if plan.left:
        return f"The budget is used up; left are {', '.join(plan.left)}: raise backfill.max_cost_usd or max_traces."
    return "Every scored day has the scores of the present sources" + (", or was asked for." if asked else ".")


def scored_days(
    instance: dg.DagsterInstance, scores: dg.AssetKey, lookback_days: int, *, today: date
) -> dict[str, ScoresRecord]:
    """The last record of each day that was scored, not older than `lookback_days`."""
    oldest = (today - timedelta(days=lookback_days)).isoformat()
    days = [day for day in instance.get_materialized_partitions(scores) if day >= oldest]
    found = {day: recent_records(instance, scores, ScoresRecord, limit=1, partitions=[day]) for day in days}
    return {day: records[0] for day, records in found.items() if records}
