"""Which days of a table were written since an earlier look, by its log alone.

Lives here: reading the commits between two looks. No module of Delta or Arrow is imported.
Add here: a further kind of entry of the log that says of which day it is.
Not here: which commit is the newest (`file_facts.py`), what is asked about those days (who looks).

Only what the log says plainly counts (https://github.com/delta-io/delta/blob/master/PROTOCOL.md, "Actions"): a commit
that is gone, another schema, a file without its day, and every day may have changed.
"""

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from resources.file_facts import commit_facts, commit_file
from resources.tables import PARTITION

COMMITS = 100
"""Commits read at most; as many as archiving in small steps makes in some hours."""

COMMIT_BYTES = 1_000_000
"""Of one commit; adding a file takes some 500 bytes of it."""


def changed_days(log: Path, since: str, until: str) -> frozenset[date] | None:
    """The days with rows written after the commit `since`, up to `until`; None when every day may have been.

    Both are answers of `newest_commit` about this log. Compaction writes files, no rows.
    """
    if since == until:
        return frozenset()
    try:
        first, last = int(since.partition(".")[0]), int(until.partition(".")[0])
        if not 0 <= last - first <= COMMITS or commit_facts(log, first) != since:
            return None  # A table made anew or put back, or a log that was shortened.
        days = [_days_of(commit_file(log, version)) for version in range(first + 1, last + 1)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    known = [each for each in days if each is not None]
    return frozenset().union(*known) if len(known) == len(days) else None


def _days_of(commit: Path) -> frozenset[date] | None:
    """The days of which one commit adds or removes rows. Raises what a line that is no such entry makes of it."""
    if commit.stat().st_size > COMMIT_BYTES:
        return None
    entries: list[dict[str, Any]] = [json.loads(line) for line in commit.read_bytes().splitlines() if line.strip()]
    if any("metaData" in entry or "protocol" in entry for entry in entries):
        return None
    return frozenset(_written(entry[kind] for entry in entries for kind in ("add", "remove") if kind in entry))


def _written(files: Iterable[dict[str, Any]]) -> Iterable[date]:
    return [date.fromisoformat(file["partitionValues"][PARTITION]) for file in files if file["dataChange"] is not False]
