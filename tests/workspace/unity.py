"""Unity Catalog objects, permissions, SQL warehouses and the caller.

Lives here: catalogs, schemas, tables and volumes of the lake as the API shows them; grants; warehouses; SCIM's Me.
Add here: a securable's route. Not here: registered models (`unity_models.py`), SQL (`lake.py`).
"""

from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace
from tests.workspace.lake import Lake
from tests.workspace.unity_models import UnityModels

BASE = "/api/2.1/unity-catalog"
WAREHOUSES = "/api/2.0/sql/warehouses"


class Unity:
    """Warehouses by id: `{id, name, state, waits}`; everything else is the lake's.

    `warehouse_denied` names the warehouses the caller may not use, `model_owners` who owns a registered model.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.lake = workspace[Lake]
        self.warehouses: dict[str, dict[str, Any]] = {"wh-1": {"id": "wh-1", "name": "shared", "state": "RUNNING"}}
        self.warehouse_denied: set[str] = set()
        self.model_owners: dict[str, str] = {}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("GET", "/api/2.0/preview/scim/v2/Me", self.me),
            Route("GET", f"{BASE}/catalogs", self.catalogs),
            Route("GET", f"{BASE}/catalogs/{{name}}", self.catalog),
            Route("GET", f"{BASE}/schemas", self.schemas),
            Route("POST", f"{BASE}/schemas", self.create_schema),
            Route("GET", f"{BASE}/schemas/{{name}}", self.schema),
            Route("GET", f"{BASE}/tables", self.tables),
            Route("GET", f"{BASE}/tables/{{name}}/exists", self.table_exists),
            Route("GET", f"{BASE}/tables/{{name}}", self.table),
            Route("DELETE", f"{BASE}/tables/{{name}}", self.delete_table),
            Route("GET", f"{BASE}/volumes", self.volumes),
            Route("POST", f"{BASE}/volumes", self.create_volume),
            Route("GET", f"{BASE}/volumes/{{name}}", self.volume),
            Route("GET", f"{BASE}/models/{{name}}", self.model),
            Route("GET", f"{BASE}/permissions/{{kind}}/{{name}}", self.permissions),
            Route("PATCH", f"{BASE}/permissions/{{kind}}/{{name}}", self.update_permissions),
            Route("GET", f"{BASE}/effective-permissions/{{kind}}/{{name}}", self.effective_permissions),
            Route("GET", WAREHOUSES, self.list_warehouses),
            Route("GET", f"{WAREHOUSES}/{{id}}", self.get_warehouse),
            Route("POST", f"{WAREHOUSES}/{{id}}/start", self.start_warehouse),
            Route("POST", f"{WAREHOUSES}/{{id}}/stop", self.stop_warehouse),
        ]

    def me(self, call: Call) -> dict[str, Any]:
        """GET scim/v2/Me."""
        held = self.lake.privileges
        groups = [{"display": name, "value": str(number)} for number, name in enumerate(held.groups)]
        return {"id": "1", "userName": held.me, "displayName": held.me, "active": True, "groups": groups}

    def catalogs(self, call: Call) -> dict[str, Any]:
        """GET catalogs."""
        some, token = self.workspace.page([self.lake.catalogs[name] for name in sorted(self.lake.catalogs)], call)
        return {"catalogs": some, **({"next_page_token": token} if token else {})}

    def catalog(self, call: Call) -> dict[str, Any]:
        """GET catalogs/{name}."""
        return self._catalog(call.parts["name"])

    def schemas(self, call: Call) -> dict[str, Any]:
        """GET schemas?catalog_name=."""
        catalog = self._catalog(call.query["catalog_name"])["name"]
        found = [_schema(name, one) for name, one in sorted(self.lake.schemas.items()) if name.split(".")[0] == catalog]
        some, token = self.workspace.page(found, call)
        return {"schemas": some, **({"next_page_token": token} if token else {})}

    def create_schema(self, call: Call) -> dict[str, Any]:
        """POST schemas."""
        name = f"{self._catalog(call.json['catalog_name'])['name']}.{call.json['name']}".lower()
        if name in self.lake.schemas:
            raise Failure(409, "SCHEMA_ALREADY_EXISTS", f"Schema '{name}' already exists")
        self.lake.create_schema(name)
        return _schema(name, self.lake.schemas[name])

    def schema(self, call: Call) -> dict[str, Any]:
        """GET schemas/{full name}."""
        return _schema(call.parts["name"].lower(), self._schema_of(call.parts["name"]))

    def tables(self, call: Call) -> dict[str, Any]:
        """GET tables?catalog_name=&schema_name=."""
        place = f"{call.query['catalog_name']}.{call.query['schema_name']}".lower()
        self._schema_of(place)
        found = [self._table(name) for name in sorted(self.lake.tables) if name.rpartition(".")[0] == place]
        some, token = self.workspace.page(found, call)
        return {"tables": some, **({"next_page_token": token} if token else {})}

    def table(self, call: Call) -> dict[str, Any]:
        """GET tables/{full name}."""
        self._schema_of(call.parts["name"].rpartition(".")[0])
        if not self.lake.has(call.parts["name"]):
            raise Failure(404, "TABLE_DOES_NOT_EXIST", f"Table '{call.parts['name']}' does not exist.")
        return self._table(call.parts["name"].lower())

    def table_exists(self, call: Call) -> dict[str, Any]:
        """GET tables/{full name}/exists."""
        self._schema_of(call.parts["name"].rpartition(".")[0])
        return {"table_exists": self.lake.has(call.parts["name"])}

    def delete_table(self, call: Call) -> dict[str, Any]:
        """DELETE tables/{full name}."""
        self.table(call)
        self.lake.drop(call.parts["name"])
        return {}

    def volumes(self, call: Call) -> dict[str, Any]:
        """GET volumes?catalog_name=&schema_name=."""
        place = f"{call.query['catalog_name']}.{call.query['schema_name']}".lower()
        self._schema_of(place)
        found = [_volume(one) for name, one in sorted(self.lake.volumes.items()) if name.rpartition(".")[0] == place]
        some, token = self.workspace.page(found, call)
        return {"volumes": some, **({"next_page_token": token} if token else {})}

    def create_volume(self, call: Call) -> dict[str, Any]:
        """POST volumes."""
        place = f"{call.json['catalog_name']}.{call.json['schema_name']}".lower()
        self._schema_of(place)
        name = f"{place}.{call.json['name']}".lower()
        if name in self.lake.volumes:
            raise Failure(409, "VOLUME_ALREADY_EXISTS", f"Volume '{name}' already exists")
        self.lake.run("CREATE VOLUME " + ".".join(f"`{part}`" for part in name.split(".")))
        return _volume(self.lake.volumes[name])

    def volume(self, call: Call) -> dict[str, Any]:
        """GET volumes/{full name}."""
        self._schema_of(call.parts["name"].rpartition(".")[0])
        if call.parts["name"].lower() not in self.lake.volumes:
            raise Failure(404, "VOLUME_DOES_NOT_EXIST", f"Volume '{call.parts['name']}' does not exist.")
        return _volume(self.lake.volumes[call.parts["name"].lower()])

    def model(self, call: Call) -> dict[str, Any]:
        """GET models/{full name}: a registered model as an object."""
        name = call.parts["name"]
        if name not in self.workspace[UnityModels].models:
            raise Failure(404, "ROUTINE_DOES_NOT_EXIST", f"Routine or Model '{name}' does not exist.")
        catalog, schema, short = name.split(".")
        names = {"catalog_name": catalog, "schema_name": schema, "name": short, "full_name": name}
        return {**names, "owner": self.model_owners.get(name, self.lake.privileges.me)}

    def permissions(self, call: Call) -> dict[str, Any]:
        """GET permissions/{type}/{full name}."""
        kind, name = self._securable(call)
        held = {who: sorted(these) for who, these in self.lake.privileges.explicit(kind, name).items()}
        return self._assignments(call, held)

    def effective_permissions(self, call: Call) -> dict[str, Any]:
        """GET effective-permissions/{type}/{full name}."""
        return self._assignments(call, self.lake.privileges.effective(*self._securable(call)))

    def update_permissions(self, call: Call) -> dict[str, Any]:
        """PATCH permissions/{type}/{full name}."""
        kind, name = self._securable(call)
        if not self.lake.privileges.allowed(kind, name, "MANAGE"):
            raise Failure(403, "PERMISSION_DENIED", f"User does not have MANAGE on {kind.capitalize()} '{name}'.")
        for change in call.json.get("changes", []):
            self.lake.privileges.add(kind, name, change["principal"], change.get("add", []))
            self.lake.privileges.remove(kind, name, change["principal"], change.get("remove", []))
        return self.permissions(call)

    def list_warehouses(self, call: Call) -> dict[str, Any]:
        """GET warehouses."""
        return {"warehouses": [_warehouse(one) for one in self.warehouses.values()]}

    def get_warehouse(self, call: Call) -> dict[str, Any]:
        """GET warehouses/{id}: a starting one is running after the set number of polls."""
        one = self._warehouse(call.parts["id"])
        if one["state"] == "STARTING":
            one["waits"] -= 1
            one["state"] = "STARTING" if one["waits"] > 0 else "RUNNING"
        return _warehouse(one)

    def start_warehouse(self, call: Call) -> dict[str, Any]:
        """POST warehouses/{id}/start."""
        one = self._warehouse(call.parts["id"])
        if one["state"] == "STOPPED":
            one.update(state="STARTING", waits=self.workspace.slow_states)
        return {}

    def stop_warehouse(self, call: Call) -> dict[str, Any]:
        """POST warehouses/{id}/stop."""
        self._warehouse(call.parts["id"])["state"] = "STOPPED"
        return {}

    def use_warehouse(self, warehouse_id: str) -> None:
        """What a statement needs: the warehouse is there, may be used, and starts by itself."""
        one = self._warehouse(warehouse_id)
        if warehouse_id in self.warehouse_denied:
            raise Failure(403, "PERMISSION_DENIED", "You do not have permission to use the SQL Warehouse.")
        if one["state"] != "RUNNING":
            one["state"] = "RUNNING"

    def _warehouse(self, warehouse_id: str) -> dict[str, Any]:
        if warehouse_id not in self.warehouses:
            raise Failure(404, "RESOURCE_DOES_NOT_EXIST", f"SQL warehouse {warehouse_id} does not exist.")
        return self.warehouses[warehouse_id]

    def _catalog(self, name: str) -> dict[str, Any]:
        if name.lower() not in self.lake.catalogs:
            raise Failure(404, "CATALOG_DOES_NOT_EXIST", f"Catalog '{name}' does not exist.")
        if not self.lake.privileges.allowed("CATALOG", name, "USE_CATALOG"):
            raise Failure(403, "PERMISSION_DENIED", f"User does not have USE CATALOG on Catalog '{name}'.")
        return self.lake.catalogs[name.lower()]

    def _schema_of(self, name: str) -> dict[str, Any]:
        self._catalog(name.partition(".")[0])
        if name.lower() not in self.lake.schemas:
            raise Failure(404, "SCHEMA_DOES_NOT_EXIST", f"Schema '{name}' does not exist.")
        if not self.lake.privileges.allowed("SCHEMA", name, "USE_SCHEMA"):
            raise Failure(403, "PERMISSION_DENIED", f"User does not have USE SCHEMA on Schema '{name}'.")
        return self.lake.schemas[name.lower()]

    def _table(self, name: str) -> dict[str, Any]:
        catalog, schema, table = name.split(".")
        known = self.lake.tables[name]
        columns = [
            {"name": column, "type_name": kind, "type_text": text.lower(), "position": position, "nullable": True}
            for position, (column, kind, text) in enumerate(self.lake.columns(name))
        ]
        names = {"catalog_name": catalog, "schema_name": schema, "name": table, "full_name": name}
        facts = {key: known[key] for key in ("table_id", "owner", "created_at")}
        return {**names, **facts, "table_type": "MANAGED", "data_source_format": "DELTA", "columns": columns}

    def _securable(self, call: Call) -> tuple[str, str]:
        kind, name = call.parts["kind"].upper(), call.parts["name"]
        models = self.workspace[UnityModels].models
        if name not in models if kind == "FUNCTION" else not self.lake.exists(kind, name):
            raise Failure(404, f"{kind}_DOES_NOT_EXIST", f"{kind.capitalize()} '{name}' does not exist.")
        return kind, name

    def _assignments(self, call: Call, held: dict[str, Any]) -> dict[str, Any]:
        wanted = call.query.get("principal")
        found = [
            {"principal": who, "privileges": these}
            for who, these in held.items()
            if wanted in (None, "", who) and these
        ]
        some, token = self.workspace.page(found, call)
        return {"privilege_assignments": some, **({"next_page_token": token} if token else {})}


def _schema(name: str, one: dict[str, Any]) -> dict[str, Any]:
    catalog, _, schema = name.partition(".")
    return {**one, "catalog_name": catalog, "name": schema}


def _volume(one: dict[str, Any]) -> dict[str, Any]:
    catalog, schema, name = one["full_name"].split(".")
    place = f"/Volumes/{catalog}/{schema}/{name}"
    return {
        **one,
        "catalog_name": catalog,
        "schema_name": schema,
        "name": name,
        "volume_type": "MANAGED",
        "storage_location": place,
    }


def _warehouse(one: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in one.items() if key != "waits"}
    return {**shown, "cluster_size": "2X-Small", "enable_serverless_compute": True, "warehouse_type": "PRO"}
