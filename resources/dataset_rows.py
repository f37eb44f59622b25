"""Records of an evaluation dataset as rows, on both platforms.

Lives here: a row, reading rows, their key and digest, what a dataset offers that can replace its records.
Add here: a further fact of a record. Not here: which records there should be (`eval_dataset.py`).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle_assets.records import digest


@dataclass(frozen=True)
class Row:
    """One record as it is or should be; `declared` are the file's expectations, None when it is not in the file."""

    inputs: Mapping[str, Any]
    expectations: Mapping[str, Any]
    declared: Mapping[str, Any] | None = None
    trace_id: str = ""
    record_id: str = ""

    @property
    def key(self) -> str:
        """What makes a record one and the same: its inputs."""
        return canonical(self.inputs)

    @property
    def labels(self) -> dict[str, Any]:
        """Expectations that did not come from the file."""
        declared = self.declared or {}
        return {name: value for name, value in self.expectations.items() if declared.get(name, ...) != value}

    def as_record(self) -> dict[str, Any]:
        """The record as MLflow takes it."""
        data: dict[str, Any] = {"trace_id": self.trace_id} if self.trace_id else {}
        if self.declared is not None:
            data["declared"] = dict(self.declared)
        kind = "CODE" if self.declared is not None else "TRACE" if self.trace_id else "HUMAN"
        return {
            "inputs": dict(self.inputs),
            "expectations": dict(self.expectations),
            "source": {"source_type": kind, "source_data": data},
        }


class InPlaceDataset(ABC):
    """A dataset whose records can be replaced; the rest of it is as MLflow's own datasets are."""

    name: str
    dataset_id: str

    @abstractmethod
    def to_df(self) -> Any:
        """The records as MLflow's datasets give them: inputs, expectations, source, dataset_record_id."""

    @abstractmethod
    def list_versions(self) -> list[dict[str, Any]]:
        """Its versions: one more with every write."""

    @abstractmethod
    def merge_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records `{inputs, expectations, source}`; one that is there gains the expectations."""

    @abstractmethod
    def replace_record(self, record_id: str, record: Mapping[str, Any]) -> None:
        """Make a record hold these expectations and this source, nothing else. Its inputs stay."""

    @abstractmethod
    def delete_records(self, record_ids: Sequence[str]) -> None:
        """Remove records; one that is gone is no error."""

    @abstractmethod
    def settle(self) -> None:
        """Finish what a process that died, or a lost answer, left half done."""


def canonical(value: object) -> str:
    """`value` as JSON that depends neither on the order of keys nor on how a whole number is kept (1 or 1.0)."""
    return json.dumps(_whole(value), sort_keys=True, ensure_ascii=False)


def _whole(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= 2**53
    return int(value) if whole else value


def rows_of(dataset: Any) -> list[Row]:
    """The records of an MLflow dataset, by inputs, so that the same records always come in the same order."""
    rows = []
    for record in dataset.to_df().to_dict(orient="records"):
        source = record.get("source")
        data = (source if isinstance(source, dict) else source.to_dict() if source else {}).get("source_data") or {}
        rows.append(
            Row(
                inputs=record["inputs"],
                expectations=record.get("expectations") or {},
                declared=data.get("declared"),
                trace_id=str(data.get("trace_id") or ""),
                record_id=record["dataset_record_id"],
            )
        )
    return sorted(rows, key=lambda row: row.key)


def rows_digest(rows: Iterable[Row]) -> str:
    """Digest over inputs and expectations, whatever the order of the records."""
    return digest(sorted(canonical([row.inputs, row.expectations]) for row in rows))
