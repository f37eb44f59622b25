"""A home with production traces of one day in MLflow's store, and an archive of them.

Lives here: the home, archiving it, and a reader that counts what it is asked.
Add here: a further way production changes after it was archived.
Not here: what must hold (`test_archive_days.py`, `test_archive_kills.py`).
"""

import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import corpus
from lifecycle_assets.spec_file import Agent
from resources.archive.archive import ArchivedDay
from resources.archive.delta_archive import DeltaArchive
from resources.mlflow_store import open_client
from resources.platform import Platform
from resources.reading.reading import open_reader
from resources.reading.trace_reader import Batch, Filed, Listing, Marks, Touched, TraceReader
from resources.redaction import Redaction
from resources.sql.engine import DuckDbEngine
from resources.tables import KEYS
from tests.building import make_agent

DAY = date(2026, 11, 18)
TRACES = 30
LATER_MS = int(datetime(2026, 12, 24, tzinfo=UTC).timestamp() * 1000)
PREFIX = "main.agents.tiny_"
ARCHIVED = ("spans", "assessments", "traces")


class Counting(TraceReader):
    """A reader that counts what the archive asks of it."""

    def __init__(self, real: TraceReader) -> None:
        self._real, self.cheap_listing, self.page_size = real, real.cheap_listing, real.page_size
        self.files_from = real.files_from
        self.asked: list[tuple[str, int]] = []

    def state(self) -> int:
        self.asked.append(("state", 1))
        return self._real.state()

    def list(self, since_ms: int, until_ms: int, *, settled_before_ms: int) -> Listing:
        found = self._real.list(since_ms, until_ms, settled_before_ms=settled_before_ms)
        self.asked.append(("list", found.traces.num_rows))
        return found

    def touched(self, since_ms: int, until_ms: int, marks: Marks) -> Touched:
        return self._real.touched(since_ms, until_ms, marks)

    def digests(self, listing: pa.Table) -> Sequence[int] | None:
        self.asked.append(("digests", listing.num_rows))
        return self._real.digests(listing)

    def heads(self, listing: pa.Table, *, redact: Redaction = ()) -> Iterator[Batch]:
        self.asked.append(("heads", listing.num_rows))
        return self._real.heads(listing, redact=redact)

    def batches(self, listing: pa.Table, *, redact: Redaction = ()) -> Iterator[Batch]:
        self.asked.append(("batches", listing.num_rows))
        return self._real.batches(listing, redact=redact)

    def filed(self, listings: Sequence[pa.Table], folders: Mapping[str, Path]) -> Iterator[Filed]:
        self.asked.append(("filed", sum(one.num_rows for one in listings)))
        return self._real.filed(listings, folders)

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Any]:
        return self._real.traces(trace_ids)

    def read(self, what: str) -> int:
        """Traces that were read in this way."""
        return sum(number for name, number in self.asked if name == what)


