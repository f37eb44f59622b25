"""From an MLflow trace to rows of the tables, and redaction on the way.

Lives here: which field of a trace becomes which column, and what happens to text before it leaves.
Add here: a column of `traces`, `spans` or `assessments` (and its type in `tables.py`).
Not here: reading traces (`trace_store.py`), text and its redaction (`redaction.py`). Nothing here imports mlflow.

The same trace gives the same rows from SQLite and over HTTP.
"""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from resources.redaction import Redaction, Text, loads

SCORER_VERSION = "mlflow.assessment.scorerVersion"
"""Metadata key of an assessment: version of the registered scorer."""

OUTCOME = "lifecycle.outcome"
"""Metadata key of an assessment of ours; `not applicable` when the scorer had nothing to say of the trace."""

NOT_APPLICABLE = "not applicable"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Columns of their own, or copies of them (cut off, so that a secret could escape its pattern).
_OWN_COLUMN = {"mlflow.spanInputs", "mlflow.spanOutputs", "mlflow.spanType", "mlflow.traceRequestId"}
_COPIES = {"mlflow.traceInputs", "mlflow.traceOutputs"}


@dataclass(frozen=True)
class TraceRows:
    """One trace in the columns of the archive: a row of `traces`, rows of `spans` and of `assessments`."""

    trace: dict[str, Any]
    spans: list[dict[str, Any]]
    assessments: list[dict[str, Any]]


def trace_rows(trace: Any, redact: Redaction = ()) -> TraceRows:
    """The rows of one MLflow trace; `archived_at` is the archive's to add. Never raises for what the trace holds."""
    info, text = trace.info, Text(redact)
    started = instant(info.request_time * 1000)
    day = started.date() if started else _EPOCH.date()
    raw = sorted((span.to_dict() for span in trace.data.spans or ()), key=_span_order)
    root = next((span["attributes"] for span in raw if not span["parent_span_id"]), {})
    tags, metadata = dict(info.tags or {}), dict(info.trace_metadata or {})
    usage, cost = _object(metadata.get("mlflow.trace.tokenUsage")), _object(metadata.get("mlflow.trace.cost"))
    row = {
        "trace_id": info.trace_id,
        "experiment_id": info.experiment_id,
        "request_time": started,
        "trace_date": day,
        "state": str(getattr(info.state, "value", info.state)),
        "execution_ms": info.execution_duration,
        "model_id": model_of(info),
        "session_id": text.plain(metadata.get("mlflow.trace.session")) or "",
        "user_id": text.plain(metadata.get("mlflow.trace.user")) or "",
        "environment": text.plain(tags.get("environment") or metadata.get("mlflow.source.type")) or "",
        "request": text.payload(root.get("mlflow.spanInputs"), info.request_preview),
        "response": text.payload(root.get("mlflow.spanOutputs"), info.response_preview),
        "tags": text.pairs(tags),
        "metadata": text.pairs({key: value for key, value in metadata.items() if key not in _COPIES}),
        "input_tokens": _whole(usage.get("input_tokens")),
        "output_tokens": _whole(usage.get("output_tokens")),
        "cost_usd": _number(cost.get("total_cost")),
    }
    spans = [_span_row(info.trace_id, day, span, text) for span in raw]
    assessments = [_assessment_row(info.trace_id, day, a, text) for a in info.assessments or ()]
    said = sorted((row for row in assessments if row), key=lambda row: row["assessment_id"])
    return TraceRows(row, spans, said)


def model_of(info: Any) -> str:
    """The logged model a trace came from; traces ingested by OTLP carry it as a tag, if at all."""
    return (info.trace_metadata or {}).get("mlflow.modelId") or (info.tags or {}).get("mlflow.modelId") or ""


def instant(microseconds: int | None) -> datetime | None:
    """UTC time of microseconds since 1970, None when there is none or it is no date."""
    try:
        return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return None


def _span_order(span: Mapping[str, Any]) -> tuple[int, str]:
    return span["start_time_unix_nano"] or 0, span["span_id"]


def _span_row(trace_id: str, day: date, span: Mapping[str, Any], text: Text) -> dict[str, Any]:
    attributes = span["attributes"]
    rest = {key: loads(value) for key, value in attributes.items() if key not in _OWN_COLUMN}
    if span["status"]["message"]:
        rest["status.description"] = span["status"]["message"]
    if span["events"]:
        rest["events"] = span["events"]
    ended = span["end_time_unix_nano"]
    return {
        "trace_id": trace_id,
        "trace_date": day,
        "span_id": _hex(span["span_id"]),
        "parent_span_id": _hex(span["parent_span_id"]),
        "name": text.plain(span["name"]),
        "type": text.plain(str(loads(attributes.get("mlflow.spanType")) or "UNKNOWN")),
        "start_time": instant((span["start_time_unix_nano"] or 0) // 1000),
        "end_time": None if ended is None else instant(ended // 1000),
        "status": span["status"]["code"].removeprefix("STATUS_CODE_"),
        "inputs": text.payload(attributes.get("mlflow.spanInputs")),
        "outputs": text.payload(attributes.get("mlflow.spanOutputs")),
        "attributes": text.json(rest),
    }


def _assessment_row(trace_id: str, day: date, found: Any, text: Text) -> dict[str, Any] | None:
    """None for a reference to an issue: it is neither feedback nor expectation."""
    said = found.feedback or found.expectation
    if said is None:
        return None
    metadata, error = found.metadata or {}, getattr(said, "error", None)
    number, words = _number(said.value), None
    if error is None and said.value is None:
        words = NOT_APPLICABLE if metadata.get(OUTCOME) == NOT_APPLICABLE else None
    elif number is None and said.value is not None:
        words = text.plain(said.value) if isinstance(said.value, str) else text.json(said.value, whole=True)
    return {
        "trace_id": trace_id,
        "trace_date": day,
        "assessment_id": found.assessment_id,
        "name": text.clean(found.name),
        "kind": "feedback" if found.feedback else "expectation",
        "source_type": found.source.source_type,
        "source_id": text.plain(found.source.source_id),
        "value_number": number,
        "value_text": words,
        "rationale": text.plain(found.rationale),
        "error": text.plain(": ".join(filter(None, (error.error_code, error.error_message)))) if error else None,
        "scorer_version": metadata.get(SCORER_VERSION),
        "valid": found.valid is not False,
        "created_at": instant((found.create_time_ms or 0) * 1000),
        "updated_at": instant((found.last_update_time_ms or 0) * 1000),
    }


def _object(raw: Any) -> dict[str, Any]:
    value = loads(raw)
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """A finite number, with true as 1 and false as 0; None for anything else."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and abs(number) < 2**63 else None


def _hex(span_id: str | None) -> str | None:
    return base64.b64decode(span_id).hex() if span_id else None
