"""From an MLflow trace to rows of the tables, and redaction on the way.

Lives here: which field of a trace becomes which column, and what happens to text before it leaves.
Add here: a column of `traces`, `spans` or `assessments` (and its type in `tables.py`).
Not here: reading traces (`trace_store.py`), writing tables (`archive.py`). Nothing here imports mlflow.

Text is kept whole, whatever is in it: a lone surrogate becomes U+FFFD, NaN becomes the string "NaN", an attribute
that is not JSON becomes a JSON string. The same trace gives the same rows from SQLite and over HTTP.
"""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

Redaction = Sequence[tuple[re.Pattern[str], str]]
"""Rules in the order they are applied: what matches is replaced (as in `re.sub`)."""

SCORER_VERSION = "mlflow.assessment.scorerVersion"
"""Metadata key of an assessment: version of the registered scorer."""

OUTCOME = "lifecycle.outcome"
"""Metadata key of an assessment of ours; `not applicable` when the scorer had nothing to say of the trace."""

NOT_APPLICABLE = "not applicable"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
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
    info, text = trace.info, _Text(redact)
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


def _span_row(trace_id: str, day: date, span: Mapping[str, Any], text: "_Text") -> dict[str, Any]:
    attributes = span["attributes"]
    rest = {key: _loads(value) for key, value in attributes.items() if key not in _OWN_COLUMN}
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
        "type": text.plain(str(_loads(attributes.get("mlflow.spanType")) or "UNKNOWN")),
        "start_time": instant((span["start_time_unix_nano"] or 0) // 1000),
        "end_time": None if ended is None else instant(ended // 1000),
        "status": span["status"]["code"].removeprefix("STATUS_CODE_"),
        "inputs": text.payload(attributes.get("mlflow.spanInputs")),
        "outputs": text.payload(attributes.get("mlflow.spanOutputs")),
        "attributes": text.json(rest),
    }


def _assessment_row(trace_id: str, day: date, found: Any, text: "_Text") -> dict[str, Any] | None:
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


class _Text:
    """Text on its way into a table: made writable, and redacted when there are rules.

    Rules meet strings as they were said: escapes are undone, JSON inside of JSON is entered, a number that
    matches becomes a string. A rule with a double quote in it also meets the JSON text as a whole.
    """

    def __init__(self, rules: Redaction) -> None:
        self._rules = tuple(rules)
        self._wide = tuple(rule for rule in self._rules if '"' in rule[0].pattern)

    def clean(self, text: str) -> str:
        """`text` as valid Unicode."""
        return text if text.isascii() else _SURROGATE.sub("\ufffd", text)

    def plain(self, text: str | None) -> str | None:
        """A string, redacted."""
        if text is None:
            return None
        try:
            return self._redacted(self.clean(text)) if self._rules else self.clean(text)
        except RecursionError:
            return NESTED

    def pairs(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Tags or metadata, redacted, in the order of their keys."""
        return {self.plain(key) or "": self.plain(str(values[key])) or "" for key in sorted(values)}

    def payload(self, raw: Any, preview: str | None = None) -> str | None:
        """JSON text of an attribute as MLflow keeps it; without one the preview, which MLflow may have cut off."""
        return self.plain(preview) if raw is None else self.json(_loads(raw))

    def json(self, value: Any, *, whole: bool = False) -> str:
        """JSON text of a value, redacted; with `whole`, 1.0 is written as 1."""
        try:
            value = _as_said(value) if whole else value
            try:
                said = self._walk(value) if self._rules else value
                text = json.dumps(said, ensure_ascii=False, allow_nan=False, default=str)
            except ValueError:
                text = json.dumps(self._walk(value), ensure_ascii=False, default=str)
        except RecursionError:
            return json.dumps(NESTED)
        return self._as_a_whole(self.clean(text)) if self._wide else self.clean(text)

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.plain(value)
        if isinstance(value, Mapping):
            return {self.plain(str(key)): self._walk(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._walk(inner) for inner in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            said = json.dumps(value)  # NaN and Infinity by the names JSON readers know.
            redacted = self.plain(said)
            return value if redacted == said and (isinstance(value, int) or math.isfinite(value)) else redacted
        return value

    def _redacted(self, text: str) -> str:
        if text[:1] in ("{", "[", '"'):
            value = _loads(text)
            if value != text:
                inner = self._walk(value)
                text = text if inner == value else json.dumps(inner, ensure_ascii=False, default=str)
        if "\\u" in text:
            spoken = self.clean(_ESCAPE.sub(lambda match: chr(int(match[1], 16)), text))
            redacted = self._applied(spoken, self._rules)
            return self._applied(text, self._rules) if redacted == spoken else redacted
        return self._applied(text, self._rules)

    def _as_a_whole(self, text: str) -> str:
        redacted = self._applied(text, self._wide)
        return redacted if redacted == text or _loads(redacted) != redacted else json.dumps(redacted)

    @staticmethod
    def _applied(text: str, rules: Redaction) -> str:
        for pattern, replacement in rules:
            text = pattern.sub(replacement, text)
        return text


NESTED = "[nested too deeply to be kept]"
"""What stands for a value nested some hundred levels deep, which Python's JSON cannot walk."""


def _loads(raw: Any) -> Any:
    """The value of JSON text; the text itself when it is not JSON, anything else as it is."""
    if not isinstance(raw, str):
        return raw
    try:
        return json.loads(raw)
    except RecursionError:
        return NESTED
    except ValueError:
        return raw


def _object(raw: Any) -> dict[str, Any]:
    value = _loads(raw)
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


def _as_said(value: Any) -> Any:
    """A structure with 1 for 1.0: over HTTP every number is a float."""
    if isinstance(value, Mapping):
        return {key: _as_said(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_said(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and abs(number) < 2**63 else None


def _hex(span_id: str | None) -> str | None:
    return base64.b64decode(span_id).hex() if span_id else None
