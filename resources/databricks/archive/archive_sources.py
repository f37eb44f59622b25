"""Traces as the workspace keeps them, said as relations the archive is made from.

Lives here: SQL over the OpenTelemetry tables of Unity Catalog, and over tables that hold a trace in one row (the
native archive, the unified view of the older location).
Add here: another place a workspace keeps traces in.
Not here: columns of the archive (`archive_sql.py`), running a statement (`archive.py`). Nothing here asks anybody.

A source gives four relations. `roots(key, trace_id, request_ms, ended_ms, execution_ms, state, inputs, outputs,
request_preview, response_preview, metadata)`: the finished traces of a day; `tag_pairs(key, name, value)`;
`span_rows(key, span_id, parent_span_id, name, start_ns, end_ns, code, message, attrs, events)`; `said(key,
assessment_id, name, kind, v, comment, error_code, error_message, source_type, source_id, scorer_version, outcome,
valid, created_at, updated_at)`, `v` being JSON text, or the bare text of a string.
"""

# ruff: noqa: S608 - SQL of names and numbers of ours; every text of others is a parameter.

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from resources.databricks.archive.column_types import Kind, as_json, as_map, as_time, pick, read_kind
from resources.databricks.archive.redaction_sql import unquoted
from resources.run_marks import EVALUATION
from resources.trace_rows import OUTCOME, SCORER_VERSION

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

_BARE = "regexp_replace({}, '^trace:/.*/', '')"  # An id is kept without its location; with it, it means the same.
_SPANS = (
    "ARRAY<STRUCT<span_id: STRING, parent_span_id: STRING, name: STRING, start_time_unix_nano: BIGINT, "
    "end_time_unix_nano: BIGINT, attributes: MAP<STRING, STRING>, status: STRUCT<message: STRING, code: STRING>>>"
)
_ASSESSMENTS = (
    "ARRAY<STRUCT<assessment_id: STRING, assessment_name: STRING, name: STRING, source: STRUCT<source_id: STRING, "
    "source_type: STRING>, create_time: STRING, last_update_time: STRING, expectation: STRUCT<value: STRING, "
    "serialized_value: STRUCT<value: STRING>>, feedback: "
    "STRUCT<value: STRING, error: STRUCT<error_code: STRING, error_message: STRING>>, rationale: STRING, "
    "metadata: MAP<STRING, STRING>, valid: STRING>>"
)

Columns = Mapping[str, Kind]


@dataclass(frozen=True)
class Window:
    """A UTC day in milliseconds: traces that start in it; their spans and annotations may lie around it."""

    day: date

    @property
    def start_ms(self) -> int:
        """Midnight at which the day begins."""
        return int(datetime(self.day.year, self.day.month, self.day.day, tzinfo=UTC).timestamp() * 1000)

    @property
    def end_ms(self) -> int:
        """Midnight at which it ends."""
        return self.start_ms + DAY_MS


class Source(ABC):
    """Relations of one place traces are kept in."""

    @abstractmethod
    def relations(self, window: Window) -> dict[str, str]:
        """Name to query, in an order in which each may use those before it."""


