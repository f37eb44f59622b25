"""Model serving endpoints of the workspace.

Lives here: endpoints, their configuration and how an update settles; invocations give a canned answer.
Add here: a state an endpoint can be in.
Not here: the models that are served (`unity_models.py`).
"""

import copy
import time
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace

BASE = "/api/2.0/serving-endpoints"
ENTITY_FIELDS = {
    "name", "entity_name", "entity_version", "workload_size", "workload_type", "scale_to_zero_enabled",
    "environment_vars", "instance_profile_arn", "min_provisioned_concurrency", "max_provisioned_concurrency",
    "external_model",
}  # fmt: skip


class Serving:
    """Endpoints by name.

    An update takes `workspace.slow_states` reads of the endpoint to settle; meanwhile another one is refused. Until it
    has settled `config` is what served before, and it stays when the update fails; an endpoint that never served has
    none. `fail_next_update` makes the next update fail with a message.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.invocations: list[dict[str, Any]] = []
        self._failing: list[str] = []
        self._pending: dict[str, dict[str, Any]] = {}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("GET", BASE, lambda call: {"endpoints": [_summary(one) for one in self.endpoints.values()]}),
            Route("POST", BASE, self.create),
            Route("GET", f"{BASE}/{{name}}", self.get),
            Route("DELETE", f"{BASE}/{{name}}", self.delete),
            Route("PUT", f"{BASE}/{{name}}/config", self.update),
            Route("PATCH", f"{BASE}/{{name}}/tags", self.tag),
            Route("POST", "/serving-endpoints/{name}/invocations", self.invoke),
        ]

    def fail_next_update(self, message: str) -> None:
        """The next update that is started fails once it settles."""
        self._failing.append(message)

    def served(self, name: str) -> dict[str, Any]:
        """Version to percent of the requests, of what serves now."""
        config = self.endpoints[name].get("config") or {"served_entities": [], "traffic_config": {"routes": []}}
        share = {
            route["served_model_name"]: route["traffic_percentage"] for route in config["traffic_config"]["routes"]
        }
        return {entity["entity_version"]: share.get(entity["name"], 0) for entity in config["served_entities"]}

    def create(self, call: Call) -> dict[str, Any]:
        """POST serving-endpoints."""
        name = call.json["name"]
        if name in self.endpoints:
            raise Failure(409, "RESOURCE_ALREADY_EXISTS", f"Endpoint with name '{name}' already exists.")
        now = _now()
        self.endpoints[name] = {
            "name": name,
            "id": f"endpoint-{len(self.endpoints) + 1}",
            "creator": "me@example.com",
            "creation_timestamp": now,
            "last_updated_timestamp": now,
            "tags": call.json.get("tags", []),
            "permission_level": "CAN_MANAGE",
            "state": {"ready": "NOT_READY", "config_update": "NOT_UPDATING"},
        }
        try:
            return self._start(name, call.json["config"])
        except Failure:
            del self.endpoints[name]
            raise

    def get(self, call: Call) -> dict[str, Any]:
        """GET serving-endpoints/{name}; settles an update whose time has come."""
        name = call.parts["name"]
        endpoint = self._found(name)
        pending = self._pending.get(name)
        if pending:
            if pending["polls"] <= 0:
                self._settle(name)
            pending["polls"] -= 1
        return copy.deepcopy(endpoint)

    def delete(self, call: Call) -> None:
        """DELETE serving-endpoints/{name}."""
        self._found(call.parts["name"])
        del self.endpoints[call.parts["name"]]
        self._pending.pop(call.parts["name"], None)

    def update(self, call: Call) -> dict[str, Any]:
        """PUT serving-endpoints/{name}/config."""
        name = call.parts["name"]
        self._found(name)
        if name in self._pending:
            raise Failure(409, "RESOURCE_CONFLICT", f"Endpoint '{name}' is currently being updated.")
        return self._start(name, call.json)

    def tag(self, call: Call) -> dict[str, Any]:
        """PATCH serving-endpoints/{name}/tags."""
        endpoint = self._found(call.parts["name"])
        tags = {tag["key"]: tag.get("value", "") for tag in endpoint["tags"]}
        tags |= {tag["key"]: tag.get("value", "") for tag in call.json.get("add_tags", [])}
        for key in call.json.get("delete_tags", []):
            tags.pop(key, None)
        endpoint["tags"] = [{"key": key, "value": value} for key, value in tags.items()]
        return {"tags": endpoint["tags"]}

    def invoke(self, call: Call) -> dict[str, Any]:
        """POST /serving-endpoints/{name}/invocations: a canned answer of the agent."""
        endpoint = self._found(call.parts["name"])
        if endpoint["state"]["ready"] != "READY":
            raise Failure(400, "BAD_REQUEST", f"Endpoint '{endpoint['name']}' is not ready.")
        self.invocations.append(call.json)
        text = {"type": "output_text", "text": "canned answer"}
        return {"output": [{"type": "message", "id": "1", "role": "assistant", "content": [text]}]}

    def _found(self, name: str) -> dict[str, Any]:
        if name not in self.endpoints:
            raise Failure(404, "RESOURCE_DOES_NOT_EXIST", f"Endpoint with name '{name}' does not exist.")
        return self.endpoints[name]

    def _start(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        endpoint = self.endpoints[name]
        active = endpoint.get("config") or {}
        config = _checked(asked, known={entity["name"]: entity for entity in active.get("served_entities", [])})
        config["config_version"] = active.get("config_version", 0) + 1
        endpoint["pending_config"] = {**config, "start_time": _now()}
        endpoint["state"]["config_update"] = "IN_PROGRESS"
        endpoint["last_updated_timestamp"] = _now()
        failing = self._failing.pop(0) if self._failing else ""
        self._pending[name] = {"config": config, "polls": self.workspace.slow_states, "failing": failing}
        return copy.deepcopy(endpoint)

    def _settle(self, name: str) -> None:
        endpoint, pending = self.endpoints[name], self._pending.pop(name)
        entities = pending["config"]["served_entities"]
        if pending["failing"]:
            state = {"deployment": "DEPLOYMENT_FAILED", "deployment_state_message": pending["failing"]}
            for entity in endpoint["pending_config"]["served_entities"]:
                entity["state"] = state
            endpoint["state"]["config_update"] = "UPDATE_FAILED"
            return
        for entity in entities:
            entity["state"] = {"deployment": "DEPLOYMENT_READY", "deployment_state_message": ""}
        endpoint["config"] = pending["config"]
        endpoint.pop("pending_config")
        endpoint["state"] = {"ready": "READY", "config_update": "NOT_UPDATING"}


def _checked(asked: dict[str, Any], *, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is asked for as the endpoint shows it, or 400."""
    entities = [dict(entity) for entity in asked.get("served_entities", [])]
    if not entities or len(entities) > 15:
        raise _bad(f"served_entities must hold 1 to 15 elements, not {len(entities)}.")
    for entity in entities:
        if set(entity) - ENTITY_FIELDS:
            raise _bad(f"Unknown fields of a served entity: {sorted(set(entity) - ENTITY_FIELDS)}.")
        if not entity.get("entity_version") or not entity.get("workload_size"):
            raise _bad("entity_version and workload_size are required for a custom model.")
        version = f"{entity['entity_name']}-{entity['entity_version']}".replace(".", "-")
        entity.setdefault("name", version)
        former = known.get(entity["name"], {})
        same = {key: value for key, value in former.items() if key in ENTITY_FIELDS} == entity
        entity["creation_timestamp"] = former["creation_timestamp"] if same else _now()
        entity["creator"] = "me@example.com"
        entity["state"] = {"deployment": "DEPLOYMENT_CREATING", "deployment_state_message": "Creating"}
    names = [entity["name"] for entity in entities]
    if len(set(names)) < len(names):
        raise _bad("Names of served entities must be unique.")
    routes = (asked.get("traffic_config") or {}).get("routes")
    if routes is None and len(entities) == 1:
        routes = [{"served_model_name": names[0], "traffic_percentage": 100}]
    shares = {route.get("served_entity_name") or route["served_model_name"]: route for route in routes or []}
    if set(shares) - set(names):
        raise _bad(f"Routes name entities that are not served: {sorted(set(shares) - set(names))}.")
    if sum(route["traffic_percentage"] for route in shares.values()) != 100:
        raise _bad("The traffic percentages of all routes must sum up to 100.")
    shown = [
        {"served_model_name": name, "served_entity_name": name, "traffic_percentage": route["traffic_percentage"]}
        for name, route in shares.items()
    ]
    config = {"served_entities": entities, "traffic_config": {"routes": shown}}
    if asked.get("auto_capture_config"):
        config["auto_capture_config"] = asked["auto_capture_config"]
    return config


def _summary(endpoint: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in endpoint.items() if key != "pending_config"}


def _bad(message: str) -> Failure:
    return Failure(400, "INVALID_PARAMETER_VALUE", message)


def _now() -> int:
    return int(time.time() * 1000)
