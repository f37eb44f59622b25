"""Days that are replaced as a whole, and rows that are there twice.

Lives here: making a table say what is given of a day, in one commit or none; keeping one row of each key.
Add here: nothing about what the rows mean.
Not here: rows that come and change one by one (`archive/run.py`).
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from resources.archive.row_changes import Written, replacement
from resources.delta.shape import fitted
from resources.delta.table import open_table, rows_of_day, zstd
from resources.delta.write import retried, table_to_write
from resources.tables import KEYS, PARTITION, arrow_schema, arrow_table

if TYPE_CHECKING:
    from deltalake import DeltaTable


def replace_day(where: str, table: str, day: date, rows: Sequence[Mapping[str, Any]]) -> Written:
    """Make `rows` the rows of `day`; no commit when they already are. Readers see the old rows or the new ones."""
    source = arrow_table(table, [{**row, PARTITION: day} for row in rows])

    def attempt() -> Written:
        from deltalake import write_deltalake

        if not rows and open_table(where) is None:
            return Written(0, 0)
        target = table_to_write(where, table)
        written = replacement(source, rows_of_day(target, table, day), table)
        if written != Written(0, 0):
            write_deltalake(
                target,
                fitted(source, target),
                mode="overwrite",
                predicate=f"{PARTITION} = '{day}'",
                writer_properties=zstd(),
            )
        return written

    return retried(where, attempt)


AT_ONCE = 2_000
"""Traces whose doubled rows are in memory at a time."""

_NEWEST = {"traces": "archived_at", "assessments": "updated_at"}


def undouble_day(where: str, table: str, day: date) -> int:
    """Keep one row of each key of `day`, the newest; returns how many rows went. No commit when none is there twice.

    Only another program, or a fault of one, doubles rows; reading the keys of a day finds them.
    """

    def attempt() -> int:
        target = open_table(where)
        return 0 if target is None else _undouble(target, table, day)

    removed = 0
    while some := retried(where, attempt):
        removed += some
    return removed


def _undouble(target: "DeltaTable", table: str, day: date) -> int:
    """The same for some traces of the day, in one commit."""
    import pyarrow as pa
    from deltalake import QueryBuilder, write_deltalake

    def select(query: str) -> pa.Table:
        return pa.table(QueryBuilder().register("t", target).execute(query).read_all())

    keys, names = ", ".join(KEYS[table]), ", ".join(f'"{name}"' for name in arrow_schema(table).names)
    doubled = (
        f"SELECT DISTINCT trace_id FROM (SELECT {keys} FROM t WHERE {PARTITION} = DATE '{day}' "  # noqa: S608 ours
        f"GROUP BY {keys} HAVING count(*) > 1) d LIMIT {AT_ONCE}"
    )
    ids = select(doubled).column("trace_id").to_pylist()
    if not ids:
        return 0
    among = ", ".join("'" + one.replace("'", "''") + "'" for one in ids)
    condition = f"{PARTITION} = '{day}' AND trace_id IN ({among})"
    newest = f"ORDER BY {_NEWEST[table]} DESC NULLS LAST" if table in _NEWEST else f"ORDER BY {keys}"
    count = select(f"SELECT count(*) AS n FROM t WHERE {condition}")  # noqa: S608 a name of ours, ids quoted
    kept = select(
        f"SELECT {names} FROM (SELECT *, row_number() OVER (PARTITION BY {keys} {newest}) AS place FROM t "  # noqa: S608
        f"WHERE {condition}) r WHERE place = 1"
    )
    source = fitted(kept.cast(arrow_schema(table)), target)
    write_deltalake(target, source, mode="overwrite", predicate=condition, writer_properties=zstd())
    return count.column("n")[0].as_py() - kept.num_rows
