"""The plan of a backfill: order, canary, caps that are never exceeded, and why a day is owed."""

from dataclasses import replace
from typing import Any

import pytest

from lifecycle_assets.cli.backfill_estimate import left_sentence, sentences
from lifecycle_assets.monitoring.backfill_counts import Counts, DayCount
from lifecycle_assets.monitoring.backfill_plan import (
    CANARY_TRACES,
    Caps,
    Plan,
    as_asked,
    canary,
    canary_fault,
    plan,
    reason,
    run_config,
    without_answered,
)
from lifecycle_assets.records import ScorerVersion, ScoresRecord
from lifecycle_assets.spec import Scorer
from lifecycle_assets.spec_monitoring import CoverageTarget
from resources.scorer_source import DeclaredScorer

DAYS = ("2026-11-18", "2026-11-19", "2026-11-20")
JUDGE = ScorerVersion("judge", "local_tiny_judge", "1", "d1", 1.0, "", "trace", 0.01)
CODE = ScorerVersion("code", "local_tiny_code", "1", "d2", 1.0, "", "trace", 0.0)


def owing(*numbers: tuple[int, int], traces: int | None = None) -> Counts:
    """Days of 100 traces that owe the judge and the code scorer so many, newest day last."""
    by_scorer = {}
    for day, (judge, code) in zip(DAYS, numbers, strict=False):
        for one, number in ((JUDGE, judge), (CODE, code)):
            by_scorer[day, one.registered_name] = DayCount(100, 100, 100 - number, 0, number)
    to_score = {day: traces or max(pair) for day, pair in zip(DAYS, numbers, strict=False) if max(pair)}
    return Counts(dict.fromkeys(DAYS, 100), to_score, by_scorer)


def planned(counted: Counts, caps: Caps | None = None, **how: Any) -> Plan:
    return plan(counted, [JUDGE, CODE], caps or Caps(), **how)


