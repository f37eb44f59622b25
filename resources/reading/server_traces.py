"""Reading traces from an MLflow server, many at once.

Lives here: the requests `traces/search` and `traces/batchGet` of MLflow's REST API, and reading their answers.
Add here: a field of a trace or a span that the answer holds and a row needs.
Not here: which traces, and how many requests at once (`public_reader.py`, `trace_fetch.py`), rows (`trace_rows.py`).

MLflow's client makes protobuf messages of the answer and OpenTelemetry spans of those; here JSON stays JSON, written as
MLflow writes attributes, which makes a trace cost a third. Of assessments MLflow itself says what their values are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

_TRACES = "/api/3.0/mlflow/traces"
_PASSING = frozenset({408, 425, 429, 502, 503, 504})  # Not 500: asking again for a trace it cannot read is in vain.
_STATES = ("OK", "ERROR", "IN_PROGRESS")
_EPOCH, _MS = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_text = json.JSONEncoder(ensure_ascii=False).encode  # As MLflow writes attributes, made once.


@dataclass(frozen=True)
class ServedInfo:
    """What a server says of a trace, named as in MLflow's `TraceInfo`; times are milliseconds, of the epoch."""

    trace_id: str
    experiment_id: str
    request_time: int
    execution_duration: int | None
    state: str
    tags: dict[str, str]
    trace_metadata: dict[str, str]
    request_preview: str | None
    response_preview: str | None
    said: list[Mapping[str, Any]]

    @cached_property
    def assessments(self) -> list[Any]:
        """MLflow's assessments. Raises what MLflow raises for one it does not know."""
        if not self.said:
            return []
        from mlflow.entities import Assessment
        from mlflow.protos.service_pb2 import TraceInfoV3
        from mlflow.utils.proto_json_utils import parse_dict

        message = TraceInfoV3()
        parse_dict({"assessments": self.said}, message)
        return [Assessment.from_proto(one) for one in message.assessments]


class ServerTraces:
    """Traces of one server, with the credentials of MLflow's client (`MlflowHostCreds`) and its settings."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def search(self, experiment_id: str, asked: Mapping[str, Any]) -> tuple[list[ServedInfo], str | None]:
        """Infos of a page and the token of the next one. Raises MLflow's exceptions."""
        where = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}}
        found = self._answer("/search", "POST", json={"locations": [where], **asked})
        return [_info(one) for one in found.get("traces", ())], found.get("next_page_token") or None

    def read(self, ids: Sequence[str]) -> dict[str, tuple[ServedInfo, list[dict[str, Any]]]]:
        """Id to info and spans of the traces the server gives whole. Raises MLflow's exceptions."""
        found = self._answer("/batchGet", "GET", params={"trace_ids": list(ids)})
        traces = {}
        for trace in found.get("traces", ()):
            info = _info(trace["trace_info"])
            info.assessments  # noqa: B018 raises here for what MLflow does not know.
            traces[info.trace_id] = (info, [_span(span) for span in trace.get("spans", ())])
        return traces

    def _answer(self, place: str, method: str, **asked: Any) -> dict[str, Any]:
        import orjson
        from mlflow.utils.rest_utils import http_request, verify_rest_response

        where = _TRACES + place
        answer = http_request(self._credentials, where, method, retry_codes=_PASSING, **asked)
        return orjson.loads(verify_rest_response(answer, where).content)


def _info(said: Mapping[str, Any]) -> ServedInfo:
    state = said.get("state")
    return ServedInfo(
        trace_id=said["trace_id"],
        experiment_id=said["trace_location"]["mlflow_experiment"]["experiment_id"],
        request_time=moment_ms(said["request_time"]),
        execution_duration=duration_ms(said.get("execution_duration")),
        state=state if state in _STATES else "STATE_UNSPECIFIED",
        tags=said.get("tags", {}),
        trace_metadata=said.get("trace_metadata", {}),
        request_preview=said.get("request_preview"),
        response_preview=said.get("response_preview"),
        said=said.get("assessments", []),
    )


def moment_ms(said: str) -> int:
    """Epoch milliseconds of protobuf's `Timestamp` in JSON, such as `2026-11-20T00:00:00.500Z`."""
    return (datetime.fromisoformat(said) - _EPOCH) // _MS


def duration_ms(said: str | None) -> int | None:
    """Milliseconds of protobuf's `Duration` in JSON, such as `1.500s`."""
    if said is None:
        return None
    whole, _, part = said.removesuffix("s").partition(".")
    part_ms = int(f"{part:0<3}"[:3])
    return int(whole) * 1000 + (-part_ms if whole.startswith("-") else part_ms)


def _span(span: Mapping[str, Any]) -> dict[str, Any]:
    """A span as MLflow's store keeps it: attributes are texts of JSON."""
    return {
        "span_id": span["span_id"],
        "parent_span_id": span.get("parent_span_id") or None,
        "name": span.get("name", ""),
        "start_time_unix_nano": span.get("start_time_unix_nano", 0),
        "end_time_unix_nano": span.get("end_time_unix_nano"),
        "status": span.get("status") or {},
        "attributes": {one["key"]: _text(_value(one.get("value"))) for one in span.get("attributes", ())},
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
    if kind == "string_value":
        return value
    if kind == "kvlist_value":
        return {one["key"]: _value(one.get("value")) for one in value.get("values", ())}
    if kind == "array_value":
        return [_value(one) for one in value.get("values", ())]
    return float(value) if kind == "double_value" else value
