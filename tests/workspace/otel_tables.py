"""The tables in which Unity Catalog keeps traces, and the one row a trace has in views and in the native archive.

Lives here: columns, and what of a trace goes into which, as Databricks documents them.
Add here: a column of theirs. Not here: intake (`otlp.py`), the job that archives (`archival.py`).

A location by prefix has `<prefix>_otel_spans` with VARIANT attributes, and `<prefix>_otel_annotations`: a row for the
metadata, for each tag and for each assessment, appended at every change, soft-deleted, the newest row of an id counts.
The older location by schema (prefix `mlflow_experiment_trace`) has MAP attributes and no annotations; its tags and
assessments are seen in `<prefix>_unified`, which stands here as a table.
"""

import base64
import hashlib
import json
import uuid
from datetime import UTC, datetime
from typing import Any

from tests.workspace.app import Workspace
from tests.workspace.lake import Lake

SCHEMA_PREFIX = "mlflow_experiment_trace"
_EVENT = "time_unix_nano: BIGINT, name: STRING, attributes: {}, dropped_attributes_count: INT"
_LINK = (
    "trace_id: STRING, span_id: STRING, trace_state: STRING, attributes: {}, dropped_attributes_count: INT, flags: INT"
)
_ERROR = "error_code: STRING, error_message: STRING, stack_trace: STRING"
_MAP, _VARIANT = "MAP<STRING, STRING>", "VARIANT"


def span_columns(kind: str) -> dict[str, str]:
    """Columns of a span; `kind` is the type of its attributes."""
    resource = f"STRUCT<attributes: {kind}, dropped_attributes_count: INT>"
    scope = f"STRUCT<name: STRING, version: STRING, attributes: {kind}, dropped_attributes_count: INT>"
    return {
        "trace_id": "STRING",
        "span_id": "STRING",
        "trace_state": "STRING",
        "parent_span_id": "STRING",
        "flags": "INT",
        "name": "STRING",
        "kind": "STRING",
        "start_time_unix_nano": "BIGINT",
        "end_time_unix_nano": "BIGINT",
        "attributes": kind,
        "dropped_attributes_count": "INT",
        "events": f"ARRAY<STRUCT<{_EVENT.format(kind)}>>",
        "dropped_events_count": "INT",
        "links": f"ARRAY<STRUCT<{_LINK.format(kind)}>>",
        "dropped_links_count": "INT",
        "status": "STRUCT<message: STRING, code: STRING>",
        "resource": resource,
        "resource_schema_url": "STRING",
        "instrumentation_scope": scope,
        "span_schema_url": "STRING",
    }


SPANS = {"record_id": "STRING", "time": "TIMESTAMP", "date": "DATE", "service_name": "STRING", **span_columns(_VARIANT)}

ANNOTATIONS = {
    "annotation_id": "STRING",
    "target_type": "STRING",
    "target_id": "STRING",
    "annotation_type": "STRING",
    "name": "STRING",
    "value": "VARIANT",
    "comment": "STRING",
    "metadata": "VARIANT",
    "created_at": "TIMESTAMP",
    "created_by": "STRING",
    "updated_at": "TIMESTAMP",
    "updated_by": "STRING",
    "deleted_at": "TIMESTAMP",
    "deleted_by": "STRING",
    "_change_type": "STRING",
}


def trace_columns(duration: str, name: str) -> dict[str, str]:
    """Columns of the one row a trace has; `name` is how an assessment's name is called."""
    spans = ", ".join(f"{column}: {kind}" for column, kind in span_columns(_MAP).items())
    serialized = "STRUCT<serialization_format: STRING, value: STRING, stack_trace: STRING>"
    assessment = (
        f"assessment_id: STRING, trace_id: STRING, {name}: STRING, "
        "source: STRUCT<source_id: STRING, source_type: STRING>, create_time: TIMESTAMP, last_update_time: TIMESTAMP, "
        f"expectation: STRUCT<value: STRING, serialized_value: {serialized}>, "
        f"feedback: STRUCT<value: STRING, error: STRUCT<{_ERROR}>>, rationale: STRING, metadata: {_MAP}, "
        "span_id: STRING, overrides: STRING, valid: STRING"
    )
    return {
        "trace_id": "STRING",
        "client_request_id": "STRING",
        "request_time": "TIMESTAMP",
        "state": "STRING",
        "execution_duration_ms": duration,
        "request": "STRING",
        "response": "STRING",
        "trace_metadata": _MAP,
        "tags": _MAP,
        "spans": f"ARRAY<STRUCT<{spans}>>",
        "assessments": f"ARRAY<STRUCT<{assessment}>>",
    }


