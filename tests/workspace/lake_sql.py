"""Databricks SQL as DuckDB understands it.

Lives here: translation of one statement, parameters, and the types of results.
Add here: a function or form that sqlglot does not carry over.
Not here: what exists and who may (`lake.py`).
"""

import re
from typing import Any

import sqlglot
from sqlglot import exp

MACROS = """
CREATE OR REPLACE MACRO timestamp_millis(x) AS make_timestamptz(x * 1000);
CREATE OR REPLACE MACRO timestamp_micros(x) AS make_timestamptz(x);
CREATE OR REPLACE MACRO timestamp_seconds(x) AS make_timestamptz(CAST(x * 1000000 AS BIGINT));
CREATE OR REPLACE MACRO unix_micros(x) AS epoch_us(x);
CREATE OR REPLACE MACRO unix_seconds(x) AS CAST(floor(epoch(x)) AS BIGINT);
CREATE OR REPLACE MACRO map_filter(m, f) AS map_from_entries(list_filter(map_entries(m), LAMBDA e : f));
CREATE OR REPLACE MACRO is_variant_null(v) AS json_type(v) = 'NULL';
CREATE OR REPLACE MACRO variant_explode(v) AS TABLE
    SELECT (row_number() OVER ()) - 1 AS pos, e.key AS key, e.value AS value FROM json_each(v) AS e;
"""

_SQL_TYPES = {
    "VARCHAR": ("STRING", "STRING"),
    "BIGINT": ("LONG", "BIGINT"),
    "HUGEINT": ("LONG", "BIGINT"),
    "UBIGINT": ("LONG", "BIGINT"),
    "INTEGER": ("INT", "INT"),
    "SMALLINT": ("SHORT", "SMALLINT"),
    "TINYINT": ("BYTE", "TINYINT"),
    "DOUBLE": ("DOUBLE", "DOUBLE"),
    "FLOAT": ("FLOAT", "FLOAT"),
    "BOOLEAN": ("BOOLEAN", "BOOLEAN"),
    "DATE": ("DATE", "DATE"),
    "TIMESTAMP WITH TIME ZONE": ("TIMESTAMP", "TIMESTAMP"),
    "TIMESTAMP": ("TIMESTAMP_NTZ", "TIMESTAMP_NTZ"),
    "BLOB": ("BINARY", "BINARY"),
    "JSON": ("VARIANT", "VARIANT"),
    '"NULL"': ("NULL", "VOID"),
}


class WrongSql(Exception):  # noqa: N818 - it reads as what the server says
    """What Databricks says to a statement it cannot run: an error class and a sentence."""

    def __init__(self, error_class: str, sentence: str) -> None:
        super().__init__(f"[{error_class}] {sentence}")


def parsed(sql: str) -> exp.Expression:
    """The one statement of `sql`. Raises `WrongSql`."""
    try:
        statements = [one for one in sqlglot.parse(sql, read="databricks") if one is not None]
    except sqlglot.errors.SqlglotError as error:
        raise WrongSql("PARSE_SYNTAX_ERROR", f"{str(error)[:300]} SQLSTATE: 42601") from None
    if len(statements) != 1:
        raise WrongSql("PARSE_SYNTAX_ERROR", "Syntax error: exactly one statement is expected. SQLSTATE: 42601")
    return statements[0]


def bound(tree: exp.Expression, parameters: dict[str, tuple[Any, str]]) -> exp.Expression:
    """`tree` with each `:name` replaced by its value, cast to its type."""

    def value(node: exp.Expression) -> exp.Expression:
        if not isinstance(node, exp.Placeholder):
            return node
        if node.this not in parameters:
            raise WrongSql("UNBOUND_SQL_PARAMETER", f"Found the unbound parameter: {node.this}. SQLSTATE: 42P02")
        text, kind = parameters[node.this]
        limiting = isinstance(node.parent, exp.Limit | exp.Offset)
        if limiting and kind.upper() not in ("INT", "SMALLINT", "TINYINT"):
            raise WrongSql(
                "INVALID_LIMIT_LIKE_EXPRESSION.DATA_TYPE",
                f'The limit like expression "{text}" is invalid. The limit expression must be integer type, but got '
                f'"{kind}". SQLSTATE: 42K0E',
            )
        if limiting:
            return exp.Literal.number(int(text))
        literal = exp.null() if text is None else exp.Literal.string(str(text))
        return exp.cast(literal, exp.DataType.build(kind or "STRING", dialect="databricks"))

    return tree.transform(value)


def adapted(tree: exp.Expression) -> exp.Expression:
    """`tree` without what DuckDB has no word for."""
    return tree.transform(_node)


