"""Experiments of the workspace.

Lives here: experiments and their tags. Runs, metrics and artifacts are in `runs.py`.
"""

import time
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace, not_found

BASE = "/api/2.0/mlflow/experiments"


class Tracking:
    """Experiments by id: `{experiment_id, name, artifact_location, lifecycle_stage, tags: {key: value}, ...}`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.experiments: dict[str, dict[str, Any]] = {}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("GET", f"{BASE}/get-by-name", self.by_name),
            Route("GET", f"{BASE}/get", self.get),
            Route("POST", f"{BASE}/create", self.create),
            Route("POST", f"{BASE}/set-experiment-tag", self.set_tag),
            Route("POST", f"{BASE}/search", self.search),
        ]

    def experiment(self, experiment_id: str) -> dict[str, Any]:
        """The experiment, or 404."""
        if experiment_id not in self.experiments:
            raise not_found(f"Node ID {experiment_id}")
        return self.experiments[experiment_id]

    def by_name(self, call: Call) -> dict[str, Any]:
        """GET experiments/get-by-name."""
        for experiment in self.experiments.values():
            if experiment["name"] == call.query["experiment_name"]:
                return {"experiment": _shown(experiment)}
        raise not_found(f"Node {call.query['experiment_name']}")

    def get(self, call: Call) -> dict[str, Any]:
        """GET experiments/get."""
        return {"experiment": _shown(self.experiment(call.query["experiment_id"]))}

    def create(self, call: Call) -> dict[str, Any]:
        """POST experiments/create."""
        name = call.json["name"]
        if not name.startswith("/"):
            raise Failure(
                400, "INVALID_PARAMETER_VALUE", f"Got an invalid experiment name '{name}'. It must be an absolute path."
            )
        if any(one["name"] == name for one in self.experiments.values()):
            raise Failure(400, "RESOURCE_ALREADY_EXISTS", f"Node named '{name}' already exists")
        number, now = str(1000 + len(self.experiments)), int(time.time() * 1000)
        self.experiments[number] = {
            "experiment_id": number,
            "name": name,
            "artifact_location": f"dbfs:/databricks/mlflow-tracking/{number}",
            "lifecycle_stage": "active",
            "creation_time": now,
            "last_update_time": now,
            "tags": {tag["key"]: tag["value"] for tag in call.json.get("tags", [])},
        }
        return {"experiment_id": number}

    def set_tag(self, call: Call) -> dict[str, Any]:
        """POST experiments/set-experiment-tag."""
        self.experiment(call.json["experiment_id"])["tags"][call.json["key"]] = call.json["value"]
        return {}

    def search(self, call: Call) -> dict[str, Any]:
        """POST experiments/search; filters are not parsed: every experiment is given."""
        some, token = self.workspace.page([_shown(one) for one in self.experiments.values()], call)
        return {"experiments": some, **({"next_page_token": token} if token else {})}


def _shown(experiment: dict[str, Any]) -> dict[str, Any]:
    return {**experiment, "tags": [{"key": key, "value": value} for key, value in experiment["tags"].items()]}
