"""The gate: what is missing counts against the candidate."""

import pytest

from lifecycle_assets.gate import Evidence, Outcome, aggregate, judge, metric_value
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
    broken = Evidence(
        both.model_id,
        "d",
        {"grounded": "s1", "flaky": "s2"},
        3,
        {**both.outcomes, "flaky": [Outcome(error="boom")] * 3},
    )
    verdict = judge(broken, gate())
    assert verdict.verdict == "failed"
    assert "flaky failed on every row (boom)" in verdict.reasons[0]


def test_a_scorer_that_lost_rows_blocks():
    verdict = judge(evidence(1.0, 1.0, 1.0, rows=4), gate())
    assert "answered 3 of 4 rows" in verdict.reasons[0]


def test_too_few_rows_block_and_rows_that_do_not_apply_are_no_rows():
    verdict = judge(evidence(1.0, 1.0, None, None), gate())
    assert "rests on 2 rows, 3 are required" in verdict.reasons[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_no_value(value: float):
    assert judge(evidence(value, value, value), gate()).verdict == "failed"


def test_the_first_champion_is_gated_like_any_other():
    assert judge(evidence(0.1, 0.1, 0.1), gate(), incumbent=None).verdict == "failed"


def test_a_candidate_worse_than_the_champion_blocks_beyond_the_allowed_regression():
    champion = evidence(0.95, 0.95, 0.95)
    worse = gate(incumbent={"max_regression": 0.02})
    assert judge(evidence(0.94, 0.94, 0.94), worse, champion).verdict == "passed"
    failed = judge(evidence(0.9, 0.9, 0.9), worse, champion)
    assert failed.verdict == "failed"
    assert "worse by 0.05" in failed.reasons[0]


def test_latency_regression_is_an_increase():
    gates = gate(thresholds=[{"metric": "latency/mean", "at_most": 5}], incumbent={"max_regression": 0.5})
    champion = evidence(1.0, 1.0, scorer="latency")
    assert judge(evidence(1.4, 1.4, scorer="latency"), gates, champion).verdict == "passed"
    assert judge(evidence(1.6, 1.6, scorer="latency"), gates, champion).verdict == "failed"
    assert judge(evidence(0.1, 0.1, scorer="latency"), gates, champion).verdict == "passed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset_digest": "other"}, "another dataset"),
        ({"scorers": {"grounded": "s2"}}, "other scorers"),
        ({"rows": 0, "outcomes": {}}, "no value to compare"),
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
    assert verdict.verdict == "ungated"
    assert "disabled" in verdict.reasons[0]


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
    verdict = judge(Evidence("m-1", "d", scorers, 3, {**both.outcomes, "flaky": flaky}), gate())
    assert verdict.verdict == "failed"
    assert "flaky failed on 1 of 3 rows" in verdict.reasons[0]
