"""Which process calls what has a price: parts of a day, claimed in the log of the table scores land in.

Lives here: claiming a part, staying its holder, and letting go of it.
Add here: nothing. Not here: who holds a claim (`claimant.py`), landing scores (`score_table.py`), what is in a part
(`run.py`).

A claim is an application transaction of a commit without rows. It is read from the snapshot the commit goes through, so
of two processes that want the same part one is refused. It names the machine and the process, and is renewed while the
process works: a process of another machine is waited for until its claim is stale, one of this machine that is gone
holds nobody up. It is about money only: what two processes score at once lands once all the same.
"""

import hashlib
import time
from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING

from resources.claimant import at_work, is_mine, signed
from resources.delta.table import storage
from resources.delta.write import append_rows, table_to_write
from resources.platform import Platform
from resources.tables import arrow_schema

if TYPE_CHECKING:
    from deltalake import DeltaTable

PARTS = 32
"""Parts of a day."""

STALE_SECONDS = 300
"""After so long without renewal nobody is believed to be at work on a part: more than any pause between two renewals,
which is publishing a commit's scores to a slow server, and clocks that differ."""

RENEW_SECONDS = 60
"""How often claims are renewed: one commit for all of them."""


def part_of(trace_id: str) -> int:
    """The part of the day a trace is in; the same for ever."""
    return hashlib.sha256(trace_id.encode()).digest()[0] % PARTS


class Claims:
    """The claims of this process on one day."""

    def __init__(self, platform: Platform, prefix: str, day: date) -> None:
        self._where, self._day = platform.table_uri(prefix + "assessments"), day
        self._mine: set[int] = set()
        self._renewed = time.monotonic()

    def claim(self, part: int) -> bool:
        """Whether this process may work on a part: nobody else does."""
        if part in self._mine:
            return True
        with storage(self._where):
            target = table_to_write(self._where, "assessments")
            held = target.transaction_version(self._app(part)) or 0
            if at_work(held, believed_seconds=STALE_SECONDS) or not self._noted(target, [part], signed()):
                return False
        self._mine.add(part)
        return True

    def holds(self, part: int) -> bool:
        """Whether a part that was claimed is still this process's."""
        return part in self._mine

    def renew(self) -> None:
        """Say that this process is still at work, if that is due; what another has taken over meanwhile is its."""
        if not self._mine or time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        with storage(self._where):
            target = self._kept()
            if self._noted(target, self._mine, signed()):
                self._renewed = time.monotonic()

    def release(self) -> None:
        """Let go of everything, in one commit; a commit that is lost leaves claims until they are stale."""
        if self._mine:
            with storage(self._where):
                self._noted(self._kept(), self._mine, 0)
            self._mine = set()

    def _kept(self) -> "DeltaTable":
        """The table as it is now, after forgetting what another has taken over."""
        target = table_to_write(self._where, "assessments")
        self._mine = {part for part in self._mine if is_mine(target.transaction_version(self._app(part)) or 0)}
        return target

    def _noted(self, target: "DeltaTable", parts: Iterable[int], number: int) -> bool:
        """Note the number of these parts, and whether that was the first since `target` was read."""
        from deltalake.exceptions import CommitFailedError

        if not (notes := {self._app(part): number for part in parts}):
            return True
        nothing = arrow_schema("assessments").empty_table()
        try:
            append_rows(target, nothing, notes)
        except CommitFailedError:  # Somebody else claimed one of them, or wrote at the same moment: later.
            return False
        return True

    def _app(self, part: int) -> str:
        return f"claim:{self._day}:{part}"
