"""What the backfill sensor decides: the budget of a UTC day, the canary, failures, and changes there and back.

A small world of days stands in for the archive: what is asked for and ends well is scored in it.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
import pytest

from lifecycle_assets.monitoring.backfill_counts import Counts, DayCount
from lifecycle_assets.monitoring.backfill_history import (
    ANSWERED,
    BY,
    CANARY,
    FACT,
    SENSOR,
    SET,
    TRACES,
    USD,
    AskedRun,
    set_of,
)
from lifecycle_assets.monitoring.backfill_plan import CANARY_TRACES
from lifecycle_assets.records import ScorersRecord, ScorerVersion, ScoresRecord
from lifecycle_assets.spec_monitoring import BackfillPolicy, CoverageTarget
from sensors.backfill_decision import MAX_TRIES, Decision, Request, Vetting, decide

DAYS = ("2026-11-17", "2026-11-18", "2026-11-19", "2026-11-20")
TODAY = "2026-11-21"
JUDGE = ScorerVersion("judge", "local_tiny_judge", "", "d1", 1.0, "", "trace", 0.01)
SUCCESS, FAILURE, QUEUED = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.QUEUED


@dataclass
class Days:
    """Days that owe judgements, and the runs that were asked for."""

    owed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DAYS, 100))
    policy: BackfillPolicy = field(default_factory=lambda: BackfillPolicy(max_cost_usd=100, max_traces=10_000))
    scorer: ScorerVersion = JUDGE
    registered: str = "r1"
    runs: list[AskedRun] = field(default_factory=list)
    errored: int = 0
    traces: int = 100

    def decide(self, **how: Any) -> Decision:
        name = self.scorer.registered_name
        n = self.traces
        counts = {(day, name): DayCount(n, n, n - owed, 0, owed) for day, owed in self.owed.items()}
        counted = Counts(dict.fromkeys(DAYS, 100), {day: owed for day, owed in self.owed.items() if owed}, counts)
        mine = [run for run in self.runs if run.scorers == set_of([self.scorer])]
        canaries = [run for run in mine if run.is_canary]
        record = ScoresRecord("", "", 0, {name: {"version": "1", "scored": 20 - self.errored, "errored": self.errored}})
        return decide(
            counted,
            [self.scorer],
            ScorersRecord(self.registered, "m-1", []),
            how.pop("records", {}),
            [run for run in self.runs if how.get("today", TODAY) == TODAY],
            Vetting(canaries[-1] if canaries else None, record, any(not run.is_canary for run in mine)),
            self.policy,
            CoverageTarget(share=0.95),
            today=how.pop("today", TODAY),
            busy=frozenset(run.day for run in self.runs if not run.is_finished),
            **how,
        )

    def ask(self, status: dg.DagsterRunStatus = SUCCESS, **how: Any) -> list[Request]:
        """Decide, and have each run end like that; what succeeds has scored what was planned."""
        requests = list(self.decide(**how).requests)
        for number, one in enumerate(requests):
            tags = one.tags
            self.runs.append(
                AskedRun(
                    f"r{len(self.runs)}-{number}", one.plan.day, tags[SET], tags[FACT], tags[CANARY] == "true",
                    tags[BY], float(tags[USD]), int(tags[TRACES]), int(tags[ANSWERED]), status,
                )
            )  # fmt: skip
            if status == SUCCESS:
                self.owed[one.plan.day] -= one.plan.traces
        return requests


def days_of(requests: list[Request]) -> list[tuple[str, int]]:
    return [(one.plan.day, one.plan.traces) for one in requests]


def test_a_few_traces_of_the_newest_day_then_everything_newest_first_then_nothing():
    days = Days()
    assert days_of(days.ask()) == [(DAYS[3], CANARY_TRACES)]
    assert days_of(days.ask()) == [(DAYS[3], 80), (DAYS[2], 100), (DAYS[1], 100), (DAYS[0], 100)]
    decision = days.decide()
    assert (decision.requests, decision.said) == ((), "Every archived day has the scores of the present sources.")


def test_run_keys_name_the_fact_and_are_stable_while_nothing_was_asked_for():
    days = Days()
    first, again = days.decide(), days.decide()
    assert [one.run_key for one in first.requests] == [one.run_key for one in again.requests]
    assert all(one.run_key.startswith(f"backfill:{one.plan.day}:") for one in first.requests)


@pytest.mark.parametrize("policy", [{"max_cost_usd": 1.55}, {"max_traces": 155}])
def test_the_day_s_budget_is_never_exceeded_however_often_and_whatever_fails(policy: dict[str, float]):
    """The cursor is not asked at all: runs alone say what was spent, so a reset or a restart changes nothing."""
    days = Days(policy=BackfillPolicy(**{"max_cost_usd": 100.0, "max_traces": 10_000, **policy}))
    for number in range(30):
        days.ask(FAILURE if number % 3 == 1 else SUCCESS)
    assert sum(run.usd for run in days.runs) <= 1.55 + 1e-9
    assert sum(run.traces for run in days.runs) <= 155
    assert any(not run.succeeded for run in days.runs)
    assert "budget is used up" in days.decide().said
    assert days.decide(today="2026-11-22").requests, "the next UTC day has a budget of its own"


def test_runs_people_asked_for_do_not_use_up_the_sensor_s_budget():
    days = Days(policy=BackfillPolicy(max_cost_usd=100, max_traces=50))
    days.ask()
    days.runs.append(replace(days.runs[0], by="command", traces=10_000))
    assert days_of(days.ask()) == [(DAYS[3], 30)]


def test_a_day_whose_run_waits_in_the_queue_is_not_asked_for_again():
    days = Days()
    days.ask()
    assert len(days.ask(QUEUED)) == 4
    decision = days.decide()
    assert decision.requests == ()
    assert decision.said.startswith(f"Runs are under way for {DAYS[3]}")


def test_nothing_follows_a_canary_that_has_not_ended():
    days = Days()
    days.ask(QUEUED)
    decision = days.decide()
    assert decision.requests == ()
    assert "go" in decision.said


def test_a_canary_full_of_errors_stops_the_rest_with_a_sentence():
    days = Days(errored=2)
    days.ask()
    decision = days.decide()
    assert decision.requests == ()
    assert decision.said == (
        f"The backfill stopped after its first traces: local_tiny_judge failed on 2 of 20 traces of {DAYS[3]}: see the "
        "errors in assessments."
    )
    tomorrow = days.decide(today="2026-11-22").requests
    assert days_of(list(tomorrow)) == [(DAYS[3], CANARY_TRACES)], "what failed may have passed"
    days.scorer = replace(JUDGE, digest="mended")
    assert days_of(days.ask()) == [(DAYS[3], CANARY_TRACES)], "another source is tried anew"


def test_a_canary_that_scored_nothing_stops_the_rest():
    days = Days()
    days.ask()
    days.owed[DAYS[3]] = 100
    assert "nothing of 2026-11-20 was scored" in days.decide().said


def test_traces_that_come_while_the_canary_runs_do_not_stop_the_rest():
    days = Days()
    days.ask()
    days.traces += 500
    for day in days.owed:
        days.owed[day] += 500
    assert len(days.decide().requests) == len(DAYS)


def test_a_canary_whose_run_failed_is_asked_for_again_but_not_for_ever():
    days = Days()
    asked = [days.ask(FAILURE) for _ in range(MAX_TRIES)]
    assert [days_of(one) for one in asked] == [[(DAYS[3], CANARY_TRACES)]] * MAX_TRIES
    assert len({one.run_key for (one,) in asked}) == MAX_TRIES
    assert days.ask() == []
    assert "failed 3 times today" in days.decide().said


def test_a_failed_day_is_asked_for_again_but_not_for_ever():
    days = Days(owed={DAYS[3]: 20, DAYS[2]: 100})
    days.ask()
    keys = [one.run_key for _ in range(MAX_TRIES) for one in days.ask(FAILURE)]
    assert len(set(keys)) == MAX_TRIES
    decision = days.decide()
    assert decision.requests == ()
    assert f"Asked for {MAX_TRIES} times today without an end: {DAYS[2]}" in decision.said
    days.runs = [replace(run, fact="of yesterday") for run in days.runs]
    assert days_of(days.ask()) == [(DAYS[2], 100)]


def test_a_source_that_goes_there_and_back_is_asked_for_each_time():
    days = Days()
    keys: list[str] = []
    for number in range(6):
        days.scorer = replace(JUDGE, digest=f"source-{number % 2}")
        days.registered = f"registered-{number}"
        days.owed = {DAYS[3]: 10, DAYS[2]: 10}
        asked = days.ask()
        asked += days.ask()
        assert sorted(one.plan.day for one in asked) == [DAYS[2], DAYS[3]], number
        keys += [one.run_key for one in asked]
    assert len(set(keys)) == len(keys)


def test_the_reason_tells_sampling_from_code():
    record = {JUDGE.registered_name: {"version": "1", "rate": 0.5, "filter": ""}}
    days = Days(scorer=replace(JUDGE, version="1"), owed={DAYS[3]: 30})
    tags = days.decide(records={DAYS[3]: ScoresRecord(DAYS[3], "s", 100, record)}).requests[0].tags
    assert (tags["lifecycle/backfill_reason"], tags[BY], tags[TRACES]) == ("sampling", SENSOR, "20")
    days.scorer = JUDGE
    tags = days.decide(records={DAYS[3]: ScoresRecord(DAYS[3], "s", 100, record)}).requests[0].tags
    assert tags["lifecycle/backfill_reason"] == "code"


def test_missing_scores_of_a_day_the_schedule_scores_are_left_to_it_and_a_change_is_not():
    record = {JUDGE.registered_name: {"version": "1", "rate": 1.0, "filter": ""}}
    days = Days(scorer=replace(JUDGE, version="1"), owed={DAYS[3]: 30})
    how: dict[str, Any] = {"watched": frozenset({DAYS[3]})}
    assert days.decide(records={DAYS[3]: ScoresRecord(DAYS[3], "s", 100, record)}, **how).requests == ()
    days.scorer = replace(JUDGE, version="2")
    assert days.decide(records={DAYS[3]: ScoresRecord(DAYS[3], "s", 100, record)}, **how).requests


def test_where_days_cannot_be_cut_the_first_is_a_whole_one():
    days = Days(policy=BackfillPolicy(max_cost_usd=100, max_traces=150))
    assert days_of(days.ask(cuttable=False)) == [(DAYS[3], 100)]
    assert days.decide(cuttable=False).requests == ()


def test_scorers_that_cost_nothing_go_on_without_money_once_the_first_traces_were_tried():
    code = replace(JUDGE, name="code", registered_name="local_tiny_code", cost_per_call=0.0)
    both = [JUDGE, code]
    numbers = {(day, one.registered_name): DayCount(100, 100, 0, 0, 100) for day in DAYS[:2] for one in both}
    counted = Counts(dict.fromkeys(DAYS, 100), dict.fromkeys(DAYS[:2], 100), numbers)
    policy = BackfillPolicy(max_cost_usd=1, max_traces=10_000)
    spent = AskedRun("r", DAYS[2], "another set", "fact", False, SENSOR, 1.0, 100, 0, SUCCESS)
    record = ScoresRecord(
        "", "", 0, {one.registered_name: {"version": "1", "scored": 20, "errored": 0} for one in both}
    )

    def asked(vetting: Vetting) -> Decision:
        return decide(
            counted, both, ScorersRecord("r1", "m-1", []), {}, [spent], vetting, policy, CoverageTarget(), today=TODAY
        )  # fmt: skip

    waits = asked(Vetting())
    assert waits.requests == ()
    assert f"used up (money); left to judge are 200 traces of {DAYS[1]}, {DAYS[0]}: raise" in waits.said
    goes_on = asked(Vetting(spent, record, went_on=True))
    assert [(one.plan.day, one.plan.scorers, one.plan.usd) for one in goes_on.requests] == [
        (DAYS[1], ("code",), 0.0),
        (DAYS[0], ("code",), 0.0),
    ]
    assert goes_on.said == waits.said
