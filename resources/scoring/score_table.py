"""Scores in the tables: `assessments`, where they land first, and `publications`, which of them MLflow has.

Lives here: reading a day's scores, landing a batch of them, what MLflow lacks, and noting what it has.
Add here: a question about scores that the tables answer.
Not here: scoring (`local_scoring.py`), writing to MLflow (`publisher.py`), everything else that becomes a row of
`assessments` (`archive/archive.py`).

Why no key is there twice: the keys of the day are read from the snapshot the commit goes through, and the commit
carries the day's application transaction, so that of two writers with the same snapshot one is refused and reads again.
A batch is one commit, and one more where an error gives way: killed in between, the rest is still owed.
"""

from datetime import date
from functools import cache
from threading import get_ident
from typing import TYPE_CHECKING, Any

from resources.delta.table import open_table, storage
from resources.delta.write import append_rows, merge_rows, retried, table_to_write
from resources.platform import Platform
from resources.tables import PARTITION, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

OURS = "assessment_id = 'a-' || substr(sha256(trace_id || '|' || name || '|' || scorer_version), 1, 32)"
"""Condition over a row of `assessments`: a scorer of this product said it, under the id of `trace_scores.id_of`."""

SAID = (
    "substr(sha256(concat_ws('|', coalesce(CAST(value_number AS VARCHAR), ''), coalesce(value_text, ''), "
    r"regexp_extract(coalesce(error, ''), '^[A-Z_]+'), regexp_extract(coalesce(error, ''), '\(try ([0-9]+)\)$', 1), "
    "coalesce(rationale, ''))), 1, 16)"
)
"""Digest of what a row of `assessments` says: without the words of an error, which rules of redaction may change."""

_LOOKED_AT = {
    "assessments": "trace_id, assessment_id, name, scorer_version, source_type, source_id, value_number, value_text, "
    "rationale, error, created_at, updated_at, kind, valid",
    "publications": "trace_id, assessment_id, digest",
}
_GIVES_WAY = {
    # An error that may pass, or the score of a session that has grown since.
    "assessments": "starts_with(coalesce(h.error, ''), 'SCORER_UNAVAILABLE:') "
    "OR starts_with(coalesce(h.error, ''), 'SCORER_TIMEOUT:') "
    r"OR TRY_CAST(regexp_extract(g.rationale, '^([0-9]+) trace', 1) AS INT) "
    r"> TRY_CAST(regexp_extract(h.rationale, '^([0-9]+) trace', 1) AS INT)",
    "publications": "g.digest <> h.digest",
}


