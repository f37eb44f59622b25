"""The runs of `lifecycle backfill`: a day each, the canary first.

Lives here: counting for the command, and carrying a plan out through the jobs of the code location.
Add here: a reason to stop before the plan's end.
Not here: what people read (`backfill.py`), the plan (`lifecycle_assets/monitoring/backfill_plan.py`).

Why a rerun is safe: nothing of a backfill is kept but the scores themselves. Every call counts anew what the archive
lacks, so what a killed run has scored is neither asked for nor paid for again.
"""

import time
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from typing import Any

import dagster as dg

from lifecycle_assets.cli.progress_line import ProgressLine
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.home import open_instance
from lifecycle_assets.monitoring import backfill_history as history
from lifecycle_assets.monitoring.backfill_counts import MAX_ROWS, Counts, counts
from lifecycle_assets.monitoring.backfill_plan import (
    Caps,
    DayPlan,
    Plan,
    as_asked,
    canary,
    canary_fault,
    plan,
    reason,
    run_config,
    without_answered,
)
from lifecycle_assets.records import ScorersRecord, ScorerVersion
from lifecycle_assets.refused import Refused
from lifecycle_assets.runner import Runner, was_interrupted, why_failed
from lifecycle_assets.spec_file import Agent
from resources.scorer_source import DeclaredScorer

NOT_OF_THE_CANARY = ("coverage", "as_declared")
"""Checks that may fail after a canary: coverage is short because it took a few traces only."""