@dataclass(frozen=True)
class OtelTables(Source):
    """`<prefix>_otel_spans` and `<prefix>_otel_annotations`. `location` is `catalog.schema.prefix`, part of trace ids.

    Read are spans that start within the day and a margin, an hour before it and a day after, and annotations made
    since: late tags and assessments are among them. The tables are append-only and may hold a span twice. What an
    evaluation left that was killed is no trace of a user.
    """

    location: str
    spans: str
    annotations: str
    span_columns: Columns
    annotation_columns: Columns

    def relations(self, window: Window) -> dict[str, str]:
        """See `Source.relations`."""
        has, notes = self.span_columns, self.annotation_columns
        for name in ("trace_id", "span_id", "parent_span_id", "name", "start_time_unix_nano", "end_time_unix_nano"):
            pick(has, self.spans, name)
        pick(has, self.spans, "attributes")
        for name in ("annotation_id", "target_id", "annotation_type", "name", "value"):
            pick(notes, self.annotations, name)
        low, high = window.start_ms - HOUR_MS, window.end_ms + DAY_MS
        pruned = f" AND `date` BETWEEN DATE'{window.day - timedelta(1)}' AND DATE'{window.day + timedelta(1)}'"
        code, message = _status(has)
        stamps = [f"{name}" for name in ("deleted_at", "updated_at", "created_at") if name in notes]
        newest = f"coalesce({', '.join(stamps)}) DESC" if stamps else "annotation_id"
        since = f" AND (created_at IS NULL OR created_at >= timestamp_millis({low}))" if "created_at" in notes else ""
        own = as_map("metadata", notes["metadata"]) if "metadata" in notes else "CAST(map() AS MAP<STRING, STRING>)"
        inner = as_map("parse_json(m['trace_metadata'])", Kind("variant"))
        return {
            "span_rows": f"""
                SELECT {_BARE.format("trace_id")} AS key, span_id, nullif(parent_span_id, '') AS parent_span_id, name,
                    start_time_unix_nano AS start_ns, nullif(end_time_unix_nano, 0) AS end_ns, {code} AS code,
                    {message} AS message, {as_map("attributes", has["attributes"])} AS attrs, {_events(has)} AS events
                FROM (SELECT *,
                    row_number() OVER (PARTITION BY trace_id, span_id ORDER BY end_time_unix_nano DESC) AS nth
                    FROM {self.spans} WHERE start_time_unix_nano >= {low * 10**6}
                    AND start_time_unix_nano < {high * 10**6}{pruned if "date" in has else ""}) AS found
                WHERE nth = 1""",
            "notes": f"""
                SELECT {_BARE.format("target_id")} AS key, annotation_id, annotation_type AS kind, name,
                    {_or_null(notes, "comment")} AS comment,
                    {as_map("value", notes["value"])} AS m, {as_json("value", notes["value"])} AS v, {own} AS own,
                    {_or_null(notes, "created_at", "TIMESTAMP")} AS created_at,
                    {_or_null(notes, "updated_at", "TIMESTAMP")} AS updated_at
                FROM (SELECT *, row_number() OVER (PARTITION BY target_id, annotation_id ORDER BY {newest}) AS nth
                    FROM {self.annotations} WHERE target_id IS NOT NULL{since}) AS found
                WHERE nth = 1{" AND deleted_at IS NULL" if "deleted_at" in notes else ""}""",
            "told": f"""
                SELECT key, max_by(m['request_preview'], told_at) AS request_preview,
                    max_by(m['response_preview'], told_at) AS response_preview, max_by({inner}, told_at) AS metadata
                FROM (SELECT key, m, coalesce(updated_at, created_at, timestamp_millis(0)) AS told_at FROM notes
                    WHERE kind = 'METADATA') AS metadata_notes GROUP BY key""",
            "roots": f"""
                SELECT r.key, concat('trace:/{self.location}/', r.key) AS trace_id,
                    r.start_ns DIV 1000000 AS request_ms,
                    r.start_ns DIV 1000000 + (r.end_ns - r.start_ns) DIV 1000000 AS ended_ms,
                    (r.end_ns - r.start_ns) DIV 1000000 AS execution_ms,
                    CASE WHEN r.code = 'ERROR' THEN 'ERROR' ELSE 'OK' END AS state,
                    r.attrs['mlflow.spanInputs'] AS inputs, r.attrs['mlflow.spanOutputs'] AS outputs,
                    t.request_preview, t.response_preview, t.metadata
                FROM (SELECT *, row_number() OVER (PARTITION BY key ORDER BY start_ns, span_id) AS nth
                    FROM span_rows WHERE parent_span_id IS NULL) AS r
                LEFT JOIN told AS t ON t.key = r.key
                WHERE r.nth = 1 AND r.end_ns IS NOT NULL AND r.start_ns >= {window.start_ms * 10**6}
                    AND r.start_ns < {window.end_ms * 10**6} AND r.attrs['{EVALUATION}'] IS NULL""",
            "tag_pairs": f"""
                SELECT key, name, CASE WHEN v LIKE '"%' THEN {unquoted("v")} ELSE v END AS value
                FROM notes WHERE kind = 'TAG'""",
            "said": f"""
                SELECT key, annotation_id AS assessment_id, name, lower(kind) AS kind, v, comment,
                    own['mlflow.error.error_code'] AS error_code, own['mlflow.error.error_message'] AS error_message,
                    own['mlflow.source.source_type'] AS source_type, own['mlflow.source.source_id'] AS source_id,
                    own['{SCORER_VERSION}'] AS scorer_version, own['{OUTCOME}'] AS outcome,
                    coalesce(lower(own['mlflow.valid']), 'true') <> 'false' AS valid, created_at,
                    coalesce(updated_at, created_at) AS updated_at
                FROM notes WHERE kind IN ('FEEDBACK', 'EXPECTATION')""",
        }