class TestPlan:
    def test_the_newest_day_comes_first_and_says_calls_and_price(self):
        found = planned(owing((100, 0), (50, 100), (0, 0)))
        assert [(day.day, day.scorers, day.traces, day.calls) for day in found.days] == [
            (DAYS[1], ("judge", "code"), 100, 150),
            (DAYS[0], ("judge",), 100, 100),
        ]
        assert [day.usd for day in found.days] == [pytest.approx(0.5), pytest.approx(1.0)]
        assert [day.seconds for day in found.days] == [None, None]
        assert (found.stopped_by, found.left) == ("", {})

    def test_time_is_that_of_a_measured_call(self):
        assert planned(owing((100, 50)), seconds_per_call=2.0).days[0].seconds == 300.0

    def test_nothing_owed_is_an_empty_plan(self):
        assert planned(owing((0, 0), (0, 0))) == Plan((), "", {})
        assert canary(Plan((), "", {}), owing(), [JUDGE]) is None

    @pytest.mark.parametrize(
        ("caps", "stopped_by"),
        [(Caps(usd=1.25), "money"), (Caps(traces=125), "traces"), (Caps(seconds=125.0), "time")],
    )
    def test_a_cap_cuts_a_day_in_the_middle_and_says_what_is_left(self, caps: Caps, stopped_by: str):
        found = planned(owing((100, 0), (100, 0), (100, 0)), caps, seconds_per_call=1.0)
        assert [(day.day, day.traces, day.is_cut) for day in found.days] == [(DAYS[2], 100, False), (DAYS[1], 25, True)]
        assert found.stopped_by == stopped_by
        assert found.left == {DAYS[1]: 75, DAYS[0]: 100}

    @pytest.mark.parametrize("usd", [0.0, 0.009, 0.01, 0.3, 0.7, 1.0, 2.0, 2.999, 3.0])
    def test_no_plan_costs_more_than_its_cap_however_the_money_falls(self, usd: float):
        found = planned(owing((100, 70), (100, 10), (100, 0)), Caps(usd=usd))
        assert sum(day.usd for day in found.days) <= usd + 1e-9
        judged = sum(day.traces for day in found.days if "judge" in day.scorers)
        assert judged + sum(found.left.values()) == 300, "every judgement that is owed is planned or left"
        coded = {day.day: 0 for day in found.days}
        for day in found.days:
            coded[day.day] += day.traces * ("code" in day.scorers)
        assert coded[DAYS[0]] >= 70, "and what costs nothing is planned"
        assert coded[DAYS[1]] >= 10

    def test_the_traces_of_a_cut_day_may_all_be_dear_ones(self):
        """Twenty of a hundred traces, of which ten owe a judgement: all ten may be among them."""
        found = planned(owing((10, 100)), Caps(traces=20))
        assert (found.days[0].calls, found.days[0].usd) == (30, pytest.approx(0.1))

    def test_ten_cents_ten_times_are_a_dollar(self):
        one = replace(JUDGE, cost_per_call=0.1)
        counted = Counts({}, {DAYS[0]: 3}, {(DAYS[0], one.registered_name): DayCount(3, 3, 0, 0, 3)})
        assert len(plan(counted, [one], Caps(usd=0.3)).days) == 1

    def test_scorers_that_cost_nothing_go_on_when_the_money_is_used_up(self):
        counted = owing((100, 70), (100, 0), (100, 100), traces=100)
        found = planned(counted, Caps(usd=1.25))
        assert [(day.day, day.scorers, day.traces, day.usd) for day in found.days] == [
            (DAYS[2], ("judge", "code"), 100, 1.0),
            (DAYS[1], ("judge",), 25, 0.25),
            (DAYS[0], ("code",), 70, 0.0),
        ]
        assert (found.stopped_by, found.left, found.waiting) == ("money", {DAYS[1]: 75, DAYS[0]: 100}, ("judge",))
        assert left_sentence(found) == (
            f"The cap on money leaves 175 traces of {DAYS[1]}, {DAYS[0]} to judge; scorers that cost nothing go on."
        )
        cut = planned(counted, Caps(usd=0.3))
        assert [(day.day, day.scorers, day.traces) for day in cut.days] == [
            (DAYS[2], ("judge", "code"), 30),
            (DAYS[2], ("code",), 100),
            (DAYS[0], ("code",), 70),
        ]
        broke = planned(counted, Caps(usd=0.0, traces=120))
        assert [(day.day, day.scorers, day.traces) for day in broke.days] == [
            (DAYS[2], ("code",), 100),
            (DAYS[0], ("code",), 20),
        ]
        assert (broke.stopped_by, broke.is_free) == ("money and traces", True)
        assert broke.left == {DAYS[2]: 100, DAYS[1]: 100, DAYS[0]: 100}
        whole = planned(counted, Caps(usd=1.5), cuttable=False)
        assert [(day.day, day.scorers) for day in whole.days] == [(DAYS[2], ("judge", "code")), (DAYS[0], ("code",))]

    def test_free_scorers_need_no_money(self):
        assert len(planned(owing((0, 100), (0, 100)), Caps(usd=0.0)).days) == 2

    def test_where_days_cannot_be_cut_those_that_fit_are_taken(self):
        found = planned(owing((10, 0), (100, 0), (20, 0)), Caps(traces=40), cuttable=False)
        assert [(day.day, day.is_cut) for day in found.days] == [(DAYS[2], False), (DAYS[0], False)]
        assert (found.stopped_by, found.left) == ("traces", {DAYS[1]: 100})


