"""A SQLite file of MLflow's, opened to be read.

Lives here: two ways to it: Python's own `sqlite3` for this process, ADBC for a process that does nothing else.
Add here: what SQLite says differently from PostgreSQL.
Not here: what is asked (`database_sql.py`), the process that reads (`sqlite_child.py`).

ADBC brings a copy of SQLite of its own. Two copies in one process take each other's locks away: closing a file drops
all locks the process holds on it (https://www.sqlite.org/howtocorrupt.html, 2.2.1), so that another process could write
into a transaction of MLflow's. `sqlite3` is the very library MLflow uses, which shares its locks.
"""

import sqlite3
import weakref
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from resources.reading.database import Database, Query
from resources.reading.store_state import sqlite_state

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 4_096  # Held as Python objects at once, which take five times as much memory as columns.
_WAIT_S = 20.0  # For a writer: as long as MLflow waits.


class SqliteDatabase(Database):
    """A SQLite file, which is neither written nor made; what its write-ahead log holds is seen."""

    name = "sqlite"
    ids = "(SELECT value, key AS nth FROM json_each(?)) AS j"
    join = "CROSS JOIN"
    numbers = ("trace_tags", "trace_request_metadata", "spans")

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        self.path = path

    def again(self) -> Database:
        """See `Database.again`."""
        return type(self)(self.path)

    @property
    def _uri(self) -> str:
        if not self.path.exists():
            from lifecycle_assets.refused import Refused

            raise Refused(f"{self.where}: there is no such file; start MLflow once, or correct MLFLOW_TRACKING_URI.")
        return f"file:{quote(str(self.path.absolute()))}?mode=ro"

    def _connect(self) -> Any:
        connection = sqlite3.connect(
            self._uri, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
        )
        weakref.finalize(self, connection.close)
        return connection

    def _errors(self) -> tuple[type[BaseException], ...]:
        return (sqlite3.Error,)

    def _fetch(self, query: Query, parameters: Sequence[Any]) -> "pa.Table":
        import pyarrow as pa

        schema, found = query.schema, self._connection.execute(query.sql, tuple(parameters))
        batches = []
        while rows := found.fetchmany(_ROWS):
            arrays = [_array(values, field) for values, field in zip(zip(*rows, strict=True), schema, strict=True)]
            batches.append(pa.record_batch(arrays, schema=schema))
        return pa.Table.from_batches(batches, schema=schema)

    def revision(self) -> str:
        """See `Database.revision`."""
        if not self.path.exists():
            return ""
        tables = self.query(Query("SELECT name FROM sqlite_master WHERE name = 'alembic_version'", (("name", "s"),)))
        if not tables.num_rows:
            return ""
        found = self.query(Query("SELECT version_num FROM alembic_version", (("version_num", "s"),))).to_pylist()
        return (found[0]["version_num"] or "") if found else ""

    def state(self) -> int:
        """See `TraceReader.state`."""
        return sqlite_state(self.path)


class SqliteColumns(SqliteDatabase):
    """The same by ADBC, which makes columns without Python's lock. Only for a process without any other SQLite."""

    def _connect(self) -> Any:
        import adbc_driver_sqlite.dbapi

        connection = adbc_driver_sqlite.dbapi.connect(self._uri, autocommit=True)
        weakref.finalize(self, connection.close)
        return connection

    def _errors(self) -> tuple[type[BaseException], ...]:
        import adbc_driver_manager

        return (adbc_driver_manager.Error,)

    def _fetch(self, query: Query, parameters: Sequence[Any]) -> "pa.Table":
        import pyarrow as pa

        # The driver takes types from the first rows: one goes before that has no nulls.
        values = {"i": "0", "f": "0.0", "s": "''"}
        typed = ", ".join(f"{values[kind]} AS {name}" for name, kind in query.columns)
        with closing(self._connection.cursor()) as cursor:
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": "4096"})
            cursor.execute(f"SELECT {typed} UNION ALL {query.sql}", tuple(parameters) or None)
            with pa.RecordBatchReader.from_stream(cursor.fetch_arrow()) as found:
                made, schema = found.read_all().slice(1), query.schema
                return made if made.schema == schema else made.cast(schema)


def _array(values: Sequence[Any], field: "pa.Field") -> "pa.Array":
    """SQLite keeps a value of another type than its column's as it is."""
    import pyarrow as pa

    try:
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        made = {pa.string(): str, pa.int64(): int, pa.float64(): float}[field.type]
        try:
            return pa.array([None if one is None else made(one) for one in values], field.type)
        except (ValueError, OverflowError) as error:
            raise sqlite3.DataError(f"column {field.name} holds {str(error)[:80]}") from error
