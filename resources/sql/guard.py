"""Which SQL is answered: one statement that only reads.

Lives here: telling a query from everything else, and DuckDB's errors as refusals.
Add here: a kind of statement that must not be answered.
Not here: what a query can reach (`engine.py`: files, settings and extensions are locked there).

DuckDB 2 lets a CTE write (`WITH x AS (COPY … TO …)`) and calls that a SELECT, and EXPLAIN ANALYZE runs what it
explains. So the kind of the statement is not enough: the parsed statement is looked through.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from resources.sql.views import VIEWS
from resources.tables import TABLES

if TYPE_CHECKING:
    import duckdb

_READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_BLANK = r"(?:\s|/\*.*?\*/|--[^\n]*(?:\n|$))*"
_WHOLE = re.compile(r"\s*(?:select\s+\*\s+)?from\s+(\w+)\s*;?\s*", re.IGNORECASE)
"""A table or view as it is: words that cannot write, whatever is called so."""
_EXPLAIN = re.compile(rf"{_BLANK}explain\b{_BLANK}(?:analyze\b|\([^)]*\))?", re.IGNORECASE | re.DOTALL)


def refuse_unless_query(con: "duckdb.DuckDBPyConnection", sql: str) -> None:
    """Raise `Refused` unless `sql` is one statement that only reads. `con` parses it and runs nothing of it."""
    import duckdb

    if _WHOLE.fullmatch(sql):
        return None
    try:
        statements = con.extract_statements(sql)
    except duckdb.Error as error:
        raise wrong_sql(error, sql) from None
    if len(statements) != 1:
        raise Refused(f"One statement is expected, {len(statements)} were given: send them one by one.")
    kind = statements[0].type.name
    if kind == "EXPLAIN":
        explained_sql = _EXPLAIN.sub("", sql, count=1)
        if explained_sql != sql:
            return refuse_unless_query(con, explained_sql)
    if kind != "SELECT" or not _only_reads(con, sql):
        raise Refused(
            f"Only queries are answered, this is {kind if kind != 'SELECT' else 'a query that writes'}: "
            "use SELECT, WITH, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN."
        )
    return None


def whole_view(sql: str) -> str:
    """The view that a query asks as it is, empty when it asks something else."""
    found = _WHOLE.fullmatch(sql)
    return found[1].lower() if found and found[1].lower() in VIEWS else ""


def _only_reads(con: "duckdb.DuckDBPyConnection", sql: str) -> bool:
    tree = json.loads(con.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])
    return not tree["error"] and _nodes(tree) <= _READING


def _nodes(tree: Any) -> set[str]:
    """The kinds of query nodes in a parsed statement, at any depth."""
    found, rest = set(), [tree]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            kind = part.get("type")
            if isinstance(kind, str) and kind.endswith("_NODE"):
                found.add(kind)
            rest += part.values()
        elif isinstance(part, list):
            rest += part
    return found


def wrong_sql(error: Exception, sql: str) -> Refused:
    """DuckDB's message in one line, and what there is to ask for."""
    text = " ".join(str(error).split())[:600].rstrip(".")
    hint = f"Tables: {', '.join(TABLES)}; views: {', '.join(VIEWS)}."
    if "Parser Error" in text and re.search(r"\bat\b", sql, re.IGNORECASE):
        hint = 'The column at of promotions is also a keyword: write "at". ' + hint
    return Refused(f"{text}. {hint}")
