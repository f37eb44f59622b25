"""The lakehouse of the workspace: catalogs, schemas, tables and Databricks SQL, on DuckDB in memory.

Lives here: running a statement: what exists, who may, what a write reports.
Add here: a kind of statement. Not here: translation (`lake_sql.py`), HTTP (`statements.py`, `unity.py`).

A table `c.s.t` is DuckDB's table `t` in its schema `c.s`: DuckDB reserves catalog names that Databricks uses.
"""

import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb
from sqlglot import exp

from tests.workspace.app import Route, Workspace
from tests.workspace.lake_commands import Answer, command
from tests.workspace.lake_sql import MACROS, WrongSql, adapted, bound, duck_name, parsed, ticked, type_of
from tests.workspace.privileges import Privileges

_COUNTS = ("num_affected_rows", "num_updated_rows", "num_deleted_rows", "num_inserted_rows")


class Lake:
    """Catalogs, schemas and tables. A `main.agents` and a `main.default` are there from the start.

    `tables[name]` is `{table_id, owner, created_at, history}`, `history` a list of commits, newest last.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.privileges = Privileges()
        self.catalogs: dict[str, dict[str, Any]] = {}
        self.schemas: dict[str, dict[str, Any]] = {}
        self.volumes: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, dict[str, Any]] = {}
        self._lock = threading.RLock()
        self._duck = duckdb.connect(":memory:", config={"threads": 1})
        self._duck.execute("SET TimeZone = 'UTC'")
        self._duck.execute(MACROS)
        self.create_schema("main.agents")
        self.create_schema("main.default")

    def routes(self) -> list[Route]:
        """None: `statements.py` and `unity.py` are its faces."""
        return []

    def execute(self, sql: str, params: Any = ()) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Columns and rows of a statement; `params` is a mapping of names, or the API's list. As an administrator."""
        if isinstance(params, Mapping):
            params = [{"name": name, "value": value, "type": _sql_type(value)} for name, value in params.items()]
        was, self.privileges.unrestricted = self.privileges.unrestricted, True
        try:
            columns, rows = self.run(sql, params)
        finally:
            self.privileges.unrestricted = was
        return [column[0] for column in columns], rows

    def run(
        self, sql: str, params: Sequence[Mapping[str, Any]] = (), *, catalog: str = "main", schema: str = "default"
    ) -> Answer:
        """Columns as (name, type_name, type_text) and rows. Raises `WrongSql` as Databricks would answer."""
        text = re.sub(r"(?s)^\s*(?:/\*.*?\*/\s*|--[^\n]*\n\s*)*", "", sql).strip().rstrip(";").strip()
        with self._lock:
            answer = command(self, text, catalog, schema)
            if answer is not None:
                return answer
            return self._statement(text, params, catalog, schema)

    def create_schema(self, name: str) -> None:
        """A schema, and its catalog; no-op when there."""
        catalog = name.partition(".")[0].lower()
        self.catalogs.setdefault(catalog, {"name": catalog, "owner": self.privileges.me})
        if name.lower() not in self.schemas:
            self.schemas[name.lower()] = {"full_name": name.lower(), "owner": self.privileges.me}
            self._duck.execute(f'CREATE SCHEMA IF NOT EXISTS "{name.lower()}"')

    def create_table(self, full_name: str, columns: Mapping[str, str]) -> None:
        """A table with Databricks types, and its schema; no-op when there."""
        self.create_schema(full_name.rpartition(".")[0])
        listed = ", ".join(f"`{name}` {kind}" for name, kind in columns.items())
        self.execute(f"CREATE TABLE IF NOT EXISTS {ticked(full_name)} ({listed})")

    def insert(self, full_name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; a missing column is null. Structures may be given as dictionaries and lists."""
        with self._lock:
            for row in rows:
                names = ", ".join(f'"{name}"' for name in row)
                marks = ", ".join("?" for _ in row)
                self._duck.execute(f"INSERT INTO {duck_name(full_name)} ({names}) VALUES ({marks})", list(row.values()))
            self._commit(full_name.lower(), "WRITE")

    def rows(self, full_name: str) -> list[dict[str, Any]]:
        """Every row as a dictionary."""
        columns, rows = self.execute(f"SELECT * FROM {ticked(full_name)}")
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def has(self, full_name: str) -> bool:
        """Whether the table or view is there."""
        return full_name.lower() in self.tables

    def drop(self, full_name: str) -> None:
        """Remove a table; no-op when absent."""
        with self._lock:
            self._duck.execute(f"DROP TABLE IF EXISTS {duck_name(full_name)}")
            self.tables.pop(full_name.lower(), None)

    def columns(self, full_name: str) -> list[tuple[str, str, str]]:
        """(name, type_name, type_text) of a table."""
        with self._lock:
            described = self._duck.execute(f"SELECT * FROM {duck_name(full_name)} LIMIT 0").description
            return [(column[0], *type_of(column[1])) for column in described]

    def _statement(self, text: str, params: Sequence[Mapping[str, Any]], catalog: str, schema: str) -> Answer:
        values = {one["name"]: (one.get("value"), one.get("type") or "STRING") for one in params}
        query = re.match(r"DESC(?:RIBE)?\s+QUERY\s+", text, re.I)
        tree = bound(parsed(text[query.end() :] if query else text), values)
        if isinstance(tree, exp.Command | exp.Column | exp.Alias):
            raise WrongSql("PARSE_SYNTAX_ERROR", f"Syntax error at or near '{text[:40]}'. SQLSTATE: 42601")
        described = isinstance(tree, exp.Describe)
        written = _written(tree)
        target = ""
        named = {cte.alias for cte in tree.find_all(exp.CTE)}
        for table in list(tree.find_all(exp.Table)):
            if not isinstance(table.this, exp.Identifier) or (table.name in named and not table.db):
                continue
            full = self._qualified(table, catalog, schema)
            if table is written:
                target = full
            self.check(full, table, tree, written=table is written)
            table.set("catalog", None)
            table.set("db", exp.to_identifier(full.rpartition(".")[0], quoted=True))
            table.set("this", exp.to_identifier(full.rpartition(".")[2], quoted=True))
        for column in tree.find_all(exp.Column):
            column.set("db", None)
            column.set("catalog", None)
        try:
            if described:
                return _described(self.columns(".".join((tree.this.db, tree.this.name))))
            if query:
                cursor = self._duck.execute(f"SELECT * FROM ({_duck(tree)}) LIMIT 0")
                return _described([(column[0], *type_of(column[1])) for column in cursor.description])
            if target:
                return self._write(tree, target)
            cursor = self._duck.execute(_duck(tree))
            columns = [(column[0], *type_of(column[1])) for column in cursor.description]
            return columns, cursor.fetchall()
        except duckdb.Error as error:
            raise _translated(error) from None

    def _write(self, tree: exp.Expression, target: str) -> Answer:
        if isinstance(tree, exp.Drop):
            self._duck.execute(_duck(tree))
            self.tables.pop(target, None)
            return [], []
        if isinstance(tree, exp.Create | exp.Alter):
            if isinstance(tree, exp.Create) and tree.args.get("exists") and target in self.tables:
                return [], []
            if isinstance(tree, exp.Create) and target in self.tables and not tree.args.get("replace"):
                raise WrongSql("TABLE_OR_VIEW_ALREADY_EXISTS", f"Cannot create table or view {target}. SQLSTATE: 42P07")
            added = [schema for schema in tree.args.get("actions") or [] if isinstance(schema, exp.Schema)]
            for column in [column for schema in added for column in schema.expressions]:
                self._duck.execute(f"ALTER TABLE {duck_name(target)} ADD COLUMN {_duck(column)}")
            if not added:
                self._duck.execute(_duck(tree))
            self._commit(target, "CREATE TABLE" if isinstance(tree, exp.Create) else "ADD COLUMNS")
            return [], []
        counts = dict.fromkeys(_COUNTS, 0)
        self._duck.execute("BEGIN")
        try:
            where = tree.args.get("where") if isinstance(tree, exp.Insert) else None
            if where is not None or (isinstance(tree, exp.Insert) and tree.args.get("overwrite")):
                gone = f" WHERE {_duck(where)}" if where is not None else ""
                self._duck.execute(f"CREATE OR REPLACE TEMP TABLE replacing AS {_duck(tree.expression)}")
                tree.set("expression", exp.select("*").from_("replacing"))
                removed = self._duck.execute(f"DELETE FROM {duck_name(target)}{gone}").fetchall()
                counts["num_deleted_rows"] = removed[0][0]
                tree.set("where", None)
                tree.set("overwrite", None)
            if isinstance(tree, exp.Merge):
                for (action,) in self._duck.execute(_duck(tree) + " RETURNING merge_action").fetchall():
                    counts[{"INSERT": _COUNTS[3], "UPDATE": _COUNTS[1], "DELETE": _COUNTS[2]}[action]] += 1
            else:
                kind = {exp.Insert: _COUNTS[3], exp.Update: _COUNTS[1], exp.Delete: _COUNTS[2]}[type(tree)]
                counts[kind] += self._duck.execute(_duck(tree)).fetchall()[0][0]
            self._duck.execute("COMMIT")
        except BaseException:
            self._duck.execute("ROLLBACK")
            raise
        counts[_COUNTS[0]] = sum(counts[name] for name in _COUNTS[1:])
        self._commit(target, type(tree).__name__.upper().replace("INSERT", "WRITE"))
        shown = {exp.Merge: _COUNTS, exp.Insert: (_COUNTS[0], _COUNTS[3])}.get(type(tree), _COUNTS[:1])
        return [(name, "LONG", "BIGINT") for name in shown], [tuple(counts[name] for name in shown)]

    def _commit(self, target: str, operation: str) -> None:
        made = {"table_id": str(uuid.uuid4()), "owner": self.privileges.me, "created_at": int(time.time() * 1000)}
        history = self.tables.setdefault(target, {**made, "history": []})["history"]
        history.append((len(history), datetime.now(UTC), self.privileges.me, operation))

    def _qualified(self, table: exp.Table, catalog: str, schema: str) -> str:
        return ".".join((table.catalog or catalog, table.db or schema, table.name)).lower()

    def check(self, full: str, table: exp.Table, tree: exp.Expression, *, written: bool) -> None:
        """Raise what Databricks says when `full` is not there or may not be used so."""
        catalog, schema = full.split(".")[0], full.rpartition(".")[0]
        if catalog not in self.catalogs:
            raise WrongSql("NO_SUCH_CATALOG_EXCEPTION", f"Catalog '{catalog}' was not found. SQLSTATE: 42704")
        self.need("CATALOG", catalog, "USE_CATALOG")
        if schema not in self.schemas:
            raise WrongSql("SCHEMA_NOT_FOUND", f"The schema {ticked(schema)} cannot be found. SQLSTATE: 42704")
        self.need("SCHEMA", schema, "USE_SCHEMA")
        if written and isinstance(tree, exp.Create):
            if full not in self.tables:
                self.need("SCHEMA", schema, "CREATE_TABLE")
            return
        if full not in self.tables:
            if written and isinstance(tree, exp.Drop) and tree.args.get("exists"):
                return
            raise WrongSql(
                "TABLE_OR_VIEW_NOT_FOUND",
                f"The table or view {ticked(full)} cannot be found. Verify the spelling and correctness of the schema "
                "and catalog. SQLSTATE: 42P01",
            )
        self.need("TABLE", full, "MODIFY" if written else "SELECT")

    def need(self, kind: str, name: str, privilege: str) -> None:
        if not self.privileges.allowed(kind, name, privilege):
            raise WrongSql(
                "INSUFFICIENT_PERMISSIONS",
                f"Insufficient privileges:\nUser does not have {privilege.replace('_', ' ')} on {kind.capitalize()} "
                f"'{name}'. SQLSTATE: 42501",
            )

    def exists(self, kind: str, name: str) -> bool:
        """Whether a securable that the lake keeps is there; functions (models) are kept by others."""
        places = {"CATALOG": self.catalogs, "SCHEMA": self.schemas, "TABLE": self.tables, "VOLUME": self.volumes}
        return name.lower() in places.get(kind.upper(), {name.lower(): {}})


def _written(tree: exp.Expression) -> exp.Table | None:
    """The table a statement writes, None for a query."""
    if isinstance(tree, exp.Create | exp.Drop | exp.Alter | exp.Merge | exp.Insert | exp.Update | exp.Delete):
        target = tree.args["tables"][0] if tree.args.get("tables") else tree.this
        return target.this if isinstance(target, exp.Schema) else target
    return None


def _duck(tree: exp.Expression) -> str:
    return adapted(tree).sql(dialect="duckdb", unsupported_level=None)


def _described(columns: list[tuple[str, str, str]]) -> Answer:
    names = [(name, "STRING", "STRING") for name in ("col_name", "data_type", "comment")]
    return names, [(name, text.lower(), None) for name, _, text in columns]


def _translated(error: duckdb.Error) -> WrongSql:
    text = " ".join(str(error).split())[:500]
    if isinstance(error, duckdb.BinderException):
        return WrongSql("UNRESOLVED_COLUMN.WITH_SUGGESTION", f"{text} SQLSTATE: 42703")
    if isinstance(error, duckdb.ConversionException):
        return WrongSql("CAST_INVALID_INPUT", f"{text} SQLSTATE: 22018")
    if isinstance(error, duckdb.CatalogException):
        return WrongSql("UNRESOLVED_ROUTINE", f"{text} SQLSTATE: 42883")
    if "more than one source row" in text:
        return WrongSql("DELTA_MULTIPLE_SOURCE_ROW_MATCHING_TARGET_ROW_IN_MERGE", f"{text} SQLSTATE: 21506")
    return WrongSql("INTERNAL_ERROR", text)


def _sql_type(value: Any) -> str:
    return {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE"}.get(type(value), "STRING")
