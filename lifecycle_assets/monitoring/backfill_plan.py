"""What a backfill would do: which days, in which order, at which price, and where it stops; pure.

Lives here: the plan from counted days, the canary, why a day is owed, and what a run of one day is told.
Add here: a further cap, or a reason to score a day again.
Not here: counting (`backfill_counts.py`), starting runs (`cli/backfill.py`, `sensors/scorer_backfill.py`).

Prices are upper bounds: a day of which only `n` traces are taken may have them all where the dearest scorers are owed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lifecycle_assets.monitoring.backfill_counts import Counts
from lifecycle_assets.records import ScorerVersion, ScoresRecord
from lifecycle_assets.spec_monitoring import CoverageTarget
from resources.scorer_source import DeclaredScorer

MAX_DAYS = 400
"""Days of one backfill at most."""

CANARY_TRACES = 20
"""Traces of the newest day that are scored before everything else: enough to see a scorer that fails, for little."""

REASONS = {
    "new": "a scorer is new",
    "code": "a scorer's code changed",
    "sampling": "a scorer's sample_rate changed",
    "filter": "a scorer's filter changed",
    "missing": "scores are missing",
}
"""Why a day is owed, as runs are tagged, and in words."""


@dataclass(frozen=True)
class Caps:
    """What a backfill may take at most: USD, traces, seconds; None is no cap."""

    usd: float | None = None
    traces: int | None = None
    seconds: float | None = None

    def without(self, day: "DayPlan") -> "Caps":
        """What is left after that day."""
        usd = None if self.usd is None else max(self.usd - day.usd, 0.0)
        traces = None if self.traces is None else max(self.traces - day.traces, 0)
        seconds = None if self.seconds is None else max(self.seconds - (day.seconds or 0.0), 0.0)
        return Caps(usd, traces, seconds)


@dataclass(frozen=True)
class DayPlan:
    """One run: a day, the declared names of its scorers, and at most how many traces, calls, USD and seconds it takes.

    `seconds` is None where nobody has measured. `is_cut`: the day has more than that.
    """

    day: str
    scorers: tuple[str, ...]
    traces: int
    calls: int
    usd: float
    seconds: float | None
    is_cut: bool = False


@dataclass(frozen=True)
class Plan:
    """Runs in the order they are made, the caps that ended the list (empty: none), and traces left by day.

    `waiting` are the declared names of scorers that wait for money while others go on: what is left is left to them.
    """

    days: tuple[DayPlan, ...]
    stopped_by: str
    left: dict[str, int]
    waiting: tuple[str, ...] = ()

    @property
    def is_free(self) -> bool:
        """Whether scorers wait for money, and none of them is in any run."""
        return bool(self.waiting) and not any(name in day.scorers for day in self.days for name in self.waiting)


def as_asked(declared: Sequence[DeclaredScorer], registered: Sequence[ScorerVersion]) -> list[ScorerVersion]:
    """The declared scorers as a backfill counts them: with today's rate and filter, and no version for a new source."""
    held = {one.registered_name: one for one in registered}
    found = []
    for one in declared:
        known, spec = held.get(one.registered_name), one.spec
        version = known.version if known and known.digest == one.digest else ""
        found.append(
            ScorerVersion(
                one.name, one.registered_name, version, one.digest,
                spec.sample_rate, spec.filter, spec.level, spec.cost_per_call,
            )
        )  # fmt: skip
    return [one for one in found if one.sample_rate > 0]


def plan(
    counted: Counts,
    scorers: Sequence[ScorerVersion],
    caps: Caps,
    *,
    seconds_per_call: float | None = None,
    cuttable: bool = True,
) -> Plan:
    """The days that owe something, newest first, until a cap is reached.

    The day at which a cap is reached is cut, and nothing older is taken; but where it is the money, scorers that cost
    nothing go on within the other caps, in runs of their own after the others. Where a day cannot be cut (`cuttable` is
    false), days that fit are still taken.
    """
    found = _filled(counted, scorers, caps, seconds_per_call, cuttable=cuttable)
    free = {one.registered_name: one for one in scorers if not one.cost_per_call}
    owed = {
        day: [counted.of(day, one).to_score for one in free.values()]
        for day, cap in found.reached.items()
        if cap == "money"
    }
    to_score = {day: min(sum(numbers), counted.to_score[day]) for day, numbers in owed.items() if any(numbers)}
    if not to_score:
        return Plan(tuple(found.days), found.stopped_by, found.left)
    rest = Counts(counted.traces, to_score, counted.by_scorer)
    more = _filled(rest, [*free.values()], found.caps, seconds_per_call, cuttable=cuttable)
    dear = [one for one in scorers if one.cost_per_call]
    left = dict(found.left)
    for day in to_score.keys() - more.left.keys():
        left[day] = min(left[day], sum(counted.of(day, one).to_score for one in dear))
    waiting = (one.name for one in dear if any(counted.of(day, one).to_score for day in owed))
    return Plan(
        (*found.days, *more.days),
        " and ".join(filter(None, dict.fromkeys((found.stopped_by, more.stopped_by)))),
        {day: number for day, number in left.items() if number},
        tuple(waiting) if more.days else (),
    )


class _Filled(NamedTuple):
    """Days as they fit; by day what is left and the cap that was reached; the first such cap, what the caps leave."""

    days: list[DayPlan]
    left: dict[str, int]
    reached: dict[str, str]
    stopped_by: str
    caps: Caps


