"""What a benchmark is: a baseline and ours, each a function that a fresh process calls.

Lives here: the description of a job, and what its sides are given. Nothing here imports more than the standard library,
so that a side pays for its own imports.
Add here: something several jobs need to know of their corpus.
Not here: the jobs (a module each: `archive.py`, `score.py`, `ticks.py`, ...), running them (`run.py`, `side.py`).

A module of this folder with a tuple `JOBS` takes part:

    def ours(turn: Turn) -> None:
        import something_heavy                # not timed
        archive = DeltaArchive(turn.platform)
        with turn.timed():                    # one measurement; repeat the block for more, their median counts
            archive.archive_days(...)

    JOBS = (Job(name="archive_database", meaning="...", goal="at least 30 times", baseline=users, ours=ours),)
"""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.memory import Peak

if TYPE_CHECKING:
    from resources.platform import Platform


@dataclass(frozen=True)
class Measured:
    """One timed block: wall seconds, traces it worked on, and how far memory rose above where it began (MB).

    Memory of child processes counts.
    """

    seconds: float
    traces: int
    rss_mb: float


@dataclass
class Turn:
    """What a side works on, in a process of its own.

    `store` is the corpus' `mlflow.db`: do not write to it unless the job says `writes`. `folder` is empty, this side's
    alone, and deleted afterwards; `platform` keeps its state there. `shared` is what the job's `prepare` left behind
    (as a `Turn.folder`): do not write there, copy. `n` traces of `experiment` count, those since `since_ms` (epoch
    milliseconds, midnight UTC) until `last_ms`, when the newest one started. `uri` is MLflow's tracking URI: the
    store, or a server in front of it.
    """

    n: int
    store: Path
    folder: Path
    uri: str
    experiment: str
    since_ms: int
    last_ms: int
    shared: Path | None = None
    found: list[Measured] = field(default_factory=list)

    @cached_property
    def platform(self) -> "Platform":
        """The local platform on this corpus: the environment names the same, for child processes."""
        from resources.platform import Platform

        return Platform.from_env()

    @property
    def first_day(self) -> date:
        """The first UTC day that counts."""
        return datetime.fromtimestamp(self.since_ms / 1000, UTC).date()

    @property
    def last_day(self) -> date:
        """The UTC day of the newest trace."""
        return datetime.fromtimestamp(self.last_ms / 1000, UTC).date()

    @contextmanager
    def timed(self, traces: int | None = None) -> Generator[None]:
        """Measure a block that works on `traces` (default: all); time per trace counts when they are fewer.

        What was written before, copies of stores among it, goes to the disk first.
        """
        os.sync()
        memory = Peak()
        memory.start()
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.found.append(Measured(seconds, self.n if traces is None else traces, max(memory.stop(), 0.0)))


Side = Callable[[Turn], None]


@dataclass(frozen=True)
class Job:
    """Two sides that do the same work; functions at module level, since other processes look them up.

    `meaning` says what is compared and `goal` what is promised, for the reader. `limit` is a third side that does only
    the part nobody can save (writing the same data, calling the scorers): `limit_fraction` is its time over ours.
    `prepare` runs once before, untimed, and leaves its results in `turn.folder`; jobs with the same function share it.
    `most` bounds the traces that count (the newest days). `workers` starts an `mlflow server` with so many, in front
    of the store. `writes`: every side gets a copy of the store of its own. A baseline slower than a minute runs once.
    Jobs with the same baseline are measured in the same rounds, in turn.
    """

    name: str
    meaning: str
    goal: str
    baseline: Side
    ours: Side
    limit: Side | None = None
    prepare: Side | None = None
    most: int | None = None
    workers: int = 0
    writes: bool = False
    rounds: int = 3
    corpus: bool = True


def clean_environment(turn_folder: Path, uri: str) -> dict[str, str]:
    """The environment of a side: nothing of the caller's product, MLflow or Dagster settings."""
    foreign = ("LIFECYCLE_", "MLFLOW_", "DAGSTER_", "DATABRICKS_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    telemetry = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_MODEL_CATALOG_URI": ""}
    return {**kept, **telemetry, "LIFECYCLE_HOME": str(turn_folder), "MLFLOW_TRACKING_URI": uri}
