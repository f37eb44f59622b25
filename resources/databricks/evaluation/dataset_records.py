"""The shape of a dataset's record: as the workspace keeps it, and as MLflow's local datasets give it.

Lives here: the conversions, and what the service cannot keep. Add here: what else a record keeps.
Not here: reading and writing records (`datasets.py`).

The service's record has no room for the file's own expectations, so they are kept in a tag of the record; so is the
trace, because a source can be set only when a record is made. Numbers come back as doubles.
"""

import json
from collections.abc import Mapping
from typing import Any

from lifecycle_assets.refused import Refused
from resources.dataset_rows import canonical

_DECLARED, _TRACE = "lifecycle.declared", "lifecycle.trace_id"
_EXACT = 2**53


def wire_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record `{inputs, expectations, source}` as the service takes it."""
    data = (record.get("source") or {}).get("source_data") or {}
    trace_id, declared = str(data.get("trace_id") or ""), data.get("declared")
    _refuse_unkept([record["inputs"], record.get("expectations")], record["inputs"])
    tags = {_TRACE: trace_id} if trace_id else {}
    if declared is not None:
        tags[_DECLARED] = json.dumps(declared, ensure_ascii=False)
    return {
        "inputs": [{"key": key, "value": value} for key, value in record["inputs"].items()],
        "expectations": {key: {"value": value} for key, value in (record.get("expectations") or {}).items()},
        "tags": tags,
        **({"source": {"trace": {"trace_id": trace_id}}} if trace_id else {}),
    }


def plain_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the service as MLflow's local datasets give theirs."""
    declared, tags = declared_of(record), record.get("tags") or {}
    trace_id = tags.get(_TRACE) or ((record.get("source") or {}).get("trace") or {}).get("trace_id") or ""
    data: dict[str, Any] = {"trace_id": trace_id} if trace_id else {}
    if declared is not None:
        data["declared"] = declared
    kind = "CODE" if declared is not None else "TRACE" if trace_id else "HUMAN"
    return {
        "inputs": inputs_of(record),
        "expectations": {key: value_of(value) for key, value in (record.get("expectations") or {}).items()},
        "tags": {key: value for key, value in tags.items() if key not in (_DECLARED, _TRACE)},
        "source": {"source_type": kind, "source_data": data},
        "dataset_record_id": record["dataset_record_id"],
    }


def declared_of(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The file's own expectations, None when the record is not in the file."""
    text = (record.get("tags") or {}).get(_DECLARED)
    return json.loads(text) if text else None


def labels_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Expectations, as the service keeps them, that did not come from the file."""
    declared, said = declared_of(record) or {}, record.get("expectations") or {}
    return {name: value for name, value in said.items() if declared.get(name, ...) != value_of(value)}


def inputs_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs by name."""
    return {one["key"]: _whole(one.get("value")) for one in record["inputs"]}


def value_of(expectation: Mapping[str, Any]) -> Any:
    """The value of an expectation."""
    return _whole(expectation.get("value"))


def kept(record: Mapping[str, Any]) -> str:
    """What an update may change of a record, to be compared."""
    expectations = {key: value_of(value) for key, value in (record.get("expectations") or {}).items()}
    return canonical([expectations, record.get("tags") or {}])


def _whole(value: Any) -> Any:
    """Whole numbers as such: the service keeps every number as a double."""
    return json.loads(canonical(value))


def _refuse_unkept(value: Any, inputs: Mapping[str, Any]) -> None:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            _refuse_unkept(item, inputs)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT:
        raise Refused(
            f"Databricks rounds the whole number {value} of the record {canonical(inputs)[:120]}: write it as text."
        )
