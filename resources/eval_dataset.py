"""The evaluation dataset in MLflow: what the file says, what reviewers added, and how the two are kept apart.

Lives here: comparing the declared rows with the records MLflow holds, and writing the difference; both platforms.
Add here: a further origin of records.
Not here: reading the file (`lifecycle_assets/spec_file.py`), a record as a row (`dataset_rows.py`), evaluating
(`evaluation_steps.py`), records in Unity Catalog (`resources/databricks/evaluation/datasets.py`).

A record that comes from the file keeps the file's own expectations in its source, so that what differs from them is
known to be a reviewer's and survives every change of the file. MLflow merges expectations but never removes one, and
never changes a source; a record that must lose something is therefore deleted and written anew. Reviewers' work is
noted in a tag of the dataset before that, and restored from it when a crash came between. A dataset that can replace a
record is an `InPlaceDataset` and needs none of that.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle_assets.records import DatasetRecord, digest
from lifecycle_assets.refused import Refused
from resources.dataset_rows import InPlaceDataset, Row, canonical, rows_digest, rows_of
from resources.mlflow_store import open_mlflow
from resources.platform import Platform

_JOURNAL = "lifecycle.rewriting"
_JOURNAL_LIMIT = 5000
"""Characters MLflow keeps of a dataset's tag."""


def describe(dataset: Any) -> DatasetRecord:
    """The record of a dataset as it is now. Raises `Refused` when it has no rows."""
    rows = rows_of(dataset)
    if not rows:
        raise Refused(f"MLflow dataset '{dataset.name}' has no records: add some, then run again.")
    return DatasetRecord(dataset.dataset_id, dataset.name, rows_digest(rows), len(rows))


def find_dataset(platform: Platform, name: str, experiment_id: str | None = None) -> Any | None:
    """The MLflow dataset of that name, or None.

    Locally of that experiment, when given, and the oldest if there are several; on Databricks a name is a table's.
    """
    if platform.is_databricks:
        from resources.databricks.evaluation.datasets import find

        return find(platform, name)
    open_mlflow(platform)
    from mlflow.genai import datasets

    found = datasets.search_datasets(
        experiment_ids=[experiment_id] if experiment_id else None,
        filter_string=f"name = '{name}'",
        order_by=["created_time ASC"],
        max_results=1,
    )
    return found[0] if found else None


