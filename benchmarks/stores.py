"""Copies of a corpus' store, and the part of it a job works on.

Lives here: files. Add here: another way to cut a corpus. Not here: writing traces (`corpus.py`).
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_DAY_MS = 86_400_000


def snapshot(store: Path, copy: Path) -> None:
    """A consistent copy of a store that may be in use, or in write-ahead mode; the copy is not."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    source, target = sqlite3.connect(store), sqlite3.connect(copy)
    source.backup(target)
    target.execute("PRAGMA journal_mode=DELETE")
    source.close()
    target.close()


def copy_of(store: Path, folder: Path) -> Path:
    """A copy of the store in `folder`, without the original's write-ahead log: copy stores nobody writes to."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(store, folder / "mlflow.db"))


@contextmanager
def copied(store: Path, scratch: Path) -> Iterator[Path]:
    """A copy of the store for as long as the block runs."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield copy_of(store, Path(folder))


@dataclass(frozen=True)
class Part:
    """The newest traces of a store: `n` of `experiment` from `since_ms` (midnight UTC) to `last_ms` (epoch ms)."""

    experiment: str
    n: int
    since_ms: int
    last_ms: int


def newest(store: Path, most: int | None) -> Part:
    """Whole days of the store's largest experiment, newest first, until one more would make more than `most` traces.

    At least one day. Raises `ValueError` for a store without traces.
    """
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as found:
        by_day = found.execute(
            f"SELECT experiment_id, timestamp_ms / {_DAY_MS} AS day, count(*), max(timestamp_ms), "
            "sum(count(*)) OVER (PARTITION BY experiment_id) AS whole FROM trace_info GROUP BY experiment_id, day "
            "ORDER BY whole DESC, experiment_id, day DESC"
        ).fetchall()
        if not by_day:
            raise ValueError(f"{store} holds no trace; make a corpus with python -m benchmarks.corpus HOME 1000.")
        name = found.execute("SELECT name FROM experiments WHERE experiment_id=?", by_day[0][:1]).fetchone()[0]
    found.close()
    since, total = 0, 0
    for experiment, day, count, _, _ in by_day:
        if experiment != by_day[0][0] or (total and most is not None and total + count > most):
            break
        since, total = day * _DAY_MS, total + count
    return Part(name, total, since, by_day[0][3])
