"""Traces in Unity Catalog: the intake of OpenTelemetry spans, and the routes of such traces.

Lives here: OTLP, trace infos that follow the spans, whole traces, tags and links to runs.
Add here: what the workspace does with spans that arrive.
Not here: locations (`trace_locations.py`), the traces themselves (`traces.py`), tables (`otel_tables.py`).
"""

import gzip
from typing import Any

from tests.workspace.app import Call, Failure, Reply, Route, Workspace, not_found
from tests.workspace.lake import Lake
from tests.workspace.otel_tables import store_trace
from tests.workspace.trace_locations import TraceLocations, split_place, tables_of
from tests.workspace.traces import V4, Traces, needs_warehouse, wire_info

_ONE = f"{V4}/{{location}}/{{trace_id}}"


class UcTraces:
    """Traces that go to a location. `late` is how often spans that were taken in are still asked for in vain."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.late = 0
        self._derived: set[str] = set()  # Traces known by their spans alone.

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("POST", "/api/2.0/otel/v1/traces", self.intake),
            Route("GET", f"{V4}/{{location}}/batchGet", self.batch_get),
            Route("POST", f"{V4}/{{location}}/link-to-run/batchCreate", self.link_to_run),
            Route("DELETE", f"{V4}/{{location}}/unlink-from-run/batchDelete", self.unlink_from_run),
            Route("POST", f"{_ONE}/info", self.start),
            Route("GET", f"{_ONE}/info", self.info),
            Route("PATCH", f"{_ONE}/tags", self.set_tag),
            Route("DELETE", f"{_ONE}/tags/{{key:path}}", self.delete_tag),
        ]

    def intake(self, call: Call) -> Reply:
        """POST otel/v1/traces: spans as protobuf, into the table the header names."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self._places.require_intake()
        table = call.headers.get("x-databricks-uc-table-name", "")
        place = self._places.place_of_table(table)
        if place is None:
            raise Failure(404, "TABLE_DOES_NOT_EXIST", f"Table '{table}' does not exist.")
        self._may("MODIFY", place)
        if call.headers.get("content-type") != "application/x-protobuf":
            raise Failure(415, "INVALID_PARAMETER_VALUE", "The body must be application/x-protobuf.")
        body = gzip.decompress(call.body) if call.headers.get("content-encoding") == "gzip" else call.body
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self._arrived(place, span)
        return Reply(b"", 200, {"content-type": "application/x-protobuf"})

    def start(self, call: Call) -> dict[str, Any]:
        """POST {location}/{trace}/info: what the client knows of a trace besides its spans."""
        place = call.parts["location"]
        if place not in self._places.known:
            raise Failure(404, "TABLE_DOES_NOT_EXIST", f"Table '{tables_of(place)}_otel_spans' does not exist.")
        self._may("MODIFY", place)
        trace_id = f"trace:/{place}/{call.parts['trace_id']}"
        known = self.workspace[Traces].traces.get(trace_id)
        self._derived.discard(trace_id)
        info = {**call.json, "trace_id": trace_id}
        self._hold(place, info, known["spans"] if known else [])
        return wire_info(info)

    def info(self, call: Call) -> dict[str, Any]:
        """GET {location}/{trace}/info."""
        needs_warehouse(call.query.get("sql_warehouse_id"))
        return {"trace": {"trace_info": wire_info(self._of(call)["info"])}}

    def batch_get(self, call: Call) -> dict[str, Any]:
        """GET {location}/batchGet: whole traces, those that are there; 10 ids at most."""
        from mlflow.entities import Span

        from tests.workspace.trace_wire import span_json

        needs_warehouse(call.query.get("sql_warehouse_id"))
        self._may("SELECT", call.parts["location"])
        wanted = call.queries.get("trace_ids", [])
        if len(wanted) > 10:
            raise Failure(400, "INVALID_PARAMETER_VALUE", "At most 10 traces can be read in one request.")
        self.late, held = max(self.late - 1, 0), self.workspace[Traces].traces if self.late == 0 else {}
        found = [held.get(f"trace:/{call.parts['location']}/{trace_id}") for trace_id in wanted]
        return {
            "traces": [
                {
                    "trace_info": wire_info(trace["info"]),
                    "spans": [span_json(Span.from_dict(span)) for span in trace["spans"]],
                }
                for trace in found
                if trace
            ]
        }

    def set_tag(self, call: Call) -> dict[str, Any]:
        """PATCH tags of a trace."""
        trace = self._of(call)
        trace["info"]["tags"][call.json["key"]] = call.json["value"]
        self._store(call.parts["location"], trace)
        return {}

    def delete_tag(self, call: Call) -> dict[str, Any]:
        """DELETE a tag of a trace."""
        trace = self._of(call)
        if trace["info"]["tags"].pop(call.parts["key"], None) is None:
            raise not_found(f"Tag {call.parts['key']}")
        self._store(call.parts["location"], trace)
        return {}

    def link_to_run(self, call: Call) -> dict[str, Any]:
        """POST link-to-run/batchCreate."""
        whole = [f"trace:/{call.parts['location']}/{trace_id}" for trace_id in call.json["trace_ids"]]
        self.workspace[Traces].link(whole, call.json["run_id"])
        return {}

    def unlink_from_run(self, call: Call) -> dict[str, Any]:
        """DELETE unlink-from-run/batchDelete."""
        whole = {f"trace:/{call.parts['location']}/{trace_id}" for trace_id in call.json["trace_ids"]}
        linked = self.workspace[Traces].linked
        linked[call.json["run_id"]] = [id_ for id_ in linked[call.json["run_id"]] if id_ not in whole]
        return {}

    def assessed(self, trace_id: str) -> None:
        """Assessments of one of these traces changed: the tables follow."""
        place = trace_id.removeprefix("trace:/").rpartition("/")[0]
        self._store(place, self.workspace[Traces].get(trace_id))

    def _may(self, privilege: str, place: str) -> None:
        """Trace tables want the privilege on the table itself: ALL PRIVILEGES, or one of the schema, does not do."""
        held, table = self.workspace[Lake].privileges, f"{tables_of(place)}_otel_spans"
        if not held.unrestricted and privilege not in held.explicit("TABLE", table).get(held.me, ()):
            raise Failure(403, "PERMISSION_DENIED", f"User does not have {privilege} on Table '{table}'.")

    def _arrived(self, place: str, proto: Any) -> None:
        from mlflow.entities import Span

        from tests.workspace.trace_wire import derived_info

        span = Span.from_otel_proto(proto, place)
        known = self.workspace[Traces].traces.get(span.trace_id)
        spans = [one for one in (known["spans"] if known else []) if one["span_id"] != span.to_dict()["span_id"]]
        told = known is not None and span.trace_id not in self._derived
        if told or (known and span.parent_id):
            info = known["info"]
        else:
            info = derived_info(span, self._places.known[place])
            self._derived.add(span.trace_id)
        self._hold(place, info, [*spans, span.to_dict()])

    def _hold(self, place: str, info: dict[str, Any], spans: list[dict[str, Any]]) -> None:
        experiment_id = self._places.experiment_of(place)
        trace = self.workspace[Traces].add({"info": info, "spans": spans, "experiment_id": experiment_id})
        self._store(place, trace)

    def _store(self, place: str, trace: dict[str, Any]) -> None:
        store_trace(self.workspace, *split_place(place), trace)

    def _of(self, call: Call) -> dict[str, Any]:
        return self.workspace[Traces].get(f"trace:/{call.parts['location']}/{call.parts['trace_id']}")

    @property
    def _places(self) -> TraceLocations:
        return self.workspace[TraceLocations]
