"""The agent's tables: columns, types and keys.

Lives here: the contract that users' queries rest on, said once for Delta and for DuckDB.
Add here: a table, or a column (at the end, so that older files stay readable).
Not here: views (`sql/views.py`), writing (`archive/archive.py`), querying (`sql/engine.py`).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

PARTITION = "trace_date"
"""The day a trace started (UTC), in every table that is partitioned."""

TABLES: dict[str, dict[str, str]] = {
    "traces": {
        "trace_id": "VARCHAR",
        "experiment_id": "VARCHAR",
        "request_time": "TIMESTAMPTZ",
        "trace_date": "DATE",
        "state": "VARCHAR",
        "execution_ms": "BIGINT",
        "model_id": "VARCHAR",
        "session_id": "VARCHAR",
        "user_id": "VARCHAR",
        "environment": "VARCHAR",
        "request": "VARCHAR",
        "response": "VARCHAR",
        "tags": "MAP(VARCHAR, VARCHAR)",
        "metadata": "MAP(VARCHAR, VARCHAR)",
        "input_tokens": "BIGINT",
        "output_tokens": "BIGINT",
        "cost_usd": "DOUBLE",
        "archived_at": "TIMESTAMPTZ",
    },
    "spans": {
        "trace_id": "VARCHAR",
        "trace_date": "DATE",
        "span_id": "VARCHAR",
        "parent_span_id": "VARCHAR",
        "name": "VARCHAR",
        "type": "VARCHAR",
        "start_time": "TIMESTAMPTZ",
        "end_time": "TIMESTAMPTZ",
        "status": "VARCHAR",
        "inputs": "VARCHAR",
        "outputs": "VARCHAR",
        "attributes": "VARCHAR",
    },
    "assessments": {
        "trace_id": "VARCHAR",
        "trace_date": "DATE",
        "assessment_id": "VARCHAR",
        "name": "VARCHAR",
        "kind": "VARCHAR",
        "source_type": "VARCHAR",
        "source_id": "VARCHAR",
        "value_number": "DOUBLE",
        "value_text": "VARCHAR",
        "rationale": "VARCHAR",
        "error": "VARCHAR",
        "scorer_version": "VARCHAR",
        "valid": "BOOLEAN",
        "created_at": "TIMESTAMPTZ",
        "updated_at": "TIMESTAMPTZ",
    },
    "promotions": {
        "at": "TIMESTAMPTZ",
        "alias": "VARCHAR",
        "from_version": "VARCHAR",
        "to_version": "VARCHAR",
        "model_id": "VARCHAR",
        "decision": "VARCHAR",
        "reason": "VARCHAR",
        "actor": "VARCHAR",
        "evidence": "VARCHAR",
        "dagster_run_id": "VARCHAR",
    },
    "quality_metrics": {
        "trace_date": "DATE",
        "model_id": "VARCHAR",
        "version": "VARCHAR",
        "metric": "VARCHAR",
        "value": "DOUBLE",
        "n": "BIGINT",
        "ci_low": "DOUBLE",
        "ci_high": "DOUBLE",
    },
    "publications": {
        "trace_id": "VARCHAR",
        "trace_date": "DATE",
        "assessment_id": "VARCHAR",
        "digest": "VARCHAR",
        "published_at": "TIMESTAMPTZ",
    },
    "quarantine": {
        "trace_id": "VARCHAR",
        "trace_date": "DATE",
        "experiment_id": "VARCHAR",
        "reason": "VARCHAR",
        "at": "TIMESTAMPTZ",
    },
    "scorer_days": {
        "trace_date": "DATE",
        "name": "VARCHAR",
        "scorer_version": "VARCHAR",
        "sampled": "BIGINT",
        "waiting": "BIGINT",
        "on_time": "BIGINT",
        "due": "BIGINT",
    },
}
"""Table to its columns, in order, with DuckDB's name of their type. Times are UTC with microseconds."""

LOCAL = frozenset({"publications", "quarantine"})
"""Tables only the local platform writes: Databricks publishes its scores itself, and its SQL leaves no trace aside."""

KEYS: dict[str, tuple[str, ...]] = {
    "traces": ("trace_id",),
    "spans": ("trace_id", "span_id"),
    "assessments": ("trace_id", "assessment_id"),
    "quality_metrics": ("model_id", "version", "metric"),
    "publications": ("trace_id", "assessment_id"),
    "quarantine": ("trace_id",),
    "scorer_days": ("name", "scorer_version"),
}
"""What a table holds once, within a day."""

PAYLOADS = ("request", "response", "inputs", "outputs", "attributes")
"""Columns that hardly repeat, and of which nobody looks for the least value."""

ROW_GROUP = 8_192
"""Rows of a group in a file at most: small ones keep memory small while many days are written at once."""

STATISTICS: dict[str, tuple[str, ...]] = {
    "traces": ("trace_id", "experiment_id", "request_time", "model_id", "session_id"),
    "spans": ("trace_id",),
    "assessments": ("trace_id", "name"),
    "promotions": ("at",),
    "quality_metrics": ("metric",),
    "publications": ("trace_id",),
    "quarantine": ("trace_id",),
    "scorer_days": ("name",),
}
"""Columns of which Delta's log keeps the least and greatest value: not payloads, which would swell the log."""


def columns(table: str) -> dict[str, str]:
    """The columns of a table. Raises `ValueError` for a table that is not one of ours."""
    if table not in TABLES:
        raise ValueError(f"no table '{table}'; there are {', '.join(TABLES)}")
    return TABLES[table]


def is_partitioned(table: str) -> bool:
    """Whether a table is kept by day."""
    return PARTITION in columns(table)


@cache
def arrow_schema(table: str) -> "pa.Schema":
    """The table's columns as Arrow sees them."""
    import pyarrow as pa

    types = {
        "VARCHAR": pa.string(),
        "BIGINT": pa.int64(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "DATE": pa.date32(),
        "TIMESTAMPTZ": pa.timestamp("us", tz="UTC"),
        "MAP(VARCHAR, VARCHAR)": pa.map_(pa.string(), pa.string()),
    }
    return pa.schema([(name, types[kind]) for name, kind in columns(table).items()])


def arrow_table(table: str, rows: Iterable[Mapping[str, Any]]) -> "pa.Table":
    """Rows as an Arrow table with the table's columns; a field that is missing is null.

    Times and dates may be ISO 8601 text, a structure in a text column becomes JSON. Raises `ValueError` naming
    the columns a row has beyond the table's.
    """
    import pyarrow as pa

    names, listed = columns(table), list(rows)
    beyond = {key for row in listed for key in row} - set(names)
    if beyond:
        raise ValueError(f"{table} has no column {', '.join(sorted(beyond))}")
    schema = arrow_schema(table)
    arrays = []
    for name, kind in names.items():
        convert, values = _CONVERT.get(kind), [row.get(name) for row in listed]
        arrays.append(pa.array(list(map(convert, values)) if convert else values, schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _text(value: Any) -> Any:
    if value.__class__ is str or not isinstance(value, Mapping | list | tuple):
        return value
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "VARCHAR": _text,
    "TIMESTAMPTZ": lambda value: datetime.fromisoformat(value) if isinstance(value, str) else value,
    "DATE": lambda value: date.fromisoformat(value) if isinstance(value, str) else value,
    "MAP(VARCHAR, VARCHAR)": lambda value: sorted(value.items()) if isinstance(value, Mapping) else value,
}
