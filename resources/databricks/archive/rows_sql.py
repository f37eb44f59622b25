"""Rows that this process makes, as SQL: a day's numbers replaced, a promotion appended; and the tables themselves.

Lives here: CREATE TABLE of the contract, and merges of few rows that are written out in the statement.
Add here: another way a table is given rows from here.
Not here: rows made of traces (`archive_sql.py`), running a statement (`archive.py`).
"""

# ruff: noqa: S608 - SQL of names and numbers of ours; every text of others is a parameter.

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from resources.databricks.sql.dialect import TYPES
from resources.databricks.sql.statements import ticked
from resources.tables import KEYS, PARTITION, arrow_table, columns, is_partitioned


def create(name: str, table: str) -> str:
    """CREATE TABLE IF NOT EXISTS of a table of the contract."""
    listed = ", ".join(f"`{column}` {TYPES[kind]}" for column, kind in columns(table).items())
    by = f" PARTITIONED BY (`{PARTITION}`)" if is_partitioned(table) else ""
    return f"CREATE TABLE IF NOT EXISTS {ticked(name)} ({listed}) USING DELTA{by}"


def replace_rows(
    prefix: str, table: str, day: date, rows: Sequence[Mapping[str, Any]]
) -> tuple[str, str, dict[str, str]]:
    """The query that counts (operation, known, n), the merge, and their parameters: `rows` become the rows of `day`."""
    names, target = list(columns(table)), ticked(prefix + table)
    values, parameters = _values(table, [{**row, PARTITION: day} for row in rows])
    joined = " AND ".join(f"h.`{key}` IS NOT DISTINCT FROM n.`{key}`" for key in KEYS[table])
    same = " AND ".join(f"n.`{name}` IS NOT DISTINCT FROM h.`{name}`" for name in names)
    new = f"(SELECT * FROM {values}) AS n" if rows else f"(SELECT * FROM {target} WHERE false) AS n"
    there = f"(SELECT * FROM {target} WHERE `{PARTITION}` = DATE'{day}') AS h"
    changes = (
        f"SELECT 'write' AS operation, h.`{PARTITION}` IS NOT NULL AS known, "
        f"{', '.join(f'n.`{name}`' for name in names)} "
        f"FROM {new} LEFT JOIN {there} ON {joined} WHERE h.`{PARTITION}` IS NULL OR NOT ({same}) UNION ALL "
        f"SELECT 'remove' AS operation, true AS known, {', '.join(f'h.`{name}`' for name in names)} "
        f"FROM {there} LEFT JOIN {new} ON {joined} WHERE n.`{PARTITION}` IS NULL"
    )
    on = " AND ".join(f"t.`{key}` IS NOT DISTINCT FROM s.`{key}`" for key in KEYS[table])
    merge = (
        f"MERGE INTO {target} AS t USING ({changes}) AS s ON t.`{PARTITION}` = DATE'{day}' AND {on} "
        "WHEN MATCHED AND s.operation = 'remove' THEN DELETE "
        f"WHEN MATCHED THEN UPDATE SET {', '.join(f'`{name}` = s.`{name}`' for name in names)} "
        f"WHEN NOT MATCHED THEN INSERT ({', '.join(f'`{name}`' for name in names)}) "
        f"VALUES ({', '.join(f's.`{name}`' for name in names)})"
    )
    counts = f"SELECT operation, known, count(*) AS n FROM ({changes}) AS changes GROUP BY operation, known"
    return counts, merge, parameters


def append_row(prefix: str, table: str, row: Mapping[str, Any], key: Sequence[str]) -> tuple[str, str, dict[str, str]]:
    """The query that counts rows with the key of `row`, the merge that appends it, and their parameters."""
    values, parameters = _values(table, [row])
    names, target = list(columns(table)), ticked(prefix + table)
    same = " AND ".join(f"t.`{name}` IS NOT DISTINCT FROM s.`{name}`" for name in key)
    merge = (
        f"MERGE INTO {target} AS t USING (SELECT * FROM {values}) AS s ON {same} "
        f"WHEN NOT MATCHED THEN INSERT ({', '.join(f'`{name}`' for name in names)}) "
        f"VALUES ({', '.join(f's.`{name}`' for name in names)})"
    )
    return f"SELECT count(*) AS n FROM {target} AS t JOIN (SELECT * FROM {values}) AS s ON {same}", merge, parameters


def _values(table: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """An inline table of rows: every text once as a parameter, all else written out."""
    kinds, parameters = columns(table), {}
    named: dict[str, str] = {}

    def literal(value: Any, kind: str) -> str:
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return f"CAST(NULL AS {kind})"
        if isinstance(value, datetime):
            return f"CAST('{value.astimezone(UTC).replace(tzinfo=None).isoformat()}Z' AS {kind})"
        if isinstance(value, str):
            name = named.setdefault(value, f"text_{len(named)}")
            parameters[name] = value
            return f"CAST(:{name} AS {kind})"
        return f"CAST('{value}' AS {kind})"

    listed = arrow_table(table, rows).to_pylist()
    lines = ", ".join(
        f"({', '.join(literal(row[name], TYPES[kind]) for name, kind in kinds.items())})" for row in listed
    )
    return f"(VALUES {lines}) AS v({', '.join(f'`{name}`' for name in kinds)})", parameters
