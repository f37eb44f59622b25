"""Databricks Apps of the workspace.

Lives here: apps, their compute and their deployments, each with a snapshot of the source it was made from.
Add here: a state an app can be in.
Not here: the files of the source (`workspace_files.py`), what an app answers.
"""

import copy
from datetime import UTC, datetime
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace
from tests.workspace.workspace_files import WorkspaceFiles

BASE = "/api/2.0/apps"


class Apps:
    """Apps by name.

    A deployment, and a start, take `workspace.slow_states` reads to settle; one deployment runs at a time, and only on
    an app whose compute is active. A failed deployment leaves the active one as it was. `snapshot` gives the files a
    deployment was made from; `fail_next_deployment` makes the next one fail with a message.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.apps: dict[str, dict[str, Any]] = {}
        self.deployments: dict[str, list[dict[str, Any]]] = {}
        self._snapshots: dict[str, dict[str, str]] = {}
        self._failing: list[str] = []
        self._polls: dict[str, int] = {}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("GET", BASE, self.list),
            Route("POST", BASE, self.create),
            Route("GET", f"{BASE}/{{name}}", self.get),
            Route("PATCH", f"{BASE}/{{name}}", self.update),
            Route("DELETE", f"{BASE}/{{name}}", self.delete),
            Route("POST", f"{BASE}/{{name}}/start", self.start),
            Route("POST", f"{BASE}/{{name}}/stop", self.stop),
            Route("POST", f"{BASE}/{{name}}/deployments", self.deploy),
            Route("GET", f"{BASE}/{{name}}/deployments", self.list_deployments),
            Route("GET", f"{BASE}/{{name}}/deployments/{{deployment}}", self.get_deployment),
        ]

    def add(self, name: str, *, resources: list[dict[str, Any]] | None = None, compute: str = "ACTIVE") -> None:
        """An app that is there already, deployed by nobody."""
        self.apps[name] = {
            "name": name,
            "id": f"app-{len(self.apps) + 1}",
            "url": f"https://{name}.example.com",
            "compute_status": {"state": compute, "message": f"App compute is {compute}."},
            "app_status": {"state": "UNAVAILABLE", "message": "App has not been deployed yet."},
            "resources": resources or [],
            "service_principal_client_id": "5a9e",
            "create_time": _now(),
            "creator": "me@example.com",
        }
        self.deployments[name] = []

    def fail_next_deployment(self, message: str) -> None:
        """The next deployment that is made fails once it settles."""
        self._failing.append(message)

    def snapshot(self, name: str) -> dict[str, str]:
        """Path to text of the source the active deployment runs."""
        return self._snapshots[self.apps[name]["active_deployment"]["deployment_id"]]

    def list(self, call: Call) -> dict[str, Any]:
        """GET apps."""
        some, token = self.workspace.page(list(self.apps.values()), call)
        return {"apps": some, **({"next_page_token": token} if token else {})}

    def create(self, call: Call) -> dict[str, Any]:
        """POST apps."""
        name = call.json["name"]
        if name in self.apps:
            raise Failure(409, "ALREADY_EXISTS", f"An app with the same name already exists: {name}.")
        self.add(name, resources=call.json.get("resources"), compute="STOPPED")
        if call.query.get("no_compute") != "true":
            self._start(name)
        return self.apps[name]

    def get(self, call: Call) -> dict[str, Any]:
        """GET apps/{name}."""
        name = call.parts["name"]
        app = self._found(name)
        if app["compute_status"]["state"] == "STARTING" and self._done(name):
            app["compute_status"] = {"state": "ACTIVE", "message": "App compute is running."}
        pending = app.get("pending_deployment")
        if pending:
            self._look(name, pending["deployment_id"])
        return copy.deepcopy(app)

    def update(self, call: Call) -> dict[str, Any]:
        """PATCH apps/{name}."""
        app = self._found(call.parts["name"])
        app.update({key: value for key, value in call.json.items() if key in ("description", "resources")})
        return app

    def delete(self, call: Call) -> dict[str, Any]:
        """DELETE apps/{name}."""
        self._found(call.parts["name"])
        return self.apps.pop(call.parts["name"])

    def start(self, call: Call) -> dict[str, Any]:
        """POST apps/{name}/start."""
        app = self._found(call.parts["name"])
        if app["compute_status"]["state"] not in ("STOPPED", "ERROR"):
            raise Failure(400, "BAD_REQUEST", f"App {app['name']} is not in STOPPED state.")
        self._start(app["name"])
        return copy.deepcopy(app)

    def stop(self, call: Call) -> dict[str, Any]:
        """POST apps/{name}/stop."""
        app = self._found(call.parts["name"])
        app["compute_status"] = {"state": "STOPPED", "message": "App compute is stopped."}
        return app

    def deploy(self, call: Call) -> dict[str, Any]:
        """POST apps/{name}/deployments: from a copy of the source as it is now."""
        name, path = call.parts["name"], call.json["source_code_path"]
        app, files = self._found(name), self.workspace[WorkspaceFiles]
        if app["compute_status"]["state"] != "ACTIVE":
            raise Failure(400, "BAD_REQUEST", f"Cannot deploy app {name}: its compute is not in ACTIVE state.")
        if app.get("pending_deployment"):
            raise Failure(409, "ABORTED", f"Cannot deploy app {name} as there is an active deployment in progress.")
        if not path.startswith("/Workspace/"):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "Source code path must start with /Workspace/.")
        inside = path.removeprefix("/Workspace").rstrip("/") + "/"
        found = {file: content.decode() for file, content in files.files.items() if file.startswith(inside)}
        if not found:
            raise Failure(404, "RESOURCE_DOES_NOT_EXIST", f"Source code path {path} does not exist.")
        number = f"{len(self.deployments[name]) + 1:032x}"
        deployment = {
            "deployment_id": number,
            "source_code_path": path,
            "mode": call.json.get("mode", "SNAPSHOT"),
            "creator": "me@example.com",
            "create_time": _now(),
            "update_time": _now(),
            "deployment_artifacts": {"source_code_path": f"/Workspace/Users/5a9e/src/{number}"},
            "status": {"state": "IN_PROGRESS", "message": "Deployment is preparing"},
        }
        self._snapshots[number] = found
        self.deployments[name].append(deployment)
        self._polls[number] = self.workspace.slow_states
        app["pending_deployment"] = deployment
        return copy.deepcopy(deployment)

    def list_deployments(self, call: Call) -> dict[str, Any]:
        """GET apps/{name}/deployments, newest first."""
        self._found(call.parts["name"])
        some, token = self.workspace.page(self.deployments[call.parts["name"]][::-1], call)
        return {"app_deployments": some, **({"next_page_token": token} if token else {})}

    def get_deployment(self, call: Call) -> dict[str, Any]:
        """GET apps/{name}/deployments/{deployment}."""
        self._found(call.parts["name"])
        return copy.deepcopy(self._look(call.parts["name"], call.parts["deployment"]))

    def _look(self, name: str, number: str) -> dict[str, Any]:
        deployment = next((one for one in self.deployments[name] if one["deployment_id"] == number), None)
        if deployment is None:
            raise Failure(404, "RESOURCE_DOES_NOT_EXIST", f"Deployment {number} does not exist.")
        if deployment["status"]["state"] == "IN_PROGRESS" and self._done(number):
            app = self.apps[name]
            app.pop("pending_deployment", None)
            if self._failing:
                deployment["status"] = {"state": "FAILED", "message": self._failing.pop(0)}
            else:
                deployment["status"] = {"state": "SUCCEEDED", "message": "App started successfully"}
                app["active_deployment"] = deployment
                app["default_source_code_path"] = deployment["source_code_path"]
                app["app_status"] = {"state": "RUNNING", "message": "App is running"}
            deployment["update_time"] = _now()
        return deployment

    def _start(self, name: str) -> None:
        self.apps[name]["compute_status"] = {"state": "STARTING", "message": "App compute is starting."}
        self._polls[name] = self.workspace.slow_states

    def _done(self, what: str) -> bool:
        self._polls[what] -= 1
        return self._polls[what] < 0

    def _found(self, name: str) -> dict[str, Any]:
        if name not in self.apps:
            raise Failure(404, "RESOURCE_DOES_NOT_EXIST", f"App with name {name} does not exist or is deleted.")
        return self.apps[name]


def _now() -> str:
    """As the Apps API says it: whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