def held_dataset(platform: Platform, asked: DatasetRecord) -> Any | None:
    """The dataset of a record as it is now, or None."""
    if platform.is_databricks:
        return find_dataset(platform, asked.name)
    open_mlflow(platform)
    from mlflow.exceptions import MlflowException
    from mlflow.genai import datasets

    try:
        return datasets.get_dataset(dataset_id=asked.dataset_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def mark_of(dataset: Any) -> str:
    """Changes with every write of the dataset's records; read without them, by one request at most."""
    if isinstance(dataset, InPlaceDataset):
        return digest(dataset.list_versions())
    return digest([dataset.dataset_id, dataset.digest, dataset.profile, dataset.last_update_time])


def create_dataset(platform: Platform, name: str, experiment_id: str, agent: str) -> Any:
    """A new, empty dataset."""
    if platform.is_databricks:
        from resources.databricks.evaluation.datasets import create

        return create(platform, name, experiment_id)
    open_mlflow(platform)
    from mlflow.genai import datasets

    return datasets.create_dataset(name=name, experiment_id=[experiment_id], tags={"lifecycle.agent": agent})


def dataset_to_evaluate(platform: Platform, asked: DatasetRecord) -> Any:
    """The dataset as `mlflow.genai.evaluate` and `rows_of` take it, its records read once.

    Raises `Refused` when they are not those asked for.
    """
    if platform.is_databricks:
        from resources.databricks.evaluation.datasets import to_evaluate

        dataset = to_evaluate(platform, asked.name, asked.digest)
    else:
        from mlflow.genai import datasets

        dataset = datasets.get_dataset(dataset_id=asked.dataset_id)
    found = rows_digest(rows_of(dataset))
    if found != asked.digest:
        raise Refused(
            f"MLflow dataset '{asked.name}' changed: its digest is {found}, the evaluation was asked for "
            f"{asked.digest}; materialize eval_dataset, then eval_results."
        )
    return dataset


def require_unchanged(platform: Platform, asked: DatasetRecord) -> None:
    """Raise `Refused` unless the dataset, read anew, still holds the records an evaluation was asked for."""
    found = held_dataset(platform, asked)
    if found is None:
        raise Refused(
            f"MLflow dataset '{asked.name}' was deleted while it was evaluated, so that the evaluation does not count; "
            "materialize eval_dataset, then eval_results."
        )
    held = rows_digest(rows_of(found))
    if held != asked.digest:
        raise Refused(
            f"MLflow dataset '{asked.name}' changed while it was evaluated (its digest was {asked.digest}, now it is "
            f"{held}), so that the evaluation does not count; materialize eval_dataset, then eval_results."
        )


def write_declared(dataset: Any, declared: Sequence[Mapping[str, Any]]) -> None:
    """Make the dataset hold the declared rows and what reviewers added, and nothing else; writes only differences."""
    _restore(dataset)
    present = {row.key: row for row in rows_of(dataset)}
    wanted: dict[str, Row] = {}
    for line in declared:
        key = canonical(line["inputs"])
        held = present.get(key)
        labels, trace_id = (held.labels, held.trace_id) if held else ({}, "")
        wanted[key] = Row(line["inputs"], {**line["expectations"], **labels}, line["expectations"], trace_id)
    for key, held in present.items():
        if key not in wanted and (held.declared is None or held.labels or held.trace_id):
            kept = held.labels or (held.expectations if held.trace_id else {})
            wanted[key] = Row(held.inputs, kept, None, held.trace_id)
    _write(dataset, present, wanted)


def merge_labels(dataset: Any, records: Sequence[Mapping[str, Any]]) -> None:
    """Add reviewers' records `{inputs, expectations, source}`; a record that is there gains the expectations."""
    _restore(dataset)
    present = {row.key: row for row in rows_of(dataset)}
    wanted = dict(present)
    for record in records:
        key = canonical(record["inputs"])
        held = wanted.get(key)
        source = (record.get("source") or {}).get("source_data") or {}
        wanted[key] = Row(
            inputs=record["inputs"],
            expectations={**(held.expectations if held else {}), **(record.get("expectations") or {})},
            declared=held.declared if held else None,
            trace_id=(held.trace_id if held else "") or str(source.get("trace_id") or ""),
        )
    _write(dataset, present, wanted)


def _write(dataset: Any, present: Mapping[str, Row], wanted: Mapping[str, Row]) -> None:
    changed = [row for key, row in wanted.items() if key not in present or not _same(present[key], row)]
    gone = [row for key, row in present.items() if key not in wanted]
    # In one transaction: rows that are new, and rows that only gain expectations.
    merged = [row for row in changed if row.key not in present or _only_gains(present[row.key], row)]
    if merged:
        dataset.merge_records([row.as_record() for row in merged])
    if gone:
        dataset.delete_records([row.record_id for row in gone])
    for row in changed:
        if row not in merged:
            _rewrite(dataset, present[row.key].record_id, row)


def _same(held: Row, row: Row) -> bool:
    return (held.expectations, held.declared, held.trace_id) == (row.expectations, row.declared, row.trace_id)


def _only_gains(held: Row, row: Row) -> bool:
    return (held.declared, held.trace_id) == (row.declared, row.trace_id) and set(held.expectations) <= set(
        row.expectations
    )


def _rewrite(dataset: Any, record_id: str, row: Row) -> None:
    if isinstance(dataset, InPlaceDataset):
        dataset.replace_record(record_id, row.as_record())
        return
    from mlflow.genai import datasets

    note = json.dumps(row.as_record(), ensure_ascii=False)
    noted = bool(row.labels or row.trace_id) and len(note) <= _JOURNAL_LIMIT
    if noted:
        datasets.set_dataset_tags(dataset_id=dataset.dataset_id, tags={_JOURNAL: note})
    dataset.delete_records([record_id])
    dataset.merge_records([row.as_record()])
    if noted:
        datasets.delete_dataset_tag(dataset_id=dataset.dataset_id, key=_JOURNAL)


def _restore(dataset: Any) -> None:
    """Write what a process that died between deleting and writing had noted."""
    if isinstance(dataset, InPlaceDataset):
        dataset.settle()
        return
    note = (dataset.tags or {}).get(_JOURNAL)
    if note:
        from mlflow.genai import datasets

        dataset.merge_records([json.loads(note)])
        datasets.delete_dataset_tag(dataset_id=dataset.dataset_id, key=_JOURNAL)
