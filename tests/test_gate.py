"""The gate: what is missing counts against the candidate."""

import json

import pytest

from lifecycle_assets.gate import Evidence, Outcome, aggregate, judge, metric_value, rows_digest
from lifecycle_assets.spec_release import Gate

GATE = {"thresholds": [{"metric": "grounded/mean", "at_least": 0.8, "min_rows": 3}]}


def evidence(*values: float | str | None, scorer: str = "grounded", **changes: object) -> Evidence:
    """Evidence of one scorer: a number is a value, a text an error, None not applicable."""
    outcomes = [Outcome(error=value) if isinstance(value, str) else Outcome(value=value) for value in values]
    fields = {
        "model_id": "m-1",
        "dataset_digest": "d",
        "scorers": {scorer: "s1"},
        "rows": len(outcomes),
        "outcomes": {scorer: outcomes},
        "keys": [f"record {row}" for row in range(len(outcomes))],
    }
    return Evidence(**{**fields, **changes})


def gate(**changes: object) -> Gate:
    return Gate.model_validate({**GATE, **changes})


def test_reaching_every_threshold_passes():
    verdict = judge(evidence(0.8, 0.9, 1.0), gate())
    assert (verdict.verdict, verdict.reasons, verdict.lets_through) == ("passed", (), True)


def test_the_value_at_the_line_passes_and_just_below_fails():
    assert judge(evidence(0.8, 0.8, 0.8), gate()).verdict == "passed"
    failed = judge(evidence(0.8, 0.8, 0.79), gate())
    assert failed.verdict == "failed"
    assert "at least 0.8 is required" in failed.reasons[0]


def test_latency_is_better_when_lower():
    slow = gate(thresholds=[{"metric": "latency/p95", "at_most": 2.0}])
    assert judge(evidence(0.1, 0.2, 0.3, scorer="latency"), slow).verdict == "passed"
    assert judge(evidence(0.1, 0.2, 9.0, scorer="latency"), slow).verdict == "failed"


def test_zero_rows_block():
    verdict = judge(evidence(), gate())
    assert verdict.verdict == "failed"
    assert "no rows" in verdict.reasons[0]


def test_a_missing_metric_blocks():
    verdict = judge(evidence(1.0, 1.0, 1.0, scorer="other"), gate())
    assert verdict.verdict == "failed"
    assert "grounded/mean has no value" in verdict.reasons[0]


def test_a_scorer_that_raised_once_blocks_unless_the_rate_is_allowed():
    assert judge(evidence(1.0, 1.0, 1.0, "boom"), gate()).verdict == "failed"
    allowed = gate(thresholds=[{**GATE["thresholds"][0], "max_error_rate": 0.25}])
    assert judge(evidence(1.0, 1.0, 1.0, "boom"), allowed).verdict == "passed"


def test_a_scorer_that_raised_on_every_row_blocks_even_without_a_threshold_on_it():
    both = evidence(1.0, 1.0, 1.0)
    scorers = {"grounded": "s1", "flaky": "s2"}
    broken = Evidence("m-1", "d", scorers, 3, {**both.outcomes, "flaky": [Outcome(error="boom")] * 3}, both.keys)
    verdict = judge(broken, gate())
    assert verdict.verdict == "failed"
    assert "flaky failed on every row (boom)" in verdict.reasons[0]


def test_a_scorer_that_lost_rows_blocks():
    verdict = judge(evidence(1.0, 1.0, 1.0, rows=4), gate())
    assert "answered 3 of 4 rows" in verdict.reasons[0]


def test_too_few_rows_block_and_rows_that_do_not_apply_are_no_rows():
    verdict = judge(evidence(1.0, 1.0, None, None), gate())
    assert "rests on 2 rows, 3 are required" in verdict.reasons[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e308])
def test_a_value_that_is_no_number_is_an_error(value: float):
    assert judge(evidence(value, value, value), gate()).verdict == "failed"
    once = judge(evidence(1.0, 1.0, 1.0, value), gate())
    assert "25.0% of rows failed, 0.0% are allowed" in once.reasons[0]


def test_a_record_that_is_there_twice_cannot_be_told_apart():
    verdict = judge(evidence(1.0, 1.0, 1.0, keys=["a", "a", "b"]), gate())
    assert "names 2 different records in 3 rows" in verdict.reasons[0]


def test_the_first_champion_is_gated_like_any_other():
    assert judge(evidence(0.1, 0.1, 0.1), gate(), incumbent=None).verdict == "failed"