def create_tables(workspace: Workspace, catalog_schema: str, prefix: str) -> None:
    """The empty tables of a location; no-op when they are there."""
    lake, place = workspace[Lake], f"{catalog_schema}.{prefix}"
    if prefix == SCHEMA_PREFIX:
        lake.create_table(f"{place}_otel_spans", span_columns(_MAP))
        lake.create_table(f"{place}_unified", trace_columns("DECIMAL(30,9)", "assessment_name"))
    else:
        lake.create_table(f"{place}_otel_spans", SPANS)
        lake.create_table(f"{place}_otel_annotations", ANNOTATIONS)
    lake.create_table(f"{place}_otel_logs", {"trace_id": "STRING", "event_name": "STRING", "time_unix_nano": "BIGINT"})
    lake.create_table(f"{place}_otel_metrics", {"name": "STRING", "time": "TIMESTAMP"})


def store_trace(workspace: Workspace, catalog_schema: str, prefix: str, trace: dict[str, Any]) -> None:
    """Bring the tables of a location up to the trace: spans that are new, annotations that changed or are gone."""
    create_tables(workspace, catalog_schema, prefix)
    lake, place = workspace[Lake], f"{catalog_schema}.{prefix}"
    kind = _MAP if prefix == SCHEMA_PREFIX else _VARIANT
    hex_id = trace["info"]["trace_id"].rpartition("/")[2]
    known = {row[0] for row in lake.execute(f"SELECT span_id FROM {place}_otel_spans WHERE trace_id = '{hex_id}'")[1]}
    rows = [_span_row(span, hex_id, kind) for span in trace["spans"]]
    lake.insert(f"{place}_otel_spans", [row for row in rows if row["span_id"] not in known])
    if prefix == SCHEMA_PREFIX:
        columns = trace_columns("DECIMAL(30,9)", "assessment_name")
        put_row(lake, f"{place}_unified", columns, {**trace_row(trace, name="assessment_name"), "trace_id": hex_id})
        return
    info = trace["info"]
    if info.get("trace_metadata") or info.get("request_preview"):
        keys = ("client_request_id", "request_preview", "response_preview")
        value = {**{key: info.get(key) for key in keys}, "trace_metadata": info.get("trace_metadata", {})}
        _annotate(lake, place, hex_id, "METADATA", "metadata", f"{hex_id}:metadata", value=value)
    for key, said in info.get("tags", {}).items():
        store_tag(workspace, catalog_schema, prefix, info["trace_id"], key, said)
    for assessment in info.get("assessments", []):
        store_assessment(workspace, catalog_schema, prefix, info["trace_id"], assessment)
    kept = {one["assessment_id"] for one in info.get("assessments", [])}
    kept |= {_uuid(f"{hex_id}:tag:{key}") for key in info.get("tags", {})} | {_uuid(f"{hex_id}:metadata")}
    for row in _newest(lake, place, hex_id).values():
        if row["annotation_id"] not in kept and row["deleted_at"] is None:
            _append(lake, place, {**row, "deleted_at": datetime.now(UTC), "_change_type": "delete"})


def store_tag(workspace: Workspace, catalog_schema: str, prefix: str, trace_id: str, key: str, value: str) -> None:
    """A tag as an annotation; no-op when it says that already."""
    hex_id = trace_id.rpartition("/")[2]
    place = f"{catalog_schema}.{prefix}"
    _annotate(workspace[Lake], place, hex_id, "TAG", key, f"{hex_id}:tag:{key}", value=value)