@dataclass(frozen=True)
class TraceTable(Source):
    """A table or view with one row a trace: `table`. `location` is put before ids that are bare, empty for `tr-`.

    Of a trace that is there twice the row with most assessments counts: the native archive appends.
    """

    table: str
    columns: Columns
    location: str = ""

    def relations(self, window: Window) -> dict[str, str]:
        """See `Source.relations`."""
        has, where = self.columns, self.table
        time = pick(has, where, "request_time", "timestamp_ms")
        lasted = pick(has, where, "execution_duration_ms", "execution_duration", "execution_time_ms")
        state, meta = pick(has, where, "state", "status"), pick(has, where, "trace_metadata", "request_metadata")
        for name in ("trace_id", "tags", "spans", "assessments"):
            pick(has, where, name)
        spans, span = _opened("spans", has["spans"], _SPANS)
        assessments, said = _opened("assessments", has["assessments"], _ASSESSMENTS)
        start = pick(span, f"{where}.spans", "start_time_unix_nano", "start_time_ns")
        end = pick(span, f"{where}.spans", "end_time_unix_nano", "end_time_ns")
        parent = pick(span, f"{where}.spans", "parent_span_id", "parent_id")
        attrs = as_map("attributes", span[pick(span, f"{where}.spans", "attributes")])
        code, message = _status(span)
        optional = [name for name in ("status", "status_code", "status_message", "events") if name in span]
        before = f"trace:/{self.location}/" if self.location else "tr-"
        at = as_time(time, has[time])
        return {
            "rows_of_day": f"""
                SELECT trace_id, {at} AS started, upper({state}) AS state, try_cast({lasted} AS DOUBLE) AS lasted,
                    {_or_null(has, "request")} AS inputs, {_or_null(has, "response")} AS outputs,
                    {_or_null(has, "request_preview")} AS request_preview,
                    {_or_null(has, "response_preview")} AS response_preview, {as_map(meta, has[meta])} AS metadata,
                    {as_map("tags", has["tags"])} AS tags, {spans} AS spans, {assessments} AS assessments
                FROM (SELECT *, row_number() OVER (PARTITION BY trace_id
                    ORDER BY size({assessments}) DESC) AS nth
                    FROM {where} WHERE {at} >= timestamp_millis({window.start_ms})
                    AND {at} < timestamp_millis({window.end_ms})) AS found
                WHERE nth = 1""",
            "roots": f"""
                SELECT trace_id AS key,
                    CASE WHEN trace_id LIKE 'tr-%' OR trace_id LIKE 'trace:/%' THEN trace_id
                        ELSE concat('{before}', trace_id) END AS trace_id,
                    unix_millis(started) AS request_ms,
                    unix_millis(started) + CAST(floor(coalesce(lasted, 0)) AS BIGINT) AS ended_ms,
                    CAST(floor(lasted) AS BIGINT) AS execution_ms, state, inputs, outputs, request_preview,
                    response_preview, metadata
                FROM rows_of_day WHERE state <> 'IN_PROGRESS'""",
            "tag_pairs": """
                SELECT trace_id AS key, e.key AS name, e.value AS value FROM rows_of_day
                LATERAL VIEW explode(map_entries(tags)) x AS e""",
            "span_rows": f"""
                SELECT key, {_hex("span_id")} AS span_id, nullif({_hex("parent_span_id")}, '') AS parent_span_id, name,
                    start_ns, nullif(end_ns, 0) AS end_ns, {code} AS code, {message} AS message, {attrs} AS attrs,
                    {_events(span)} AS events
                FROM (SELECT trace_id AS key, s.span_id AS span_id, s.{parent} AS parent_span_id, s.name AS name,
                    s.{start} AS start_ns, s.{end} AS end_ns, s.attributes AS attributes
                    {"".join(f", s.{name} AS {name}" for name in optional)}
                    FROM rows_of_day LATERAL VIEW explode(spans) x AS s) AS each_one""",
            "said": self._said(said),
        }

    def _said(self, has: Columns) -> str:
        """Struct fields are taken one level at a time: `a.b.c` is also how a column of a schema is written."""
        where = f"{self.table}.assessments"
        feedback, expected = has.get("feedback", Kind("")).fields, has.get("expectation", Kind("")).fields
        serialized = expected.get("serialized_value", Kind("")).fields
        error = (feedback if "error" in feedback else has).get("error", Kind("")).fields
        source, meta = has.get("source", Kind("")).fields, has.get("metadata", Kind("map"))
        made = pick(has, where, "create_time", "create_time_ms")
        told = pick(has, where, "last_update_time", "last_update_time_ms")
        valid = "lower(CAST(valid AS STRING))" if "valid" in has else "'true'"
        names = [one for one in ("assessment_name", "name") if one in has] or [pick(has, where, "assessment_name")]
        given = "kept" if "value" in serialized else "expected"
        first = {
            "assessment_id": f"a.{pick(has, where, 'assessment_id')}",
            "name": f"coalesce({', '.join(f'a.{one}' for one in names)})" if len(names) > 1 else f"a.{names[0]}",
            "comment": _field(has, "a", "rationale"),
            "valid": _field(has, "a", "valid"),
            "made": f"a.{made}",
            "told": f"a.{told}",
            "metadata": "a.metadata" if "metadata" in has else "CAST(map() AS MAP<STRING, STRING>)",
            "feedback": _field(has, "a", "feedback"),
            "expectation": _field(has, "a", "expectation"),
            "source": _field(has, "a", "source"),
            **({"error": "a.error"} if "error" in has and "error" not in feedback else {}),
        }
        second = {
            "source_type": _field(source, "source", "source_type"),
            "source_id": _field(source, "source", "source_id"),
            "said": as_json("feedback.value", feedback["value"]) if "value" in feedback else "CAST(NULL AS STRING)",
            "expected": as_json("expectation.value", expected["value"])
            if "value" in expected
            else "CAST(NULL AS STRING)",
            "failure": "feedback.error" if "error" in feedback else _field(has, "each_one", "error"),
            **({"serialized": "expectation.serialized_value"} if serialized else {}),
        }
        return f"""
            SELECT key, assessment_id, name, CASE WHEN {given} IS NULL THEN 'feedback' ELSE 'expectation' END AS kind,
                coalesce(said, {given}) AS v, comment, error_code, error_message, source_type, source_id,
                own['{SCORER_VERSION}'] AS scorer_version, own['{OUTCOME}'] AS outcome,
                coalesce({valid}, 'true') <> 'false' AS valid, {as_time("made", has[made])} AS created_at,
                {as_time("told", has[told])} AS updated_at
            FROM (SELECT key, assessment_id, name, comment, valid, made, told, {as_map("metadata", meta)} AS own, said,
                source_type, source_id, expected, {_field(error, "failure", "error_code")} AS error_code,
                {_field(error, "failure", "error_message")} AS error_message
                {", coalesce(expected, serialized.value) AS kept" if "value" in serialized else ""}
                FROM (SELECT key, assessment_id, name, comment, valid, made, told, metadata, {_listed(second)}
                    FROM (SELECT trace_id AS key, {_listed(first)}
                        FROM rows_of_day LATERAL VIEW explode(assessments) x AS a) AS each_one
                ) AS opened
            ) AS read"""


