"""From stored spans to the columns of `spans`, many at a time.

Lives here: one query of DuckDB over what the database gave, and telling which spans are out of the ordinary.
Add here: a further kind of span that need not go through Python.
Not here: the rows of single spans (`trace_rows.py`), reading (`database_sql.py`).

The query answers as `trace_rows.span_row` does, or marks the span as odd: an attribute that is null or no JSON, a key
that needs an escape, a kind that MLflow derives from others. DuckDB also takes for JSON what a strict reader does not
(NaN, a comma too many): NaN and Infinity as Python writes them are found anywhere, other spellings in texts of up to
100 bytes, since no writer of JSON is known to make them. So are runs of 16 brackets, which Python may not nest, and a
number of more than 308 digits.
"""

# ruff: noqa: S608 - SQL of names and numbers of ours; what traces say comes as a table.

import json
import re
from typing import TYPE_CHECKING, Any

from resources.arrow_compute import compute
from resources.trace_rows import OWN_COLUMN

if TYPE_CHECKING:
    import pyarrow as pa

_KEPT = re.compile(r"[A-Za-z][A-Za-z0-9_.:/-]*")  # Keys of attributes that need no escape, in JSON or in a path.
_ROWS = 256  # Spans that DuckDB has parsed at once.
_MOST_KEYS = 96  # Attributes known at once; spans with others are odd.
_FIRST = (*OWN_COLUMN, "mlflow.spanLogLevel", "mlflow.chat.tokenUsage", "mlflow.llm.model")
_LENIENT = r"(?i)(^|[\[:,\s-])(nan|inf)|,\s*[\]}]|(^|[\[:,\s-])[0-9.]+e\+?[0-9]{3}"
_SAID = r"[^\x00-\x1f]*"  # Text that every writer of JSON escapes alike.
_UNLIKE = r"\\u00|[0-9][.eE][0-9+-]"  # Escapes of control characters, and numbers that are not whole.


class SpanColumns:
    """Makes columns of spans. One object a thread: it remembers which attributes spans have."""

    def __init__(self) -> None:
        import duckdb

        self.connection = duckdb.connect(":memory:", config={"threads": 1, "enable_external_access": False})
        self._keys = list(_FIRST)

    def of(self, spans: "pa.Table") -> "pa.Table":
        """The columns of `spans` without `trace_id` and `trace_date`, with `nth`, `start_ns` and `odd`, in order."""
        made = self._made(spans)
        unknown = self._unknown(spans, made)
        if unknown:
            self._keys += unknown
            made = self._made(spans)
        return made

    def _unknown(self, spans: "pa.Table", made: "pa.Table") -> list[str]:
        """Attributes that spans have and the query did not ask for."""
        pc = compute()

        if len(self._keys) >= _MOST_KEYS or not pc.any(made.column("missing")).as_py():
            return []
        query = "SELECT DISTINCT unnest(json_keys(content, '$.attributes')) AS name FROM spans ORDER BY name"
        found = [row[0] for row in self._run(query, spans.filter(made.column("missing")), rows=True)]
        new = [name for name in found if name not in self._keys and _KEPT.fullmatch(name)]
        return new[: _MOST_KEYS - len(self._keys)]

    def _made(self, spans: "pa.Table") -> "pa.Table":
        import duckdb

        try:
            return self._run(_query(tuple(self._keys)), spans)
        except duckdb.Error:
            # One content that is no JSON fails the query for all: what is none counts as nothing, which is odd.
            read = "SELECT * REPLACE (CASE WHEN json_valid(content) THEN content END AS content) FROM spans"
            return self._run(_query(tuple(self._keys)), self._run(read, spans))

    def _run(self, query: str, spans: "pa.Table", *, rows: bool = False) -> Any:
        import pyarrow as pa

        # DuckDB keeps what it parsed until the end of a batch, in each of its JSON functions.
        small = pa.Table.from_batches(spans.to_batches(max_chunksize=_ROWS), schema=spans.schema)
        self.connection.register("spans", small)
        try:
            found = self.connection.sql(query)
            return found.fetchall() if rows else found.to_arrow_table()
        finally:
            self.connection.unregister("spans")


