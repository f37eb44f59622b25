"""The gate: from the rows of an evaluation to a verdict.

Lives here: pure functions over plain values; nothing in this module knows MLflow, Dagster or a file.
Add here: a further reason to refuse an evaluation.
Not here: running the evaluation (`resources/evaluator.py`), moving the alias (`release.py`).

Everything that is missing counts against the candidate: a metric without a value, a row without an outcome, a
scorer that raised, an evaluation without rows, evidence of the champion that is about something else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lifecycle_assets.spec_release import Gate, Threshold


@dataclass(frozen=True)
class Outcome:
    """What one scorer said of one row: a number (pass is 1.0, fail 0.0), an error, or neither (not applicable)."""

    value: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Evidence:
    """An evaluation as the gate sees it.

    `outcomes` maps scorer name to one `Outcome` a row; every list has `rows` entries.
    """

    model_id: str
    dataset_digest: str
    scorers: Mapping[str, str]
    rows: int
    outcomes: Mapping[str, Sequence[Outcome]]


@dataclass(frozen=True)
class Finding:
    """One threshold held against the evidence."""

    metric: str
    value: float | None
    limit: float
    direction: str
    rows: int
    error_rate: float
    incumbent: float | None
    passed: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The decision: `passed`, `failed`, `dry_run` (would have failed, lets through) or `ungated`."""

    verdict: str
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def lets_through(self) -> bool:
        """Whether the alias may move on this verdict."""
        return self.verdict != "failed"


def aggregate(values: Sequence[float], aggregation: str) -> float | None:
    """`values` as one number, None when there are none.

    Percentiles interpolate linearly between closest ranks (Hyndman and Fan 1996, definition 7: numpy's default).
    Raises `ValueError` for an unknown aggregation.
    """
    if not values:
        return None
    ordered = sorted(values)
    if aggregation == "mean":
        return math.fsum(ordered) / len(ordered)
    if aggregation == "min":
        return ordered[0]
    if aggregation == "max":
        return ordered[-1]
    if aggregation.startswith("p") and aggregation[1:].isdigit():
        position = (len(ordered) - 1) * int(aggregation[1:]) / 100
        low, high = math.floor(position), math.ceil(position)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
    raise ValueError(f"unknown aggregation '{aggregation}'")


def metric_value(evidence: Evidence, metric: str) -> float | None:
    """The value of `<scorer>/<aggregation>`, None when the scorer gave no value at all."""
    scorer, _, aggregation = metric.rpartition("/")
    values = [o.value for o in evidence.outcomes.get(scorer, ()) if o.value is not None and math.isfinite(o.value)]
    return aggregate(values, aggregation)


def judge(evidence: Evidence, gate: Gate, incumbent: Evidence | None = None) -> Verdict:
    """Hold `evidence` against `gate`, and against the champion's evidence when there is a champion.

    `incumbent` is None only when nobody is champion: a champion whose evidence could not be had must stop the
    caller before it comes here.
    """
    if gate.mode == "disabled":
        return Verdict("ungated", ("The gate is disabled in defs.yaml: nothing was held against a threshold.",))
    reasons = list(_unusable(evidence, incumbent))
    reasons += [
        f"{scorer} failed on {failed} of {evidence.rows} rows: correct it and evaluate again, or give it a threshold."
        for scorer, failed in failing_scorers(evidence, gate).items()
        if not any(threshold.metric.rpartition("/")[0] == scorer for threshold in gate.thresholds)
    ]
    findings = tuple(_finding(evidence, threshold, gate, incumbent) for threshold in gate.thresholds)
    reasons += [finding.reason for finding in findings if not finding.passed]
    if not reasons:
        return Verdict("passed", (), findings)
    return Verdict("dry_run" if gate.mode == "dry_run" else "failed", tuple(reasons), findings)


