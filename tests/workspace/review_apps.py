"""Review apps of the workspace: label schemas, labeling sessions, their items, and permissions on experiments.

Lives here: `/api/2.0/managed-evals/review-apps/...` and `/api/2.0/permissions/experiments/...`.
Add here: what the review app's clients can ask. Not here: answers of reviewers (assessments, `assessments.py`).

What only the real server knows is as unkind as it may be: items are never de-duplicated, empty messages and fields
without a value are left out of answers.
"""

import uuid
from datetime import UTC, datetime
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace, not_found
from tests.workspace.runs import Runs
from tests.workspace.tracking import Tracking

BASE = "/api/2.0/managed-evals/review-apps"
_SESSION = f"{BASE}/{{app}}/labeling-sessions/{{session}}"
_PERMISSIONS = "/api/2.0/permissions/experiments/{experiment}"
_STATES = ("PENDING", "IN_PROGRESS", "COMPLETED", "SKIPPED")


class ReviewApps:
    """Apps by id; sessions by id, each with `items` in the order they were made; access lists by experiment."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.apps: dict[str, dict[str, Any]] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.items: dict[str, list[dict[str, Any]]] = {}
        self.access: dict[str, dict[str, str]] = {}
        self.me = "owner@example.com"

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("GET", BASE, self.list_apps),
            Route("POST", BASE, self.create_app),
            Route("PATCH", f"{BASE}/{{app}}", self.update_app),
            Route("GET", f"{BASE}/{{app}}/labeling-sessions", self.list_sessions),
            Route("POST", f"{BASE}/{{app}}/labeling-sessions", self.create_session),
            Route("GET", _SESSION, lambda call: _shown(self._session(call))),
            Route("PATCH", _SESSION, self.update_session),
            Route("DELETE", _SESSION, self.delete_session),
            Route("POST", f"{_SESSION}/items:batchCreate", self.create_items),
            Route("GET", f"{_SESSION}/items", self.list_items),
            Route("PATCH", f"{_SESSION}/items/{{item}}", self.update_item),
            Route("DELETE", f"{_SESSION}/items/{{item}}", self.delete_item),
            Route("GET", _PERMISSIONS, self.permissions),
            Route("PATCH", _PERMISSIONS, self.grant),
        ]

    def app_of(self, experiment_id: str) -> dict[str, Any]:
        """The review app of an experiment, or 404."""
        for app in self.apps.values():
            if app["experiment_id"] == experiment_id:
                return app
        raise not_found(f"Review app of experiment {experiment_id}")

    def remove(self, trace_id: str) -> None:
        """Take the item of that trace (the one the session shows) out of its session, as a reviewer does."""
        for items in self.items.values():
            items[:] = [item for item in items if item["source"].get("trace_id") != trace_id]

    def list_apps(self, call: Call) -> dict[str, Any]:
        """GET review-apps, of one experiment."""
        field, _, wanted = call.query.get("filter", "").partition("=")
        if field != "experiment_id":
            raise Failure(400, "INVALID_PARAMETER_VALUE", "Only the filter experiment_id=... is supported.")
        found = [_shown(app) for app in self.apps.values() if app["experiment_id"] == wanted]
        some, token = self.workspace.page(found, call)
        return {"review_apps": some, **({"next_page_token": token} if token else {})}

    def create_app(self, call: Call) -> dict[str, Any]:
        """POST review-apps: one an experiment."""
        experiment_id = call.json["experiment_id"]
        self.workspace[Tracking].experiment(experiment_id)
        if any(app["experiment_id"] == experiment_id for app in self.apps.values()):
            raise Failure(409, "ALREADY_EXISTS", f"Experiment {experiment_id} has a review app.")
        app = {**call.json, "review_app_id": uuid.uuid4().hex}
        self.apps[app["review_app_id"]] = app
        return _shown(app)

    def update_app(self, call: Call) -> dict[str, Any]:
        """PATCH a review app: the fields of the mask, whole."""
        app = self._app(call)
        for field in call.query["update_mask"].split(","):
            if field not in ("labeling_schemas", "agents"):
                raise Failure(400, "INVALID_PARAMETER_VALUE", f"update_mask: {field} cannot be updated.")
            app[field] = call.json[field]
        names = [schema["name"] for schema in app["labeling_schemas"]]
        if len(names) != len(set(names)):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "Labeling schema names must be unique.")
        return _shown(app)

    def create_session(self, call: Call) -> dict[str, Any]:
        """POST labeling-sessions: the server makes the MLflow run; names need not be unique."""
        app, asked = self._app(call), call.json
        known = {schema["name"] for schema in app["labeling_schemas"]}
        for schema in asked.get("labeling_schemas") or []:
            if schema["name"] not in known:
                raise Failure(400, "INVALID_PARAMETER_VALUE", f"Labeling schema {schema['name']} does not exist.")
        run_id = self.workspace[Runs].add(
            app["experiment_id"], name=asked["name"], tags={"mlflow.runType": "labeling_session"}
        )
        session = {**asked, "labeling_session_id": uuid.uuid4().hex, "mlflow_run_id": run_id}
        session["review_app_id"] = app["review_app_id"]
        self.sessions[session["labeling_session_id"]] = session
        self.items[session["labeling_session_id"]] = []
        return _shown(session)

    def list_sessions(self, call: Call) -> dict[str, Any]:
        """GET labeling-sessions."""
        app = self._app(call)
        found = [_shown(one) for one in self.sessions.values() if one["review_app_id"] == app["review_app_id"]]
        some, token = self.workspace.page(found, call)
        return {"labeling_sessions": some, **({"next_page_token": token} if token else {})}

    def update_session(self, call: Call) -> dict[str, Any]:
        """PATCH a labeling session: the fields of the mask."""
        session = self._session(call)
        for field in call.query["update_mask"].split(","):
            session[field] = call.json[field]
        return _shown(session)

    def delete_session(self, call: Call) -> dict[str, Any]:
        """DELETE a labeling session with its items; the traces and their assessments stay."""
        session = self._session(call)["labeling_session_id"]
        del self.sessions[session], self.items[session]
        return {}

    def create_items(self, call: Call) -> dict[str, Any]:
        """POST items:batchCreate: a trace a second time is a second item."""
        items, now = self.items[self._session(call)["labeling_session_id"]], _now()
        made = []
        for item in call.json["items"]:
            trace_id = item["source"].get("trace_id")
            made.append(
                {
                    "item_id": uuid.uuid4().hex,
                    "create_time": now,
                    "created_by": self.me,
                    "last_update_time": now,
                    "last_updated_by": self.me,
                    "source": item["source"],
                    "state": "PENDING",
                    "chat_rounds": [{"trace_id": trace_id}] if trace_id else [],
                }
            )
        items += made
        return {"items": made}

    def list_items(self, call: Call) -> dict[str, Any]:
        """GET items."""
        some, token = self.workspace.page(self.items[self._session(call)["labeling_session_id"]], call)
        return {**({"items": some} if some else {}), **({"next_page_token": token} if token else {})}

    def update_item(self, call: Call) -> dict[str, Any]:
        """PATCH an item: its state."""
        item, state = self._item(call), call.json.get("state")
        if call.query.get("update_mask") != "state" or state not in _STATES:
            raise Failure(400, "INVALID_PARAMETER_VALUE", "Only state can be updated, to a known one.")
        item.update(state=state, last_update_time=_now(), last_updated_by=self.me)
        return item

    def delete_item(self, call: Call) -> dict[str, Any]:
        """DELETE an item."""
        self.items[call.parts["session"]].remove(self._item(call))
        return {}

    def permissions(self, call: Call) -> dict[str, Any]:
        """GET permissions of an experiment."""
        experiment = self.workspace[Tracking].experiment(call.parts["experiment"])["experiment_id"]
        held = {self.me: "CAN_MANAGE", **self.access.get(experiment, {})}
        return {
            "object_id": f"/experiments/{experiment}",
            "object_type": "mlflowExperiment",
            "access_control_list": [
                {_kind(who): who, "all_permissions": [{"permission_level": level, "inherited": False}]}
                for who, level in held.items()
            ],
        }

    def grant(self, call: Call) -> dict[str, Any]:
        """PATCH permissions of an experiment: adds to them. Who is unknown to the workspace is refused."""
        for entry in call.json.get("access_control_list", []):
            who = entry.get("user_name") or entry.get("group_name") or entry["service_principal_name"]
            if who.startswith("nobody"):
                raise Failure(400, "INVALID_PARAMETER_VALUE", f"Principal: UserName({who}) does not exist")
            self.access.setdefault(call.parts["experiment"], {})[who] = entry["permission_level"]
        return self.permissions(call)

    def _app(self, call: Call) -> dict[str, Any]:
        if call.parts["app"] not in self.apps:
            raise not_found(f"Review app {call.parts['app']}")
        return self.apps[call.parts["app"]]

    def _session(self, call: Call) -> dict[str, Any]:
        session = self.sessions.get(call.parts["session"])
        if session is None or session["review_app_id"] != self._app(call)["review_app_id"]:
            raise not_found(f"Labeling session {call.parts['session']}")
        return session

    def _item(self, call: Call) -> dict[str, Any]:
        for item in self.items[self._session(call)["labeling_session_id"]]:
            if item["item_id"] == call.parts["item"]:
                return item
        raise not_found(f"Item {call.parts['item']}")


def _kind(who: str) -> str:
    return "user_name" if "@" in who else "group_name"


def _shown(value: Any) -> Any:
    """As a server writes a message: without fields that hold nothing."""
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items() if item not in (None, [], "")}
    return [_shown(item) for item in value] if isinstance(value, list) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
