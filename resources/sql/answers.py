"""What the views say of one version of the tables, worked out once.

Lives here: which columns views read, holding those in memory, and the views' answers made from them.
Add here: nothing for a new view: what it reads is found in its text.
Not here: the views (`views.py`), when tables must be read anew (`database.py`), one table's files (`files.py`).

A day that is archived in small steps has hundreds of small files, and opening one costs as much as reading thousands
of rows. So the columns that views read are read once into memory, smallest files first. Where that is all of them,
views are answered once too, the copy is given up, and asking one reads its answer; else views read the copy and the
files beyond it.
"""

import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from resources.sql.files import Held, files_sql, paths_of, typed
from resources.sql.views import VIEWS
from resources.tables import TABLES

if TYPE_CHECKING:
    import duckdb


def _word(name: str, sql: str) -> bool:
    return re.search(rf"\b{name}\b", sql) is not None


READS = {view: frozenset(table for table in TABLES if _word(table, sql)) for view, sql in VIEWS.items()}
"""View to the tables it reads."""

VIEWED = frozenset().union(*READS.values())
"""The tables that views read."""

COLUMNS = {
    table: tuple(
        name for name in TABLES[table] if any(_word(name, VIEWS[view]) for view in VIEWS if table in READS[view])
    )
    for table in VIEWED
}
"""Such a table to the columns that views can mean, which are no payloads."""

_TOGETHER = 4
"""Statements at a time: many of them keep one thread busy only, and some wait for what they read."""


def answer(con: "duckdb.DuckDBPyConnection", tables: Mapping[str, Held], *, alike: bool) -> bool:
    """Make all views in a database that is not locked yet; whether each is its rows, and reads nothing any more.

    Tables that delta-rs reads must be there by name already.
    Raises DuckDB's errors of files that cannot be read.
    """
    con.execute("CREATE SCHEMA held")
    # In order, each file would become a part of its own in memory, which takes twice as long.
    con.execute("SET GLOBAL preserve_insertion_order = false")
    # Statements beside each other keep both cores busy, and one that does not share its work has less of it.
    con.execute("SET GLOBAL threads = 1")
    with ThreadPoolExecutor(_TOGETHER) as pool:
        read = [table for table in sorted(VIEWED) if paths_of(tables[table].target) is not None]
        held = {table: pool.submit(_hold, con.cursor(), table, tables[table], alike=alike) for table in read}
        # First those that wait for few tables.
        views = sorted(VIEWS, key=lambda one: len(READS[one]))
        said = [pool.submit(_say, con.cursor(), view, held) for view in views if READS[view] <= held.keys()]
    answered = [one.result() for one in said]
    for view in views:
        if not READS[view] <= held.keys():  # A cursor of its own would not see the table that delta-rs reads.
            answered.append(_say(con, view, held))
    if all(answered):
        con.execute("DROP SCHEMA held CASCADE")
    con.execute("SET GLOBAL threads = 2")
    con.execute("SET GLOBAL preserve_insertion_order = true")
    return all(answered)


def _hold(con: "duckdb.DuckDBPyConnection", table: str, held: Held, *, alike: bool) -> bool:
    """Make `held.<table>`: what views read of it. Whether all its rows are in memory."""
    import duckdb

    paths = paths_of(held.target)
    columns = typed(table, held.target, COLUMNS[table])
    if not paths:
        con.execute(f"CREATE TABLE held.{table} AS SELECT {columns} WHERE false")
        return True
    inside, beyond = held.split(paths)
    try:
        _copy(con, table, columns, inside, beyond, alike=alike)
    except duckdb.BinderException:
        # The first file was written before the table had its newest columns.
        _copy(con, table, columns, inside, beyond, alike=False)
    return not beyond


def _copy(
    con: "duckdb.DuckDBPyConnection", table: str, columns: str, inside: list[str], beyond: list[str], *, alike: bool
) -> None:
    name = f"{table}_copy" if beyond else table
    if inside:
        files = files_sql(table, inside, alike=alike)
        con.execute(f"CREATE OR REPLACE TABLE held.{name} AS SELECT {columns} FROM {files}")  # noqa: S608
    if beyond:
        copied = f"FROM held.{name} UNION ALL " if inside else ""
        files = files_sql(table, beyond, alike=alike)
        con.execute(f"CREATE VIEW held.{table} AS {copied}SELECT {columns} FROM {files}")  # noqa: S608


def _say(con: "duckdb.DuckDBPyConnection", view: str, held: Mapping[str, Future[bool]]) -> bool:
    """Make a view: its rows when all it reads is in memory, else its query. Whether it is its rows."""
    whole = [table in held and held[table].result() for table in READS[view]]
    instead = ", ".join(
        f"{table} AS NOT MATERIALIZED (FROM held.{table})" for table in sorted(READS[view] & held.keys())
    )
    made = f"CREATE {'TABLE' if all(whole) else 'VIEW'} {view} AS "
    con.execute(f"{made} {'WITH ' if instead else ''}{instead} {VIEWS[view]}")
    return all(whole)
