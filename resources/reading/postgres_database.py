"""A PostgreSQL database of MLflow's, opened to be read, by ADBC into Arrow.

Lives here: connections that cannot write, and what PostgreSQL says differently.
Add here: what PostgreSQL says differently from SQLite.
Not here: what is asked (`database_sql.py`).
"""

import hashlib
import weakref
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from resources.explain import without_password
from resources.reading.database import Database, Query

if TYPE_CHECKING:
    import pyarrow as pa


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
        weakref.finalize(self, connection.close)
        with closing(connection.cursor()) as cursor:
            cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        return connection

    def _errors(self) -> tuple[type[BaseException], ...]:
        import adbc_driver_manager

        return (adbc_driver_manager.Error,)

    def _fetch(self, query: Query, parameters: Sequence[Any]) -> "pa.Table":
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(query.sql, tuple(parameters) or None)
            return cursor.fetch_arrow_table().cast(query.schema)

    def revision(self) -> str:
        """See `Database.revision`."""
        named = Query("SELECT to_regclass('alembic_version')::text AS name", (("name", "s"),))
        if self.query(named).to_pylist()[0]["name"] is None:
            return ""
        found = self.query(Query("SELECT version_num FROM alembic_version", (("version_num", "s"),))).to_pylist()
        return found[0]["version_num"] if found else ""

    def state(self) -> int:
        """See `TraceReader.state`: a digest of the next transaction's number where none is under way, else 0.

        https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
        """
        asked = (
            "SELECT pg_snapshot_xmax(s)::text AS next, pg_snapshot_xmin(s)::text AS oldest "
            "FROM (SELECT pg_current_snapshot() AS s) AS now"
        )
        found = self.query(Query(asked, (("next", "s"), ("oldest", "s")))).to_pylist()[0]
        if found["next"] != found["oldest"]:
            return 0
        return int.from_bytes(hashlib.sha256(f"{self.where} {found['next']}".encode()).digest()[:8]) >> 1 or 1
