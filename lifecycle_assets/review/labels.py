"""What people said, as records of the dataset and as pairs with a judge.

Lives here: pure steps under `human_labels` and `judge_agreement`.
Add here: a way to read a label.
Not here: talking to MLflow, the formula of agreement (`agreement.py`).
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lifecycle_assets.records import digest
from lifecycle_assets.spec import Labeling, LabelSchema
from resources.needs import Item, Label

OPEN_SESSIONS = 5
"""Newest sessions whose completions are watched: one call each at every tick."""

YES = frozenset({"pass", "yes", "true", "1", "1.0"})
NO = frozenset({"fail", "no", "false", "0", "0.0"})


def as_bool(value: object) -> bool | None:
    """A pass-or-fail answer as a bool, None when it is neither."""
    text = str(value).strip().lower()
    return True if text in YES else False if text in NO else None


def agent_inputs(request: str, *, without: Sequence[str] = ("context", "custom_inputs")) -> dict[str, Any] | None:
    """The request of a trace as the agent's inputs, `without` some fields; None when it is not an object.

    A ResponsesAgent's root span holds `{"request": {...}}`; session and user are not part of the question.
    """
    try:
        value = json.loads(request)
    except (json.JSONDecodeError, TypeError):
        return None
    if isinstance(value, dict) and set(value) == {"request"} and isinstance(value["request"], dict):
        value = value["request"]
    if not isinstance(value, dict):
        return None
    kept = {key: _without_none(item) for key, item in value.items() if key not in without}
    return {key: item for key, item in kept.items() if item is not None} or None


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def completions(items: Mapping[str, Sequence[Item]]) -> str:
    """Digest of the completed items of each session; empty when none is complete."""
    done = sorted(
        (session, item.trace_id, item.updated_ms)
        for session, found in items.items()
        for item in found
        if item.status == "complete"
    )
    return digest(done) if done else ""


def dataset_records(
    labels: Sequence[Label], schemas: Sequence[LabelSchema], requests: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Records `{inputs, expectations, source}` of traces for which a reviewer gave an expectation.

    `requests` maps trace id to the request's JSON text. The newest answer to a question counts.
    """
    kinds = {schema.name: schema for schema in schemas if schema.type == "expectation"}
    expected: dict[str, dict[str, Any]] = {}
    for label in sorted(labels, key=lambda label: label.at_ms):
        schema = kinds.get(label.schema)
        if schema is not None:
            value = as_bool(label.value) if schema.input == "pass_fail" else label.value
            expected.setdefault(label.trace_id, {})[label.schema] = value
    records = []
    for trace_id, expectations in sorted(expected.items()):
        inputs = agent_inputs(requests.get(trace_id, ""))
        if inputs is not None:
            source = {"source_type": "TRACE", "source_data": {"trace_id": trace_id}}
            records.append({"inputs": inputs, "expectations": expectations, "source": source})
    return records


def judge_pairs(labels: Sequence[Label], schema: LabelSchema, scores: Mapping[str, float]) -> list[tuple[bool, bool]]:
    """`(person, judge)` for each trace with both; `scores` maps trace id to the judge's number."""
    newest = {
        label.trace_id: label for label in sorted(labels, key=lambda label: label.at_ms) if label.schema == schema.name
    }
    pairs = []
    for trace_id, label in sorted(newest.items()):
        person = as_bool(label.value)
        if person is not None and trace_id in scores:
            pairs.append((person, scores[trace_id] >= schema.judge_passes_at))
    return pairs


def reviewer_pairs(labels: Sequence[Label], labeling: Labeling) -> list[tuple[bool, bool]]:
    """Answers of two reviewers to the same question on the same trace, reviewers in alphabetical order."""
    questions = {schema.name for schema in labeling.schemas if schema.input == "pass_fail"}
    answers: dict[tuple[str, str], dict[str, bool]] = {}
    for label in sorted(labels, key=lambda label: label.at_ms):
        value = as_bool(label.value)
        if label.schema in questions and value is not None:
            answers.setdefault((label.trace_id, label.schema), {})[label.reviewer] = value
    pairs = []
    for _, by_reviewer in sorted(answers.items()):
        given = [by_reviewer[name] for name in sorted(by_reviewer)]
        pairs += list(pairwise(given))
    return pairs