class TestCanary:
    def test_a_few_traces_of_the_newest_day(self):
        counted = owing((100, 0), (5, 100))
        first = canary(planned(counted), counted, [JUDGE, CODE])
        assert first is not None
        assert (first.day, first.traces, first.calls, first.is_cut) == (DAYS[1], CANARY_TRACES, 5 + CANARY_TRACES, True)

    def test_a_small_day_is_taken_whole_and_a_cut_one_no_larger(self):
        counted = owing((100, 0), (7, 0))
        assert canary(planned(counted), counted, [JUDGE, CODE]) == planned(counted).days[0]
        capped = canary(planned(counted, Caps(traces=3)), counted, [JUDGE, CODE])
        assert capped is not None
        assert capped.traces == 3

    @pytest.mark.parametrize(("errored", "stops"), [(0, False), (1, False), (2, True), (20, True)])
    def test_more_errors_than_the_target_forgives_stop_the_rest(self, errored: int, stops: bool):
        coverage = {"a": {"scored": 20 - errored, "errored": errored}}
        assert bool(canary_fault(DAYS[0], coverage, ["a"], CoverageTarget(share=0.95))) == stops

    def test_a_scorer_that_was_not_scored_at_all_stops_it_too(self):
        assert canary_fault(DAYS[0], {}, ["a"], CoverageTarget()) == f"a was not scored on {DAYS[0]}"


class TestReason:
    RECORD = ScoresRecord(
        DAYS[0], "set", 10, {JUDGE.registered_name: {"version": "1", "rate": 0.5, "filter": "", "waiting": 0}}
    )

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"sample_rate": 0.5}, "missing"),
            ({"sample_rate": 0.8}, "sampling"),
            ({"sample_rate": 0.5, "filter": "tags.a = 'b'"}, "filter"),
            ({"version": "2"}, "code"),
            ({"version": ""}, "code"),
            ({"registered_name": "local_tiny_other"}, "new"),
        ],
    )
    def test_sampling_filter_and_code_are_told_apart(self, changes: dict[str, Any], why: str):
        assert reason(replace(JUDGE, **changes), self.RECORD) == why

    def test_a_day_nobody_scored_is_new(self):
        assert reason(JUDGE, None) == "new"


def test_what_a_finished_backfill_of_a_workspace_has_seen_is_not_owed():
    counted = owing((100, 30))
    seen = {"version": "1", "waiting": 0, "rate": 1.0, "filter": ""}
    coverage = {JUDGE.registered_name: seen, CODE.registered_name: {**seen, "waiting": 5}}
    found = without_answered(counted, [JUDGE, CODE], {DAYS[0]: ScoresRecord(DAYS[0], "s", 100, coverage)})
    assert (found.of(DAYS[0], JUDGE).to_score, found.of(DAYS[0], CODE).to_score) == (0, 30)
    assert found.to_score == {DAYS[0]: 30}
    changed = [replace(JUDGE, version="2"), replace(CODE, sample_rate=0.5)]
    assert without_answered(counted, changed, {DAYS[0]: ScoresRecord(DAYS[0], "s", 100, coverage)}).to_score == {
        DAYS[0]: 130
    }
    assert without_answered(counted, [JUDGE, CODE], {DAYS[0]: None}).to_score == {DAYS[0]: 130}


def test_a_changed_source_has_no_version_yet_and_a_silent_scorer_is_not_asked_for():
    def declared(name: str, digest: str, rate: float = 1.0) -> DeclaredScorer:
        return DeclaredScorer(name, f"local_tiny_{name}", digest, Scorer(name=name, source="s.py:f", sample_rate=rate))

    found = as_asked(
        [declared("judge", "other", 0.3), declared("code", "d2"), declared("off", "d3", 0.0)], [JUDGE, CODE]
    )
    assert [(one.name, one.version, one.sample_rate) for one in found] == [("judge", "", 0.3), ("code", "1", 1.0)]


def test_judges_without_a_price_are_named_in_the_estimate():
    said = {"from": "a", "to": "b", "traces": 9, "calls": 3, "seconds": None, "traces_to_score": 3, "usd": 0.0}
    said |= {"unpriced": ["helpful"], "canary": None, "left": {}}
    assert sentences(said)[-1] == "Counted as free, for want of a cost_per_call: helpful."


def test_a_run_is_told_its_scorers_and_caps():
    day = planned(owing((100, 50)), Caps(traces=30)).days[0]
    config = run_config("tiny", day)["ops"]["tiny__trace_scores"]["config"]
    assert (config["scorers"], config["max_traces"]) == (["judge", "code"], 30)
    assert config["max_cost_usd"] == pytest.approx(0.3)
