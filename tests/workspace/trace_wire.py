"""Spans and trace infos between OpenTelemetry's protobuf and JSON.

Lives here: what a server derives from spans that come without a trace info, and a span as proto3 JSON.
Add here: another shape on the wire. Not here: routes (`otlp.py`).
"""

from datetime import UTC, datetime
from typing import Any


def span_json(span: Any) -> dict[str, Any]:
    """An MLflow span as OpenTelemetry's proto3 JSON."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(span.to_otel_proto(), preserving_proto_field_name=True)


def derived_info(span: Any, location: dict[str, Any]) -> dict[str, Any]:
    """What is known of a trace from a span alone; from its root when that has come."""
    kind = "uc_table_prefix" if "table_prefix" in location else "uc_schema"
    took = (span.end_time_ns or span.start_time_ns) - span.start_time_ns
    started = datetime.fromtimestamp(span.start_time_ns / 10**9, UTC)
    return {
        "trace_id": span.trace_id,
        "trace_location": {"type": kind.upper(), kind: dict(location)},
        "request_time": started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "execution_duration": f"{took / 10**9:.3f}s",
        "state": "ERROR" if span.status.status_code.name == "ERROR" else "OK",
        "tags": {},
    }
