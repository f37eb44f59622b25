"""Traces of the workspace: where all of them are held, and the routes of those kept in experiments.

Lives here: the state, trace infos, span payloads behind presigned addresses, tags, links to runs, deletion.
Add here: what a trace of an experiment can be asked.
Not here: search (`trace_search.py`), assessments (`assessments.py`), Unity Catalog locations and OTLP (`otlp.py`).
"""

import json
import uuid
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tests.workspace.app import Call, Failure, Reply, Route, Workspace, not_found
from tests.workspace.tracking import Tracking

V2, V3, V4 = (f"/api/{version}/mlflow/traces" for version in ("2.0", "3.0", "4.0"))


class Traces:
    """Traces by id: `{"info": <TraceInfo as JSON>, "spans": [<Span.to_dict()>], "experiment_id": str}`.

    Ids are whole (`tr-...`, `trace:/catalog.schema.prefix/...`), in `info` and its assessments too; the wire says a
    Unity Catalog id in two parts. `linked` are ids of traces by the run they are linked to.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.traces: dict[str, dict[str, Any]] = {}
        self.linked: dict[str, list[str]] = defaultdict(list)

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("POST", V3, self.start),
            Route("POST", f"{V2}/delete-traces", self.delete),
            Route("POST", f"{V2}/link-to-run", self.link_to_run),
            Route("GET", f"{V2}/{{trace_id}}/credentials-for-data-upload", self.credentials),
            Route("GET", f"{V2}/{{trace_id}}/credentials-for-data-download", self.credentials),
            Route("PATCH", f"{V2}/{{trace_id}}/tags", self.set_tag),
            Route("DELETE", f"{V2}/{{trace_id}}/tags", self.delete_tag),
            Route("GET", f"{V3}/{{trace_id}}", self.info),
            Route("PUT", "/presigned/traces/{trace_id}", self.upload),
            Route("GET", "/presigned/traces/{trace_id}", self.download),
        ]

    def get(self, trace_id: str) -> dict[str, Any]:
        """The trace, or 404."""
        if trace_id not in self.traces:
            raise not_found(f"Trace with ID '{trace_id}'")
        return self.traces[trace_id]

    def all(self, experiment_id: str) -> list[dict[str, Any]]:
        """Traces of an experiment, those it keeps in Unity Catalog included, in the order they came."""
        return [trace for trace in self.traces.values() if trace["experiment_id"] == experiment_id]

    def add(self, trace: dict[str, Any]) -> dict[str, Any]:
        """Hold a trace as `get` gives it, from a test or another part; what a server fills in is filled in."""
        info = trace["info"]
        info.setdefault("assessments", [])
        info.setdefault("trace_metadata", {})
        info.setdefault("tags", {})
        trace.setdefault("spans", [])
        self.traces[info["trace_id"]] = trace
        return trace

    def add_assessment(self, trace_id: str, assessment: dict[str, Any]) -> dict[str, Any]:
        """Put an assessment on a trace as a client or the monitoring job does; returns it with its id and times."""
        from tests.workspace.assessments import Assessments

        return self.workspace[Assessments].add(trace_id, assessment)

    def start(self, call: Call) -> dict[str, Any]:
        """POST 3.0/mlflow/traces: a whole trace info, without its spans."""
        info = call.json["trace"]["trace_info"]
        experiment_id = info["trace_location"]["mlflow_experiment"]["experiment_id"]
        self.workspace[Tracking].experiment(experiment_id)
        known = self.traces.get(info["trace_id"])
        root = f"dbfs:/databricks/mlflow-tracking/{experiment_id}/{info['trace_id']}/artifacts"
        info["tags"] = {**info.get("tags", {}), "mlflow.artifactLocation": root}
        self.add({"info": info, "spans": known["spans"] if known else [], "experiment_id": experiment_id})
        return {"trace": {"trace_info": info}}

    def info(self, call: Call) -> dict[str, Any]:
        """GET 3.0/mlflow/traces/{id}."""
        return {"trace": {"trace_info": self.get(call.parts["trace_id"])["info"]}}

    def credentials(self, call: Call) -> dict[str, Any]:
        """GET credentials for the payload: an address that needs no bearer token."""
        self.get(call.parts["trace_id"])
        uri = f"{self.workspace.url}/presigned/traces/{call.parts['trace_id']}?X-Amz-Signature={uuid.uuid4().hex}"
        return {"credential_info": {"signed_uri": uri, "type": "AWS_PRESIGNED_URL", "headers": []}}

    def upload(self, call: Call) -> Reply:
        """PUT traces.json to its presigned address."""
        self.get(call.parts["trace_id"])["spans"] = json.loads(call.body)["spans"]
        return Reply()

    def download(self, call: Call) -> Reply:
        """GET traces.json; 404 for a trace whose payload never came."""
        spans = self.get(call.parts["trace_id"])["spans"]
        if not spans:
            return Reply(b"<Error><Code>NoSuchKey</Code></Error>", 404)
        return Reply(json.dumps({"spans": spans}).encode(), 200, {"content-type": "application/json"})

    def set_tag(self, call: Call) -> dict[str, Any]:
        """PATCH tags."""
        self.get(call.parts["trace_id"])["info"]["tags"][call.json["key"]] = call.json["value"]
        return {}

    def delete_tag(self, call: Call) -> dict[str, Any]:
        """DELETE tags."""
        key = call.json.get("key") or call.query.get("key")
        if self.get(call.parts["trace_id"])["info"]["tags"].pop(key, None) is None:
            raise not_found(f"Tag {key}")
        return {}

    def delete(self, call: Call) -> dict[str, Any]:
        """POST delete-traces, by ids or up to an instant."""
        wanted, until = call.json.get("request_ids"), int(call.json.get("max_timestamp_millis") or 0)
        found = [trace["info"]["trace_id"] for trace in self.all(call.json["experiment_id"])]
        kept_by_time = {id_ for id_ in found if started_ms(self.get(id_)["info"]) > until}
        gone = [id_ for id_ in found if (id_ in wanted if wanted else id_ not in kept_by_time)]
        for trace_id in gone[: int(call.json.get("max_traces") or len(gone))]:
            del self.traces[trace_id]
        return {"traces_deleted": len(gone)}

    def link_to_run(self, call: Call) -> dict[str, Any]:
        """POST link-to-run, 100 at most."""
        if len(call.json["trace_ids"]) > 100:
            raise Failure(400, "INVALID_PARAMETER_VALUE", "At most 100 traces can be linked in one request.")
        self.link(call.json["trace_ids"], call.json["run_id"])
        return {}

    def link(self, trace_ids: list[str], run_id: str) -> None:
        """Link traces to a run; a second time changes nothing."""
        known = self.linked[run_id]
        known += [self.get(trace_id)["info"]["trace_id"] for trace_id in trace_ids if trace_id not in known]


def place_of(location: dict[str, Any]) -> str:
    """Experiment id, `catalog.schema` or `catalog.schema.prefix` of a trace location."""
    if "mlflow_experiment" in location:
        return location["mlflow_experiment"]["experiment_id"]
    named = location.get("uc_table_prefix") or location["uc_schema"]
    return ".".join(filter(None, (named["catalog_name"], named["schema_name"], named.get("table_prefix"))))


def wire_info(info: dict[str, Any]) -> dict[str, Any]:
    """A trace info as it is sent: ids of Unity Catalog in two parts."""
    if not info["trace_id"].startswith("trace:/"):
        return info
    short = {"trace_id": info["trace_id"].rpartition("/")[2]}
    said = [{**a, **short, "trace_location": info["trace_location"]} for a in info["assessments"]]
    return {**info, **short, "assessments": said}


def started_ms(info: Mapping[str, Any]) -> int:
    """When a trace started, in milliseconds since 1970."""
    return round(datetime.fromisoformat(info["request_time"]).timestamp() * 1000)


def needs_warehouse(warehouse_id: str | None) -> None:
    """Refuse a question to Unity Catalog tables that names no warehouse."""
    if not warehouse_id:
        raise Failure(400, "INVALID_PARAMETER_VALUE", "Could not resolve a SQL warehouse ID for this request.")
