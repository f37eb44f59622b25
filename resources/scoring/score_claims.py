"""Which process calls what has a price: parts of a day, claimed in the log of the table scores land in.

Lives here: claiming a part, and letting go of it.
Add here: nothing. Not here: landing scores (`score_table.py`), what is in a part (`run.py`).

A claim is an application transaction of a commit without rows. It is read from the snapshot the commit goes through, so
of two processes that want the same part one is refused. A claim of a process that is gone holds nobody up. It is about
money only: what two processes score at once lands once all the same.
"""

import hashlib
import os
import time
from datetime import date

from resources.delta.table import storage
from resources.delta.write import append_rows, table_to_write
from resources.platform import Platform
from resources.run_marks import process_lives
from resources.tables import arrow_schema

PARTS = 32
"""Parts of a day."""

_PID_BITS = 22  # Linux numbers processes below 2**22.
_BELIEVED_SECONDS = 6 * 3600  # Then the number may be another process's.


def part_of(trace_id: str) -> int:
    """The part of the day a trace is in; the same for ever."""
    return hashlib.sha256(trace_id.encode()).digest()[0] % PARTS


class Claims:
    """The claims of this process on one day."""

    def __init__(self, platform: Platform, prefix: str, day: date) -> None:
        self._where, self._day = platform.table_uri(prefix + "assessments"), day
        self._mine: set[int] = set()

    def claim(self, part: int) -> bool:
        """Whether this process may work on a part: nobody else does."""
        from deltalake.exceptions import CommitFailedError

        if part in self._mine:
            return True
        app, now = self._app(part), int(time.time())
        with storage(self._where):
            target = table_to_write(self._where, "assessments")
            said = target.transaction_version(app) or 0
            claimed, pid = said >> _PID_BITS, said & (2**_PID_BITS - 1)
            if pid not in (0, os.getpid()) and now - claimed < _BELIEVED_SECONDS and process_lives(pid):
                return False
            try:
                append_rows(target, arrow_schema("assessments").empty_table(), {app: (now << _PID_BITS) | os.getpid()})
            except CommitFailedError:  # Somebody else claimed it, or wrote at the same moment: later.
                return False
        self._mine.add(part)
        return True

    def release(self) -> None:
        """Let go of everything, in one commit; a commit that is lost leaves claims until this process ends."""
        from deltalake.exceptions import CommitFailedError

        if self._mine:
            with storage(self._where):
                target = table_to_write(self._where, "assessments")
                try:
                    append_rows(
                        target, arrow_schema("assessments").empty_table(), {self._app(part): 0 for part in self._mine}
                    )
                except CommitFailedError:
                    return
            self._mine.clear()

    def _app(self, part: int) -> str:
        return f"claim:{self._day}:{part}"
