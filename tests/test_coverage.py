"""Coverage against its target: what is due, in time, waiting and failed, and what the check and alerts make of it."""

from pathlib import Path

import pytest

from lifecycle_assets.monitoring.coverage import awaited, coverage_rows, covered, percent, tally
from lifecycle_assets.records import ScoresRecord
from lifecycle_assets.spec_monitoring import CoverageTarget
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from tests.test_backfill_counts import DAYS, PREFIX, SCORERS, make_assessments, make_traces, write

TARGET = CoverageTarget(share=0.95, within_minutes=60)
MINUTE = 60_000
NOW = 1_000 * MINUTE


def of(
    sampled: int, *, on_time: int, due: int | None = None, waiting: int = 0, errored: int = 0
) -> dict[str, int | str]:
    scored = sampled - waiting - errored
    found: dict[str, int | str] = {"version": "1", "sampled": sampled, "scored": scored, "errored": errored}
    return {**found, "waiting": waiting, "on_time": on_time, **({} if due is None else {"due": due})}


class TestTally:
    def test_each_trace_is_counted_once_by_what_became_of_it_and_when(self):
        ended = NOW - 90 * MINUTE
        units = [
            (ended, ended + 60 * MINUTE, False),  # In time, to the minute.
            (ended, ended + 60 * MINUTE + 1, False),  # Scored, late.
            (ended, ended + 5 * MINUTE, True),  # An error that stays, in time.
            (ended, None, False),  # Its time is up.
            (NOW - 10 * MINUTE, None, False),  # Not due yet.
            (NOW - 10 * MINUTE, NOW, False),  # In time before its time is up.
        ]
        assert tally("7", units, TARGET, now_ms=NOW) == {
            "version": "7", "sampled": 6, "scored": 3, "errored": 1, "waiting": 2, "on_time": 3, "due": 5,
        }  # fmt: skip

    def test_what_ended_before_the_version_began_is_a_backfill_and_never_late(self):
        units = [(NOW - 900 * MINUTE, NOW, False), (NOW - 900 * MINUTE, None, False)]
        found = tally("2", units, TARGET, now_ms=NOW, since_ms=NOW - 100 * MINUTE)
        assert (found["sampled"], found["scored"], found["waiting"]) == (2, 1, 1)
        assert (found["on_time"], found["due"]) == (0, 0)
        early = tally("2", [(NOW - 2 * MINUTE, NOW, False)], TARGET, now_ms=NOW, since_ms=NOW - MINUTE)
        assert (early["on_time"], early["due"]) == (1, 1), "but it may be in time"
        check = covered({"a": found}, TARGET)
        assert check.passed
        assert check.description == "Nothing is due yet: 1 of 2 sampled traces have their answer. Waiting: a on 1."


class TestCovered:
    def test_the_share_is_over_all_scorers_and_the_worst_is_named(self):
        check = covered({"a": of(500, on_time=490, due=500), "b": of(500, on_time=482, due=500)}, TARGET)
        assert check.passed
        assert check.description.startswith("97.2 % of sampled traces scored within 60 minutes (972 of 1000 due")
        assert "Worst is b: 96.4 % (482 of 500)." in check.description

    def test_below_the_target_it_fails_with_error(self):
        check = covered({"a": of(100, on_time=94, due=100, waiting=6)}, TARGET)
        assert (check.passed, check.is_error) == (False, True)
        assert check.description.startswith("94.0 % of sampled")
        assert "Waiting: a on 6." in check.description
        assert covered({"a": of(100, on_time=95, due=100)}, TARGET).passed

    def test_one_scorer_that_stands_still_is_not_hidden_by_nineteen_that_are_well(self):
        well = {f"s{n}": of(100, on_time=100, due=100) for n in range(19)}
        check = covered({**well, "still": of(1, on_time=0, due=1, waiting=1)}, TARGET)
        assert (check.passed, check.is_error) == (False, True)
        assert "Worst is still: 0.0 % (0 of 1)." in check.description

    def test_young_traces_are_not_due_and_nothing_due_is_not_a_hundred_percent(self):
        check = covered({"a": of(40, on_time=0, due=0, waiting=40)}, TARGET)
        assert check.passed
        assert check.description.startswith("Nothing is due yet: 0 of 40")
        assert "100 %" not in check.description

    @pytest.mark.parametrize("coverage", [{}, {"a": of(0, on_time=0, due=0)}])
    def test_nothing_sampled_is_said(self, coverage: dict[str, dict[str, int | str]]):
        assert covered(coverage, TARGET).description == "No trace was sampled."

    def test_errors_are_a_warning_and_names_are_shown_as_they_are(self):
        check = covered({"a*b": of(100, on_time=100, due=100, errored=2)}, TARGET)
        assert (check.passed, check.is_error) == (False, False)
        assert "a\\*b failed on 2 traces: see the errors" in check.description

    def test_where_nobody_told_what_is_due_all_sampled_traces_are(self):
        assert not covered({"a": of(10, on_time=5)}, TARGET).passed

    def test_many_names_are_cut(self):
        check = covered({f"s{n}": of(10, on_time=10, due=10, waiting=1) for n in range(9)}, TARGET)
        assert "s2 on 1 and 6 scorers more" in check.description


class TestAwaited:
    def test_an_alert_waits_until_the_target_share_is_answered(self):
        assert awaited(of(100, on_time=0, waiting=5), TARGET) == ""
        said = awaited(of(100, on_time=0, waiting=6), TARGET)
        assert said == "6 of 100 sampled traces wait for their score (94.0 % are there, target 0.95)"

    def test_errors_that_stay_and_nothing_sampled_are_not_waited_for(self):
        assert awaited(of(10, on_time=0, errored=10), TARGET) == ""
        assert awaited(of(0, on_time=0), TARGET) == ""


def test_a_hundred_percent_is_said_only_of_all():
    assert [percent(1, 1), percent(99_999, 100_000), percent(0, 3)] == ["100 %", "99.9 %", "0.0 %"]


def test_the_view_shows_what_was_sampled_and_waits_beside_the_scores_also_where_none_is_there_yet(tmp_path: Path):
    platform = Platform.from_env({"LIFECYCLE_HOME": str(tmp_path)})
    traces, scored = make_traces(1), SCORERS[0]
    write(platform, "traces", traces)
    write(platform, "assessments", make_assessments(2, traces))
    day = DAYS[0]
    found = {"version": "2", "sampled": 90, "scored": 40, "errored": 10, "waiting": 40, "on_time": 30}
    none = {"version": "1", "sampled": 7, "scored": 0, "errored": 0, "waiting": 7, "on_time": 0}
    rows = coverage_rows(ScoresRecord(str(day), "d", 90, {scored.registered_name: found, "silent": none}), day)
    write(platform, "scorer_days", rows)
    shown = DuckDbEngine(platform).query(PREFIX, "FROM scorer_coverage WHERE trace_date = ?", [day]).dicts()
    by_name = {(row["name"], row["scorer_version"]): row for row in shown}
    row = by_name[scored.registered_name, "2"]
    assert (row["sampled"], row["waiting"], row["on_time"], row["traces"]) == (90, 40, 30, 90)
    assert row["scored"] > 0
    assert row["coverage"] == row["scored"] / 90
    assert by_name[scored.registered_name, "1"]["sampled"] is None, "of a former version nobody counts"
    silent = by_name["silent", "1"]
    assert (silent["scored"], silent["errored"], silent["sampled"], silent["waiting"]) == (0, 0, 7, 7)
    assert coverage_rows(None, day) == []
