"""Questions in the product's SQL, as a SQL warehouse understands them.

Lives here: translating one query and resolving the names it uses.
Add here: a form that sqlglot carries over wrongly.
Not here: reading SQL (`query_parse.py`), which of it is answered (`query_guard.py`), the views (`resources/tables.py`).

Tables become `catalog`.`schema`.`prefix_table`, a view becomes its query in parentheses, a table that is not there
becomes a query without rows. Values stay parameters: `?` becomes `:p1`, `:p2`, ….
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from resources.databricks.sql.query_guard import refuse_unless_reading
from resources.databricks.sql.query_parse import parsed
from resources.sql.guard import wrong_sql
from resources.sql.views import VIEWS
from resources.tables import TABLES

if TYPE_CHECKING:
    from sqlglot import exp

TYPES = {
    "VARCHAR": "STRING",
    "BIGINT": "BIGINT",
    "DOUBLE": "DOUBLE",
    "BOOLEAN": "BOOLEAN",
    "DATE": "DATE",
    "TIMESTAMPTZ": "TIMESTAMP",
    "MAP(VARCHAR, VARCHAR)": "MAP<STRING, STRING>",
}
"""Type of a column in the contract to its type in Databricks."""

COSTS = "scorer_costs"
"""The table of prices that the engine is given with a query."""

_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(?:ANALYZE\s+)?(?=\w|\()", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """SQL for the warehouse, the values of its `:name` markers, and which of the agent's tables it reads.

    `described`: not the rows are asked for but their columns.
    """

    sql: str
    params: dict[str, Any]
    tables: tuple[str, ...]
    described: bool = False


def translate(
    sql: str,
    params: Sequence[Any],
    *,
    prefix: str,
    costs: Mapping[str, float] | None = None,
    absent: Sequence[str] = (),
) -> Question:
    """`sql` for the tables of `prefix`. Raises `Refused` when it is no query, is wrong SQL or names another table.

    `params` are bound to `?`; a list may only be asked whether it contains something. `absent` are the tables that
    are not there. `costs` maps registered scorer names to USD a call.
    """
    from sqlglot import exp

    explain = _EXPLAIN.match(sql)
    tree = parsed(sql[explain.end() :] if explain else sql, len(params))
    described = isinstance(tree, exp.Describe)
    if isinstance(tree, exp.Describe):
        tree = tree.this if isinstance(tree.this, exp.Query) else exp.select("*").from_(tree.this.copy())
    refuse_unless_reading(tree)
    names = _Names(prefix, costs or {}, frozenset(absent))
    tree = names.resolved(tree, sql)
    values = {f"p{number}": value for number, value in enumerate(params, start=1)}
    tree, values = _without_lists(tree.transform(_carried_over), values)
    text = tree.sql(dialect="databricks")
    return Question(
        f"EXPLAIN {text}" if explain else text,
        values | names.prices,
        tuple(table for table in TABLES if table in names.read),
        described,
    )


class _Names:
    """What the names of a query mean for one agent; `read` collects the tables, `prices` the parameters of costs."""

    def __init__(self, prefix: str, costs: Mapping[str, float], absent: frozenset[str]) -> None:
        self._place, _, short = prefix.rpartition(".")
        self._short, self._prefix, self._absent = short, prefix, absent
        self.read: set[str] = set()
        numbered = list(enumerate(costs.items()))
        self._costs = [f"cost{number}" for number, _ in numbered]
        self._given = {
            f"cost{n}_{part}": v for n, item in numbered for part, v in zip(("name", "usd"), item, strict=True)
        }
        self.prices: dict[str, Any] = {}

    def resolved(self, tree: "exp.Expression", sql: str) -> "exp.Expression":
        """`tree` with every name of a table replaced."""
        from sqlglot import exp
        from sqlglot.optimizer.scope import traverse_scope

        common = {
            id(table)
            for scope in traverse_scope(tree)
            for table in scope.tables
            if not table.db and table.name in scope.cte_sources
        }
        for column in tree.find_all(exp.Column):
            column.set("db", None)
            column.set("catalog", None)
        for table in [one for one in tree.find_all(exp.Table) if id(one) not in common]:
            if isinstance(table.this, exp.Identifier):
                replaced = self._relation(table, sql)
                if table is tree:
                    return replaced
                table.replace(replaced)
        return tree

    def _relation(self, table: "exp.Table", sql: str) -> "exp.Expression":
        from sqlglot import exp

        name = self._known(table, sql)
        self.read |= {name} & set(TABLES)
        alias = exp.TableAlias(this=exp.to_identifier(table.alias or table.name, quoted=True))
        alias.set(
            "columns", [column.copy() for column in table.args["alias"].columns] if table.args.get("alias") else None
        )
        if name in TABLES and name not in self._absent:
            catalog, _, schema = self._place.partition(".")
            parts = {"catalog": catalog, "db": schema, "this": self._short + name}
            found: exp.Expression = exp.Table(
                **{part: exp.to_identifier(text, quoted=True) for part, text in parts.items()}
            )
        elif name in VIEWS:
            found = exp.Subquery(this=self.resolved(parsed(VIEWS[name], 0).copy(), VIEWS[name]))
        else:
            found = exp.Subquery(this=_without_rows(TABLES[name]) if name in TABLES else self._priced())
        for kept in ("joins", "laterals", "pivots", "sample", "version", "when"):
            if table.args.get(kept):
                found.set(kept, table.args[kept])
        found.set("alias", alias)
        return found

    def _known(self, table: "exp.Table", sql: str) -> str:
        """The name without prefix of one of ours."""
        said = ".".join(part for part in (table.catalog, table.db, table.name) if part).lower()
        for name in (*TABLES, *VIEWS, COSTS):
            if said in (name, (self._short + name).lower(), (self._prefix + name).lower()):
                return name
        raise wrong_sql(ValueError(f"There is no table {said[:200]}"), sql)

    def _priced(self) -> "exp.Expression":
        from sqlglot import exp

        self.prices = dict(self._given)
        if not self._costs:
            return _without_rows({"name": "VARCHAR", "cost_per_call": "DOUBLE"})
        rows = [
            exp.select(
                exp.alias_(exp.cast(exp.Placeholder(this=f"{one}_name"), "VARCHAR"), "name"),
                exp.alias_(exp.cast(exp.Placeholder(this=f"{one}_usd"), "DOUBLE"), "cost_per_call"),
            )
            for one in self._costs
        ]
        return exp.union(*rows, distinct=False) if len(rows) > 1 else rows[0]


def _without_rows(columns: Mapping[str, str]) -> "exp.Expression":
    """A query with these columns and no rows."""
    from sqlglot import exp

    nulls = [
        exp.alias_(exp.cast(exp.null(), exp.DataType.build(kind, dialect="duckdb")), name, quoted=True)
        for name, kind in columns.items()
    ]
    return exp.select(*nulls).where(exp.false())


def _carried_over(node: "exp.Expression") -> "exp.Expression":
    """What sqlglot writes otherwise than Databricks means it."""
    from sqlglot import exp

    if isinstance(node, exp.WithinGroup) and isinstance(node.this, exp.PercentileCont):
        return _percentile(node.expression.expressions[0].this, node.this.this)
    if isinstance(node, exp.PercentileCont) and node.expression is not None:
        return _percentile(node.this, node.expression)
    return node


def _percentile(value: "exp.Expression", share: "exp.Expression") -> "exp.Expression":
    from sqlglot import exp

    order = exp.Order(expressions=[exp.Ordered(this=value.copy(), nulls_first=True)])
    return exp.WithinGroup(this=exp.Anonymous(this="percentile_cont", expressions=[share.copy()]), expression=order)


def _without_lists(tree: "exp.Expression", values: dict[str, Any]) -> tuple["exp.Expression", dict[str, Any]]:
    """`tree` and `values` without lists, which a statement cannot be given: `list_contains(?, x)` becomes an IN."""
    from sqlglot import exp

    lists = {name: list(value) for name, value in values.items() if isinstance(value, list | tuple)}
    single = {f"{name}_{n}": item for name, items in lists.items() for n, item in enumerate(items)}

    def spelled_out(node: exp.Expression) -> exp.Expression:
        if isinstance(node, exp.ArrayContains) and isinstance(node.this, exp.Placeholder) and node.this.name in lists:
            name = node.this.name
            marks = [exp.Placeholder(this=f"{name}_{number}") for number in range(len(lists[name]))]
            return exp.In(this=node.expression, expressions=marks) if marks else exp.false()
        return node

    tree = tree.transform(spelled_out)
    if any(mark.name in lists for mark in tree.find_all(exp.Placeholder)):
        raise Refused("A list can only be asked whether it contains something: write list_contains(?, column).")
    return tree, {name: value for name, value in values.items() if name not in lists} | single