def _query(keys: tuple[str, ...]) -> str:
    """The query for spans with these attributes, which stand in its list `x` after four other fields."""
    at = {name: 5 + place for place, name in enumerate(keys)}
    paths = ["$.name", "$.status.message", "$.events", "$.span_id", *(f'$.attributes."{name}"' for name in keys)]
    listed = "[" + ", ".join(f"'{path}'" for path in paths) + "]"
    inputs, outputs, kind = (f"x[{at[name]}]" for name in OWN_COLUMN[:3])
    said = [f"x[{at[name]}]" for name in keys if name not in OWN_COLUMN[2:]]
    rest = sorted((f"{json.dumps(name)}: ", at[name]) for name in keys if name not in OWN_COLUMN)
    members = ", ".join(f"'{begin}' || x[{place}]" for begin, place in rest)
    foreign = " OR ".join(f"x[{at[name]}] IS NOT NULL" for name in keys if not name.startswith("mlflow."))
    valid = " AND ".join(f"coalesce(json_valid({one}), true)" for one in said)
    lenient = " OR ".join(
        f"CASE WHEN strlen({one}) BETWEEN 3 AND 100 AND NOT starts_with({one}, '\"') "
        f"THEN regexp_matches({one}, '{_LENIENT}') ELSE false END"
        for one in [inputs, outputs, *(f"x[{at[name]}]" for name in keys if not name.startswith("mlflow."))]
    )
    huge = " OR ".join(
        f"CASE WHEN strlen({one}) > 308 THEN regexp_full_match({one}[:309], '[-0-9]+') ELSE false END"
        for one in (inputs, outputs)
    )
    message = "CASE WHEN x[2] <> '' THEN '\"status.description\": ' || to_json(x[2])::VARCHAR END"
    events = "CASE WHEN x[3] <> '[]' THEN '\"events\": ' || x[3] END"
    there = " + ".join(f"(x[{place}] IS NOT NULL)::INTEGER" for place in at.values())
    return f"""
        WITH parsed AS (
            SELECT nth, span_id, parent_span_id, status, start_ns, end_ns, json_extract_string(content, {listed}) AS x,
                json_keys(content, '$.attributes') AS k,
                contains(content, 'NaN') OR contains(content, 'Infinity') OR contains(content, '{"[" * 16}')
                    OR contains(content, '{"}" * 16}') AS endless
            FROM spans
        ), told AS (
            SELECT *, {inputs} AS inputs, {outputs} AS outputs, {kind} AS kind,
                coalesce(len(k), 0) <> {there} AS missing
            FROM parsed
        )
        SELECT nth, span_id, nullif(parent_span_id, '') AS parent_span_id, x[1] AS name,
            CASE WHEN kind IS NULL THEN 'UNKNOWN' ELSE kind[2:-2] END AS type,
            make_timestamptz(start_ns // 1000) AS start_time, make_timestamptz(end_ns // 1000) AS end_time, status,
            inputs, outputs, '{{' || concat_ws(', ', {members}, {message}, {events}) || '}}' AS attributes, start_ns,
            missing,
            NOT coalesce(NOT endless AND NOT missing AND x[1] IS NOT NULL
                AND (coalesce(x[2], '') = '' OR regexp_full_match(x[2], '{_SAID}'))
                AND (coalesce(x[3], '[]') = '[]' OR NOT regexp_matches(x[3], '{_UNLIKE}')) AND strlen(x[4]) = 12
                AND regexp_full_match(coalesce(kind, '"UNKNOWN"'), '"[A-Za-z_ ]+"')
                AND (coalesce(kind, '"UNKNOWN"') <> '"UNKNOWN"' OR NOT ({foreign or "false"}))
                AND status IN ('OK', 'ERROR', 'UNSET') AND regexp_full_match(span_id, '[0-9a-f]{{16}}')
                AND start_ns > 0 AND coalesce(end_ns, 1) > 0 AND {valid} AND NOT ({lenient})
                AND NOT coalesce({huge}, false), false) AS odd
        FROM told"""