class TestAgainstTheChampion:
    """Both answered the same records; what the comparison says decides."""

    def test_worse_blocks_beyond_the_allowed_regression(self):
        champion = evidence(*[0.95] * 12)
        worse = gate(incumbent={"max_regression": 0.02})
        assert judge(evidence(*[0.94] * 12), worse, champion).verdict == "passed"
        failed = judge(evidence(*[0.9] * 12), worse, champion)
        assert (failed.verdict, failed.comparison) == ("failed", "worse")
        assert failed.reasons == (
            "grounded/mean is worse than the champion's by 0.05 (95 % interval -0.05 to -0.05), 0.02 is allowed.",
        )

    def test_a_threshold_may_allow_another_regression_than_the_rest(self):
        own = gate(thresholds=[{**GATE["thresholds"][0], "max_regression": 0.1}], incumbent={"max_regression": 0.02})
        verdict = judge(evidence(*[0.9] * 12), own, evidence(*[0.95] * 12))
        assert (verdict.verdict, verdict.comparison) == ("passed", "not_worse")

    def test_latency_regression_is_an_increase(self):
        gates = gate(thresholds=[{"metric": "latency/mean", "at_most": 5}], incumbent={"max_regression": 0.5})
        champion = evidence(*[1.0] * 12, scorer="latency")
        found = {value: judge(evidence(*[value] * 12, scorer="latency"), gates, champion) for value in (1.4, 1.6, 0.1)}
        assert {value: verdict.verdict for value, verdict in found.items()} == {
            1.4: "passed",
            1.6: "failed",
            0.1: "passed",
        }
        assert found[0.1].comparison == "better"

    def test_records_are_paired_by_what_they_ask_not_by_their_place(self):
        """By place, every row would differ: 'unsure' instead of 'the same'."""
        names = [f"record {row}" for row in range(40)]
        ours = evidence(*[1.0, 1.0, 1.0, 0.0] * 10, keys=names)
        theirs = evidence(*[0.0, 1.0, 1.0, 1.0] * 10, keys=names[::-1])
        verdict = judge(ours, gate(thresholds=[{"metric": "grounded/mean", "at_least": 0.5}]), theirs)
        assert (verdict.verdict, verdict.comparison) == ("passed", "not_worse")
        comparison = verdict.findings[0].comparison
        assert comparison is not None
        assert "the same as the champion's on all 40 rows" in comparison.sentence

    def test_rows_without_a_pair_are_counted_and_the_rest_has_to_be_enough(self):
        """A scorer that does not apply to a refused answer is no failure; one that failed is."""
        theirs = evidence(*[1.0] * 20)
        silent = judge(evidence(*[1.0] * 18, None, None), gate(), theirs)
        assert (silent.verdict, silent.comparison) == ("passed", "not_worse")
        comparison = silent.findings[0].comparison
        assert comparison is not None
        assert (comparison.pairs, comparison.unpaired) == (18, 2)
        many = gate(thresholds=[{**GATE["thresholds"][0], "min_rows": 18}])
        few = judge(evidence(*[1.0] * 18, None, None), many, evidence(None, *[1.0] * 19))
        assert "can be compared with the champion on 17 rows, 18 are required" in few.reasons[0]
        assert judge(evidence(*[1.0] * 18, "boom", "boom"), gate(), theirs).verdict == "failed"
        mended = judge(theirs, gate(), evidence(*[1.0] * 18, "boom", None))
        assert (mended.verdict, mended.comparison) == ("passed", "not_worse")

    @pytest.mark.parametrize(
        ("incumbent", "verdict"),
        [({}, "failed"), ({"unsure": "allow"}, "passed"), ({"unsure": "allow", "require": "better"}, "failed")],
    )
    def test_what_cannot_be_told_follows_the_declared_rule(self, incumbent: dict, verdict: str):
        ours, theirs = evidence(0.0, *[1.0] * 39), evidence(*[1.0] * 40)
        found = judge(ours, gate(incumbent={"max_regression": 0.05, **incumbent}), theirs)
        assert (found.verdict, found.comparison) == (verdict, "unsure")
        if not incumbent:
            assert "not enough rows to tell: about 547 needed, there are 40" in found.reasons[0]

    def test_better_may_be_required(self):
        strict = gate(incumbent={"require": "better"})
        same = judge(evidence(*[1.0] * 20), strict, evidence(*[1.0] * 20))
        assert same.reasons == ("Against the champion the candidate is not worse; incumbent.require asks for better.",)
        better = judge(evidence(*[1.0] * 20), strict, evidence(*[0.0] * 10, *[1.0] * 10))
        assert (better.verdict, better.comparison) == ("passed", "better")

    def test_a_champion_without_a_logged_model_blocks(self):
        nobody = Evidence("", "d", {}, 0, {}, [])
        verdict = judge(evidence(1.0, 1.0, 1.0), gate(), nobody)
        assert (verdict.verdict, verdict.comparison, len(verdict.reasons)) == ("failed", "unsure", 1)
        assert "point the alias champion at a version this graph registered" in verdict.reasons[0]

    def test_without_a_comparison_asked_for_the_champion_is_not_looked_at(self):
        verdict = judge(evidence(0.9, 0.9, 0.9), gate(incumbent=None), evidence(1.0, 1.0, 1.0, dataset_digest="other"))
        assert (verdict.verdict, verdict.comparison) == ("passed", "none")


