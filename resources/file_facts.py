"""What the facts of files say without a look into them: their number, size and times.

Lives here: the state of a SQLite file, the newest commit of a Delta table.
Add here: another file whose facts tell whether anything was written.
Not here: what is compared with what (`store_glance.py`).
"""

import hashlib
import os
import re
import time
from pathlib import Path

_COMMIT = re.compile(r"([0-9]{20})\.json")

TICK_NS = 20_000_000
"""How far apart two writes to one file have another time: Linux stamps files by a clock that ticks every 1 to 10 ms."""

COARSE_TICK_NS = 2_500_000_000
"""The same where times are whole seconds, as on older file systems: two for FAT, and some more."""


def file_state(file: Path) -> str:
    """Names everything a SQLite file holds; empty when that cannot be told.

    By the facts of the files alone: to open one and close it again would take away the locks that MLflow's connections
    of this process hold on it (https://www.sqlite.org/howtocorrupt.html, 2.2). Every commit writes the file or, ahead
    of it, the log; two of them differ by their time once the file system's clock has ticked in between.
    """
    now = time.time_ns()
    try:
        facts = [found for suffix in ("", "-wal") if (found := _facts(file.with_name(file.name + suffix)))]
        if not facts or _facts(file.with_name(file.name + "-journal")):
            return ""  # No database, or in the middle of a transaction.
    except OSError:
        return ""
    if any(now - one.st_mtime_ns < _tick(one.st_mtime_ns) for one in facts):
        return ""  # The next commit may get the same time.
    changed = [facts[0].st_ctime_ns]  # A restored file has its old time, not this one; opening the log sets the log's.
    return hashlib.sha256(repr([changed, *map(_identity, facts)]).encode()).hexdigest()[:32]


def newest_commit(log: Path) -> str:
    """Version and facts of the newest commit in a Delta log; `none` without a table, empty when it cannot be told.

    A table that was made anew or restored has other facts at the same version. Raises `OSError` for a log that cannot
    be read.
    """
    version = _seen.get(log, -1)
    if version < 0 or not commit_file(log, version).exists():
        try:
            names = [entry.name for entry in log.iterdir()]
        except FileNotFoundError:
            return "none"
        version = max((int(found[1]) for name in names if (found := _COMMIT.fullmatch(name))), default=-1)
        if version < 0:
            return ""
    while commit_file(log, version + 1).exists():
        version += 1
    _seen[log] = version
    return commit_facts(log, version)


def commit_facts(log: Path, version: int) -> str:
    """A version and the facts of its commit, as `newest_commit` names it. Raises `OSError` when it is not there."""
    facts = commit_file(log, version).stat()
    return f"{version}.{_identity(facts)}.{facts.st_ctime_ns}"


def commit_file(log: Path, version: int) -> Path:
    """Where a Delta log has the commit of a version."""
    return log / f"{version:020}.json"


_seen: dict[Path, int] = {}
"""Delta log to the version this process saw last: where the next look begins, and nothing else."""


def _identity(facts: os.stat_result) -> str:
    """What a file's own facts say of its content: no order of times, only whether they are the same."""
    return f"{facts.st_ino}.{facts.st_mtime_ns}.{facts.st_size}"


def _facts(file: Path) -> os.stat_result | None:
    """The facts of a file that holds something; None for an empty one and for none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found if found.st_size else None


def _tick(time_ns: int) -> int:
    """Nanoseconds within which a file system may give two writes the same time."""
    return COARSE_TICK_NS if time_ns % 10**9 == 0 else TICK_NS