def store_assessment(
    workspace: Workspace, catalog_schema: str, prefix: str, trace_id: str, assessment: dict[str, Any]
) -> None:
    """An assessment, as it came or changed, as an annotation. Locations by schema see it at the next `store_trace`."""
    if prefix == SCHEMA_PREFIX:
        return
    feedback, expectation = assessment.get("feedback"), assessment.get("expectation")
    error = (feedback or {}).get("error") or {}
    own = {
        "mlflow.source.source_type": assessment.get("source", {}).get("source_type"),
        "mlflow.source.source_id": assessment.get("source", {}).get("source_id"),
        "mlflow.error.error_code": error.get("error_code"),
        "mlflow.error.error_message": error.get("error_message"),
        "mlflow.overrides": assessment.get("overrides"),
        "mlflow.valid": None if assessment.get("valid") is None else str(assessment["valid"]).lower(),
    }
    _annotate(
        workspace[Lake],
        f"{catalog_schema}.{prefix}",
        trace_id.rpartition("/")[2],
        "EXPECTATION" if expectation is not None else "FEEDBACK",
        assessment["assessment_name"],
        assessment["assessment_id"],
        value=_value_of(assessment),
        comment=assessment.get("rationale"),
        metadata={**assessment.get("metadata", {}), **{key: said for key, said in own.items() if said is not None}},
        created_at=_time(assessment.get("create_time")),
        updated_at=_time(assessment.get("last_update_time")),
    )


def trace_row(trace: dict[str, Any], *, name: str, json_values: bool = False) -> dict[str, Any]:
    """The one row of a trace. `json_values`: an assessment's value is JSON text, else a string is told bare."""
    info = trace["info"]
    spans = [_span_row(span, info["trace_id"].rpartition("/")[2], _MAP) for span in trace["spans"]]
    spans = [{column: span.get(column) for column in span_columns(_MAP)} for span in spans]
    root: Any = next((span["attributes"] for span in spans if not span["parent_span_id"]), {})
    duration = info.get("execution_duration")
    return {
        "trace_id": info["trace_id"],
        "client_request_id": info.get("client_request_id"),
        "request_time": _time(info["request_time"]),
        "state": info.get("state"),
        "execution_duration_ms": None if duration is None else round(float(str(duration).rstrip("s")) * 1000, 3),
        "request": root.get("mlflow.spanInputs"),
        "response": root.get("mlflow.spanOutputs"),
        "trace_metadata": info.get("trace_metadata", {}),
        "tags": info.get("tags", {}),
        "spans": spans,
        "assessments": [_assessment(one, name, json_values) for one in info.get("assessments", [])],
    }


def put_row(lake: Lake, table: str, columns: dict[str, str], row: dict[str, Any]) -> None:
    """Replace the row of a trace; no write when it says the same."""
    listed = ", ".join(columns)
    # Structures go in as JSON: DuckDB's binding guesses the type of a structure from its first element.
    values = ", ".join(
        f"CAST({f'parse_json(:{name})' if '<' in kind else f':{name}'} AS {kind})" for name, kind in columns.items()
    )
    texts = {name: _text(row[name], "<" in kind) for name, kind in columns.items()}
    new = lake.execute(f"SELECT {values}", texts)[1]
    held = lake.execute(f"SELECT {listed} FROM {table} WHERE trace_id = :trace_id", {"trace_id": row["trace_id"]})[1]
    if held != new:
        lake.execute(f"DELETE FROM {table} WHERE trace_id = :trace_id", {"trace_id": row["trace_id"]})
        lake.execute(f"INSERT INTO {table} ({listed}) SELECT {values}", texts)


def _text(value: Any, structured: bool) -> str | None:
    if structured:
        return json.dumps(value, default=lambda time: time.isoformat())
    return None if value is None else value.isoformat() if isinstance(value, datetime) else str(value)