def _node(node: exp.Expression) -> exp.Expression:
    if isinstance(node, exp.Create):
        node.set("properties", None)
    elif isinstance(node, exp.ColumnDef):
        kept = [
            one for one in node.args.get("constraints") or [] if not isinstance(one.kind, exp.CommentColumnConstraint)
        ]
        node.set("constraints", kept)
    elif isinstance(node, exp.DataType) and node.this == exp.DataType.Type.VARIANT:
        return exp.DataType.build("JSON")
    elif isinstance(node, exp.Merge):
        for assigned in node.find_all(exp.EQ):
            if isinstance(assigned.parent, exp.Update) and isinstance(assigned.this, exp.Column):
                assigned.set("this", exp.column(assigned.this.this.copy()))
    elif isinstance(node, exp.Cast) and isinstance(node.this, exp.JSONExtract) and node.to.is_type("text"):
        return exp.JSONExtractScalar(this=node.this.this, expression=node.this.expression)
    elif isinstance(node, exp.Anonymous | exp.Func):
        return _function(node)
    return node


def _function(node: exp.Expression) -> exp.Expression:
    known = isinstance(node, exp.Func) and not isinstance(node, exp.Anonymous)
    name = node.sql_name().lower() if known else node.name.lower()
    arguments = [one for one in node.args.values() if isinstance(one, exp.Expression)] if known else node.expressions
    if name == "from_json" and len(arguments) > 1:
        kind = exp.DataType.build(arguments[1].name, dialect="databricks").transform(_node)
        read = exp.TryCast(this=arguments[0], to=exp.DataType.build("JSON", dialect="duckdb"))
        return exp.TryCast(this=read, to=kind)
    if name in ("variant_get", "try_variant_get"):
        path = exp.func("json_extract_string", arguments[0], arguments[1], dialect="duckdb")
        kind = arguments[2].name if len(arguments) > 2 else "STRING"
        cast = exp.TryCast if name.startswith("try") else exp.Cast
        return cast(this=path, to=exp.DataType.build(kind, dialect="databricks"))
    if name == "try_parse_json":
        return exp.TryCast(this=arguments[0], to=exp.DataType.build("JSON", dialect="duckdb"))
    if name == "map_contains_key":
        return exp.Anonymous(this="map_contains", expressions=arguments)
    if name == "map_filter" and isinstance(arguments[1], exp.Lambda):
        key, value = (one.name for one in arguments[1].expressions)

        def entry(inner: exp.Expression) -> exp.Expression:
            if isinstance(inner, exp.Column | exp.Identifier) and inner.name in (key, value):
                return exp.column("key" if inner.name == key else "value", table="entry")
            return inner

        kept = exp.Lambda(this=arguments[1].this.transform(entry), expressions=[exp.to_identifier("entry")])
        entries = exp.func("list_filter", exp.func("map_entries", arguments[0]), kept, dialect="duckdb")
        return exp.func("map_from_entries", entries, dialect="duckdb")
    if isinstance(node, exp.RegexpReplace) and isinstance(node.args.get("replacement"), exp.Literal):
        text = re.sub(r"\$(\d)", r"\\\1", node.args["replacement"].name)
        node.set("replacement", exp.Literal.string(text))
    return node


def type_of(kind: Any) -> tuple[str, str]:
    """`type_name` and `type_text` of a manifest's column for DuckDB's type."""
    text = str(kind)
    if text in _SQL_TYPES:
        return _SQL_TYPES[text]
    if text.startswith("DECIMAL"):
        return "DECIMAL", text.replace(" ", "")
    if text.endswith("[]"):
        return "ARRAY", f"ARRAY<{type_of(kind.children[0][1])[1]}>"
    if text.startswith("MAP("):
        key, value = kind.children
        return "MAP", f"MAP<{type_of(key[1])[1]}, {type_of(value[1])[1]}>"
    if text.startswith("STRUCT("):
        fields = ", ".join(f"{name}: {type_of(child)[1]}" for name, child in kind.children)
        return "STRUCT", f"STRUCT<{fields}>"
    return "STRING", "STRING"


def plain(name: str, *, lower: bool = True) -> str:
    """A dotted name without backticks."""
    parts = re.findall(r"`((?:[^`]|``)*)`|([^`.\s]+)", name)
    text = ".".join(quoted.replace("``", "`") or bare for quoted, bare in parts)
    return text.lower() if lower else text


def ticked(name: str) -> str:
    """A dotted name, each part in backticks."""
    return ".".join(f"`{part}`" for part in name.split("."))


def duck_name(full_name: str) -> str:
    """What DuckDB calls the table."""
    schema, _, table = full_name.lower().rpartition(".")
    return f'"{schema}"."{table}"'
