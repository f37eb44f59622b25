"""What the scorer backfill asks for now; pure.

Lives here: the decision from counted days, runs and the declared budget.
Add here: a rule of when a backfill is asked for, or waits.
Not here: the sensor (`scorer_backfill.py`), the plan (`lifecycle_assets/monitoring/backfill_plan.py`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lifecycle_assets.monitoring.backfill_counts import Counts
from lifecycle_assets.monitoring.backfill_history import FACT, SENSOR, AskedRun, set_of, tags_of
from lifecycle_assets.monitoring.backfill_plan import Caps, DayPlan, Plan, canary, canary_fault, plan, reason
from lifecycle_assets.records import ScorersRecord, ScorerVersion, ScoresRecord
from lifecycle_assets.spec_monitoring import BackfillPolicy, CoverageTarget

MAX_TRIES = 3
"""How often a day's run, or a canary whose run failed, is asked for again on one UTC day."""


@dataclass(frozen=True)
class Vetting:
    """The newest canary of the scorers, what its run recorded, and whether the rest was asked for after it."""

    canary: AskedRun | None = None
    record: ScoresRecord | None = None
    went_on: bool = False


@dataclass(frozen=True)
class Request:
    """One run to ask for."""

    plan: DayPlan
    run_key: str
    tags: dict[str, str]


@dataclass(frozen=True)
class Decision:
    """The runs to ask for, and a sentence: what is left and why, or why nothing is asked for."""

    requests: tuple[Request, ...]
    said: str


def decide(
    counted: Counts,
    scorers: Sequence[ScorerVersion],
    registered: ScorersRecord,
    records: Mapping[str, ScoresRecord | None],
    runs: Sequence[AskedRun],
    vetting: Vetting,
    policy: BackfillPolicy,
    target: CoverageTarget,
    *,
    today: str,
    busy: frozenset[str] = frozenset(),
    watched: frozenset[str] = frozenset(),
    cuttable: bool = True,
    seconds_per_call: float | None = None,
) -> Decision:
    """The runs a tick asks for.

    `records` are the last records by day, `runs` those created on this UTC day (`today`), `busy` the days with a run
    that has not ended, `watched` the days the schedule scores anyway: there, scores that are merely missing are left
    to it. What the runs of today were planned to take is spent, whatever became of them.
    """
    owing = {day for day in counted.to_score if day not in busy and _calls(counted, scorers, day)}
    reasons = {day: _reasons(counted, scorers, day, records.get(day)) for day in owing}
    wanted = counted.only({day for day in owing if day not in watched or reasons[day] != {"missing"}})
    if not wanted.to_score:
        return Decision((), _nothing(busy))
    mine = [run for run in runs if run.by == SENSOR]
    caps = Caps(
        max(policy.max_cost_usd - sum(run.usd for run in mine), 0.0),
        max(policy.max_traces - sum(run.traces for run in mine), 0),
    )
    found = plan(wanted, scorers, caps, seconds_per_call=seconds_per_call, cuttable=cuttable)
    if not found.days:
        return Decision((), _left(found))
    scorer_set = set_of(scorers)
    fault, vetted = _vetted(vetting, counted, scorers, target, cuttable=cuttable)
    if fault and vetting.canary and vetting.canary.run_id not in {run.run_id for run in runs}:
        fault = ""  # Of an earlier day: what failed then may have passed, and a few traces tell.
    if fault:
        return Decision((), fault)
    days = found.days
    if not vetted and found.is_free:
        return Decision((), _left(found))  # Who costs has to be among the first traces.
    if not vetted:
        canaries = [run for run in mine if run.is_canary and run.scorers == scorer_set]
        if any(not run.is_finished for run in canaries) or (vetting.canary and not vetting.canary.is_finished):
            return Decision((), "The first traces of the newest day are scored before the rest; their run goes on.")
        if len(canaries) >= MAX_TRIES:
            return Decision((), f"The run before the rest failed {MAX_TRIES} times today: see it, mend what it says.")
        first = canary(found, wanted, scorers) if cuttable else found.days[0]
        days = (first,) if first else ()
    tried = Counter(run.fact for run in mine)
    requests, given_up = [], []
    for day in days:
        tags = tags_of(
            day, scorers=scorer_set, registered=registered.digest, answered=_answered(counted, scorers, day.day),
            reasons=sorted(reasons[day.day]), is_canary=not vetted, by=SENSOR,
        )  # fmt: skip
        number = tried[tags[FACT]]
        if number >= MAX_TRIES:
            given_up.append(day.day)
            continue
        requests.append(Request(day, f"backfill:{day.day}:{tags[FACT]}:{today}:{number}", tags))
    said = _left(found) if vetted else "These go before the rest."
    if given_up:
        said += f" Asked for {MAX_TRIES} times today without an end: {', '.join(given_up)}; see their runs."
    return Decision(tuple(requests), said.strip())


def _vetted(
    vetting: Vetting, counted: Counts, scorers: Sequence[ScorerVersion], target: CoverageTarget, *, cuttable: bool
) -> tuple[str, bool]:
    """Why the rest must not follow (empty: it may, or there is no answer yet), and whether the canary did well."""
    run = vetting.canary
    if vetting.went_on:
        return "", True
    if run is None or not run.succeeded:
        return "", False
    names = [one.registered_name for one in scorers]
    covered = vetting.record.coverage if vetting.record else {}
    fault = canary_fault(run.day, covered, [name for name in names if name in covered], target)
    # What is owed may have grown meanwhile: traces come.
    if not fault and cuttable and _answered(counted, scorers, run.day) <= run.answered:
        fault = f"nothing of {run.day} was scored: see the run {run.run_id}"
    return (f"The backfill stopped after its first traces: {fault}." if fault else ""), not fault


def _calls(counted: Counts, scorers: Sequence[ScorerVersion], day: str) -> int:
    return sum(counted.of(day, one).to_score for one in scorers)


def _answered(counted: Counts, scorers: Sequence[ScorerVersion], day: str) -> int:
    found = [counted.of(day, one) for one in scorers]
    return sum(one.scored + one.errored for one in found)


def _reasons(counted: Counts, scorers: Sequence[ScorerVersion], day: str, record: ScoresRecord | None) -> set[str]:
    return {reason(one, record) for one in scorers if counted.of(day, one).to_score}


def _nothing(busy: frozenset[str]) -> str:
    if busy:
        return f"Runs are under way for {', '.join(sorted(busy, reverse=True)[:5])}."
    return "Every archived day has the scores of the present sources."


def _left(found: Plan) -> str:
    if not found.left:
        return ""
    days = sorted(found.left, reverse=True)
    shown = ", ".join(days[:10]) + (f" and {len(days) - 10} days more" if len(days) > 10 else "")
    to = f" to {', '.join(found.waiting)}" if found.waiting else ""
    return (
        f"Today's budget is used up ({found.stopped_by}); left{to} are {sum(found.left.values())} traces of {shown}: "
        "raise backfill.max_cost_usd or max_traces, or wait for tomorrow."
    )