class Backfill:
    """A range of days and some declared scorers, counted at their first use and again after the canary."""

    def __init__(
        self, agent: Agent, sources: Sources, declared: Sequence[DeclaredScorer], first: date, last: date
    ) -> None:
        self.agent, self.first, self.last = agent, first, last
        self._sources, self._declared = sources, declared
        self._by_hash = not sources.platform.is_databricks
        self._shown = ProgressLine()
        self._asked: list[ScorerVersion] = []

    @cached_property
    def scorers(self) -> list[ScorerVersion]:
        """The scorers that sample, as they are declared now."""
        return as_asked(self._declared, self._registered.versions if self._registered else [])

    @cached_property
    def counted(self) -> Counts:
        """What the archive says of the range. One query."""

        def query(text: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
            found = self._sources.sql.query(self.agent.spec.table_prefix, text, parameters, limit=MAX_ROWS)
            return found.dicts()

        found = counts(query, self.scorers, self.first, self.last, by_hash=self._by_hash)
        if self._by_hash:
            return found
        return without_answered(found, self.scorers, {day: self._record(day) for day in found.to_score})

    @cached_property
    def seconds_per_call(self) -> float | None:
        """As earlier runs measured it."""
        instance = self._sources.instance
        return history.seconds_per_call(instance, self.agent.name) if instance else None

    def planned(self, caps: Caps) -> Plan:
        """What would be done within these caps."""
        return plan(self.counted, self.scorers, caps, seconds_per_call=self.seconds_per_call, cuttable=self._by_hash)

    def canary(self, planned: Plan) -> DayPlan | None:
        """What of a plan goes first."""
        if not planned.days or not self._by_hash:
            return planned.days[0] if planned.days else None
        return canary(planned, self.counted, self.scorers)

    def pairs(self) -> list[dict[str, Any]]:
        """The numbers by day and scorer, newest day first."""
        rows = []
        for day in sorted(self.counted.traces, reverse=True):
            record = self._record(day) if self.counted.to_score.get(day) else None
            for one in self.scorers:
                found = self.counted.of(day, one)
                why = reason(one, record) if found.to_score else ""
                facts = {"day": day, "scorer": one.name, "traces": self.counted.traces[day], **vars(found)}
                rows.append({**facts, "usd": found.to_score * one.cost_per_call, "reason": why})
        return rows

    def run(self, caps: Caps, runs: list[dict[str, Any]]) -> Plan:
        """Carry the plan out; each run is added to `runs` when it has ended. Returns what is left.

        Raises `Refused` when the canary's scores, or a run, failed: what was scored until then stays.
        """
        began = time.monotonic()
        with open_instance(self._sources.platform) as instance:
            runner = Runner(agent_definitions(self.agent), instance, self._shown.lasting)
            runner.settle_interrupted()
            planned = self.planned(caps)
            first = self.canary(planned)
            if first is None:
                return planned
            if planned.is_free:  # Nobody has tried the others: what is asked for is for these scorers only.
                self._asked = [one for one in self.scorers if one.name not in planned.waiting]
            before = self._answered(first.day)
            done = self._ended(runner, first, runs, is_canary=True)
            self._recount()
            if fault := self._fault(instance, done, first, before):
                raise Refused(
                    f"The backfill stopped after its first traces: {fault}. Mend that, then run the same command again."
                )
            planned = self.planned(caps.without(first))
            for number, day in enumerate(planned.days):
                if caps.seconds is not None and time.monotonic() - began >= caps.seconds:
                    left = dict(planned.left)
                    for one in planned.days[number:]:
                        left[one.day] = max(left.get(one.day, 0), one.traces)
                    return Plan(planned.days, "time", left)
                self._ended(runner, day, runs, is_canary=False)
            return planned

    def _ended(
        self, runner: Runner, day: DayPlan, runs: list[dict[str, Any]], *, is_canary: bool
    ) -> dg.ExecuteInProcessResult:
        record = self._record(day.day)
        tags = history.tags_of(
            day,
            scorers=history.set_of(self._asked or self.scorers),
            registered=self._registered.digest if self._registered else "",
            answered=self._answered(day.day),
            reasons=[reason(one, record) for one in self.scorers if one.name in day.scorers],
            is_canary=is_canary,
            by=history.COMMAND,
        )
        done = runner.ended(
            f"{self.agent.name}_scorer_backfill",
            partition_key=day.day,
            run_config=run_config(self.agent.name, day),
            tags=tags,
            listener=self._shown.passing,
        )
        self._shown.end()
        runs.append({"run_id": done.run_id, "success": done.success, "canary": is_canary, **vars(day)})
        if not done.success:
            again = "run the same command again: it goes on where it was."
            if was_interrupted(done):
                raise Refused(f"Interrupted on {day.day}; {again}")
            raise Refused(f"{day.day}: {why_failed(done).rstrip('.')}. Mend that, then {again}")
        return done

    def _fault(self, instance: dg.DagsterInstance, done: dg.ExecuteInProcessResult, day: DayPlan, before: int) -> str:
        """Why the rest must not follow the canary; empty when it may."""
        names = {one.name: one.registered_name for one in self.scorers}
        record = history.record_of_run(instance, self.agent.name, done.run_id)
        if record is None:
            return f"the run {done.run_id} recorded no scores"
        wanted, target = [names[name] for name in day.scorers], self.agent.spec.monitoring.coverage
        if fault := canary_fault(day.day, record.coverage, wanted, target):
            return fault
        for check in done.get_asset_check_evaluations():
            is_error = check.severity == dg.AssetCheckSeverity.ERROR and check.asset_key.path[-1] != "quality_metrics"
            if not check.passed and is_error and check.check_name not in NOT_OF_THE_CANARY:
                return f"check {check.check_name} on {check.asset_key.to_user_string()} failed: {check.description}"
        if self._by_hash and self._answered(day.day) <= before:
            return f"none of its {day.calls} calls left a score that stays"
        return ""

    def _answered(self, day: str) -> int:
        """Calls of a day that have their answer: what is owed may grow while a canary runs."""
        found = [self.counted.of(day, one) for one in self.scorers]
        return sum(one.scored + one.errored for one in found)

    def _record(self, day: str) -> Any:
        instance = self._sources.instance
        return history.record_of_day(instance, self.agent.name, day) if instance else None

    @cached_property
    def _registered(self) -> ScorersRecord | None:
        found = self._sources.latest(self.agent, "registered_scorers", ScorersRecord)
        return found.record if found else None

    def _recount(self) -> None:
        """Forget what was counted: the canary registered its scorers and scored some traces."""
        for name in ("counted", "scorers", "_registered", "seconds_per_call"):
            self.__dict__.pop(name, None)