def _filled(
    counted: Counts, scorers: Sequence[ScorerVersion], caps: Caps, seconds_per_call: float | None, *, cuttable: bool
) -> _Filled:
    """Days taken newest first, all scorers alike, until a cap is reached."""
    days: list[DayPlan] = []
    left, reached, stopped = {}, {}, ""
    for day in sorted(counted.to_score, reverse=True):
        owed = {one: counted.of(day, one).to_score for one in scorers if counted.of(day, one).to_score}
        whole = _taking(day, owed, counted.to_score[day], counted.to_score[day], seconds_per_call)
        if not whole.traces:
            continue
        cap = stopped if stopped and cuttable else _exceeded(whole, caps)
        part = _largest(day, owed, whole, caps, seconds_per_call) if cap and cuttable and not stopped else None
        if taken := part if cap else whole:
            days.append(taken)
            caps = caps.without(taken)
        if cap:
            stopped, reached[day] = stopped or cap, cap
            left[day] = whole.traces - (part.traces if part else 0)
    return _Filled(days, left, reached, stopped, caps)


def canary(found: Plan, counted: Counts, scorers: Sequence[ScorerVersion]) -> DayPlan | None:
    """The first day of a plan cut to `CANARY_TRACES`; None when the plan is empty."""
    if not found.days:
        return None
    first = found.days[0]
    if first.traces <= CANARY_TRACES:
        return first
    owed = {one: counted.of(first.day, one).to_score for one in scorers if one.name in first.scorers}
    per_call = first.seconds / first.calls if first.seconds is not None and first.calls else None
    return _taking(first.day, owed, CANARY_TRACES, counted.to_score[first.day], per_call)


def canary_fault(
    day: str, coverage: Mapping[str, Mapping[str, Any]], scorers: Sequence[str], target: CoverageTarget
) -> str:
    """Why the rest must not follow the canary, empty when it may: more errors than the declared target forgives.

    `coverage` is the day's after the canary, `scorers` are registered names.
    """
    for name in scorers:
        covered = coverage.get(name)
        if covered is None:
            return f"{name} was not scored on {day}"
        errored = int(covered["errored"])
        answered = errored + int(covered["scored"])
        if answered and errored / answered > 1 - target.share:
            return f"{name} failed on {errored} of {answered} traces of {day}: see the errors in assessments"
    return ""


def reason(scorer: ScorerVersion, record: ScoresRecord | None) -> str:
    """Why a day owes scores to a scorer, by the day's last record: a key of `REASONS`."""
    covered = record.coverage.get(scorer.registered_name) if record else None
    if covered is None:
        return "new"
    if not scorer.version or covered["version"] != scorer.version:
        return "code"
    if covered.get("rate", scorer.sample_rate) != scorer.sample_rate:
        return "sampling"
    return "missing" if covered.get("filter", scorer.filter) == scorer.filter else "filter"


def without_answered(
    counted: Counts, scorers: Sequence[ScorerVersion], records: Mapping[str, ScoresRecord | None]
) -> Counts:
    """The numbers without what the day's last record knows to be complete.

    For a workspace, whose production monitoring leaves no assessment where a scorer had nothing to say: only who
    measured the day after a finished backfill knows that those traces were seen.
    """
    kept = dict(counted.by_scorer)
    for day, record in records.items():
        for one in scorers:
            pair = (day, one.registered_name)
            covered = record.coverage.get(one.registered_name) if record else None
            if pair in kept and covered and not covered["waiting"] and reason(one, record) == "missing":
                kept[pair] = replace(kept[pair], to_score=0)
    calls = {day: sum(found.to_score for (of, _), found in kept.items() if of == day) for day in counted.to_score}
    return Counts(counted.traces, {day: number for day, number in calls.items() if number}, kept)


def run_config(agent: str, day: DayPlan) -> dict[str, Any]:
    """Run config of the job `scorer_backfill` for one day of a plan: never more than was planned."""
    # The sum of prices may differ in its last digit from the sum the run makes.
    config = {"scorers": list(day.scorers), "max_traces": day.traces, "max_cost_usd": day.usd * (1 + 1e-9)}
    return {"ops": {f"{agent}__trace_scores": {"config": config}}}


def _taking(
    day: str, owed: Mapping[ScorerVersion, int], traces: int, of: int, seconds_per_call: float | None
) -> DayPlan:
    """`traces` of the `of` traces of a day that owe something."""
    calls = {one: min(number, traces) for one, number in owed.items()}
    seconds = None if seconds_per_call is None else seconds_per_call * sum(calls.values())
    usd = sum(number * one.cost_per_call for one, number in calls.items())
    names = tuple(one.name for one in owed)
    return DayPlan(day, names, traces, sum(calls.values()), usd, seconds, is_cut=traces < of)


def _exceeded(day: DayPlan, caps: Caps) -> str:
    """The cap a day would exceed, in words; empty when it fits."""
    if caps.usd is not None and day.usd > caps.usd * (1 + 1e-9):
        return "money"
    if caps.traces is not None and day.traces > caps.traces:
        return "traces"
    return "time" if caps.seconds is not None and (day.seconds or 0.0) > caps.seconds else ""


def _largest(
    day: str, owed: Mapping[ScorerVersion, int], whole: DayPlan, caps: Caps, seconds_per_call: float | None
) -> DayPlan | None:
    """The largest part of a day that fits, found by halving; None when not one trace does."""
    fits, too_many = 0, whole.traces
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        part = _taking(day, owed, middle, whole.traces, seconds_per_call)
        fits, too_many = (fits, middle) if _exceeded(part, caps) else (middle, too_many)
    return _taking(day, owed, fits, whole.traces, seconds_per_call) if fits else None
