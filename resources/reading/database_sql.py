"""What the database's reader asks: the tables of MLflow's store behind production traces.

Lives here: queries, with the types of their columns.
Add here: a column of the store that a row needs; then test it with every revision of `database.KNOWN_REVISIONS`.
Not here: connections (`database.py`), making rows of the answers (`span_columns.py`, `head_columns.py`).

Rows of some traces are looked up by their ids, which come as one parameter, so that a page costs what is in it
however much is stored. Numbers in a text are ours; nothing else is put into one.
"""

# ruff: noqa: S608 - SQL of names and numbers of ours; ids are a parameter.

from resources.reading.database import Database, Query
from resources.trace_rows import COPIES

Column = tuple[str, str, str]
"""Expression, name, and kind: `i` a whole number, `f` a number, `s` text."""

USAGE = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "cache_creation_input_tokens_above_1hr",
)
"""Columns of `trace_info` that MLflow gives as the metadata `mlflow.trace.tokenUsage`, in its order."""

COST = ("input_cost", "output_cost", "total_cost")
"""Columns of `trace_info` that MLflow gives as the metadata `mlflow.trace.cost`, in its order."""

PROMOTED = ("mlflow.trace.session", "mlflow.trace.tokenUsage", "mlflow.trace.cost")
"""Metadata that MLflow keeps in columns of `trace_info`; a row of the same key is not read."""

SPANS_AT = "mlflow.trace.spansLocation"
"""Tag that says where a trace keeps its spans."""

_HEADS: tuple[Column, ...] = (
    ("t.request_id", "trace_id", "s"),
    ("t.timestamp_ms", "request_ms", "i"),
    ("t.execution_time_ms", "execution_ms", "i"),
    ("t.status", "state", "s"),
    ("t.client_request_id", "client_request_id", "s"),
    ("t.request_preview", "request_preview", "s"),
    ("t.response_preview", "response_preview", "s"),
    ("t.trace_name", "trace_name", "s"),
    ("t.session_id", "session_id", "s"),
    *((f"t.{name}", name, "i") for name in USAGE),
    *((f"t.{name}", name, "f") for name in COST),
)
_PAIRS: tuple[Column, ...] = (("t.key", "key", "s"), ("t.value", "value", "s"))
_SPANS: tuple[Column, ...] = (
    ("t.span_id", "span_id", "s"),
    ("t.parent_span_id", "parent_span_id", "s"),
    ("t.status", "status", "s"),
    ("t.start_time_unix_nano", "start_ns", "i"),
    ("t.end_time_unix_nano", "end_ns", "i"),
    ("t.content", "content", "s"),
)
ASSESSMENT: tuple[Column, ...] = (
    *((f"t.{name}", name, "s") for name in ("assessment_id", "trace_id", "name", "assessment_type", "value", "error")),
    ("t.created_timestamp", "created_timestamp", "i"),
    ("t.last_updated_timestamp", "last_updated_timestamp", "i"),
    *((f"t.{name}", name, "s") for name in ("source_type", "source_id", "run_id", "span_id", "rationale", "overrides")),
    ("CASE WHEN t.valid THEN 1 WHEN NOT t.valid THEN 0 END", "valid", "i"),
    ("t.assessment_metadata", "assessment_metadata", "s"),
)
"""Columns of `assessments`, by the names MLflow has for them."""


def heads(database: Database, experiment_id: int) -> Query:
    """Rows of `trace_info` of listed ids."""
    return _of_ids(database, "trace_info", "request_id", _HEADS, f"t.experiment_id = {experiment_id}")


def tags(database: Database) -> Query:
    """Tags of listed ids, without the name, which is a column."""
    return _of_ids(database, "trace_tags", "request_id", _PAIRS, "t.key <> 'mlflow.traceName'")


def metadata(database: Database, *beside: str) -> Query:
    """Metadata of listed ids, without what is promoted to columns, and without these keys."""
    promoted = ", ".join(f"'{name}'" for name in (*PROMOTED, *beside))
    return _of_ids(database, "trace_request_metadata", "request_id", _PAIRS, f"t.key NOT IN ({promoted})")


def spans(database: Database) -> Query:
    """Spans of listed ids."""
    return _of_ids(database, "spans", "trace_id", _SPANS)


def assessments(database: Database) -> Query:
    """Assessments of listed ids."""
    return _of_ids(database, "assessments", "trace_id", ASSESSMENT)


def said(database: Database, experiment_id: int) -> Query:
    """What rows of listed ids follow from but for spans, as one text a trace. In the words of SQLite.

    JSON, so that no two of them look the same, of which SQLite refuses blobs; numbers that are no whole ones would
    lose digits.
    """
    head = [
        f"quote({expression})" if kind == "f" else f"CAST({expression} AS TEXT)"
        for expression, name, kind in _HEADS
        if name not in ("request_preview", "response_preview")
    ]
    pairs = "json_group_object(p.key, CAST(p.value AS TEXT))"
    assessment = ", ".join(f"CAST({expression} AS TEXT)" for expression, _, _ in ASSESSMENT)
    copies = ", ".join(f"'{name}'" for name in COPIES)
    parts = (
        f"json_array({', '.join(head)})",
        f"(SELECT {pairs} FROM trace_tags AS p WHERE p.request_id = j.value)",
        f"(SELECT {pairs} FROM trace_request_metadata AS p WHERE p.request_id = j.value AND p.key NOT IN ({copies}))",
        f"(SELECT json_group_array(json_array({assessment})) FROM assessments AS t WHERE t.trace_id = j.value)",
    )
    # As bytes, since what is no text of its own need not be one.
    columns: tuple[Column, ...] = ((f"CAST({' || '.join(parts)} AS BLOB)", "said", "s"),)
    return _of_ids(database, "trace_info", "request_id", columns, f"t.experiment_id = {experiment_id}")


def listing(database: Database, experiment_id: int, since_ms: int, until_ms: int) -> Query:
    """Finished production traces that started in a range, with their ends; as the filter `trace_reader.PRODUCTION`."""
    columns: tuple[Column, ...] = (
        ("t.request_id", "trace_id", "s"),
        ("t.timestamp_ms", "request_ms", "i"),
        ("t.timestamp_ms + coalesce(t.execution_time_ms, 0)", "ended_ms", "i"),
    )
    return _query(
        columns,
        f"SELECT {_selected(columns)} FROM trace_info AS t "
        f"WHERE t.experiment_id = {experiment_id} AND t.timestamp_ms >= {since_ms} AND t.timestamp_ms < {until_ms} "
        "AND t.status <> 'IN_PROGRESS' AND NOT EXISTS (SELECT 1 FROM trace_request_metadata AS m "
        "WHERE m.request_id = t.request_id AND m.key = 'mlflow.sourceRun')",
    )


def _of_ids(database: Database, table: str, key: str, columns: tuple[Column, ...], where: str = "") -> Query:
    listed: tuple[Column, ...] = (("j.nth", "nth", "i"), *columns)
    return _query(
        listed,
        f"SELECT {_selected(listed)} "
        f"FROM {database.ids} {database.join} {table} AS t ON t.{key} = j.value{f' WHERE {where}' if where else ''}",
    )


def _query(columns: tuple[Column, ...], sql: str) -> Query:
    return Query(sql, tuple((name, kind) for _, name, kind in columns))


def _selected(columns: tuple[Column, ...]) -> str:
    return ", ".join(f"{expression} AS {name}" for expression, name, _ in columns)
