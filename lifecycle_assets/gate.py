"""The gate: from the rows of an evaluation to a verdict.

Lives here: pure functions over plain values; nothing in this module knows MLflow, Dagster or a file.
Add here: a further reason to refuse an evaluation.
Not here: how two scores are compared (`comparison.py`), running the evaluation (`resources/evaluator.py`), moving the
alias (`release/`).

Everything that is missing counts against the candidate: a metric without a value, a row without an outcome, a
scorer that raised, an evaluation without rows, evidence of the champion that is about something else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

from lifecycle_assets.comparison import Comparison, Pairing, compare, overall
from lifecycle_assets.records import digest
from lifecycle_assets.spec_release import Gate, Incumbent, Threshold

UNGATED = "UNGATED: the gate is disabled in defs.yaml; nothing was held against a threshold or the champion."
NO_MODEL = (
    "The champion's version names no logged model, so that nothing can be compared with it: point the alias champion "
    "at a version this graph registered, or remove the alias."
)


LARGEST = 1e100
"""Beyond this a score is a fault of its scorer: sums and squares of such numbers are not finite any more."""


def is_measurement(value: float) -> bool:
    """Whether a score can be counted: a number, finite, and small enough to be summed."""
    return abs(value) <= LARGEST


@dataclass(frozen=True)
class Outcome:
    """What one scorer said of one row: a number (pass is 1.0, fail 0.0), an error, or neither (not applicable)."""

    value: float | None = None
    error: str = ""

    @property
    def failure(self) -> str:
        """Why there is no usable number, empty when there is one or none was due. Not finite is a failure."""
        if self.error or self.value is None or is_measurement(self.value):
            return self.error
        return f"the value is {self.value}, which is no measurement"

    @property
    def number(self) -> float | None:
        """The value when it may be counted, else None."""
        return None if self.failure else self.value


@dataclass(frozen=True)
class Evidence:
    """An evaluation as the gate sees it.

    `outcomes` maps scorer name to one `Outcome` a row; every list has `rows` entries, in the order of `keys`.
    `keys` names the record of each row (a digest of its inputs), so that two evaluations can be paired.
    """

    model_id: str
    dataset_digest: str
    scorers: Mapping[str, str]
    rows: int
    outcomes: Mapping[str, Sequence[Outcome]]
    keys: Sequence[str]


@dataclass(frozen=True)
class Finding:
    """One threshold held against the evidence, and against the champion's when there is a champion."""

    metric: str
    value: float | None
    limit: float
    direction: str
    rows: int
    error_rate: float
    incumbent: float | None
    passed: bool
    reason: str
    comparison: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the comparison as an object or null."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """The decision: `passed`, `failed`, `dry_run` (would have failed, lets through) or `ungated`.

    `comparison` is that with the champion over all metrics: `better`, `not_worse`, `worse`, `unsure`, or `none`.
    """

    verdict: str
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = field(default=())
    comparison: str = "none"

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
    return aggregate([o.number for o in evidence.outcomes.get(scorer, ()) if o.number is not None], aggregation)


def rows_digest(evidence: Evidence) -> str:
    """Names what every scorer said of every record, whatever the order of the rows.

    Changes when any value, error, record, scorer version, the model or the dataset does. Linear in rows and scorers.
    """
    said: dict[str, list[list[object]]] = {}
    for scorer, outcomes in sorted(evidence.outcomes.items()):
        for key, outcome in zip(evidence.keys, outcomes, strict=False):
            said.setdefault(key, []).append([scorer, outcome.value, outcome.error])
    counts = [evidence.rows, len(evidence.keys), {name: len(outcomes) for name, outcomes in evidence.outcomes.items()}]
    return digest([evidence.model_id, evidence.dataset_digest, dict(evidence.scorers), counts, said])


def judge(evidence: Evidence, gate: Gate, incumbent: Evidence | None = None) -> Verdict:
    """Hold `evidence` against `gate`, and against the champion's evidence when there is a champion.

    `incumbent` is None only when nobody is champion, or the candidate is: a champion whose evidence could not be had
    is evidence without rows.
    """
    if gate.mode == "disabled":
        return Verdict("ungated", (UNGATED,))
    against = incumbent if gate.incumbent is not None else None
    unusable = _unusable(evidence, against)
    reasons = unusable + [
        f"{scorer} failed on {failed} of {evidence.rows} rows: correct it and evaluate again, or give it a threshold."
        for scorer, failed in failing_scorers(evidence, gate).items()
        if not any(threshold.metric.rpartition("/")[0] == scorer for threshold in gate.thresholds)
    ]
    compared = _compared(evidence, gate, against) if against is not None and not unusable else []
    findings = tuple(
        _finding(evidence, threshold, gate, against, comparison)
        for threshold, comparison in zip_longest(gate.thresholds, compared)
    )
    reasons += [finding.reason for finding in findings if not finding.passed]
    outcome = overall([one.outcome for one in compared]) if compared or against is None else "unsure"
    if against is not None and gate.incumbent is not None and gate.incumbent.require == "better" != outcome:
        reasons.append(
            f"Against the champion the candidate is {outcome.replace('_', ' ')}; incumbent.require asks for better."
        )
    if not reasons:
        return Verdict("passed", (), findings, outcome)
    return Verdict("dry_run" if gate.mode == "dry_run" else "failed", tuple(reasons), findings, outcome)


def failing_scorers(evidence: Evidence, gate: Gate) -> dict[str, int]:
    """Scorers that failed on more rows than their threshold allows, and on how many; without a threshold, on any."""
    allowed: dict[str, float] = {}
    for threshold in gate.thresholds:
        scorer = threshold.metric.rpartition("/")[0]
        allowed[scorer] = min(allowed.get(scorer, 1.0), threshold.max_error_rate)
    failed = {scorer: sum(1 for o in outcomes if o.failure) for scorer, outcomes in evidence.outcomes.items()}
    return {scorer: n for scorer, n in failed.items() if n / max(evidence.rows, 1) > allowed.get(scorer, 0.0)}


def _unusable(evidence: Evidence, incumbent: Evidence | None) -> list[str]:
    """Why the evidence proves nothing, whatever its numbers say."""
    reasons = []
    if evidence.rows == 0:
        reasons.append("The evaluation has no rows: add records to the evaluation dataset and evaluate again.")
    for scorer, outcomes in evidence.outcomes.items():
        if len(outcomes) != evidence.rows:
            reasons.append(f"{scorer} answered {len(outcomes)} of {evidence.rows} rows: evaluate again.")
        errors = [outcome.failure for outcome in outcomes if outcome.failure]
        if outcomes and len(errors) == len(outcomes):
            reasons.append(f"{scorer} failed on every row ({errors[0]}): correct it and evaluate again.")
    if len(set(evidence.keys)) != evidence.rows:
        reasons.append(
            f"The evaluation names {len(set(evidence.keys))} different records in {evidence.rows} rows: evaluate again."
        )
    if incumbent is None:
        return reasons
    if not incumbent.model_id:
        return [*reasons, NO_MODEL]
    if incumbent.dataset_digest != evidence.dataset_digest:
        reasons.append("The champion was evaluated on another dataset: evaluate it on this one first.")
    if dict(incumbent.scorers) != dict(evidence.scorers):
        reasons.append("The champion was evaluated with other scorers: evaluate it with these first.")
    if set(incumbent.keys) != set(evidence.keys) or len(incumbent.keys) != incumbent.rows:
        reasons.append("The champion was evaluated on other records: evaluate it on these first.")
    return reasons


def _compared(evidence: Evidence, gate: Gate, champion: Evidence) -> list[Comparison]:
    """The comparison with the champion, one a threshold."""
    incumbent = gate.incumbent
    if incumbent is None:
        return []
    pairings = [_pairing(evidence, champion, threshold, incumbent) for threshold in gate.thresholds]
    return compare(pairings, confidence=incumbent.confidence, power=incumbent.power)


def _pairing(evidence: Evidence, champion: Evidence, threshold: Threshold, incumbent: Incumbent) -> Pairing:
    """The scores of both on the same records, matched by the record's key, in its order.

    Left out are records on which the champion failed, which is to its advantage: they must not stand in the way of a
    candidate that mends them; and those a scorer does not apply to on one side, such as grounds of an answer that was
    refused. The candidate's own failures are held against `max_error_rate`, the pairs that remain against `min_rows`.
    """
    scorer = threshold.metric.rpartition("/")[0]
    sides = [
        {
            key: outcome.number
            for key, outcome in zip(side.keys, side.outcomes.get(scorer, ()), strict=False)
            if outcome.number is not None
        }
        for side in (evidence, champion)
    ]
    both = sorted(sides[0].keys() & sides[1].keys())
    own = threshold.max_regression
    return Pairing(
        metric=threshold.metric,
        candidate=[sides[0][key] for key in both],
        champion=[sides[1][key] for key in both],
        unpaired=len(sides[1].keys() - sides[0].keys()),
        higher_is_better=threshold.higher_is_better,
        allowed=incumbent.max_regression if own is None else own,
        seed=int(digest([threshold.metric, evidence.model_id, champion.model_id, evidence.dataset_digest]), 16),
    )


def _finding(
    evidence: Evidence, threshold: Threshold, gate: Gate, champion: Evidence | None, comparison: Comparison | None
) -> Finding:
    scorer = threshold.metric.rpartition("/")[0]
    outcomes = evidence.outcomes.get(scorer, ())
    usable = sum(1 for outcome in outcomes if outcome.number is not None)
    errors = sum(1 for outcome in outcomes if outcome.failure)
    error_rate = errors / evidence.rows if evidence.rows else 1.0
    value = metric_value(evidence, threshold.metric)
    limit = threshold.at_least if threshold.at_least is not None else threshold.at_most
    assert limit is not None  # Threshold holds exactly one of the two.
    reason = _reason(threshold, value, limit, usable, error_rate)
    if not reason and comparison is not None and gate.incumbent is not None:
        reason = _against_champion(threshold, comparison, gate.incumbent)
    return Finding(
        metric=threshold.metric,
        value=value,
        limit=limit,
        direction="at least" if threshold.higher_is_better else "at most",
        rows=usable,
        error_rate=error_rate,
        incumbent=metric_value(champion, threshold.metric) if champion else None,
        passed=not reason,
        reason=reason,
        comparison=comparison,
    )


def _reason(threshold: Threshold, value: float | None, limit: float, usable: int, error_rate: float) -> str:
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
    return ""


def _against_champion(threshold: Threshold, comparison: Comparison, incumbent: Incumbent) -> str:
    """Why the comparison stands in the way, empty when it does not."""
    if comparison.outcome == "worse" or not comparison.pairs:
        return comparison.sentence
    if comparison.pairs < threshold.min_rows:
        return (
            f"{threshold.metric} can be compared with the champion on {comparison.pairs} rows, {threshold.min_rows} "
            "are required: add records to the dataset."
        )
    return comparison.sentence if comparison.outcome == "unsure" and incumbent.unsure == "block" else ""
