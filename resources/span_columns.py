"""From stored spans to the columns of `spans`, many at a time.

Lives here: one query of DuckDB over what the database gave, and telling which spans are out of the ordinary.
Add here: a further kind of span that need not go through Python.
Not here: the rows of single spans (`trace_rows.py`), reading (`database_sql.py`).

The query answers as `trace_rows.span_row` does, or marks the span as odd. What is odd is decided with a margin: JSON
that DuckDB reads and others do not (NaN, a comma too many), events, a message, an attribute that is not JSON.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from resources.trace_rows import OWN_COLUMN

if TYPE_CHECKING:
    import pyarrow as pa

_KEPT = re.compile(r"[A-Za-z][A-Za-z0-9_.:/-]*")  # Keys of attributes that need no escape, in JSON or in a path.
_MOST_KEYS = 96  # Attributes known at once; spans with others are odd.
_FIRST = (*OWN_COLUMN[:3], "mlflow.traceRequestId", "mlflow.spanLogLevel", "mlflow.chat.tokenUsage", "mlflow.llm.model")
# What DuckDB takes for JSON and a strict reader does not begins with one of these.
_SUSPICIOUS = ("NaN", "nan", "NAN", "Inf", "inf", "INF", ",]", ",}", ", ]", ", }", ",\\n", ",\\t", ",\\r", ",  ")
_LENIENT = (
    r"(?i)([\[:,\s-]|\\[nrt]|\": \")(nan|inf)|,(\s|\\[nrt])*[\]}]"  # In the text of JSON inside of JSON.
)
_DAY_NS = 86_400_000_000_000


class SpanColumns:
    """Makes columns of spans. One object a thread: it remembers which attributes spans have."""

    def __init__(self) -> None:
        import duckdb

        self._con = duckdb.connect(":memory:", config={"threads": 1, "enable_external_access": False})
        self._keys = list(_FIRST)

    def of(self, spans: "pa.Table") -> "pa.Table":
        """The columns of `spans` without `trace_id` and `trace_date`, with `nth`, `is_root` and `odd`, in order."""
        made = self._made(spans)
        unknown = self._unknown(spans, made)
        if unknown:
            self._keys += unknown
            made = self._made(spans)
        return made

    def _unknown(self, spans: "pa.Table", made: "pa.Table") -> list[str]:
        """Attributes that spans have which are odd for nothing else."""
        missing = made.column("missing")
        if len(self._keys) >= _MOST_KEYS or not missing.true_count if hasattr(missing, "true_count") else False:
            return []
        import pyarrow.compute as pc

        if not pc.any(missing).as_py():
            return []
        some = spans.filter(missing)
        query = "SELECT DISTINCT unnest(json_keys(content, '$.attributes')) AS name FROM spans ORDER BY name"
        found = [row[0] for row in self._run(query, some, rows=True)]
        new = [name for name in found if name not in self._keys and _KEPT.fullmatch(name)]
        return new[: _MOST_KEYS - len(self._keys)]

    def _made(self, spans: "pa.Table") -> "pa.Table":
        return self._run(_query(tuple(self._keys)), spans)

    def _run(self, query: str, spans: "pa.Table", *, rows: bool = False) -> Any:
        self._con.register("spans", spans)
        try:
            found = self._con.sql(query)
            return found.fetchall() if rows else found.to_arrow_table()
        finally:
            self._con.unregister("spans")


def _query(keys: tuple[str, ...]) -> str:
    """The query for spans with these attributes; in its list `x` an attribute stands at `2 + its place`."""
    at = {name: 4 + place for place, name in enumerate(keys)}
    paths = ["$.name", "$.status.message", "$.events", *(f'$.attributes."{name}"' for name in keys)]
    listed = "[" + ", ".join(f"'{path}'" for path in paths) + "]"
    inputs, outputs, kind = (f"x[{at[name]}]" for name in OWN_COLUMN[:3])
    rest = sorted((f"{json.dumps(name)}: ", at[name]) for name in keys if name not in OWN_COLUMN)
    members = ", ".join(f"'{begin}' || x[{place}]" for begin, place in rest)
    foreign = [f"x[{at[name]}] IS NOT NULL" for name in keys if not name.startswith("mlflow.")]
    valid = " AND ".join(f"coalesce(json_valid(x[{at[name]}]), true)" for name in keys if name not in OWN_COLUMN[2:])
    texts = " AND ".join(f"coalesce(t[{place}] = 'VARCHAR', true)" for place in at.values())
    there = " + ".join(f"(x[{place}] IS NOT NULL)::INTEGER" for place in at.values())
    begins = " OR ".join(f"contains(content, '{one}')" for one in _SUSPICIOUS)
    return f"""
        WITH parsed AS (
            SELECT nth, span_id, parent_span_id, status, start_ns, end_ns,
                json_extract_string(content, {listed}) AS x, json_type(content, {listed}) AS t,
                json_keys(content, '$.attributes') AS k,
                CASE WHEN {begins} THEN regexp_matches(content, '{_LENIENT}') ELSE false END AS lenient
            FROM spans
        ), told AS (
            SELECT *, {inputs} AS inputs, {outputs} AS outputs, {kind} AS kind,
                coalesce(len(k), 0) <> {there} AS missing
            FROM parsed
        )
        SELECT nth, span_id, nullif(parent_span_id, '') AS parent_span_id, x[1] AS name,
            CASE WHEN kind IS NULL THEN 'UNKNOWN' ELSE kind[2:-2] END AS type,
            make_timestamptz(start_ns // 1000) AS start_time, make_timestamptz(end_ns // 1000) AS end_time, status,
            inputs, outputs, '{{' || concat_ws(', ', {members}) || '}}' AS attributes, start_ns,
            coalesce(parent_span_id, '') = '' AS is_root, missing,
            NOT coalesce(NOT lenient AND NOT missing AND t[1] = 'VARCHAR' AND coalesce(x[2], '') = ''
                AND coalesce(t[2] IN ('VARCHAR', 'NULL'), true) AND coalesce(x[3], '[]') = '[]'
                AND regexp_full_match(coalesce(kind, '"UNKNOWN"'), '"[A-Za-z_ ]+"')
                AND (coalesce(kind, '"UNKNOWN"') <> '"UNKNOWN"' OR NOT ({" OR ".join(foreign) or "false"}))
                AND status IN ('OK', 'ERROR', 'UNSET') AND regexp_full_match(span_id, '[0-9a-f]{{16}}')
                AND start_ns BETWEEN 1 AND {9_000_000 * _DAY_NS // 100} AND coalesce(end_ns, 1) >= 1
                AND {texts} AND {valid}, false) AS odd
        FROM told"""
