"""What has to be written so that a table says what its source says.

Lives here: comparing rows given with rows held, in DuckDB over Arrow; nothing here opens a table.
Add here: a further way in which a table follows its source.
Not here: what the tables are asked (`snapshots.py`, `delta/table.py`), writing (`upsert.py`).

Rows held are known by their keys and a 64-bit digest of what they say (DuckDB's `hash`), so memory holds no payload of
them; that a changed row is taken for the same happens once in 10**19.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from resources.arrow_compute import compute
from resources.tables import KEYS, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

DIGEST = "said_digest"
"""Column of rows held, beside their keys."""


@dataclass(frozen=True)
class Written:
    """Rows of one table that a write inserted, updated and removed; all 0 when the table was up to date.

    There is no commit then.
    """

    inserted: int
    updated: int
    removed: int = 0

    def __add__(self, other: "Written") -> "Written":
        return Written(self.inserted + other.inserted, self.updated + other.updated, self.removed + other.removed)


@dataclass(frozen=True)
class Changes:
    """Rows to write: those the table lacks, and those it has otherwise."""

    new: "pa.Table"
    changed: "pa.Table"


def digests(rows: Any, table: str, names: Sequence[str]) -> "pa.Table":
    """Keys and digest of rows held: a stream of Arrow batches, of which memory holds one at a time.

    Of assessments also `valid`, `updated_at`, and what tells a score of ours.
    """
    more = ["trace_id", "assessment_id", "name", "scorer_version", "valid", "updated_at"]
    kept = more if table == "assessments" else list(KEYS[table])
    with _compare(source=_typed(rows, table)) as con:
        return con.sql(f"SELECT {', '.join(kept)}, {_digest(names)} AS {DIGEST} FROM source").to_arrow_table()  # noqa: S608


def changes(source: "pa.Table", held: "pa.Table", table: str, names: Sequence[str]) -> Changes:
    """What of `source` is new to `held` (see `digests`, of the same `names`) or differs.

    A score of ours lands in the table before MLflow has it, so one that is newer there stays. What people say is as
    MLflow has it, also when the clock of the server they changed it on is behind.
    """
    keys = ", ".join(KEYS[table])
    newer = " AND NOT (held.scorer_version IS NOT NULL AND held.updated_at > source.updated_at)"
    differs = f"{_digest(names, 'source')} <> held.{DIGEST}{newer if table == 'assessments' else ''}"
    schema, same = arrow_schema(table), " AND ".join(f"source.{key} = held.{key}" for key in KEYS[table])
    with _compare(source=source, held=held) as con:
        new = con.sql(f"SELECT source.* FROM source ANTI JOIN held USING ({keys})").to_arrow_table()  # noqa: S608
        changed = con.sql(
            # Once, also where rows were doubled: a merge takes no row twice.
            f"SELECT source.* FROM source SEMI JOIN held ON {same} AND {differs}"  # noqa: S608
        ).to_arrow_table()
    return Changes(new.cast(schema), changed.cast(schema))


def gone(source: "pa.Table", held: "pa.Table", trace_ids: Any, published: "pa.Table", *, ours: str) -> "pa.Table":
    """Keys of valid assessments of these traces that the table holds and MLflow no longer has.

    A score of ours (`ours`: condition on its row) that was never published is not in MLflow yet: it is none of them.
    """
    import pyarrow as pa

    with _compare(source=source, held=held, published=published, batch=pa.table({"trace_id": trace_ids})) as con:
        return con.sql(
            "SELECT trace_id, assessment_id FROM held SEMI JOIN batch USING (trace_id) "  # noqa: S608
            "ANTI JOIN source USING (trace_id, assessment_id) WHERE valid AND (NOT coalesce("
            f"{ours}, false) OR (trace_id, assessment_id) IN (SELECT (trace_id, assessment_id) FROM published))"
        ).to_arrow_table()


def without_held(source: "pa.Table", held: "pa.Table", table: str) -> "pa.Table":
    """The rows of `source` whose key is not in `held`."""
    pc = compute()

    known = [_joined(rows, table) for rows in (source, held)]
    return source.filter(pc.invert(pc.is_in(known[0], value_set=known[1])))


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


def _digest(names: Sequence[str], of: str = "") -> str:
    return "hash(" + ", ".join(f'{of}."{name}"' if of else f'"{name}"' for name in names) + ")"


def _joined(rows: "pa.Table", table: str) -> Any:
    pc = compute()

    return pc.binary_join_element_wise(*(rows.column(key) for key in KEYS[table]), "\0")


def _typed(rows: Any, table: str) -> "pa.RecordBatchReader":
    """A stream of delta-rs in the types of the table."""
    import pyarrow as pa

    found, whole = pa.RecordBatchReader.from_stream(rows), arrow_schema(table)
    return found.cast(pa.schema([whole.field(name) for name in found.schema.names]))


def _compare(**tables: Any) -> Any:
    """A DuckDB connection that knows these Arrow tables, and nothing of the disk. To be closed."""
    con = _database().cursor()
    for name, table in tables.items():
        con.register(name, table)
    return con


@cache
def _database() -> Any:
    """One database in memory a process, without tables: making one takes longer than comparing a hundred rows."""
    import duckdb

    con = duckdb.connect(":memory:", config={"threads": 2, "enable_external_access": False})
    con.execute("SET GLOBAL TimeZone = 'UTC'")
    return con
