"""Evaluation datasets of the workspace: a Unity Catalog table each, their records and versions.

Lives here: `/api/2.0/managed-evals/datasets/...`. The table is the lake's, so that `GET tables/{name}` gives its
`table_id`, which is the dataset's id. Add here: what a dataset can be asked. Not here: the table's columns and grants.

What only the real server knows is as unkind as it may be: records are never de-duplicated, whole numbers come back as
floats (values are `protobuf.Value`), fields that hold nothing are left out.
"""

import uuid
from datetime import UTC, datetime
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace, not_found
from tests.workspace.lake import Lake

BASE = "/api/2.0/managed-evals/datasets"
_ONE = f"{BASE}/{{dataset}}"
_COLUMNS = dict.fromkeys(("dataset_record_id", "inputs", "expectations", "created_by"), "STRING")


class Datasets:
    """Datasets by id; records by dataset id, in the order they came.

    `native` is what `is_uc_native` says, None leaves it out; `replaces` is whether an update replaces the fields of its
    mask or merges maps into them.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.native: bool | None = None
        self.replaces = True
        self.datasets: dict[str, dict[str, Any]] = {}
        self.records: dict[str, list[dict[str, Any]]] = {}
        self.versions: dict[str, list[dict[str, Any]]] = {}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("POST", BASE, self.create),
            Route("GET", f"{_ONE}/records", self.list_records),
            Route("POST", f"{_ONE}/records:batchCreate", self.create_records),
            Route("POST", f"{_ONE}/records:batchUpdate", self.update_records),
            Route("POST", f"{_ONE}/records:batchDelete", self.delete_records),
            Route("GET", f"{_ONE}/versions", self.list_versions),
            Route("GET", _ONE, lambda call: self._shown(self._dataset(call))),
            Route("PATCH", _ONE, self.update),
            Route("DELETE", _ONE, self.delete),
        ]

    def named(self, name: str) -> dict[str, Any]:
        """The dataset of that table, or 404."""
        for dataset in self.datasets.values():
            if dataset["name"] == name:
                return dataset
        raise not_found(f"Dataset {name}")

    def create(self, call: Call) -> dict[str, Any]:
        """POST datasets: makes the table."""
        name, lake = call.json["name"], self.workspace[Lake]
        if name.count(".") != 2 or not all(name.split(".")):
            raise Failure(400, "INVALID_PARAMETER_VALUE", f"Invalid table name: {name}")
        if name.rpartition(".")[0].lower() not in lake.schemas:
            raise Failure(404, "SCHEMA_DOES_NOT_EXIST", f"Schema '{name.rpartition('.')[0]}' does not exist.")
        if lake.has(name):
            raise Failure(409, "TABLE_ALREADY_EXISTS", f"Table '{name}' already exists.")
        lake.create_table(name, _COLUMNS)
        number = lake.tables[name.lower()]["table_id"]
        experiments = [one for text in call.queries.get("experiment_ids", []) for one in text.split(",")]
        self.datasets[number] = {
            **call.json,
            "dataset_id": number,
            "experiment_ids": experiments,
            "create_time": _now(),
        }
        self.records[number], self.versions[number] = [], []
        self._commit(number, "CREATE TABLE")
        return self._shown(self.datasets[number])

    def update(self, call: Call) -> dict[str, Any]:
        """PATCH a dataset: the fields of the mask."""
        dataset = self._dataset(call)
        for field in call.query["update_mask"].split(","):
            dataset[field] = call.json[field]
        return self._shown(dataset)

    def delete(self, call: Call) -> dict[str, Any]:
        """DELETE a dataset and its table."""
        dataset = self._dataset(call)
        self.workspace[Lake].drop(dataset["name"])
        del self.datasets[dataset["dataset_id"]], self.records[dataset["dataset_id"]]
        return {}

    def list_records(self, call: Call) -> dict[str, Any]:
        """GET records."""
        some, token = self.workspace.page([_value(one) for one in self._records(call)], call)
        return {"dataset_records": some, **({"next_page_token": token} if token else {})}

    def create_records(self, call: Call) -> dict[str, Any]:
        """POST records:batchCreate, 100 at most."""
        made = []
        for asked in _some(call):
            now = _now()
            fields = {key: value for key, value in asked["dataset_record"].items() if value is not None}
            made.append({**fields, "dataset_record_id": uuid.uuid4().hex, "create_time": now, "last_update_time": now})
        self._records(call).extend(made)
        self._commit(call.parts["dataset"], "WRITE")
        return {"dataset_records": [_value(one) for one in made]}

    def update_records(self, call: Call) -> dict[str, Any]:
        """POST records:batchUpdate: the fields of the mask."""
        changed = []
        for asked in _some(call):
            record = self._record(call, asked["dataset_record_id"])
            for field in asked["update_mask"].split(","):
                if field not in ("expectations", "tags"):
                    raise Failure(400, "INVALID_PARAMETER_VALUE", f"update_mask: {field} cannot be updated.")
                held = {} if self.replaces else record.get(field) or {}
                record[field] = {**held, **(asked["dataset_record"].get(field) or {})}
            record["last_update_time"] = _now()
            changed.append(_value(record))
        self._commit(call.parts["dataset"], "MERGE")
        return {"dataset_records": changed}

    def delete_records(self, call: Call) -> dict[str, Any]:
        """POST records:batchDelete."""
        for asked in _some(call):
            self._records(call).remove(self._record(call, asked["dataset_record_id"]))
        self._commit(call.parts["dataset"], "DELETE")
        return {}

    def list_versions(self, call: Call) -> dict[str, Any]:
        """GET versions of the table."""
        self._dataset(call)
        some, token = self.workspace.page(self.versions[call.parts["dataset"]], call)
        return {"dataset_versions": some, **({"next_page_token": token} if token else {})}

    def _dataset(self, call: Call) -> dict[str, Any]:
        if call.parts["dataset"] not in self.datasets:
            raise not_found(f"Dataset {call.parts['dataset']}")
        return self.datasets[call.parts["dataset"]]

    def _records(self, call: Call) -> list[dict[str, Any]]:
        return self.records[self._dataset(call)["dataset_id"]]

    def _record(self, call: Call, record_id: str) -> dict[str, Any]:
        for record in self._records(call):
            if record["dataset_record_id"] == record_id:
                return record
        raise not_found(f"Dataset record {record_id}")

    def _commit(self, number: str, operation: str) -> None:
        made = {"dataset_id": number, "version": len(self.versions[number]), "operation": operation}
        self.versions[number].append({**made, "create_time": _now()})

    def _shown(self, dataset: dict[str, Any]) -> dict[str, Any]:
        shown = {key: value for key, value in dataset.items() if value not in (None, [])}
        return shown if self.native is None else {**shown, "is_uc_native": self.native}


def _some(call: Call) -> list[dict[str, Any]]:
    if len(call.json["requests"]) > 100:
        raise Failure(400, "INVALID_PARAMETER_VALUE", "At most 100 records in one request.")
    return call.json["requests"]


def _value(value: Any) -> Any:
    """As `protobuf.Value` keeps it: every number is a double."""
    if isinstance(value, dict):
        return {key: _value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_value(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
