"""What has to be written so that a table says what its source says.

Lives here: comparing rows given with rows held, in DuckDB over Arrow; nothing here opens a table.
Add here: a further way in which a table follows its source.
Not here: reading what is held (`delta_table.py`), writing (`archive.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resources.tables import KEYS, arrow_schema, columns

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Written:
    """Rows of one table that a write inserted, updated and removed; all 0 when the table was up to date.

    There is no commit then.
    """

    inserted: int
    updated: int
    removed: int = 0


def changes(source: "pa.Table", held: "pa.Table", table: str, trace_ids: list[str]) -> "tuple[pa.Table, Written]":
    """The rows to write so that `held` says what `source` says, and how many of them are new."""
    import pyarrow as pa

    same = [name for name in columns(table) if name != "archived_at"]
    listed, keys = ", ".join(same), ", ".join(KEYS[table])
    with _compare(source=source, held=held, batch=pa.table({"trace_id": pa.array(trace_ids, pa.string())})) as con:
        differing = f"(SELECT {keys} FROM (SELECT {listed} FROM source EXCEPT SELECT {listed} FROM held))"  # noqa: S608
        changed = con.sql(f"SELECT source.* FROM source SEMI JOIN {differing} USING ({keys})").to_arrow_table()  # noqa: S608
        inserted = con.sql(
            f"SELECT count(*) FROM {differing} ANTI JOIN held USING ({keys})"  # noqa: S608
        ).fetchall()[0][0]
        if table == "assessments":
            gone = con.sql(
                "SELECT held.* REPLACE (false AS valid) FROM held SEMI JOIN batch USING (trace_id) "
                "ANTI JOIN source USING (trace_id, assessment_id) WHERE held.valid"
            ).to_arrow_table()
            schema = arrow_schema(table)
            changed = pa.concat_tables([changed.cast(schema), gone.cast(schema)])
    return changed.cast(arrow_schema(table)), Written(inserted, changed.num_rows - inserted)


def replacement(source: "pa.Table", held: "pa.Table", table: str) -> Written:
    """How many rows of `source` are new or differ, and how many of `held` go."""
    keys = ", ".join(KEYS[table])
    with _compare(source=source, held=held) as con:
        differing = "(SELECT * FROM source EXCEPT ALL SELECT * FROM held)"
        changed, inserted, removed = (
            con.sql(query).fetchall()[0][0]
            for query in (
                f"SELECT count(*) FROM {differing}",  # noqa: S608
                f"SELECT count(*) FROM {differing} ANTI JOIN held USING ({keys})",  # noqa: S608
                "SELECT count(*) FROM (SELECT * FROM held EXCEPT ALL SELECT * FROM source)",
            )
        )
    updated = changed - inserted
    return Written(inserted, updated, removed - updated)


def _compare(**tables: "pa.Table") -> Any:
    """A DuckDB connection that knows these Arrow tables, and nothing of the disk."""
    import duckdb

    con = duckdb.connect(":memory:", config={"threads": 2, "enable_external_access": False})
    for name, table in tables.items():
        con.register(name, table)
    return con
