"""Scorer backfill: archived days whose traces lack a score of a scorer's present source, rate or filter.

Lives here: the sensor, with its cheap question before the costly one.
Add here: a further thing that may make a day owe scores.
Not here: what is decided (`backfill_decision.py`), counting and planning (`lifecycle_assets/monitoring/backfill_*.py`),
scoring (`resources/scoring/scoring.py`).
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from lifecycle_assets.edges import latest
from lifecycle_assets.jobs import days_due
from lifecycle_assets.spec_file import Agent
from resources.needs import DeclaredScorer, SqlEngine
from resources.platform import Platform
from sensors.bounded import bounded
from sensors.opened import gateway, instance_of
from sensors.watermark import BackfillCursor

if TYPE_CHECKING:
    from lifecycle_assets.monitoring.backfill_counts import Counts
    from lifecycle_assets.records import ScorerVersion
    from sensors.backfill_decision import Decision, Vetting


def scorer_backfill_sensor(agent: Agent) -> dg.SensorDefinition:
    """Declare `<agent>_scorer_backfill_sensor`."""
    scores = dg.AssetKey([agent.name, "trace_scores"])
    sources = _Sources(agent)

    @dg.sensor(
        name=f"{agent.name}_scorer_backfill_sensor",
        job_name=f"{agent.name}_scorer_backfill",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fires when archived traces lack scores: a scorer is new, its code, sample_rate or filter changed, "
        "or a run failed. Asks for scorer_backfill by day within the budget of the UTC day: first a few traces of the "
        "newest day, and when they went well the rest, newest first. The tags of the runs say why and how much.",
    )
    @bounded
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from lifecycle_assets.monitoring import backfill_history as history
        from lifecycle_assets.monitoring.backfill_plan import run_config

        instance, now = instance_of(context), datetime.now(UTC)
        declared, of_sources = sources.read(Platform.from_env().environment)
        newest = instance.fetch_materializations(scores, limit=1).records
        if not newest:
            return dg.SkipReason(f"No day has been scored: run {agent.name}_monitor first.")
        seen = BackfillCursor(
            of_sources, newest[0].storage_id, history.last_change(instance, agent.name), f"{now:%Y-%m-%d}"
        )
        before = BackfillCursor.from_json(context.cursor)
        if seen == before:
            return dg.SkipReason("No scorer, no score and no run has changed since the last tick.")
        watched = frozenset(days_due(now, 0, timedelta(minutes=agent.spec.archive.settle_minutes)))
        if replace(seen, scores_event=before.scores_event) == before and (
            history.days_since(instance, agent.name, before.scores_event) <= watched
        ):
            return dg.SensorResult(
                skip_reason="Only days that the schedule scores anyway were scored since the last tick.",
                cursor=seen.to_json(),
            )
        sql: SqlEngine = gateway(context, "sql")
        found = _decision(agent, instance, sql, declared, now, watched)
        if found.requests and found.said:
            context.log.info(found.said)
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(
                    run_key=one.run_key,
                    partition_key=one.plan.day,
                    run_config=run_config(agent.name, one.plan),
                    tags=one.tags,
                )
                for one in found.requests
            ],
            skip_reason=None if found.requests else found.said,
            cursor=seen.to_json(),
        )

    return sensor


def _decision(
    agent: Agent,
    instance: dg.DagsterInstance,
    sql: SqlEngine,
    declared: Sequence[DeclaredScorer],
    now: datetime,
    watched: frozenset[str],
) -> "Decision":
    """Count what is owed, look up what was asked for, and decide."""
    from lifecycle_assets.monitoring import backfill_history as history
    from lifecycle_assets.monitoring.backfill_plan import as_asked, without_answered
    from lifecycle_assets.records import ScorersRecord
    from sensors.backfill_decision import Decision, decide

    registered = latest(instance, dg.AssetKey([agent.name, "registered_scorers"]), ScorersRecord)
    if registered is None:
        return Decision((), f"No scorer is registered: run {agent.name}_monitor first.")
    scorers, by_hash = as_asked(declared, registered.versions), not Platform.from_env().is_databricks
    counted = _counted(agent, sql, scorers, now, by_hash=by_hash)
    records = {day: history.record_of_day(instance, agent.name, day) for day in counted.to_score}
    return decide(
        counted if by_hash else without_answered(counted, scorers, records),
        scorers,
        registered,
        records,
        history.asked_since(instance, agent.name, history.midnight(now)),
        _vetting(instance, agent.name, scorers),
        agent.spec.backfill,
        agent.spec.monitoring.coverage,
        today=f"{now:%Y-%m-%d}",
        busy=frozenset(history.unfinished_days(instance, agent.name)),
        watched=watched,
        cuttable=by_hash,
    )


def _counted(
    agent: Agent, sql: SqlEngine, scorers: "Sequence[ScorerVersion]", now: datetime, *, by_hash: bool
) -> "Counts":
    from lifecycle_assets.monitoring.backfill_counts import counts
    from lifecycle_assets.retention import oldest_scored

    def query(text: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
        from lifecycle_assets.monitoring.backfill_counts import MAX_ROWS

        return sql.query(agent.spec.table_prefix, text, parameters, limit=MAX_ROWS).dicts()

    first = now.date() - timedelta(days=agent.spec.backfill.lookback_days)
    first = max(first, oldest_scored(agent.spec.archive, now.date()))
    return counts(query, scorers, first, now.date(), by_hash=by_hash)


def _vetting(instance: dg.DagsterInstance, agent: str, scorers: "Sequence[ScorerVersion]") -> "Vetting":
    from lifecycle_assets.monitoring import backfill_history as history
    from sensors.backfill_decision import Vetting

    of_set = history.set_of(scorers)
    for run in history.runs_of_set(instance, agent, of_set, canaries=True):
        record = history.record_of_run(instance, agent, run.run_id) if run.succeeded else None
        return Vetting(run, record, bool(history.runs_of_set(instance, agent, of_set, canaries=False)))
    return Vetting()


class _Sources:
    """The declared scorers, read anew only when a file or a variable they depend on has changed."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._held: tuple[Any, list[DeclaredScorer], str] | None = None

    def read(self, environment: str) -> tuple[list[DeclaredScorer], str]:
        """The scorers, and a digest of what makes them owe other scores or cost otherwise."""
        from lifecycle_assets.records import digest
        from resources.scorer_source import declared_scorers

        stamp = (environment, *self._stamp())
        if self._held is None or self._held[0] != stamp:
            found = declared_scorers(self._agent, environment)
            facts = sorted((one.registered_name, one.digest, one.spec.model_dump_json()) for one in found)
            self._held = (stamp, found, digest([facts, self._agent.spec.backfill.model_dump()]))
        return self._held[1], self._held[2]

    def _stamp(self) -> tuple[Any, ...]:
        from resources.scorer_source import JUDGE_MODEL

        scorers = self._agent.spec.scorers
        files = sorted({one.source.partition(":")[0] for one in scorers if isinstance(one.source, str)})
        paths = [path for path in map(self._agent.path, files) if path.exists()]
        states = [(state.st_mtime_ns, state.st_size, state.st_ino) for state in map(os.stat, paths)]
        variables = [JUDGE_MODEL, *(one.requires for one in scorers if one.requires)]
        return (*states, *(os.environ.get(name) for name in variables))
