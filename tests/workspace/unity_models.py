"""Registered models of Unity Catalog.

Lives here: models, versions, tags, aliases and temporary credentials under `/api/2.0/mlflow/unity-catalog/...`.
Add here: another operation of the model registry.
Not here: files of versions (`artifacts.py`), grants (`unity.py`), logged models (`logged_models.py`).

What the server is known to do and an embedded registry does not: hits of a search carry neither tags nor aliases, a
version is PENDING_REGISTRATION until it is finalized (and `slow_states` polls longer), tag names with reserved
characters are refused, creating a version is never de-duplicated.
"""

import re
import time
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace, not_found
from tests.workspace.artifacts import Storage

BASE = "/api/2.0/mlflow/unity-catalog"
RESERVED = ".,-=/:"


class UnityModels:
    """Models by full name: `{info, tags, aliases: {alias: version}, versions: {version: {info, tags, polls}}}`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.models: dict[str, dict[str, Any]] = {}
        self.missing_schemas: set[str] = set()
        self.lineage: list[dict[str, Any]] = []
        self.sdk_storage = False

    def routes(self) -> list[Route]:
        """The routes of this part."""
        model, version = f"{BASE}/registered-models", f"{BASE}/model-versions"
        return [
            Route("POST", f"{model}/create", self.create_model),
            Route("GET", f"{model}/get", self.get_model),
            Route("GET", f"{model}/search", self.search_models),
            Route("PATCH", f"{model}/update", self.update_model),
            Route("DELETE", f"{model}/delete", self.delete_model),
            Route("POST", f"{model}/set-tag", self.tag_model),
            Route("DELETE", f"{model}/delete-tag", self.untag_model),
            Route("POST", f"{model}/alias", self.set_alias),
            Route("GET", f"{model}/alias", self.by_alias),
            Route("DELETE", f"{model}/alias", self.delete_alias),
            Route("GET", f"{model}:is-databricks-sdk-models-artifact-repository-enabled", self.uses_sdk_storage),
            Route("POST", f"{version}/create", self.create_version),
            Route("GET", f"{version}/get", self.get_version),
            Route("GET", f"{version}/search", self.search_versions),
            Route("PATCH", f"{version}/update", self.update_version),
            Route("DELETE", f"{version}/delete", self.delete_version),
            Route("POST", f"{version}/finalize", self.finalize),
            Route("POST", f"{version}/set-tag", self.tag_version),
            Route("DELETE", f"{version}/delete-tag", self.untag_version),
            Route("POST", f"{version}/generate-temporary-credentials", self.credentials),
            Route("GET", f"{version}/get-download-uri", self.download_uri),
            Route("POST", f"{version}/emit-lineage", self.emit_lineage),
        ]

    def model(self, name: str) -> dict[str, Any]:
        """The registered model, or 404."""
        if name not in self.models:
            raise not_found(f"Registered Model '{name}'")
        return self.models[name]

    def version(self, name: str, version: object) -> dict[str, Any]:
        """A version, or 404."""
        versions = self.model(name)["versions"]
        if str(version) not in versions:
            raise not_found(f"Model Version (name={name}, version={version})")
        return versions[str(version)]

    def create_model(self, call: Call) -> dict[str, Any]:
        """POST registered-models/create."""
        name, now = call.json["name"], int(time.time() * 1000)
        if not re.fullmatch(r"[^./\s]+(\.[^./\s]+){2}", name):
            raise Failure(
                400, "INVALID_PARAMETER_VALUE", f"'{name}' is not a valid name: specify all three levels (a.b.c)."
            )
        schema = name.rpartition(".")[0]
        if schema in self.missing_schemas:
            raise Failure(404, "SCHEMA_DOES_NOT_EXIST", f"Schema '{schema}' does not exist.")
        if name in self.models:
            raise Failure(400, "RESOURCE_ALREADY_EXISTS", f"Registered Model '{name}' already exists.")
        info = {"name": name, "creation_timestamp": now, "last_updated_timestamp": now, "user_id": "me@example.com"}
        info["description"] = call.json.get("description", "")
        self.models[name] = {"info": info, "tags": _tags(call), "aliases": {}, "versions": {}, "made": 0}
        return {"registered_model": _shown_model(self.models[name])}

    def get_model(self, call: Call) -> dict[str, Any]:
        """GET registered-models/get."""
        return {"registered_model": _shown_model(self.model(call.query["name"]))}

    def search_models(self, call: Call) -> dict[str, Any]:
        """GET registered-models/search: no filter, no tags, no aliases."""
        if call.query.get("filter"):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "filter is not supported.")
        some, token = self.workspace.page([model["info"] for model in self.models.values()], call)
        return {"registered_models": some, **({"next_page_token": token} if token else {})}

    def update_model(self, call: Call) -> dict[str, Any]:
        """PATCH registered-models/update."""
        model = self.model(call.json["name"])
        model["info"]["description"] = call.json.get("description", model["info"]["description"])
        return {"registered_model": _shown_model(model)}

    def delete_model(self, call: Call) -> dict[str, Any]:
        """DELETE registered-models/delete: only without versions."""
        if self.model(_asked(call)["name"])["versions"]:
            raise Failure(400, "INVALID_STATE", "The model has versions.")
        del self.models[_asked(call)["name"]]
        return {}

    def tag_model(self, call: Call) -> dict[str, Any]:
        """POST registered-models/set-tag."""
        self.model(call.json["name"])["tags"].update(_checked({call.json["key"]: call.json.get("value", "")}))
        return {}

    def untag_model(self, call: Call) -> dict[str, Any]:
        """DELETE registered-models/delete-tag."""
        self.model(_asked(call)["name"])["tags"].pop(_asked(call)["key"], None)
        return {}

    def set_alias(self, call: Call) -> dict[str, Any]:
        """POST registered-models/alias."""
        self.version(call.json["name"], call.json["version"])
        self.model(call.json["name"])["aliases"][call.json["alias"]] = str(call.json["version"])
        return {}

    def by_alias(self, call: Call) -> dict[str, Any]:
        """GET registered-models/alias."""
        model = self.model(call.query["name"])
        if call.query["alias"] not in model["aliases"]:
            raise not_found(f"Alias '{call.query['alias']}'")
        return {"model_version": self._shown(model, model["aliases"][call.query["alias"]])}

    def delete_alias(self, call: Call) -> dict[str, Any]:
        """DELETE registered-models/alias."""
        self.model(_asked(call)["name"])["aliases"].pop(_asked(call)["alias"], None)
        return {}

    def uses_sdk_storage(self, call: Call) -> dict[str, Any]:
        """GET registered-models:is-databricks-sdk-models-artifact-repository-enabled."""
        return {"is_databricks_sdk_models_artifact_repository_enabled": self.sdk_storage}

    def create_version(self, call: Call) -> dict[str, Any]:
        """POST model-versions/create: a new number every time; numbers are not used again."""
        asked, now = call.json, int(time.time() * 1000)
        model, tags = self.model(asked["name"]), _tags(call)
        model["made"] += 1
        number = str(model["made"])
        info = {
            "name": asked["name"],
            "version": number,
            "creation_timestamp": now,
            "last_updated_timestamp": now,
            "user_id": "me@example.com",
            "status": "PENDING_REGISTRATION",
            "storage_location": f"s3://bucket/models/{asked['name']}/{number}",
            **{name: asked[name] for name in ("source", "run_id", "model_id", "description") if asked.get(name)},
        }
        model["versions"][number] = {"info": info, "tags": tags, "polls": None}
        return {"model_version": self._shown(model, number)}

    def get_version(self, call: Call) -> dict[str, Any]:
        """GET model-versions/get: each look brings a finalized version nearer to READY."""
        held = self.version(call.query["name"], call.query["version"])
        self._look(held)
        return {"model_version": self._shown(self.model(call.query["name"]), held["info"]["version"])}

    def search_versions(self, call: Call) -> dict[str, Any]:
        """GET model-versions/search: `name = '...'` or `run_id = '...'` and nothing else."""
        match = re.fullmatch(r"\s*(name|run_id)\s*=\s*'([^']*)'\s*", call.query.get("filter", ""))
        if not match:
            raise Failure(400, "INVALID_PARAMETER_VALUE", f"Unsupported filter query: `{call.query.get('filter')}`.")
        field, value = match.groups()
        found = [
            version["info"]
            for model in self.models.values()
            for version in reversed(model["versions"].values())
            if version["info"].get(field) == value
        ]
        some, token = self.workspace.page(found, call)
        return {"model_versions": some, **({"next_page_token": token} if token else {})}

    def update_version(self, call: Call) -> dict[str, Any]:
        """PATCH model-versions/update."""
        held = self.version(call.json["name"], call.json["version"])
        held["info"]["description"] = call.json.get("description", "")
        return {"model_version": self._shown(self.model(call.json["name"]), held["info"]["version"])}

    def delete_version(self, call: Call) -> dict[str, Any]:
        """DELETE model-versions/delete: its aliases go with it."""
        name, version = _asked(call)["name"], str(_asked(call)["version"])
        self.version(name, version)
        model = self.model(name)
        del model["versions"][version]
        model["aliases"] = {alias: held for alias, held in model["aliases"].items() if held != version}
        return {}

    def finalize(self, call: Call) -> dict[str, Any]:
        """POST model-versions/finalize: refused without files, and the second time."""
        name, version = call.json["name"], str(call.json["version"])
        held = self.version(name, version)
        if held["info"]["status"] != "PENDING_REGISTRATION" or held["polls"] is not None:
            raise Failure(400, "INVALID_STATE", f"Model version {version} is not in a state to be finalized.")
        if not self.workspace[Storage].below(f"/Models/{name.replace('.', '/')}/{version}"):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "No files were written for this version.")
        held["polls"] = self.workspace.slow_states
        if not held["polls"]:
            held["info"]["status"] = "READY"
        return {"model_version": self._shown(self.model(name), version)}

    def tag_version(self, call: Call) -> dict[str, Any]:
        """POST model-versions/set-tag."""
        tags = _checked({call.json["key"]: call.json.get("value", "")})
        self.version(call.json["name"], call.json["version"])["tags"].update(tags)
        return {}

    def untag_version(self, call: Call) -> dict[str, Any]:
        """DELETE model-versions/delete-tag."""
        self.version(_asked(call)["name"], _asked(call)["version"])["tags"].pop(_asked(call)["key"], None)
        return {}

    def credentials(self, call: Call) -> dict[str, Any]:
        """POST model-versions/generate-temporary-credentials: storage of Databricks, reached by presigned addresses."""
        held = self.version(call.json["name"], call.json["version"])
        reads = call.json["operation"] == "MODEL_VERSION_OPERATION_READ"
        if reads and held["info"]["status"] != "READY":
            raise Failure(400, "INVALID_STATE", "The model version is not READY.")
        return {"credentials": {"storage_mode": "DEFAULT_STORAGE", "expiration_time": int(time.time() * 1000) + 900000}}

    def download_uri(self, call: Call) -> dict[str, Any]:
        """GET model-versions/get-download-uri."""
        return {"artifact_uri": self.version(call.query["name"], call.query["version"])["info"]["storage_location"]}

    def emit_lineage(self, call: Call) -> dict[str, Any]:
        """POST model-versions/emit-lineage."""
        self.lineage.append(call.json)
        return {}

    def _look(self, version: dict[str, Any]) -> None:
        if version["polls"]:
            version["polls"] -= 1
            if not version["polls"]:
                version["info"]["status"] = "READY"

    def _shown(self, model: dict[str, Any], number: str) -> dict[str, Any]:
        version = model["versions"][number]
        aliases = [{"alias": alias, "version": held} for alias, held in model["aliases"].items() if held == number]
        return {**version["info"], "tags": _listed(version["tags"]), "aliases": aliases}


def _shown_model(model: dict[str, Any]) -> dict[str, Any]:
    aliases = [{"alias": alias, "version": version} for alias, version in model["aliases"].items()]
    return {**model["info"], "tags": _listed(model["tags"]), "aliases": aliases}


def _listed(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _tags(call: Call) -> dict[str, str]:
    return _checked({tag["key"]: tag.get("value", "") for tag in call.json.get("tags", [])})


def _checked(tags: dict[str, str]) -> dict[str, str]:
    for key, value in tags.items():
        if set(key) & set(RESERVED):
            raise Failure(
                400,
                "INVALID_PARAMETER_VALUE",
                f"Tag name {key} contains one or more of the reserved characters: List(., ,, -, =, /, :)",
            )
        if len(key) > 255 or len(value) > 1000:
            raise Failure(400, "INVALID_PARAMETER_VALUE", f"Tag {key[:40]} is too long.")
    return tags


def _asked(call: Call) -> dict[str, Any]:
    return {**call.query, **call.json}
