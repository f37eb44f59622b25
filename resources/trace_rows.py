"""From an MLflow trace to rows of the tables, and redaction on the way.

Lives here: which field of a trace becomes which column, and what happens to text before it leaves.
Add here: a column of `traces`, `spans` or `assessments` (and its type in `tables.py`).
Not here: reading traces (`trace_store.py`), text and its redaction (`redaction.py`). Nothing here imports mlflow.

The same trace gives the same rows from SQLite and over HTTP: JSON is kept as the text MLflow has of it, which a
server writes again in the form of Python's `json.dumps`, as MLflow did when it stored it. The database's reader makes
the same columns without Python (`reading/span_columns.py`), and comes here for what is out of the ordinary.
"""

import binascii
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

from resources.redaction import Redaction, Text, loads

SCORER_VERSION = "mlflow.assessment.scorerVersion"
"""Metadata key of an assessment: version of the registered scorer."""

OUTCOME = "lifecycle.outcome"
"""Metadata key of an assessment of ours; `not applicable` when the scorer had nothing to say of the trace."""

NOT_APPLICABLE = "not applicable"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OWN_COLUMN = ("mlflow.spanInputs", "mlflow.spanOutputs", "mlflow.spanType", "mlflow.traceRequestId")
"""Attributes of a span that have a column of their own."""

COPIES = ("mlflow.traceInputs", "mlflow.traceOutputs")
"""Metadata of a trace that copies its request and response, cut off, so that a secret could escape its pattern."""

_HEX = re.compile("[0-9a-f]{16}")
_SHORT, _FEW = 48, 1_000  # Characters of a type that is remembered, and how many are.


@dataclass(frozen=True)
class TraceRows:
    """One trace in the columns of the archive: a row of `traces`, rows of `spans` and of `assessments`."""

    trace: dict[str, Any]
    spans: list[dict[str, Any]]
    assessments: list[dict[str, Any]]


def trace_rows(trace: Any, redact: Redaction = ()) -> TraceRows:
    """The rows of one MLflow trace; `archived_at` is the archive's to add. Never raises for what the trace holds."""
    return rows_of(trace.info, [span.to_dict() for span in trace.data.spans or ()], Text(redact))


def rows_of(info: Any, spans: Sequence[Mapping[str, Any]], text: Text) -> TraceRows:
    """The rows of a trace given as its info and its spans as MLflow keeps them, in JSON."""
    started = instant(info.request_time * 1000)
    day = day_of(info.request_time)
    raw = sorted(spans, key=_span_order)
    root = next(((span.get("attributes") or {}) for span in raw if not span["parent_span_id"]), {})
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
        "metadata": text.pairs({key: value for key, value in metadata.items() if key not in COPIES}),
        "input_tokens": _whole(usage.get("input_tokens")),
        "output_tokens": _whole(usage.get("output_tokens")),
        "cost_usd": _number(cost.get("total_cost")),
    }
    assessments = [assessment_row(info.trace_id, day, a, text) for a in info.assessments or ()]
    said = sorted((row for row in assessments if row), key=lambda row: row["assessment_id"])
    return TraceRows(row, [span_row(info.trace_id, day, span, text) for span in raw], said)


def day_of(request_ms: int) -> date:
    """The UTC day of a trace's start; 1970-01-01 when that is no date."""
    started = instant(request_ms * 1000)
    return started.date() if started else _EPOCH.date()


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
    return int(span["start_time_unix_nano"] or 0), _hex(span["span_id"]) or ""


def span_row(trace_id: str, day: date, span: Mapping[str, Any], text: Text) -> dict[str, Any]:
    """The row of one span, given as MLflow keeps it in JSON."""
    attributes, status = span.get("attributes") or {}, span.get("status") or {}
    members = text.members({key: value for key, value in attributes.items() if key not in OWN_COLUMN})
    # What MLflow's own attributes say comes first, then what it keeps beside them.
    if status.get("message"):
        members.append(f'"status.description": {text.json(status["message"])}')
    if span.get("events"):
        members.append(f'"events": {text.compact(span["events"])}')
    ended = span["end_time_unix_nano"]
    return {
        "trace_id": trace_id,
        "trace_date": day,
        "span_id": _hex(span["span_id"]),
        "parent_span_id": _hex(span["parent_span_id"]),
        "name": text.plain(span["name"]),
        "type": text.plain(str(_type(attributes.get("mlflow.spanType")) or "UNKNOWN")),
        "start_time": instant(int(span["start_time_unix_nano"] or 0) // 1000),
        "end_time": None if ended is None else instant(int(ended) // 1000),
        "status": (status.get("code") or "UNSET").removeprefix("STATUS_CODE_"),
        "inputs": text.payload(attributes.get("mlflow.spanInputs")),
        "outputs": text.payload(attributes.get("mlflow.spanOutputs")),
        "attributes": text.whole(members),
    }


def assessment_row(trace_id: str, day: date, found: Any, text: Text) -> dict[str, Any] | None:
    """The row of an assessment; None for a reference to an issue: it is neither feedback nor expectation."""
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


def _type(raw: Any) -> Any:
    """The type of a span; there are few, and of those the texts are short."""
    return _known_type(raw) if raw.__class__ is str and len(raw) <= _SHORT else loads(raw)


@lru_cache(_FEW)
def _known_type(raw: str) -> Any:
    return loads(raw)


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
    """A span's id as hexadecimal: MLflow keeps it as base64, MLflow 3.5.0 kept it so."""
    if not span_id or _HEX.fullmatch(span_id):
        return span_id or None
    return binascii.a2b_base64(span_id).hex()
