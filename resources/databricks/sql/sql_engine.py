"""SQL over the agent's tables and views: the SQL warehouse, read-only.

Lives here: `WarehouseSqlEngine`: translating, asking, and telling a table that was never written from one that cannot
be read.
Add here: a further limit on queries. Not here: the translation (`dialect.py`), sending (`statements.py`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lifecycle_assets.refused import Refused
from resources.databricks.faults import message
from resources.databricks.sql.dialect import COSTS, Question, translate
from resources.databricks.sql.sql_results import Answer
from resources.databricks.sql.statements import StatementFailed, run_statement, ticked
from resources.databricks.workspace import open_workspace
from resources.explain import explained
from resources.platform import Platform
from resources.sql.engine import SqlEngine, SqlResult
from resources.sql.views import VIEWS
from resources.tables import TABLES

_SHOW = re.compile(r"\s*SHOW\s+(ALL\s+)?TABLES\s*;?\s*", re.IGNORECASE)
_ABSENT = re.compile(r"cannot be found|does not exist|not found", re.IGNORECASE)


class WarehouseSqlEngine(SqlEngine):
    """Queries by the Statement Execution API as the caller, who needs SELECT; `timeout_seconds` bounds one query.

    A warehouse that was stopped starts within that time.
    """

    def __init__(self, platform: Platform, *, timeout_seconds: float = 300) -> None:
        self._platform = platform
        self._timeout = timeout_seconds

    def query(
        self,
        prefix: str,
        sql: str,
        params: Sequence[Any] = (),
        *,
        limit: int = 10_000,
        costs: Mapping[str, float] | None = None,
    ) -> SqlResult:
        """See `SqlEngine.query`. Repeating a query changes nothing."""
        if _SHOW.fullmatch(sql):
            return SqlResult(("name",), tuple((name,) for name in sorted((*TABLES, *VIEWS, COSTS))))
        question = translate(sql, params, prefix=prefix, costs=costs)
        try:
            answer = self._ask(question, limit)
        except StatementFailed as failure:
            absent = self._absent(prefix, question.tables) if _says_absent(failure) else ()
            if not absent:
                raise
            question = translate(sql, params, prefix=prefix, costs=costs, absent=absent)
            answer = self._ask(question, limit)
        if question.described:
            described = tuple(zip(answer.columns, answer.types, strict=True))
            return SqlResult(("column_name", "column_type"), described[:limit], len(described) > limit)
        return SqlResult(answer.columns, answer.rows, answer.truncated)

    def tables(self, prefix: str) -> dict[str, int]:
        """See `SqlEngine.tables`. One statement; Delta answers it from its log."""
        counts = " UNION ALL ".join(f"SELECT '{table}' AS name, count(*) AS n FROM {table}" for table in TABLES)  # noqa: S608
        found = dict(self.query(prefix, counts).rows)
        return {table: found[table] for table in TABLES}

    def _ask(self, question: Question, limit: int) -> Answer:
        if question.described:
            limited = f"SELECT * FROM ({question.sql}) AS described LIMIT 0"  # noqa: S608 a query that was let through
            return run_statement(self._platform, limited, question.params, timeout_seconds=self._timeout)
        return run_statement(self._platform, question.sql, question.params, limit=limit, timeout_seconds=self._timeout)

    def _absent(self, prefix: str, tables: Iterable[str]) -> tuple[str, ...]:
        """Which of these tables were never written; see `absent_tables`."""
        names = absent_tables(self._platform, [prefix + table for table in tables])
        return tuple(table for table in TABLES if prefix + table in names)


def absent_tables(platform: Platform, names: Sequence[str]) -> set[str]:
    """Those of `names` (`catalog.schema.table`) that are not there.

    Raises `Refused` when their catalog or schema is not there or may not be looked into: then nobody knows.
    """
    from databricks.sdk.errors import NotFound

    w = open_workspace(platform)
    with explained("databricks"):
        for schema in dict.fromkeys(name.rpartition(".")[0] for name in names):
            try:
                w.schemas.get(schema)
            except NotFound as error:
                if _code(error) == "ENDPOINT_NOT_FOUND":
                    raise
                catalog = schema.partition(".")[0]
                missing = f"CATALOG {ticked(catalog)}" if "CATALOG" in _code(error) else f"SCHEMA {ticked(schema)}"
                raise Refused(
                    f"The tables of {schema} cannot be read ({message(error)[:200]}): run CREATE {missing}, or correct "
                    "archive.table_prefix in defs.yaml."
                ) from error
        absent = set()
        for name in names:
            try:
                there = w.tables.exists(name).table_exists
            except NotFound as error:
                if _code(error) == "ENDPOINT_NOT_FOUND":
                    raise
                there = False  # The schema is there, so it is the table that is not.
            if not there:
                absent.add(name)
    return absent


def _code(error: Exception) -> str:
    return str(getattr(error, "error_code", "") or "")


def _says_absent(failure: StatementFailed) -> bool:
    """Whether the failure may be that of a table that is not there: then the catalog is asked, which knows."""
    return failure.condition == "TABLE_OR_VIEW_NOT_FOUND" or bool(_ABSENT.search(str(failure)))
