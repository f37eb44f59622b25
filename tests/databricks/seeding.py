"""Traces put into the emulated workspace, without an application that sends them.

Lives here: a trace of an experiment or of Unity Catalog as a workspace holds it, and an experiment linked there.
Add here: another thing a workspace holds of a trace. Not here: what is asked of them.
"""

import base64
import json
from datetime import UTC, datetime
from typing import Any

from tests.workspace.app import Workspace
from tests.workspace.trace_locations import TraceLocations
from tests.workspace.traces import Traces
from tests.workspace.tracking import Tracking

PLACE = "main.agents.tiny"
"""Where the small agent's traces go in Unity Catalog."""


def put_trace(workspace: Workspace, experiment_id: str, number: int, at_ms: int, **said: Any) -> str:
    """A finished trace that took half a second; returns its id. In Unity Catalog when the experiment is linked.

    `said` may hold `metadata`, `tags`, `answer` and `bare` (no spans).
    """
    place = workspace[TraceLocations].links.get(experiment_id, "")
    hex_id = f"{number:032x}"
    trace_id = f"trace:/{place}/{hex_id}" if place else f"tr-{hex_id}"
    catalog, schema, prefix = (place or "..").split(".")
    named = {"catalog_name": catalog, "schema_name": schema, "table_prefix": prefix}
    location: dict[str, Any] = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}}
    if place:
        location = {"type": "UC_TABLE_PREFIX", "uc_table_prefix": named}
    answer = said.get("answer", "fine")
    info = {
        "trace_id": trace_id,
        "trace_location": location,
        "request_time": datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
        "execution_duration": "0.500s",
        "state": "OK",
        "trace_metadata": {"mlflow.modelId": "m-1", **said.get("metadata", {})},
        "tags": {"mlflow.artifactLocation": f"dbfs:/databricks/mlflow-tracking/{experiment_id}/{trace_id}/artifacts"}
        | said.get("tags", {}),
        "response_preview": answer,
    }
    span = {
        "trace_id": base64.b64encode(bytes.fromhex(hex_id)).decode(),
        "span_id": base64.b64encode((number + 1).to_bytes(8)).decode(),
        "parent_span_id": None,
        "name": "predict",
        "start_time_unix_nano": at_ms * 10**6,
        "end_time_unix_nano": (at_ms + 500) * 10**6,
        "events": [],
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": {"mlflow.traceRequestId": json.dumps(trace_id), "mlflow.spanOutputs": json.dumps(answer)},
    }
    spans = [] if said.get("bare") else [span]
    workspace[Traces].add({"info": info, "spans": spans, "experiment_id": experiment_id})
    return trace_id


def link(workspace: Workspace, experiment_id: str) -> None:
    """The experiment keeps its traces in `PLACE` from now on."""
    catalog, schema, prefix = PLACE.split(".")
    workspace[TraceLocations].links[experiment_id] = PLACE
    workspace[TraceLocations].known[PLACE] = {"catalog_name": catalog, "schema_name": schema, "table_prefix": prefix}
    workspace[Tracking].experiment(experiment_id)["tags"]["mlflow.experiment.databricksTraceDestinationPath"] = PLACE