def failing_scorers(evidence: Evidence, gate: Gate) -> dict[str, int]:
    """Scorers that failed on more rows than their threshold allows, and on how many; without a threshold, on any."""
    allowed: dict[str, float] = {}
    for threshold in gate.thresholds:
        scorer = threshold.metric.rpartition("/")[0]
        allowed[scorer] = min(allowed.get(scorer, 1.0), threshold.max_error_rate)
    failed = {scorer: sum(1 for o in outcomes if o.error) for scorer, outcomes in evidence.outcomes.items()}
    return {scorer: n for scorer, n in failed.items() if n > allowed.get(scorer, 0.0) * evidence.rows}


def _unusable(evidence: Evidence, incumbent: Evidence | None) -> list[str]:
    """Why the evidence proves nothing, whatever its numbers say."""
    reasons = []
    if evidence.rows == 0:
        reasons.append("The evaluation has no rows: add records to the evaluation dataset and evaluate again.")
    for scorer, outcomes in evidence.outcomes.items():
        if len(outcomes) != evidence.rows:
            reasons.append(f"{scorer} answered {len(outcomes)} of {evidence.rows} rows: evaluate again.")
        errors = [outcome.error for outcome in outcomes if outcome.error]
        if outcomes and len(errors) == len(outcomes):
            reasons.append(f"{scorer} failed on every row ({errors[0]}): correct it and evaluate again.")
    if incumbent and incumbent.dataset_digest != evidence.dataset_digest:
        reasons.append("The champion was evaluated on another dataset: evaluate it on this one first.")
    if incumbent and dict(incumbent.scorers) != dict(evidence.scorers):
        reasons.append("The champion was evaluated with other scorers: evaluate it with these first.")
    return reasons


def _finding(evidence: Evidence, threshold: Threshold, gate: Gate, incumbent: Evidence | None) -> Finding:
    scorer = threshold.metric.rpartition("/")[0]
    outcomes = evidence.outcomes.get(scorer, ())
    usable = sum(1 for outcome in outcomes if outcome.value is not None and math.isfinite(outcome.value))
    errors = sum(1 for outcome in outcomes if outcome.error)
    error_rate = errors / evidence.rows if evidence.rows else 1.0
    value = metric_value(evidence, threshold.metric)
    limit = threshold.at_least if threshold.at_least is not None else threshold.at_most
    former = metric_value(incumbent, threshold.metric) if incumbent else None
    assert limit is not None  # Threshold holds exactly one of the two.
    reason = _reason(threshold, gate, value, limit, usable, error_rate, former, incumbent is not None)
    direction = "at least" if threshold.higher_is_better else "at most"
    return Finding(threshold.metric, value, limit, direction, usable, error_rate, former, not reason, reason)


def _reason(
    threshold: Threshold,
    gate: Gate,
    value: float | None,
    limit: float,
    usable: int,
    error_rate: float,
    former: float | None,
    has_incumbent: bool,
) -> str:
    """Why the threshold is not met, empty when it is."""
    metric = threshold.metric
    if value is None:
        return f"{metric} has no value: no row was scored; check that the scorer applies to this dataset."
    if usable < threshold.min_rows:
        return f"{metric} rests on {usable} rows, {threshold.min_rows} are required: add records to the dataset."
    if error_rate > threshold.max_error_rate:
        return f"{metric}: {error_rate:.1%} of rows failed, {threshold.max_error_rate:.1%} are allowed: see the run."
    if threshold.higher_is_better and value < limit:
        return f"{metric} is {value:.4g}, at least {limit:g} is required."
    if not threshold.higher_is_better and value > limit:
        return f"{metric} is {value:.4g}, at most {limit:g} is allowed."
    if has_incumbent and gate.incumbent is not None:
        if former is None:
            return f"{metric}: the champion has no value to compare with: evaluate the champion again."
        loss = former - value if threshold.higher_is_better else value - former
        if loss > gate.incumbent.max_regression:
            return (
                f"{metric} is {value:.4g}, the champion's is {former:.4g}: worse by {loss:.4g}, "
                f"{gate.incumbent.max_regression:g} is allowed."
            )
    return ""
