"""From rows of the tracking database to MLflow's own entities, as its store makes them.

Lives here: infos, assessments and spans of a page that was read from the database.
Add here: a field of MLflow's entities that comes from the database.
Not here: reading (`database_reader.py`), the archive's columns (`head_columns.py`, `span_columns.py`).

Scorers are given these, and so is what is out of the ordinary on its way to the archive: MLflow itself says what a
stored value means.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resources.reading.database_sql import ASSESSMENT, COST, USAGE
from resources.reading.row_batches import UNREADABLE
from resources.redaction import loads

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Stored:
    """Rows of some traces as they are stored, each with `nth`: the place of its trace among those asked for.

    `spans` is None where only heads were asked for.
    """

    ids: list[str]
    heads: "pa.Table"
    tags: "pa.Table"
    metadata: "pa.Table"
    assessments: "pa.Table"
    spans: "pa.Table | None"


def promoted(head: Mapping[str, Any]) -> dict[str, str]:
    """Metadata that is kept in columns of `trace_info`, in the words of MLflow."""
    said = {} if head["session_id"] is None else {"mlflow.trace.session": head["session_id"]}
    for key, names in (("mlflow.trace.tokenUsage", USAGE), ("mlflow.trace.cost", COST)):
        numbers = numbers_text(names, [head[name] for name in names])
        if numbers:
            said[key] = numbers
    return said


def numbers_text(names: Sequence[str], values: Sequence[float | None]) -> str:
    """Numbers that are there by their names, as `json.dumps` writes them, some times as fast; empty without any."""
    said = ", ".join([f'"{name}": {value!r}' for name, value in zip(names, values, strict=True) if value is not None])
    return f"{{{said}}}" if said else ""


def infos(stored: Stored, experiment_id: str) -> dict[int, Any]:
    """Place to MLflow's `TraceInfo`; to the error where MLflow could not make one. Imports mlflow."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    tags, metadata = _pairs(stored.tags), _pairs(stored.metadata)
    said_of = assessments(stored.assessments)
    found: dict[int, Any] = {}
    for head in stored.heads.to_pylist():
        nth = head["nth"]
        if head["trace_name"] is not None:
            tags[nth]["mlflow.traceName"] = head["trace_name"]
        try:
            said = said_of.get(nth, [])
            found[nth] = (
                said
                if isinstance(said, Exception)
                else TraceInfo(
                    trace_id=head["trace_id"],
                    trace_location=TraceLocation.from_experiment_id(experiment_id),
                    request_time=head["request_ms"],
                    execution_duration=head["execution_ms"],
                    state=TraceState(head["state"]),
                    tags=tags[nth],
                    trace_metadata={**metadata[nth], **promoted(head)},
                    client_request_id=head["client_request_id"],
                    request_preview=head["request_preview"],
                    response_preview=head["response_preview"],
                    assessments=said,
                )
            )
        except UNREADABLE as error:
            found[nth] = error
    return found


def spans(table: "pa.Table") -> dict[int, Any]:
    """Place to MLflow's spans, the root first, as its store gives them; to the error where it could not."""
    from mlflow.entities.span import LazySpan

    return _of_spans(table, LazySpan.from_stored_content)


def span_dicts(table: "pa.Table") -> dict[int, Any]:
    """Place to spans as dicts, as MLflow's store reads them; to the error where it could not."""
    return _of_spans(table, _span_dict)


def _span_dict(content: str) -> dict[str, Any]:
    """A stored span. MLflow is imported only for one of unknown type: it may derive the type from other attributes."""
    span = json.loads(content)
    if loads((span.get("attributes") or {}).get("mlflow.spanType")) in (None, "UNKNOWN"):
        from mlflow.tracing.otel.translation import translate_loaded_span

        return translate_loaded_span(span)
    return span


def _of_spans(table: "pa.Table", made: Callable[[str], Any]) -> dict[int, Any]:
    found: dict[int, Any] = defaultdict(list)
    listed = sorted(table.to_pylist(), key=lambda span: (span["parent_span_id"] is not None, span["start_ns"]))
    for span in listed:
        nth = span["nth"]
        if isinstance(found[nth], Exception):
            continue
        try:
            found[nth].append(made(span["content"]))
        except UNREADABLE as error:
            found[nth] = error
    return found


def _pairs(table: "pa.Table") -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for nth, key, value in zip(*(column.to_pylist() for column in table.columns), strict=True):
        found[nth][key] = value
    return found


def assessments(table: "pa.Table") -> dict[int, Any]:
    """Place to MLflow's assessments; to the error where it could not make one."""
    from mlflow.store.tracking.dbmodels.models import SqlAssessments

    found: dict[int, Any] = defaultdict(list)
    for row in table.to_pylist():
        nth = row["nth"]
        if isinstance(found[nth], Exception):
            continue
        try:
            values = {name: row[name] for _, name, _ in ASSESSMENT}
            values["valid"] = None if row["valid"] is None else bool(row["valid"])
            found[nth].append(SqlAssessments(**values).to_mlflow_entity())
        except UNREADABLE as error:
            found[nth] = error
    return found
