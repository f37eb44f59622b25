"""Evaluation datasets in Unity Catalog.

Lives here: finding and making a dataset, its records as MLflow's local datasets give them, writing differences.
Add here: what a dataset can be asked.
Not here: the shape of a record (`dataset_records.py`), which records there should be (`resources/eval_dataset.py`).

Records are written by plain requests (see `managed_evals.py` for why): MLflow's client would log a failed write and go
on, drop an expected answer that is empty, and open a Spark session unless the service keeps the table itself.

`session.sync`, by which Databricks brings labels into a dataset, is not used. It takes the raw request of the trace, so
that a question differs from the file's own by its session and user; it lets any answer of any reviewer win, valid or
not; and it names copies of traces. Labels come by `LabelingDesk.labels` and are merged here, on both platforms alike.

Every write may be repeated. A write whose answer was lost is sent again by the client and may leave a record twice;
`settle` is called before and after writing and keeps one of them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lifecycle_assets.refused import Refused
from resources.databricks.evaluation.dataset_records import inputs_of, kept, labels_of, plain_record, wire_record
from resources.databricks.managed_evals import BASE, ManagedEvals, part
from resources.dataset_rows import InPlaceDataset, canonical
from resources.platform import Platform

_BATCH_RECORDS, _BATCH_BYTES = 100, 1_000_000
_READ_SECONDS = 300.0


class UnityDataset(InPlaceDataset):
    """A dataset of the workspace; `mlflow.genai.datasets.EvaluationDataset` takes it as it takes the client's own."""

    source_type = "databricks-uc-table"
    schema = profile = version = None
    digest: str | None = None

    def __init__(self, platform: Platform, shown: Mapping[str, Any]) -> None:
        """`shown` is the dataset as the service gives it."""
        self.name, self.dataset_id = str(shown["name"]), str(shown["dataset_id"])
        self.create_time = shown.get("create_time")
        self.experiment_ids = list(shown.get("experiment_ids") or [])
        self._requests, self._path = ManagedEvals(platform), f"{BASE}/datasets/{part(self.dataset_id)}"

    def to_df(self) -> Any:
        """See `InPlaceDataset.to_df`. Reads every page anew."""
        import pandas as pd
        from mlflow.entities import DatasetRecordSource

        rows = [plain_record(record) for record in self._records()]
        for row in rows:
            row["source"] = DatasetRecordSource.from_dict(row["source"])
        return pd.DataFrame(rows, columns=["inputs", "expectations", "tags", "source", "dataset_record_id"])

    def list_versions(self) -> list[dict[str, Any]]:
        """See `InPlaceDataset.list_versions`. MLflow notes by them which one was evaluated."""
        return self._requests.pages(f"{self._path}/versions", "dataset_versions")

    def merge_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See `InPlaceDataset.merge_records`. Whole numbers beyond 2^53 raise `Refused`: the service rounds them."""
        held = {canonical(inputs_of(one)): one for one in self._records()}
        new, known = [], []
        for record in records:
            wire, there = wire_record(record), held.get(canonical(record["inputs"]))
            if there is None:
                new.append(wire)
            else:
                wire["expectations"] = {**(there.get("expectations") or {}), **wire["expectations"]}
                known.append((there["dataset_record_id"], wire))
        self._create(new)
        self._update(known)
        if new:
            self.settle()

    def replace_record(self, record_id: str, record: Mapping[str, Any]) -> None:
        """See `InPlaceDataset.replace_record`.

        Should the service merge into a record instead of replacing its fields, the record is made anew before the old
        one is removed; what a crash leaves between is two records, of which `settle` keeps the new one.
        """
        wire = wire_record(record)
        self._update([(record_id, wire)])
        now = {one["dataset_record_id"]: one for one in self._records()}
        if record_id in now and kept(now[record_id]) == kept(wire):
            return
        self._create([wire])
        key = canonical(record["inputs"])
        twins = [one for one in self._records() if canonical(inputs_of(one)) == key]
        self.delete_records([record_id])
        if len(twins) < 2:  # The service merged the new record into the old one, which is gone now.
            self._create([wire])

    def delete_records(self, record_ids: Sequence[str]) -> None:
        """See `InPlaceDataset.delete_records`."""
        from databricks.sdk.errors import NotFound

        for batch in _batches([{"dataset_id": self.dataset_id, "dataset_record_id": one} for one in record_ids]):
            try:
                self._requests.send("POST", f"{self._path}/records:batchDelete", body={"requests": batch})
            except NotFound:
                left = {one["dataset_record_id"] for one in self._records()}
                if left & {one["dataset_record_id"] for one in batch}:
                    raise

    def settle(self) -> None:
        """See `InPlaceDataset.settle`. Of records with the same inputs the last made stays, with every label."""
        by_inputs: dict[str, list[dict[str, Any]]] = {}
        for record in sorted(self._records(), key=lambda one: one.get("create_time") or ""):
            by_inputs.setdefault(canonical(inputs_of(record)), []).append(record)
        for twins in by_inputs.values():
            if len(twins) == 1:
                continue
            stays, merged = twins[-1], dict(twins[-1].get("expectations") or {})
            for twin in twins[:-1]:
                merged = {**labels_of(twin), **merged}
            if merged != (stays.get("expectations") or {}):
                self._update([(stays["dataset_record_id"], {**stays, "expectations": merged})])
            self.delete_records([twin["dataset_record_id"] for twin in twins[:-1]])

    def _records(self) -> list[dict[str, Any]]:
        return self._requests.pages(f"{self._path}/records", "dataset_records", seconds=_READ_SECONDS)

    def _create(self, records: Sequence[Mapping[str, Any]]) -> None:
        for batch in _batches([{"dataset_id": self.dataset_id, "dataset_record": one} for one in records]):
            self._requests.send("POST", f"{self._path}/records:batchCreate", body={"requests": batch})

    def _update(self, records: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        asked = [
            {
                "dataset_id": self.dataset_id,
                "dataset_record_id": record_id,
                "dataset_record": {**wire, "dataset_record_id": record_id},
                "update_mask": "expectations,tags",
            }
            for record_id, wire in records
        ]
        for batch in _batches(asked):
            body = {"dataset_id": self.dataset_id, "requests": batch}
            self._requests.send("POST", f"{self._path}/records:batchUpdate", body=body)


def find(platform: Platform, name: str) -> UnityDataset | None:
    """The dataset whose table has this three-level name, None when there is no such table.

    Raises `Refused` for a name of other than three parts, and for a table that is no dataset.
    """
    if len(name.split(".")) != 3 or not all(name.split(".")):
        raise Refused(f"'{name[:120]}' is no evaluation dataset of Unity Catalog: name it catalog.schema.dataset.")
    requests = ManagedEvals(platform)
    table = requests.found(f"/api/2.1/unity-catalog/tables/{part(name)}")
    if table is None:
        return None
    number = str(table.get("table_id") or "")
    shown = requests.found(f"{BASE}/datasets/{part(number)}") if number else None
    if shown is None:
        raise Refused(
            f"Table {name} is no evaluation dataset: drop or rename it, or name a dataset by eval.dataset in defs.yaml."
        )
    return UnityDataset(platform, {"name": name, "dataset_id": number, **shown})


def create(platform: Platform, name: str, experiment_id: str) -> UnityDataset:
    """A new, empty dataset; when another process or a lost answer made it already, that one."""
    from databricks.sdk.errors import DatabricksError

    asked = {"name": name, "source_type": UnityDataset.source_type}
    query = {"experiment_ids": experiment_id}
    try:
        shown = ManagedEvals(platform).send("POST", f"{BASE}/datasets", query=query, body=asked)
    except DatabricksError:
        made = find(platform, name)
        if made is None:
            raise
        return made
    return UnityDataset(platform, {"name": name, **shown})


def to_evaluate(platform: Platform, name: str, digest: str) -> Any:
    """The dataset as MLflow's `EvaluationDataset`, which reads the records once. Raises `Refused` when it is gone.

    `digest` is what MLflow notes as the dataset's; the caller compares it with the records.
    """
    from mlflow.genai.datasets import EvaluationDataset

    found = find(platform, name)
    if found is None:
        raise Refused(f"Dataset {name} is gone from Unity Catalog; materialize eval_dataset, then eval_results.")
    found.digest = digest
    return EvaluationDataset(found)  # ty: ignore[abstract-class-instantiation] MLflow itself does it


def _batches(requests: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Requests in as many as the service takes at once, by number and by bytes."""
    batch: list[Mapping[str, Any]] = []
    size = 0
    for one in requests:
        length = len(json.dumps(one).encode())
        if batch and (len(batch) == _BATCH_RECORDS or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += length
    if batch:
        yield batch