@dataclass
class Production:
    """An agent with production traces of `DAY`, on a platform of its own."""

    platform: Platform
    agent: Agent
    said: list[str] = field(default_factory=list)

    def archive(self, day: date = DAY, *, settled_before_ms: int = LATER_MS, **more: Any) -> ArchivedDay:
        """Archive a day."""
        archive = DeltaArchive(self.platform)
        return archive.archive_day(
            self.agent, day, settled_before_ms=settled_before_ms, progress=self.said.append, **more
        )

    def counted(self, *, cheap_listing: int | None = None) -> tuple[ArchivedDay, Counting]:
        """Archive the day, counting what is read; a listing of more traces than `cheap_listing` is not cheap."""
        readers: list[Counting] = []

        def read(platform: Platform, experiment_id: str, progress: Any) -> TraceReader:
            readers.append(Counting(open_reader(platform, experiment_id, progress)))
            readers[-1].cheap_listing = readers[-1].cheap_listing if cheap_listing is None else cheap_listing
            return readers[-1]

        archive = DeltaArchive(self.platform, read=read)
        archived = archive.archive_day(self.agent, DAY, settled_before_ms=LATER_MS, progress=self.said.append)
        return archived, readers[0]

    @property
    def client(self) -> Any:
        """MLflow's client of this home."""
        return open_client(self.platform)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """A statement to MLflow's own store."""
        with closing(sqlite3.connect(self.platform.home / "mlflow.db")) as store, store:
            return store.execute(statement, values).fetchall()

    def add_traces(self, number: int, start: int) -> None:
        """Further traces, in the last seconds of the day: newer than all that were there."""
        (held,) = self.sql("SELECT max(rowid) FROM trace_info")
        write_traces(self.platform, number, start=start)
        moment = int(datetime(DAY.year, DAY.month, DAY.day, 23, 59, tzinfo=UTC).timestamp() * 1000)
        self.sql("UPDATE trace_info SET timestamp_ms = ? + rowid WHERE rowid > ?", moment, *held)

    @property
    def last_added(self) -> str:
        """The trace that was added last."""
        return self.sql("SELECT request_id FROM trace_info ORDER BY rowid DESC LIMIT 1")[0][0]

    def rows(self, table: str, where: str = "true") -> list[dict[str, Any]]:
        """Rows of a table."""
        keys = ", ".join(KEYS[table])
        query = f"SELECT * FROM {table} WHERE {where} ORDER BY {keys}"
        return DuckDbEngine(self.platform).query(PREFIX, query, limit=100_000).dicts()

    def versions(self) -> dict[str, int]:
        """Delta version by table."""
        return {table: DeltaArchive(self.platform).version(PREFIX, table) for table in ARCHIVED}

    def folder(self, table: str) -> Path:
        """Where a table is kept."""
        return Path(self.platform.table_uri(PREFIX + table))

    def assert_whole(self, traces: int) -> None:
        """Each row is there once, and what MLflow holds of each trace is there."""
        counts = {table: len(self.rows(table)) for table in ARCHIVED}
        for table in ARCHIVED:
            keys = ", ".join(KEYS[table])
            distinct = f"SELECT count(*) FROM (SELECT DISTINCT {keys} FROM {table})"
            assert DuckDbEngine(self.platform).query(PREFIX, distinct).rows == ((counts[table],),)
        assert counts["traces"] == traces
        known = (
            "SELECT count(*) FROM spans JOIN trace_info t ON t.request_id = trace_id WHERE t.status <> 'IN_PROGRESS'"
        )
        assert self.sql(known) == [(counts["spans"],)]


def write_traces(platform: Platform, number: int, *, start: int = 0) -> None:
    """Traces of `DAY` in MLflow's store, in bulk: the first over all of it, further ones in its last hour."""
    midnight = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC) + timedelta(days=1)
    until_ms = int(midnight.timestamp() * 1000) + (corpus.LEAD_MS if start == 0 else 0)
    corpus.write(platform.home, number, start=start, days=1, until_ms=until_ms, experiment="/agents/tiny")


def production(store: Path, home: Path, *, traces: int = TRACES) -> Production:
    """A home with traces; `store` is an empty store of MLflow that is copied."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(store, home / "mlflow.db")
    platform = Platform.from_env({"LIFECYCLE_HOME": str(home)})
    if traces:
        write_traces(platform, traces)
    return Production(platform, agent_at(home))


def agent_at(home: Path, **archive: Any) -> Agent:
    """The agent, with fields of `archive` declared."""
    return make_agent(home / "agents", attributes={"archive": {"settle_minutes": 0, **archive}})


def copied(made: Production, home: Path) -> Production:
    """The same at another place."""
    shutil.copytree(made.platform.home, home, dirs_exist_ok=True)
    platform = Platform.from_env({"LIFECYCLE_HOME": str(home)})
    return Production(platform, made.agent)