def test_the_decision_of_ten_thousand_rows_is_as_short_as_that_of_three():
    """It goes into Dagster's metadata and into a row of a table."""
    ours, theirs = evidence(*[1.0, 0.9] * 5_000), evidence(*[0.9] * 10_000)
    verdict = judge(ours, gate(incumbent={"require": "better"}), theirs)
    assert verdict.comparison == "better"
    text = json.dumps([finding.to_json() for finding in verdict.findings], allow_nan=False)
    assert len(text) < 2_000
    assert judge(ours, gate(incumbent={"require": "better"}), theirs) == verdict


def test_the_digest_of_rows_names_every_outcome_and_no_order():
    one = evidence(1.0, None, "boom")
    turned = evidence("boom", None, 1.0, keys=one.keys[::-1])
    assert rows_digest(turned) == rows_digest(one)
    changed = [
        evidence(0.0, None, "boom"),
        evidence(1.0, 0.0, "boom"),
        evidence(1.0, None, "bang"),
        evidence(1.0, None, "boom", keys=["record 0", "record 1", "another"]),
        evidence(1.0, None, "boom", model_id="m-2"),
        evidence(1.0, None, "boom", scorers={"grounded": "s2"}),
        evidence(1.0, None, "boom", dataset_digest="other"),
        evidence(1.0, None, "boom", scorer="other"),
    ]
    assert len({rows_digest(one), *map(rows_digest, changed)}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset_digest": "other"}, "another dataset"),
        ({"scorers": {"grounded": "s2"}}, "other scorers"),
        ({"rows": 0, "outcomes": {}, "keys": []}, "other records"),
        ({"keys": ["record 0", "record 1", "another"]}, "other records"),
    ],
)
def test_evidence_of_the_champion_about_something_else_blocks(changes: dict, words: str):
    verdict = judge(evidence(1.0, 1.0, 1.0), gate(), evidence(0.9, 0.9, 0.9, **changes))
    assert verdict.verdict == "failed"
    assert any(words in reason for reason in verdict.reasons)


def test_dry_run_records_the_reasons_and_lets_through():
    verdict = judge(evidence(0.1, 0.1, 0.1), gate(mode="dry_run"))
    assert verdict.verdict == "dry_run"
    assert verdict.lets_through
    assert verdict.reasons


def test_disabled_is_recorded_as_ungated():
    verdict = judge(evidence(), gate(mode="disabled"))
    assert (verdict.verdict, verdict.lets_through) == ("ungated", True)
    assert verdict.reasons[0].startswith("UNGATED: the gate is disabled")


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("mean", 2.5), ("min", 1.0), ("max", 4.0), ("p50", 2.5), ("p90", 3.7), ("p95", 3.85), ("p99", 3.97)],
)
def test_aggregations_follow_their_formula(aggregation: str, expected: float):
    assert aggregate([4.0, 1.0, 3.0, 2.0], aggregation) == pytest.approx(expected)


def test_an_unknown_aggregation_is_an_error():
    with pytest.raises(ValueError, match="median"):
        aggregate([1.0], "median")


def test_metric_of_a_scorer_that_never_ran_has_no_value():
    assert metric_value(evidence(1.0), "absent/mean") is None


def test_a_scorer_without_a_threshold_that_raised_once_blocks():
    both = evidence(1.0, 1.0, 1.0)
    flaky = [Outcome(value=1.0), Outcome(error="boom"), Outcome(value=1.0)]
    scorers = {"grounded": "s1", "flaky": "s2"}
    verdict = judge(Evidence("m-1", "d", scorers, 3, {**both.outcomes, "flaky": flaky}, both.keys), gate())
    assert verdict.verdict == "failed"
    assert "flaky failed on 1 of 3 rows" in verdict.reasons[0]
