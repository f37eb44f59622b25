"""Logged models of the workspace.

Lives here: `/api/2.0/mlflow/logged-models/...` except artifacts.
Add here: another property of a logged model.
Not here: their files (`artifacts.py`), registered versions (`unity_models.py`).
"""

import time
import uuid
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace, not_found
from tests.workspace.tracking import Tracking

BASE = "/api/2.0/mlflow/logged-models"


class LoggedModels:
    """Logged models by id: `{info: {...}, tags: {}, params: {}, metrics: []}`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.models: dict[str, dict[str, Any]] = {}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("POST", BASE, self.create),
            Route("POST", f"{BASE}/search", self.search),
            Route("GET", f"{BASE}/{{model_id}}", self.get),
            Route("PATCH", f"{BASE}/{{model_id}}", self.finalize),
            Route("DELETE", f"{BASE}/{{model_id}}", self.delete),
            Route("PATCH", f"{BASE}/{{model_id}}/tags", self.set_tags),
            Route("DELETE", f"{BASE}/{{model_id}}/tags/{{key}}", self.delete_tag),
            Route("POST", f"{BASE}/{{model_id}}/params", self.log_params),
        ]

    def model(self, model_id: str) -> dict[str, Any]:
        """The logged model, or 404."""
        if model_id not in self.models:
            raise not_found(f"Logged model with ID '{model_id}'")
        return self.models[model_id]

    def create(self, call: Call) -> dict[str, Any]:
        """POST logged-models: never de-duplicated."""
        asked, number, now = call.json, f"m-{uuid.uuid4().hex}", int(time.time() * 1000)
        experiment = asked["experiment_id"]
        self.workspace[Tracking].experiment(experiment)
        self.models[number] = {
            "info": {
                "model_id": number,
                "experiment_id": experiment,
                "name": asked.get("name") or f"model-{len(self.models)}",
                "creation_timestamp_ms": now,
                "last_updated_timestamp_ms": now,
                "artifact_uri": f"dbfs:/databricks/mlflow-tracking/{experiment}/logged_models/{number}/artifacts",
                "status": "LOGGED_MODEL_PENDING",
                "creator_id": 1,
                "model_type": asked.get("model_type", ""),
                "source_run_id": asked.get("source_run_id", ""),
            },
            "tags": {tag["key"]: tag["value"] for tag in asked.get("tags", [])},
            "params": {param["key"]: param["value"] for param in asked.get("params", [])},
            "metrics": [],
        }
        return {"model": shown(self.models[number])}

    def get(self, call: Call) -> dict[str, Any]:
        """GET logged-models/{id}."""
        return {"model": shown(self.model(call.parts["model_id"]))}

    def finalize(self, call: Call) -> dict[str, Any]:
        """PATCH logged-models/{id}."""
        model = self.model(call.parts["model_id"])
        model["info"].update(status=call.json["status"], last_updated_timestamp_ms=int(time.time() * 1000))
        return {"model": shown(model)}

    def delete(self, call: Call) -> dict[str, Any]:
        """DELETE logged-models/{id}."""
        del self.models[self.model(call.parts["model_id"])["info"]["model_id"]]
        return {}

    def set_tags(self, call: Call) -> dict[str, Any]:
        """PATCH logged-models/{id}/tags."""
        model = self.model(call.parts["model_id"])
        model["tags"].update({tag["key"]: tag["value"] for tag in call.json.get("tags", [])})
        return {"model": shown(model)}

    def delete_tag(self, call: Call) -> dict[str, Any]:
        """DELETE logged-models/{id}/tags/{key}."""
        if self.model(call.parts["model_id"])["tags"].pop(call.parts["key"], None) is None:
            raise not_found(f"Tag '{call.parts['key']}'")
        return {}

    def log_params(self, call: Call) -> dict[str, Any]:
        """POST logged-models/{id}/params, at most 100."""
        params = call.json.get("params", [])
        if len(params) > 100:
            raise Failure(400, "INVALID_PARAMETER_VALUE", "At most 100 params are allowed in a request.")
        self.model(call.parts["model_id"])["params"].update({param["key"]: param["value"] for param in params})
        return {}

    def search(self, call: Call) -> dict[str, Any]:
        """POST logged-models/search, at most 50 a page."""
        from mlflow.entities import LoggedModel
        from mlflow.exceptions import MlflowException
        from mlflow.protos.service_pb2 import LoggedModel as Message
        from mlflow.utils.proto_json_utils import parse_dict
        from mlflow.utils.search_utils import SearchLoggedModelsUtils

        asked, entities = call.json, []
        if int(asked.get("max_results") or 0) > 50:
            raise Failure(400, "INVALID_PARAMETER_VALUE", "max_results must be at most 50.")
        for model in self.models.values():
            if model["info"]["experiment_id"] in asked.get("experiment_ids", []):
                message = Message()
                parse_dict(shown(model), message)
                entities.append(LoggedModel.from_proto(message))
        try:
            found = SearchLoggedModelsUtils.filter_logged_models(entities, asked.get("filter"), asked.get("datasets"))
            found = SearchLoggedModelsUtils.sort(found, asked.get("order_by"))
        except MlflowException as error:
            raise Failure(400, "INVALID_PARAMETER_VALUE", error.message) from None
        some, token = self.workspace.page(found, call, default=50)
        page = [shown(self.models[model.model_id]) for model in some]
        return {"models": page, **({"next_page_token": token} if token else {})}


def shown(model: dict[str, Any]) -> dict[str, Any]:
    """The logged model as the API gives it."""
    pairs = {name: [{"key": key, "value": model[name][key]} for key in model[name]] for name in ("tags", "params")}
    return {
        "info": {**model["info"], "tags": pairs["tags"]},
        "data": {"params": pairs["params"], "metrics": model["metrics"]},
    }
