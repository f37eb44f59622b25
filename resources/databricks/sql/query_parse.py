"""SQL text read by sqlglot.

Lives here: one statement out of a text, and its markers for values. The product's own SQL and that of
`lifecycle query` is DuckDB's; a query with backticks is taken as Databricks SQL.
Add here: another way to mark a value. Not here: what the names mean (`dialect.py`), which statements are answered.
"""

import logging
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from lifecycle_assets.refused import Refused
from resources.sql.guard import wrong_sql

if TYPE_CHECKING:
    from sqlglot import exp

_LITERAL = re.compile(r"'(?:[^']|'')*'")


def parsed(sql: str, count: int) -> "exp.Expression":
    """The one statement in `sql`, its `count` question marks as `:p1`, `:p2`, …; yours to change.

    Raises `Refused` when it is wrong SQL, not one statement, or has another number of markers.
    """
    return _read(sql, count).copy()


@lru_cache(maxsize=128)
def _read(sql: str, count: int) -> "exp.Expression":
    import sqlglot
    from sqlglot import exp
    from sqlglot.dialects.dialect import Dialect
    from sqlglot.errors import SqlglotError
    from sqlglot.tokens import TokenType

    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # It warns of every statement that we refuse by ourselves.
    dialect = "databricks" if "`" in _LITERAL.sub("", sql) else "duckdb"
    try:
        text, sign = sql, "$" if dialect == "duckdb" else ":"
        tokens = Dialect.get_or_raise(dialect).tokenize(sql)
        asked = [token for token in tokens if token.token_type == TokenType.PLACEHOLDER and token.text == "?"]
        for number, token in reversed(list(enumerate(asked, start=1))):
            text = f"{text[: token.start]}{sign}p{number}{text[token.end + 1 :]}"
        statements = [one for one in sqlglot.parse(text, read=dialect) if one is not None]
    except SqlglotError as error:
        said = getattr(error, "errors", None) or [{"description": str(error), "line": 1, "col": 1}]
        where = f"line {said[0].get('line')}, column {said[0].get('col')}"
        raise wrong_sql(ValueError(f"Parser Error: {said[0].get('description')} ({where})"), sql) from None
    if len(statements) != 1:
        raise Refused(f"One statement is expected, {len(statements)} were given: send them one by one.")
    tree = statements[0].transform(
        lambda node: exp.Placeholder(this=node.name) if isinstance(node, exp.Parameter) else node
    )
    known = {f"p{number}" for number in range(1, len(asked) + 1)}
    beyond = [mark for mark in tree.find_all(exp.Placeholder) if mark.name not in known]
    if beyond or len(asked) != count:
        raise Refused(f"The query has {len(asked) + len(beyond)} markers for values, {count} values are given.")
    return tree
