"""Runs of the workspace: parameters, metrics, tags, inputs and outputs.

Lives here: `/api/2.0/mlflow/runs/...` and the history of metrics.
Add here: another thing a run holds.
Not here: experiments (`tracking.py`), artifacts (`artifacts.py`), logged models (`logged_models.py`).

Searches are evaluated by MLflow's own grammar, which may be kinder or stricter at the edges than Databricks.
"""

import json
import time
import uuid
from typing import Any

from tests.workspace.app import Call, Failure, Reply, Route, Workspace, not_found
from tests.workspace.tracking import Tracking

BASE = "/api/2.0/mlflow"


class Runs:
    """Runs by id: `{info, tags: {}, params: {}, metrics: [every value], datasets, models_in, models_out: []}`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.runs: dict[str, dict[str, Any]] = {}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("POST", f"{BASE}/runs/create", self.create),
            Route("GET", f"{BASE}/runs/get", self.get),
            Route("POST", f"{BASE}/runs/update", self.update),
            Route("POST", f"{BASE}/runs/delete", self.delete),
            Route("POST", f"{BASE}/runs/restore", self.restore),
            Route("POST", f"{BASE}/runs/search", self.search),
            Route("POST", f"{BASE}/runs/log-batch", self.log_batch),
            Route("POST", f"{BASE}/runs/log-metric", self.log_metric),
            Route("POST", f"{BASE}/runs/log-parameter", self.log_parameter),
            Route("POST", f"{BASE}/runs/set-tag", self.set_tag),
            Route("POST", f"{BASE}/runs/delete-tag", self.delete_tag),
            Route("POST", f"{BASE}/runs/log-inputs", self.log_inputs),
            Route("POST", f"{BASE}/runs/outputs", self.log_outputs),
            Route("GET", f"{BASE}/metrics/get-history", self.history),
        ]

    def run(self, run_id: str) -> dict[str, Any]:
        """The run, or 404."""
        if run_id not in self.runs:
            raise not_found(f"Run '{run_id}'")
        return self.runs[run_id]

    def add(self, experiment_id: str, *, name: str = "", tags: dict[str, str] | None = None, start: int = 0) -> str:
        """A new run of an experiment; returns its id. Other parts make runs with it, as a labeling session does."""
        self.workspace[Tracking].experiment(experiment_id)
        number = uuid.uuid4().hex
        root = f"dbfs:/databricks/mlflow-tracking/{experiment_id}/{number}/artifacts"
        self.runs[number] = {
            "info": {
                "run_id": number,
                "run_uuid": number,
                "run_name": name or f"run-{len(self.runs)}",
                "experiment_id": experiment_id,
                "user_id": "1",
                "status": "RUNNING",
                "start_time": start or int(time.time() * 1000),
                "artifact_uri": root,
                "lifecycle_stage": "active",
            },
            "tags": dict(tags or {}),
            "params": {},
            "metrics": [],
            "datasets": [],
            "models_in": [],
            "models_out": [],
        }
        self.runs[number]["tags"].setdefault("mlflow.runName", self.runs[number]["info"]["run_name"])
        return number

    def create(self, call: Call) -> dict[str, Any]:
        """POST runs/create: never de-duplicated."""
        tags = {tag["key"]: tag.get("value", "") for tag in call.json.get("tags", [])}
        name = call.json.get("run_name") or tags.get("mlflow.runName", "")
        run_id = self.add(call.json["experiment_id"], name=name, tags=tags, start=int(call.json.get("start_time") or 0))
        return {"run": shown(self.runs[run_id])}

    def get(self, call: Call) -> Reply:
        """GET runs/get; the header names the workspace, which a registered version keeps."""
        body = json.dumps({"run": shown(self.run(call.query.get("run_id") or call.query["run_uuid"]))}).encode()
        return Reply(body, 200, {"content-type": "application/json", "x-databricks-org-id": "42"})

    def update(self, call: Call) -> dict[str, Any]:
        """POST runs/update."""
        run = self._of(call)
        for name in ("status", "end_time", "run_name"):
            if call.json.get(name):
                run["info"][name] = call.json[name]
        if call.json.get("run_name"):
            run["tags"]["mlflow.runName"] = call.json["run_name"]
        return {"run_info": run["info"]}

    def delete(self, call: Call) -> dict[str, Any]:
        """POST runs/delete."""
        self._of(call)["info"]["lifecycle_stage"] = "deleted"
        return {}

    def restore(self, call: Call) -> dict[str, Any]:
        """POST runs/restore."""
        self._of(call)["info"]["lifecycle_stage"] = "active"
        return {}

    def search(self, call: Call) -> dict[str, Any]:
        """POST runs/search."""
        from mlflow.entities import Run
        from mlflow.exceptions import MlflowException
        from mlflow.protos.service_pb2 import Run as Message
        from mlflow.utils.proto_json_utils import parse_dict
        from mlflow.utils.search_utils import SearchUtils

        asked, entities = call.json, []
        stages = {"DELETED_ONLY": ("deleted",), "ALL": ("active", "deleted")}
        wanted = stages.get(asked.get("run_view_type", "ACTIVE_ONLY"), ("active",))
        for run in self.runs.values():
            info = run["info"]
            if info["experiment_id"] in asked.get("experiment_ids", []) and info["lifecycle_stage"] in wanted:
                message = Message()
                parse_dict(shown(run), message)
                entities.append(Run.from_proto(message))
        try:
            found = SearchUtils.sort(SearchUtils.filter(entities, asked.get("filter")), asked.get("order_by"))
        except MlflowException as error:
            raise Failure(400, "INVALID_PARAMETER_VALUE", error.message) from None
        some, token = self.workspace.page(found, call, default=1000)
        page = [shown(self.runs[run.info.run_id]) for run in some]
        return {"runs": page, **({"next_page_token": token} if token else {})}

    def log_batch(self, call: Call) -> dict[str, Any]:
        """POST runs/log-batch."""
        run, asked = self._of(call), call.json
        for param in asked.get("params", []):
            self._writable(run, param)
        for param in asked.get("params", []):
            self._param(run, param)
        for tag in asked.get("tags", []):
            run["tags"][tag["key"]] = tag["value"]
        for metric in asked.get("metrics", []):
            self._metric(run, metric)
        return {}

    def log_metric(self, call: Call) -> dict[str, Any]:
        """POST runs/log-metric."""
        self._metric(self._of(call), {name: value for name, value in call.json.items() if not name.startswith("run_")})
        return {}

    def log_parameter(self, call: Call) -> dict[str, Any]:
        """POST runs/log-parameter."""
        self._param(self._of(call), call.json)
        return {}

    def set_tag(self, call: Call) -> dict[str, Any]:
        """POST runs/set-tag."""
        self._of(call)["tags"][call.json["key"]] = call.json.get("value", "")
        return {}

    def delete_tag(self, call: Call) -> dict[str, Any]:
        """POST runs/delete-tag."""
        if self._of(call)["tags"].pop(call.json["key"], None) is None:
            raise not_found(f"No tag with name: {call.json['key']}")
        return {}

    def log_inputs(self, call: Call) -> dict[str, Any]:
        """POST runs/log-inputs: every dataset and model once."""
        run = self._of(call)
        for held, asked in ((run["datasets"], "datasets"), (run["models_in"], "models")):
            held += [one for one in call.json.get(asked, []) if one not in held]
        return {}

    def log_outputs(self, call: Call) -> dict[str, Any]:
        """POST runs/outputs."""
        self._of(call)["models_out"] += call.json.get("models", [])
        return {}

    def history(self, call: Call) -> dict[str, Any]:
        """GET metrics/get-history."""
        values = [one for one in self._of(call)["metrics"] if one["key"] == call.query["metric_key"]]
        some, token = self.workspace.page(values, call, default=25000)
        return {"metrics": some, **({"next_page_token": token} if token else {})}

    def _of(self, call: Call) -> dict[str, Any]:
        asked = {**call.query, **call.json}
        return self.run(asked.get("run_id") or asked["run_uuid"])

    def _param(self, run: dict[str, Any], param: dict[str, Any]) -> None:
        self._writable(run, param)
        run["params"][param["key"]] = param["value"]

    def _writable(self, run: dict[str, Any], param: dict[str, Any]) -> None:
        """Refuse what MLflow's server refuses, in its words: a parameter is written once, on a run that is there."""
        run_id, stage = run["info"]["run_id"], run["info"]["lifecycle_stage"]
        if stage != "active":
            said = f"The run {run_id} must be in the 'active' state. Current state is {stage}."
            raise Failure(400, "INVALID_PARAMETER_VALUE", said)
        key, value = param["key"], param["value"]
        held = run["params"].get(key, value)
        if held != value:
            raise Failure(
                400,
                "INVALID_PARAMETER_VALUE",
                f"Changing param values is not allowed. Param with key='{key}' was already logged with value='{held}' "
                f"for run ID='{run_id}'. Attempted logging new value '{value}'.",
            )

    def _metric(self, run: dict[str, Any], metric: dict[str, Any]) -> None:
        value = {"step": 0, **metric, "run_id": run["info"]["run_id"]}
        run["metrics"].append(value)
        if metric.get("model_id"):
            from tests.workspace.logged_models import LoggedModels

            self.workspace[LoggedModels].model(metric["model_id"])["metrics"].append(value)


def shown(run: dict[str, Any]) -> dict[str, Any]:
    """The run as the API gives it: the last value of every metric."""
    latest = {metric["key"]: metric for metric in run["metrics"]}
    pairs = {name: [{"key": key, "value": run[name][key]} for key in run[name]] for name in ("tags", "params")}
    return {
        "info": run["info"],
        "data": {"metrics": list(latest.values()), **pairs},
        "inputs": {"dataset_inputs": run["datasets"], "model_inputs": run["models_in"]},
        "outputs": {"model_outputs": run["models_out"]},
    }
