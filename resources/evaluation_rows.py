"""The rows of an evaluation: what every scorer said of every record, errors included.

Lives here: reading assessments into outcomes, the JSON form of an evaluation (`evaluation.json`), evidence from it.
Add here: a further fact about a row that the gate or a reader needs.
Not here: running the evaluation (`evaluation_steps.py`), judging it (`lifecycle_assets/gate.py`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle_assets.gate import Evidence, Outcome, aggregate, is_measurement
from lifecycle_assets.records import digest
from resources.dataset_rows import canonical

_WORDS = {"yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0, "pass": 1.0, "fail": 0.0}


def as_number(value: object) -> float | None:
    """A scorer's value as a number: passes are 1.0, fails 0.0; None for text that is neither."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    if isinstance(value, bool | int | float) and is_measurement(value):
        return float(value)
    return None


def score_of(assessments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`{value, error, rationale}` of one scorer on one row; several assessments (one a span) become their mean.

    No assessment at all means that the scorer did not apply. A value that is no number counts as an error.
    """
    values, errors, reasons = [], [], []
    for assessment in assessments:
        feedback = assessment.get("feedback") or {}
        error, value = feedback.get("error"), feedback.get("value")
        if assessment.get("rationale"):
            reasons.append(str(assessment["rationale"]))
        if error:
            errors.append(str(error.get("error_message") or error.get("error_code") or "the scorer failed"))
        elif value is not None:
            number = as_number(value)
            if number is None:
                errors.append(f"the scorer returned {str(value)[:80]!r}: return a number, a bool, yes or no")
            else:
                values.append(number)
    return {
        "value": sum(values) / len(values) if values and not errors else None,
        "error": _text(errors[0][:500]) if errors else "",
        "rationale": _text(" ".join(reasons)[:1000]),
    }


def _text(said: str) -> str:
    """What can be written: half of a character, as a judge may send it, becomes a question mark."""
    return said.encode("utf-8", "replace").decode()


def evidence_of(evaluation: Mapping[str, Any]) -> Evidence:
    """The evidence an `evaluation.json` holds; raises `KeyError` for a file that is not one."""
    rows = evaluation["rows"]
    return Evidence(
        model_id=evaluation["model_id"],
        dataset_digest=evaluation["dataset"]["digest"],
        scorers=dict(evaluation["scorers"]),
        rows=len(rows),
        outcomes={
            name: [Outcome(row["scores"][name]["value"], row["scores"][name]["error"]) for row in rows]
            for name in evaluation["scorers"]
        },
        keys=[digest(canonical(row["inputs"])) for row in rows],
    )


def content_digest(evaluation: Mapping[str, Any]) -> str:
    """Names everything an `evaluation.json` says; of plain JSON values, so that reading it back gives the same."""
    return hashlib.sha256(json.dumps(evaluation, sort_keys=True).encode()).hexdigest()


def further_metrics(evaluation: Mapping[str, Any], logged: Mapping[str, float]) -> dict[str, float]:
    """Metrics MLflow does not log: `<scorer>/p95` of numbers, a missing `<scorer>/mean`, `<scorer>/error_rate`."""
    metrics: dict[str, float] = {}
    evidence = evidence_of(evaluation)
    for name, outcomes in evidence.outcomes.items():
        values = [outcome.value for outcome in outcomes if outcome.value is not None]
        mean, p95 = aggregate(values, "mean"), aggregate(values, "p95")
        if mean is not None and f"{name}/mean" not in logged:
            metrics[f"{name}/mean"] = mean
        if p95 is not None and set(values) - {0.0, 1.0}:
            metrics[f"{name}/p95"] = p95
        metrics[f"{name}/error_rate"] = sum(1 for outcome in outcomes if outcome.error) / max(evidence.rows, 1)
    return metrics


def readable_table(evaluation: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The rows as columns for the MLflow UI: trace, state, inputs, then a column a scorer."""
    table: dict[str, list[Any]] = {"trace_id": [], "state": [], "inputs": []}
    for row in evaluation["rows"]:
        for column in ("trace_id", "state", "inputs"):
            table[column].append(row[column])
        for name, score in row["scores"].items():
            shown = f"error: {score['error']}" if score["error"] else score["value"]
            table.setdefault(name, []).append("" if shown is None else str(shown))
    return table
