"""The tracking database, opened to be read: what SQLite and PostgreSQL have in common.

Lives here: queries and their types, the schema's revision, and which database is behind a tracking URI.
Add here: another database whose driver and whose SQL were tested.
Not here: the databases (`sqlite_database.py`, `postgres_database.py`), what is asked (`database_sql.py`).

`Refused` is imported where it is raised: it brings Dagster, which the process that reads SQLite does without.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from resources.explain import explained
from resources.reading.store_state import sqlite_path

if TYPE_CHECKING:
    import pyarrow as pa

    from resources.platform import Platform

KNOWN_REVISIONS = ("dc11669786a5",)
"""Alembic revisions of MLflow's schema this reader was tested with: MLflow 3.17. Of another one nobody knows what its
columns mean, so its traces are read by MLflow itself."""


def database_of(platform: "Platform") -> "Database | None":
    """The database behind the tracking URI; None for a server, or a database that is read by MLflow only."""
    path = sqlite_path(platform.tracking_uri)
    if path is not None:
        from resources.reading.sqlite_database import SqliteDatabase

        return SqliteDatabase(path)
    if platform.tracking_uri.partition("://")[0].partition("+")[0] in ("postgresql", "postgres"):
        from resources.reading.postgres_database import PostgresDatabase

        return PostgresDatabase(platform.tracking_uri)
    return None


@dataclass(frozen=True)
class Query:
    """SQL, and its columns: name and kind, `i` a whole number, `f` a number, `s` text."""

    sql: str
    columns: tuple[tuple[str, str], ...]

    @property
    def schema(self) -> "pa.Schema":
        """The columns as Arrow sees them."""
        import pyarrow as pa

        kinds = {"i": pa.int64(), "f": pa.float64(), "s": pa.string()}
        return pa.schema([(name, kinds[kind]) for name, kind in self.columns])


class Database(ABC):
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

    @abstractmethod
    def again(self) -> "Database":
        """Another connection to the same database."""

    @abstractmethod
    def _connect(self) -> Any:
        """A new connection, which ends when nobody holds it any more."""

    @abstractmethod
    def _fetch(self, query: Query, parameters: Sequence[Any]) -> "pa.Table":
        """The rows of a query."""

    @abstractmethod
    def _errors(self) -> tuple[type[BaseException], ...]:
        """What the driver raises."""

    @cached_property
    def _connection(self) -> Any:
        return self._connect()

    def query(self, query: Query, parameters: Sequence[Any] = ()) -> "pa.Table":
        """The rows of a query. Raises `Refused` when the database cannot be read or lacks what is asked for."""
        try:
            with explained(self.where):
                return self._fetch(query, parameters)
        except self._errors() as error:
            from lifecycle_assets.refused import Refused

            said = " ".join(str(error).split())[:300].rstrip(". ")
            raise Refused(
                f"{self.where}: traces cannot be read from the database ({said}); if MLflow is being upgraded let it "
                "end, then run again."
            ) from error

    def close(self) -> None:
        """End the connection."""
        if "_connection" in vars(self):
            self._connection.close()
            del self._connection

    @abstractmethod
    def revision(self) -> str:
        """The schema's alembic revision; empty when there is none: the store is new, or no store of MLflow's."""

    def require(self, revision: str) -> None:
        """Raises `Refused` when the schema's revision is another one: MLflow was upgraded meanwhile."""
        now = self.revision()
        if now != revision:
            from lifecycle_assets.refused import Refused

            raise Refused(
                f"{self.where}: MLflow's schema changed from {revision} to {now[:40] or '(none)'} while traces were "
                "read, and nothing read since was written; let the upgrade end, then run again."
            )

    @abstractmethod
    def state(self) -> int:
        """See `TraceReader.state`."""
