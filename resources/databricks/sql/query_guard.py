"""Which parsed queries a SQL warehouse is asked: those that only read the agent's tables.

Lives here: telling a query from everything else, and functions that reach beyond the tables.
Add here: a function of Databricks that reads files, secrets or the network, costs money, or runs code.
Not here: which tables are the agent's (`dialect.py`), the same for DuckDB (`resources/sql/guard.py`).
"""

from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused

if TYPE_CHECKING:
    from sqlglot import exp

_BEYOND = (
    "ai_",
    "cloud_files",
    "event_log",
    "getenv",
    "getvariable",
    "http_",
    "identifier",
    "java_method",
    "list_secrets",
    "query",
    "read_",
    "reflect",
    "remote_",
    "secret",
    "sql_keywords",
    "table_changes",
    "try_reflect",
    "try_secret",
    "vector_search",
)
"""How the names of functions begin that reach beyond the tables."""

_ROWS = ("explode", "generate_series", "inline", "posexplode", "range", "sequence", "stack", "unnest")
"""Functions that may stand in FROM."""


def refuse_unless_reading(tree: "exp.Expression") -> None:
    """Raise `Refused` unless `tree` is a query whose parts only read."""
    from sqlglot import exp

    found = tree.find(exp.DML, exp.DDL, exp.Command, exp.Drop, exp.Alter, exp.Copy, exp.Into, exp.Set, exp.Use)
    if found is not None and found is not tree:
        raise _no_query("a query that writes")
    if found is not None or not isinstance(tree, exp.Query | exp.Values):
        raise _no_query(type(tree).__name__)
    for table in tree.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier) and not _name(table.this).startswith(_ROWS):
            raise Refused(
                f"The function {_name(table.this)[:60]} reads beyond the agent's tables: use tables and views."
            )
    for function in tree.find_all(exp.Func):
        if _name(function).startswith(_BEYOND):
            raise Refused(f"The function {_name(function)[:60]} reaches beyond the agent's tables and is not answered.")
    for dotted in tree.find_all(exp.Dot):
        if isinstance(dotted.expression, exp.Func):
            raise Refused(f"Functions of a catalog are not answered: leave out {_name(dotted.expression)[:60]}.")


def _name(function: Any) -> str:
    from sqlglot import exp

    if isinstance(function, exp.Anonymous):
        return str(function.name).lower()
    return function.sql_name().lower() if isinstance(function, exp.Func) else type(function).__name__.lower()


def _no_query(what: str) -> Refused:
    kind = what if " " in what else what.upper()
    return Refused(f"Only queries are answered, this is {kind}: use SELECT, WITH, DESCRIBE, SHOW TABLES or EXPLAIN.")
