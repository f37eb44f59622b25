"""Scores of a day in a workspace: production monitoring makes them, a backfill closes what it left open.

Lives here: `DatabricksScoring`: measuring coverage, deciding what to ask for within the budget, measuring again.
Add here: a rule of what a backfill may be asked for.
Not here: the SQL (`coverage_sql.py`), jobs (`backfill.py`). No trace passes through this machine.

Why a rerun is safe: coverage is measured first, and only what is missing is asked for. A backfill that was asked for
and not seen to end, because this process was killed or its answer was lost, is found and followed before anything is
measured.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import date

from lifecycle_assets.records import ScorerVersion
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.archive.archive_sources import Window
from resources.databricks.scoring.backfill import ASK_SECONDS, JOB_SECONDS, LOST_MS, POLL_SECONDS, Backfill, Backfills
from resources.databricks.scoring.coverage import Coverage
from resources.databricks.scoring.coverage_sql import Counted, Question
from resources.databricks.scoring.scorer_registry import DatabricksScorerRegistry
from resources.databricks.workspace import require_agents
from resources.explain import explained
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from resources.scoring.scoring import NO_LIMITS, DayScores, ScoreLimits, Scoring
from resources.worker import Progress

CADENCE_MINUTES = 15
"""How often production monitoring runs when nothing else was set, as Databricks documents it."""

LAG_MINUTES = 20
"""How long after a run of the monitoring its scores are seen in the tables: the run itself, then the archive's own
round. Databricks says 15 to 20 minutes."""


class DatabricksScoring(Scoring):
    """Measures by SQL, and asks the workspace for backfills; `job_seconds` bounds all waiting of one day."""

    def __init__(
        self,
        platform: Platform,
        *,
        ask_seconds: float = ASK_SECONDS,
        job_seconds: float = JOB_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._platform = platform
        self._bounds = {"ask_seconds": ask_seconds, "job_seconds": job_seconds, "poll_seconds": poll_seconds}

    def score_day(
        self,
        agent: Agent,
        day: date,
        scorers: Sequence[ScorerVersion],
        *,
        settled_before_ms: int,
        progress: Progress,
        limits: ScoreLimits = NO_LIMITS,
    ) -> DayScores:
        """See `Scoring.score_day`.

        Traces that production monitoring may still reach by itself are not counted yet: those younger than its
        cadence and `LAG_MINUTES`. Raises `Refused` when a backfill failed, or goes on for too long.
        """
        window, now_ms = Window(day), int(time.time() * 1000)
        cadence = agent.spec.monitoring.every_minutes or CADENCE_MINUTES
        due_ms = min(settled_before_ms, now_ms - (cadence + LAG_MINUTES) * 60_000)
        active = [scorer for scorer in scorers if scorer.sample_rate > 0]
        if not active or due_ms <= window.start_ms:
            nothing = {s.registered_name: Counted(s.sample_rate, 0, 0, 0, 0, 0).coverage(s.version) for s in active}
            return DayScores(0, 0, nothing)
        with explained(self._platform.tracking_uri):
            return self._score(agent, window, active, due_ms, progress, limits)

    def _score(
        self,
        agent: Agent,
        window: Window,
        active: Sequence[ScorerVersion],
        due_ms: int,
        progress: Progress,
        limits: ScoreLimits,
    ) -> DayScores:
        platform, until = self._platform, time.monotonic() + self._bounds["job_seconds"]
        jobs = Backfills(platform, experiment_id(platform, agent.spec.experiment), **self._bounds)
        since = DatabricksScorerRegistry(platform).registered_at_ms(agent)
        measured = Coverage(platform, agent, window, due_ms, progress)
        key = f"{platform.environment}_{agent.name}.{window.day}"

        def look(last: Backfill | None, *, confirmed: bool = True) -> dict[str, Counted]:
            return measured.of([_question(scorer, since, last) for scorer in active], confirmed=confirmed)

        last = jobs.settled(key, progress)
        first = look(last, confirmed=False)
        if any(counted.waiting for counted in first.values()):
            first = look(last)
        found = first
        while wanted := _wanted(agent, window, active, found, last, due_ms, progress, limits):
            if last is not None and last.state == "asking":
                if int(time.time() * 1000) - last.at_ms < LOST_MS:
                    raise _lost(last)
                progress("a backfill whose answer was lost did not happen: asking again")
            if time.monotonic() > until:
                raise Refused(
                    f"Other backfills of experiment {agent.spec.experiment} kept running for "
                    f"{self._bounds['job_seconds']:g} s; run this again when they are done."
                )
            require_agents()
            asked = jobs.ask(key, wanted, progress)
            last = asked or jobs.last(key)
            found = look(last)
            if asked is not None and asked.state != "asking":
                break
        if last is not None and last.state == "asking" and not any(c.waiting for c in found.values()):
            jobs.note(key, last.ended("gone"))
        return _day(active, first, found, progress)


def _question(scorer: ScorerVersion, since: Mapping[str, int], last: Backfill | None) -> Question:
    name = scorer.registered_name
    return Question(scorer, since.get(name, 0), last.seen_until(name, scorer.version) if last else 0)


def _wanted(
    agent: Agent,
    window: Window,
    active: Sequence[ScorerVersion],
    found: Mapping[str, Counted],
    last: Backfill | None,
    due_ms: int,
    progress: Progress,
    limits: ScoreLimits,
) -> Backfill | None:
    """The backfill of the scorers whose scores are missing, as many as the budget takes; None when there is none."""
    budget, calls, cost = agent.spec.backfill, 0, 0.0
    most = min(budget.max_traces, limits.max_traces or budget.max_traces)
    dearest = min(budget.max_cost_usd, limits.max_cost_usd or budget.max_cost_usd)
    chosen: list[ScorerVersion] = []
    for scorer in active:
        counted = found[scorer.registered_name]
        if not counted.waiting or (limits.scorers and scorer.name not in limits.scorers):
            continue
        more = round(counted.matching * scorer.sample_rate) or 1
        price = more * scorer.cost_per_call
        if calls + more > most or cost + price > dearest:
            progress(
                f"{scorer.name}: {more} calls for {price:.2f} USD are over the budget (backfill.max_traces {most}, "
                f"backfill.max_cost_usd {dearest:g}): not asked for"
            )
            continue
        chosen, calls, cost = [*chosen, scorer], calls + more, cost + price
    if not chosen:
        return None
    return Backfill(
        state="asking",
        job_id="",
        start_ms=window.start_ms,
        end_ms=min(window.end_ms, due_ms),
        rates={s.registered_name: s.sample_rate for s in chosen},
        versions={s.registered_name: s.version for s in chosen},
        due_ms=due_ms,
        at_ms=int(time.time() * 1000),
        seen=last.seen if last else {},
    )


def _lost(last: Backfill) -> Refused:
    return Refused(
        f"The answer to the backfill of {', '.join(sorted(last.rates))} was lost and its job cannot be found; if it "
        f"was accepted, it goes on in the workspace: run this again in {LOST_MS // 60_000} minutes."
    )


def _day(
    active: Sequence[ScorerVersion], first: Mapping[str, Counted], found: Mapping[str, Counted], progress: Progress
) -> DayScores:
    for scorer in active:
        if silent := found[scorer.registered_name].silent:
            progress(f"{scorer.name} said nothing of {silent} traces a finished backfill has seen: not applicable")
    done = {name: (counted.scored + counted.errored) for name, counted in found.items()}
    written = sum(max(done[name] - (before.scored + before.errored), 0) for name, before in first.items())
    coverage = {s.registered_name: found[s.registered_name].coverage(s.version) for s in active}
    return DayScores(max((c.matching for c in found.values()), default=0), written, coverage)