def _span_row(span: dict[str, Any], hex_id: str, kind: str) -> dict[str, Any]:
    said = {key: _loads(text) for key, text in span["attributes"].items()}
    events = [
        {**event, "attributes": _attributes(event.get("attributes") or {}, kind), "dropped_attributes_count": 0}
        for event in span.get("events") or []
    ]
    row = {
        "trace_id": hex_id,
        "span_id": base64.b64decode(span["span_id"]).hex(),
        "parent_span_id": base64.b64decode(span["parent_span_id"] or "").hex() or None,
        "name": span["name"],
        "kind": "SPAN_KIND_INTERNAL",
        "start_time_unix_nano": span["start_time_unix_nano"],
        "end_time_unix_nano": span["end_time_unix_nano"],
        "attributes": _attributes(said, kind),
        "events": events,
        "links": [],
        "status": {"message": span["status"].get("message") or None, "code": span["status"]["code"]},
    }
    if kind == _MAP:
        return row
    at = datetime.fromtimestamp(span["start_time_unix_nano"] // 1000 / 10**6, UTC)
    return {"record_id": str(uuid.uuid4()), "time": at, "date": at.date(), "service_name": "", **row}


def _attributes(said: dict[str, Any], kind: str) -> Any:
    if kind == _VARIANT:
        return json.dumps(said)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}


def _assessment(one: dict[str, Any], name: str, json_values: bool) -> dict[str, Any]:
    value, error = _value_of(one), (one.get("feedback") or {}).get("error")
    said = json.dumps(value) if json_values or not isinstance(value, str) else value
    said = None if value is None else said
    kinds = ("error_code", "error_message", "stack_trace")
    feedback = {"value": said, "error": {key: error.get(key) for key in kinds} if error else None}
    return {
        "assessment_id": one["assessment_id"],
        "trace_id": one.get("trace_id"),
        name: one["assessment_name"],
        "source": {key: one.get("source", {}).get(key) for key in ("source_id", "source_type")},
        "create_time": _time(one.get("create_time")),
        "last_update_time": _time(one.get("last_update_time")),
        "expectation": {"value": said, "serialized_value": None} if one.get("expectation") is not None else None,
        "feedback": feedback if one.get("expectation") is None else None,
        "rationale": one.get("rationale"),
        "metadata": {key: str(text) for key, text in one.get("metadata", {}).items()},
        "span_id": one.get("span_id"),
        "overrides": one.get("overrides"),
        "valid": None if one.get("valid") is None else str(one["valid"]).lower(),
    }


def _value_of(assessment: dict[str, Any]) -> Any:
    said = assessment.get("feedback") or assessment.get("expectation") or {}
    if said.get("serialized_value"):
        return json.loads(said["serialized_value"]["value"])
    return said.get("value")


def _annotate(lake: Lake, place: str, hex_id: str, kind: str, name: str, seed: str, **said: Any) -> None:
    known = _newest(lake, place, hex_id)
    annotation_id = seed if kind in ("FEEDBACK", "EXPECTATION") else _uuid(seed)
    former = known.get(annotation_id)
    row = {
        "annotation_id": annotation_id,
        "target_type": "TRACE",
        "target_id": hex_id,
        "annotation_type": kind,
        "name": name,
        "value": json.dumps(said["value"]),
        "comment": said.get("comment"),
        "metadata": json.dumps(said.get("metadata") or {}),
        "deleted_at": None,
    }
    same = ("value", "comment", "metadata", "name", "deleted_at")
    if former and all(_canonical(former[key]) == _canonical(row[key]) for key in same):
        return
    now = datetime.now(UTC)
    created = said.get("created_at") or (former["created_at"] if former else now)
    updated = said.get("updated_at") or now
    if former and updated <= former["updated_at"]:
        updated = now
    times = {"created_at": created, "updated_at": updated, "_change_type": "update" if former else "insert"}
    _append(lake, place, {**row, **times}, at=updated)


def _append(lake: Lake, place: str, row: dict[str, Any], at: datetime | None = None) -> None:
    lake.insert(f"{place}_otel_annotations", [{**row, "updated_at": at or datetime.now(UTC)}])


def _newest(lake: Lake, place: str, hex_id: str) -> dict[str, dict[str, Any]]:
    """Annotations of a trace by id, the newest row of each."""
    table = f"{place}_otel_annotations"
    columns, rows = lake.execute(f"SELECT * FROM {table} WHERE target_id = '{hex_id}' ORDER BY updated_at")
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    return {row["annotation_id"]: row for row in found}


def _canonical(value: Any) -> Any:
    return json.dumps(_loads(value), sort_keys=True, default=str)


def _loads(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def _uuid(seed: str) -> str:
    return str(uuid.UUID(hashlib.sha256(seed.encode()).hexdigest()[:32]))


def _time(value: Any) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else None
