"""Fetching many traces with spans from an MLflow server at once.

Lives here: the request `traces/batchGet` of MLflow's REST API, and reading its answer.
Add here: a field of a span that the answer holds and a row needs.
Not here: which traces, and how many requests at once (`public_reader.py`), rows (`trace_rows.py`).

MLflow's client makes protobuf messages of the answer and OpenTelemetry spans of those; here JSON stays JSON, written as
MLflow writes attributes, which halves what a trace costs.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_ENDPOINT = "/api/3.0/mlflow/traces/batchGet"
_PASSING = frozenset({408, 425, 429, 502, 503, 504})  # Not 500: asking again for a trace it cannot read is in vain.


class ServerTraces:
    """Traces of one server, with the credentials of MLflow's client (`MlflowHostCreds`) and its settings."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def read(self, ids: Sequence[str]) -> dict[str, tuple[Any, list[dict[str, Any]]]]:
        """Id to info and spans of the traces the server gives whole. Raises MLflow's exceptions."""
        import orjson
        from mlflow.entities import TraceInfo
        from mlflow.protos.service_pb2 import TraceInfoV3
        from mlflow.utils.proto_json_utils import parse_dict
        from mlflow.utils.rest_utils import http_request, verify_rest_response

        answer = http_request(
            self._credentials, _ENDPOINT, "GET", params={"trace_ids": list(ids)}, retry_codes=_PASSING
        )
        found = orjson.loads(verify_rest_response(answer, _ENDPOINT).content)
        traces = {}
        for trace in found.get("traces", ()):
            message = TraceInfoV3()
            parse_dict(trace["trace_info"], message)
            info = TraceInfo.from_proto(message)
            traces[info.trace_id] = (info, [_span(span) for span in trace.get("spans", ())])
        return traces


def _span(span: Mapping[str, Any]) -> dict[str, Any]:
    """A span as MLflow's store keeps it: attributes are texts of JSON."""
    return {
        "span_id": span["span_id"],
        "parent_span_id": span.get("parent_span_id") or None,
        "name": span.get("name", ""),
        "start_time_unix_nano": span.get("start_time_unix_nano", 0),
        "end_time_unix_nano": span.get("end_time_unix_nano"),
        "status": span.get("status") or {},
        "attributes": {
            one["key"]: json.dumps(_value(one.get("value")), ensure_ascii=False) for one in span.get("attributes", ())
        },
        "events": [
            {
                "name": event.get("name", ""),
                "time_unix_nano": event.get("time_unix_nano", 0),
                "attributes": {one["key"]: _value(one.get("value")) for one in event.get("attributes", ())},
            }
            for event in span.get("events", ())
        ],
    }


def _value(said: Mapping[str, Any] | None) -> Any:
    """The value of OpenTelemetry's `AnyValue`; nothing said is null."""
    if not said:
        return None
    kind, value = next(iter(said.items()))
    if kind == "kvlist_value":
        return {one["key"]: _value(one.get("value")) for one in value.get("values", ())}
    if kind == "array_value":
        return [_value(one) for one in value.get("values", ())]
    return float(value) if kind == "double_value" else value
