"""The tracking database, opened to be read: SQLite and PostgreSQL, by ADBC into Arrow.

Lives here: connections that cannot write, queries, the schema's revision, and what two databases say differently.
Add here: another database whose ADBC driver and whose SQL were tested.
Not here: what is asked (`database_sql.py`), rows (`database_reader.py`).
"""

import hashlib
import weakref
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lifecycle_assets.refused import Refused
from resources.explain import explained, without_password
from resources.platform import Platform
from resources.reading.store_state import sqlite_path, sqlite_state

if TYPE_CHECKING:
    import pyarrow as pa

KNOWN_REVISIONS = ("dc11669786a5",)
"""Alembic revisions of MLflow's schema this reader was tested with: MLflow 3.17. Of another one nobody knows what its
columns mean, so its traces are read by MLflow itself."""


def database_of(platform: Platform) -> "Database | None":
    """The database behind the tracking URI; None for a server, or a database that is read by MLflow only."""
    path = sqlite_path(platform.tracking_uri)
    if path is not None:
        return SqliteDatabase(path)
    if platform.tracking_uri.partition("://")[0].partition("+")[0] in ("postgresql", "postgres"):
        return PostgresDatabase(platform.tracking_uri)
    return None


class Database:
    """One read-only connection to a tracking database. Not to be used by two threads at once; `again` is another."""

    name: str
    ids: str
    """SQL of the listed ids, as a table `j` of `value` and `nth` (from 0); its one parameter is their JSON array."""
    join: str
    """How a table is joined to the listed ids, so that they lead."""
    numbers: tuple[str, ...] = ()
    """Tables whose rows are numbered as they come (`rowid`)."""

    def __init__(self, where: str) -> None:
        self.where = where

    def again(self) -> "Database":
        """Another connection to the same database."""
        raise NotImplementedError

    def _connect(self) -> Any:
        raise NotImplementedError

    def typed(self, columns: Sequence[tuple[str, str, str]]) -> str:
        """SQL that stands before a SELECT of these columns, so that nulls do not decide on their types."""
        return ""

    @cached_property
    def _connection(self) -> Any:
        with explained(self.where):
            connection = self._connect()
        weakref.finalize(self, connection.close)
        return connection

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> "pa.Table":
        """The rows of a query. Raises `Refused` when the database cannot be read or lacks what is asked for."""
        import adbc_driver_manager

        try:
            with explained(self.where), closing(self._connection.cursor()) as cursor:
                self._prepare(cursor)
                cursor.execute(sql, tuple(parameters) or None)
                return cursor.fetch_arrow_table()
        except adbc_driver_manager.Error as error:
            raise self._refusal(error) from error

    def _prepare(self, cursor: Any) -> None:
        """What a driver has to be told of a statement."""

    def _refusal(self, error: BaseException) -> Refused:
        said = " ".join(str(error).split())[:300].rstrip(". ")
        return Refused(
            f"{self.where}: traces cannot be read from the database ({said}); if MLflow is being upgraded let it end, "
            "then run again."
        )

    def close(self) -> None:
        """End the connection."""
        if "_connection" in vars(self):
            self._connection.close()
            del self._connection

    def revision(self) -> str:
        """The schema's alembic revision; empty when there is none: the store is new, or no store of MLflow's."""
        raise NotImplementedError

    def state(self) -> int:
        """See `TraceReader.state`."""
        raise NotImplementedError


class SqliteDatabase(Database):
    """A SQLite file, which is neither written nor made; what its write-ahead log holds is seen."""

    name = "sqlite"
    ids = "(SELECT value, key AS nth FROM json_each(?)) AS j"
    join = "CROSS JOIN"
    numbers = ("trace_tags", "trace_request_metadata", "spans")

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        self._path = path

    def again(self) -> Database:
        """See `Database.again`."""
        return SqliteDatabase(self._path)

    def _connect(self) -> Any:
        import adbc_driver_sqlite.dbapi

        if not self._path.exists():
            raise Refused(f"{self.where}: there is no such file; start MLflow once, or correct MLFLOW_TRACKING_URI.")
        return adbc_driver_sqlite.dbapi.connect(f"file:{quote(str(self._path))}?mode=ro", autocommit=True)

    def typed(self, columns: Sequence[tuple[str, str, str]]) -> str:
        """See `Database.typed`: the driver takes types from the first rows, so a row goes before (`query` drops it)."""
        values = {"i": "0", "f": "0.0", "s": "''"}
        return f"SELECT {', '.join(f'{values[kind]} AS {name}' for _, name, kind in columns)} UNION ALL "

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> "pa.Table":
        """See `Database.query`."""
        found = super().query(sql, parameters)
        return found.slice(1) if " UNION ALL SELECT " in sql else found

    def _prepare(self, cursor: Any) -> None:
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": "4096"})

    def revision(self) -> str:
        """See `Database.revision`."""
        if not self._path.exists():
            return ""
        tables = self.query("SELECT name FROM sqlite_master WHERE name = 'alembic_version'")
        found = self.query("SELECT version_num FROM alembic_version").to_pylist() if tables.num_rows else []
        return found[0]["version_num"] if found else ""

    def state(self) -> int:
        """See `TraceReader.state`."""
        return sqlite_state(self._path)


class PostgresDatabase(Database):
    """A PostgreSQL database, in transactions that can only read."""

    name = "postgresql"
    ids = "(SELECT value, nth - 1 AS nth FROM json_array_elements_text($1::json) WITH ORDINALITY AS e(value, nth)) AS j"
    join = "JOIN"

    def __init__(self, uri: str) -> None:
        super().__init__(without_password(uri))
        self._uri = uri

    def again(self) -> Database:
        """See `Database.again`."""
        return PostgresDatabase(self._uri)

    def _connect(self) -> Any:
        import adbc_driver_postgresql.dbapi

        # SQLAlchemy names its driver in the scheme.
        uri = f"postgresql://{self._uri.partition('://')[2]}"
        connection = adbc_driver_postgresql.dbapi.connect(uri, autocommit=True)
        with closing(connection.cursor()) as cursor:
            cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        return connection

    def revision(self) -> str:
        """See `Database.revision`."""
        if self.query("SELECT to_regclass('alembic_version')::text AS name").to_pylist()[0]["name"] is None:
            return ""
        found = self.query("SELECT version_num FROM alembic_version").to_pylist()
        return found[0]["version_num"] if found else ""

    def state(self) -> int:
        """See `TraceReader.state`: a digest of the next transaction's number where none is under way, else 0.

        https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
        """
        asked = (
            "SELECT pg_snapshot_xmax(s)::text AS next, pg_snapshot_xmin(s)::text AS oldest "
            "FROM (SELECT pg_current_snapshot() AS s) AS now"
        )
        found = self.query(asked).to_pylist()[0]
        if found["next"] != found["oldest"]:
            return 0
        return int.from_bytes(hashlib.sha256(f"{self.where} {found['next']}".encode()).digest()[:8]) >> 1 or 1
