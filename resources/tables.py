"""The agent's tables and views: columns, types, keys, and the views as SQL.

Lives here: the contract that users' queries rest on, said once for Delta and for DuckDB.
Add here: a table, a column (at the end, so that older files stay readable) or a view.
Not here: writing (`archive.py`), querying (`sql_engine.py`).

A view reads tables by their unprefixed names, in SQL that DuckDB and, through `resources/databricks/sql/dialect.py`,
Databricks answer alike. It has no WITH: the user's query around it may use any name. `judge_cost` also reads
`scorer_costs(name, cost_per_call)`, which the engine fills with what it was given: a scorer nobody stated a price for
costs 0.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
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
}
"""Table to its columns, in order, with DuckDB's name of their type. Times are UTC with microseconds."""

KEYS: dict[str, tuple[str, ...]] = {
    "traces": ("trace_id",),
    "spans": ("trace_id", "span_id"),
    "assessments": ("trace_id", "assessment_id"),
    "quality_metrics": ("model_id", "version", "metric"),
}
"""What a table holds once, within a day."""

STATISTICS: dict[str, tuple[str, ...]] = {
    "traces": ("trace_id", "request_time", "model_id", "session_id"),
    "spans": ("trace_id",),
    "assessments": ("trace_id", "name"),
    "promotions": ("at",),
    "quality_metrics": ("metric",),
}
"""Columns of which Delta's log keeps the least and greatest value: not payloads, which would swell the log."""

VIEWS: dict[str, str] = {
    "quality_by_version": """
        SELECT t.model_id, coalesce(v.version, '') AS version, a.name, a.scorer_version,
            count(a.value_number) AS n, avg(a.value_number) AS mean,
            min(a.value_number) AS lowest, max(a.value_number) AS highest,
            count(*) FILTER (WHERE a.error IS NOT NULL) AS errors,
            count(*) FILTER (WHERE a.value_text = 'not applicable') AS not_applicable,
            min(t.trace_date) AS first_date, max(t.trace_date) AS last_date
        FROM assessments a JOIN traces t USING (trace_id, trace_date) LEFT JOIN (
            SELECT model_id, max_by(to_version, promotions."at") AS version FROM promotions
            WHERE alias = 'champion' AND model_id <> '' GROUP BY model_id
        ) v USING (model_id)
        WHERE a.valid AND a.kind = 'feedback' AND a.source_type <> 'HUMAN'
        GROUP BY t.model_id, coalesce(v.version, ''), a.name, a.scorer_version
        ORDER BY t.model_id, version, a.name, a.scorer_version""",
    "latency": """
        SELECT trace_date, model_id, count(execution_ms) AS n,
            percentile_cont(0.5) WITHIN GROUP (ORDER BY execution_ms) AS p50_ms,
            percentile_cont(0.9) WITHIN GROUP (ORDER BY execution_ms) AS p90_ms,
            percentile_cont(0.95) WITHIN GROUP (ORDER BY execution_ms) AS p95_ms,
            percentile_cont(0.99) WITHIN GROUP (ORDER BY execution_ms) AS p99_ms,
            max(execution_ms) AS max_ms
        FROM traces WHERE state <> 'ERROR' GROUP BY trace_date, model_id ORDER BY trace_date, model_id""",
    "errors": """
        SELECT trace_date, model_id, count(*) AS traces, count(*) FILTER (WHERE state = 'ERROR') AS errors,
            count(*) FILTER (WHERE state = 'ERROR') / count(*) AS error_rate
        FROM traces GROUP BY trace_date, model_id ORDER BY trace_date, model_id""",
    "feedback": """
        SELECT s.trace_date, t.model_id, s.name, count(*) AS n,
            count(*) FILTER (WHERE s.positive) AS positive, count(*) FILTER (WHERE NOT s.positive) AS negative,
            count(*) FILTER (WHERE s.positive) / nullif(count(s.positive), 0) AS positive_rate
        FROM (
            SELECT trace_id, trace_date, name, CASE
                WHEN value_number IS NOT NULL THEN value_number >= 0.5
                WHEN lower(value_text) IN ('yes', 'true', 'good', 'pass', 'positive', 'up', 'thumbs_up') THEN true
                WHEN lower(value_text) IN ('no', 'false', 'bad', 'fail', 'negative', 'down', 'thumbs_down') THEN false
            END AS positive
            FROM assessments WHERE valid AND kind = 'feedback' AND source_type = 'HUMAN' AND error IS NULL
        ) s JOIN traces t USING (trace_id, trace_date)
        GROUP BY s.trace_date, t.model_id, s.name ORDER BY s.trace_date, t.model_id, s.name""",
    "scorer_coverage": """
        SELECT s.trace_date, s.name, s.scorer_version, d.traces,
            count(*) FILTER (WHERE s.scored) AS scored, count(*) FILTER (WHERE NOT s.scored) AS errored,
            count(*) FILTER (WHERE s.not_applicable) AS not_applicable,
            count(*) FILTER (WHERE s.scored) / max(d.traces) AS coverage
        FROM (
            SELECT trace_date, name, scorer_version, trace_id,
                bool_or(error IS NULL) AS scored, bool_or(value_text = 'not applicable') AS not_applicable
            FROM assessments
            WHERE valid AND kind = 'feedback' AND source_type <> 'HUMAN' AND scorer_version IS NOT NULL
            GROUP BY trace_date, name, scorer_version, trace_id
        ) s JOIN (SELECT trace_date, count(*) AS traces FROM traces GROUP BY trace_date) d USING (trace_date)
        GROUP BY s.trace_date, s.name, s.scorer_version, d.traces
        ORDER BY s.trace_date, s.name, s.scorer_version""",
    "sessions": """
        SELECT session_id, max(nullif(user_id, '')) AS user_id, count(*) AS traces,
            min(request_time) AS started_at, max(request_time) AS last_at,
            count(*) FILTER (WHERE state = 'ERROR') AS errors, CAST(sum(execution_ms) AS BIGINT) AS execution_ms,
            CAST(sum(input_tokens) AS BIGINT) AS input_tokens, CAST(sum(output_tokens) AS BIGINT) AS output_tokens,
            sum(cost_usd) AS cost_usd
        FROM traces WHERE session_id <> '' GROUP BY session_id ORDER BY started_at, session_id""",
    "judge_cost": """
        SELECT a.trace_date, a.name, a.scorer_version, count(*) AS calls,
            coalesce(max(c.cost_per_call), 0.0) AS cost_per_call,
            count(*) * coalesce(max(c.cost_per_call), 0.0) AS cost_usd
        FROM assessments a LEFT JOIN scorer_costs c USING (name)
        WHERE a.kind = 'feedback' AND a.source_type <> 'HUMAN' AND a.scorer_version IS NOT NULL
        GROUP BY a.trace_date, a.name, a.scorer_version ORDER BY a.trace_date, a.name, a.scorer_version""",
}
"""View to its query. Judges and code scorers are assessments of a scorer's version; people are source HUMAN."""


def columns(table: str) -> dict[str, str]:
    """The columns of a table. Raises `ValueError` for a table that is not one of ours."""
    if table not in TABLES:
        raise ValueError(f"no table '{table}'; there are {', '.join(TABLES)}")
    return TABLES[table]


def is_partitioned(table: str) -> bool:
    """Whether a table is kept by day."""
    return PARTITION in columns(table)


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