def _opened(column: str, kind: Kind, shape: str) -> tuple[str, Columns]:
    """An array of structures and its fields; JSON text and VARIANT are read as MLflow writes a trace."""
    if kind.name == "array" and kind.fields:
        return column, kind.fields
    value = column if kind.name == "variant" else f"parse_json({column})"
    return f"try_cast({value} AS {shape})", read_kind(shape).fields


def _hex(name: str) -> str:
    """A span's id in hexadecimal; MLflow writes base64 into its JSON."""
    return f"CASE WHEN {name} LIKE '%=' THEN lower(hex(unbase64({name}))) ELSE {name} END"


def _listed(named: Mapping[str, str]) -> str:
    return ", ".join(f"{value} AS {name}" for name, value in named.items())


def _field(has: Columns, path: str, name: str) -> str:
    return f"{path}.{name}" if name in has else "CAST(NULL AS STRING)"


def _events(has: Columns) -> str:
    """Events of a span as JSON text, null without any."""
    return "CASE WHEN size(events) > 0 THEN to_json(events) END" if "events" in has else "CAST(NULL AS STRING)"


def _status(has: Columns) -> tuple[str, str]:
    """Code (`OK`, `ERROR`, `UNSET`) and message of a span's status."""
    inside = has.get("status", Kind("")).fields
    code = "status.code" if "code" in inside else "status_code"
    told = "status.message" if "message" in inside else "status_message" if "status_message" in has else ""
    if "code" not in inside and "status_code" not in has:
        return "'UNSET'", "CAST(NULL AS STRING)"
    spoken = f"replace(upper(CAST({code} AS STRING)), 'STATUS_CODE_', '')"
    spoken = f"CASE {spoken} WHEN '2' THEN 'ERROR' WHEN '1' THEN 'OK' WHEN '0' THEN 'UNSET' ELSE {spoken} END"
    return f"coalesce({spoken}, 'UNSET')", told or "CAST(NULL AS STRING)"


def _or_null(has: Columns, name: str, kind: str = "STRING") -> str:
    if name not in has:
        return f"CAST(NULL AS {kind})"
    return as_time(name, has[name]) if kind == "TIMESTAMP" else as_json(name, has[name])
