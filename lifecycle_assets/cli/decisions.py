"""A decision of the gate as commands say it.

Lives here: the whole decision as plain facts, and the short ones of a table's cell.
Add here: a fact of a decision that two commands say.
Not here: deciding (`lifecycle_assets/gate.py`), moves (`history.py`).
"""

import json
from collections.abc import Mapping
from typing import Any

from lifecycle_assets.cli.output import clean
from lifecycle_assets.records import EvalRecord

APPROVALS = ("approved", "rejected")
"""Decisions of a move that a person took."""


def decision_in(text: str | None) -> dict[str, Any]:
    """The decision that is kept as JSON in `promotions`; of text that is none, one without facts."""
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError:
        found = {}
    return decision(found if isinstance(found, dict) else {})


def decision(value: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a decision's record; those another release did not keep are empty."""
    try:
        record = EvalRecord.from_json(value)
    except ValueError:
        record = None
    return {
        "run_id": value.get("run_id", ""),
        "model_id": value.get("model_id", ""),
        "dataset": value.get("dataset_name", ""),
        "dataset_digest": value.get("dataset_digest", ""),
        "rows": value.get("rows"),
        "errors": value.get("errors"),
        "metrics": value.get("metrics", {}),
        "scorers": value.get("scorers", {}),
        "verdict": value.get("verdict", ""),
        "reasons": value.get("reasons", []),
        "thresholds": [finding for finding in value.get("findings") or [] if isinstance(finding, Mapping)],
        "comparison": value.get("comparison", ""),
        "compared_with": {
            "model_id": value.get("incumbent_model_id", ""),
            "run_id": value.get("incumbent_run_id", ""),
        },
        "evidence_digest": record.evidence_digest if record else "",
        "decision_digest": record.decision_digest if record else "",
        "evaluated_at": value.get("at", ""),
    }


def compared(facts: Mapping[str, Any]) -> str:
    """The outcome of the comparison and with whom, in words."""
    model = facts["compared_with"]["model_id"]
    if not model:
        return "compared with nobody"
    return f"{(facts['comparison'] or 'compared').replace('_', ' ')}: against {model}"


def held(finding: Mapping[str, Any]) -> dict[str, str]:
    """One threshold, what was measured against it, and what the comparison says, as the cells of a table."""
    between = finding.get("comparison")
    return {
        "metric": clean(finding.get("metric")),
        "value": clean(finding.get("value")),
        "required": f"{clean(finding.get('direction'))} {clean(finding.get('limit'))}",
        "champion": clean(finding.get("incumbent")),
        "against the champion": _outcome(between) if isinstance(between, Mapping) else "",
        "met": "yes" if finding.get("passed") is True else "no",
        "why": clean(finding.get("reason")),
    }


def _outcome(between: Mapping[str, Any]) -> str:
    """The outcome, the paired difference (positive is better) and its interval, the number of pairs."""
    outcome, low, high = clean(between.get("outcome")).replace("_", " "), between.get("low"), between.get("high")
    if between.get("difference") is None:
        return outcome
    interval = f" ({clean(low)} to {clean(high)})" if low is not None and high is not None else ""
    return f"{outcome}: {clean(between['difference'])}{interval}, {clean(between.get('pairs'))} pairs"


def in_a_cell(facts: Mapping[str, Any]) -> list[str]:
    """The evidence of a move, a line each: run, dataset, metrics, comparison."""
    means = {name: value for name, value in sorted(facts["metrics"].items()) if name.endswith("/mean")}
    lines = [facts["run_id"], f"dataset {facts['dataset_digest']}" if facts["dataset_digest"] else ""]
    lines += [f"{name} {clean(value)}" for name, value in means.items()]
    lines += [compared(facts)] if facts["compared_with"]["model_id"] else []
    return [line for line in lines if line]