class ScoreTable:
    """Scores of one agent, whose tables' names begin with `prefix`. Not to be used by two threads at once."""

    def __init__(self, platform: Platform, prefix: str) -> None:
        self._platform, self._prefix = platform, prefix
        self._known: dict[tuple[str, date], tuple[int, pa.Table]] = {}  # Version and what it holds of a day.

    def scores(self, day: date) -> "pa.Table":
        """What scorers' versions said of the day's traces: the columns of `_LOOKED_AT`; empty without a table.

        It is not read again while nobody has written to the table.
        """
        held = self._held("assessments", day)
        return select(
            "SELECT * FROM held WHERE kind = 'feedback' AND scorer_version IS NOT NULL AND source_type <> 'HUMAN'",
            held=held,
        )

    def is_news(self, day: date) -> bool:
        """Whether somebody else wrote to `assessments` since this was last read or written here."""
        known, where = self._known.get(("assessments", day)), self._platform.table_uri(self._prefix + "assessments")
        with storage(where):
            target = open_table(where)
        return target is not None and (known is None or known[0] != target.version())

    def land(self, day: date, rows: "pa.Table") -> "pa.Table":
        """Add rows to `assessments`; those that are there stay as they are, unless they are to give way.

        The rows that were written, with a column `is_new`. Safe to repeat. Raises `Refused` when the storage fails.
        """
        return self._land("assessments", day, rows)

    def note(self, day: date, rows: "pa.Table") -> None:
        """Note that MLflow has these rows (columns of `publications`). Safe to repeat."""
        self._land("publications", day, rows)

    def pending(self, day: date) -> "pa.Table":
        """Scores of ours that MLflow does not have yet, or in another form, with the column `digest`."""
        held, noted = self._held("assessments", day), self._held("publications", day)
        return select(
            f"SELECT held.*, {SAID} AS digest FROM held WHERE kind = 'feedback' AND valid AND {OURS} "  # noqa: S608
            f"AND (trace_id, assessment_id, {SAID}) NOT IN (SELECT (trace_id, assessment_id, digest) FROM noted)",
            held=held,
            noted=noted,
        )

    def _held(self, table: str, day: date) -> "pa.Table":
        where = self._platform.table_uri(self._prefix + table)
        with storage(where):
            return self._read(open_table(where), table, day)

    def _read(self, target: "DeltaTable | None", table: str, day: date) -> "pa.Table":
        import pyarrow as pa
        from deltalake import QueryBuilder

        schema = arrow_schema(table)
        wanted = pa.schema([schema.field(name) for name in _LOOKED_AT[table].split(", ")])
        if target is None:
            return wanted.empty_table()
        known = self._known.get((table, day))
        if known is not None and known[0] == target.version():
            return known[1]
        query = f"SELECT {_LOOKED_AT[table]} FROM t WHERE {PARTITION} = DATE '{day}'"  # noqa: S608 names and a date of ours
        if table == "assessments":
            query += " AND scorer_version IS NOT NULL"
        found = pa.table(QueryBuilder().register("t", target).execute(query).read_all()).cast(wanted)
        self._known[table, day] = (target.version(), found)
        return found

    def _land(self, table: str, day: date, rows: "pa.Table") -> "pa.Table":
        where = self._platform.table_uri(self._prefix + table)

        def attempt() -> "pa.Table":
            import pyarrow as pa
            import pyarrow.compute as pc

            target = table_to_write(where, table)
            held, version = self._read(target, table, day), target.version()
            sorted_out = select(
                f"SELECT g.*, h.trace_id IS NULL AS is_new FROM given g LEFT JOIN held h "  # noqa: S608
                f"USING (trace_id, assessment_id) WHERE h.trace_id IS NULL OR {_GIVES_WAY[table]}",
                given=rows,
                held=held,
            )
            new = sorted_out.filter(pc.field("is_new")).drop_columns(["is_new"])
            changed = sorted_out.filter(~pc.field("is_new")).drop_columns(["is_new"])
            schema, app = arrow_schema(table), f"{'scores' if table == 'assessments' else table}:{day}"
            number = (target.transaction_version(app) or 0) + 1
            if new.num_rows:
                append_rows(target, new.select(schema.names).cast(schema), {app: number})
            if changed.num_rows:
                if new.num_rows:
                    target.update_incremental()
                    number = (target.transaction_version(app) or 0) + 1
                same = f"t.{PARTITION} = '{day}' AND t.trace_id = s.trace_id AND t.assessment_id = s.assessment_id"
                merge = merge_rows(target, changed.select(schema.names).cast(schema), same, {app: number})
                merge.when_matched_update_all().execute()
            elif new.num_rows and target.version() == version + 1:  # Nobody else wrote: nothing to be read again.
                more = new.select(held.column_names).cast(held.schema)
                self._known[table, day] = (target.version(), pa.concat_tables([held, more]))
            return sorted_out

        return retried(where, attempt)


def with_digest(rows: "pa.Table") -> "pa.Table":
    """Rows of `assessments` with the column `digest`."""
    return select(f"SELECT *, {SAID} AS digest FROM given", given=rows)  # noqa: S608 an expression of ours


def select(sql: str, **tables: "pa.Table") -> "pa.Table":
    """The answer to a query over these Arrow tables, which sees nothing of the disk."""
    con = _connection(get_ident())
    try:
        for name, table in tables.items():
            con.register(name, table)
        return con.sql(sql).to_arrow_table()
    finally:
        for name in tables:
            con.unregister(name)


@cache
def _connection(thread: int) -> Any:
    """One for each thread: opening it takes longer than most queries."""
    import duckdb

    con = duckdb.connect(":memory:", config={"threads": 2, "enable_external_access": False})
    con.execute("SET TimeZone = 'UTC'")
    return con
