"""One process at a time rewrites the files of a table.

Lives here: the claim in the table's own log, and letting go of it.
Add here: nothing but what tells whether a claimant is still at work.
Not here: rewriting (`compaction.py`).

Of a rewrite and a merge into the same files delta-rs refuses the second. Of two rewrites it refuses none, and both add
the same rows (1.6.6: it looks only at removals that change data); nor does a rewrite carry an application transaction.
So whoever rewrites claims the table before, in a commit without rows: of two claims at once Delta refuses one.
"""

import hashlib
import os
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from resources.delta.write import append_rows
from resources.run_marks import process_lives

if TYPE_CHECKING:
    from deltalake import DeltaTable

CLAIM = "upkeep:rewriting"
"""Application transaction: who rewrites the table, and since when; 0 while nobody does."""

BELIEVED_MINUTES = 6 * 60
"""How long a claimant is believed to be at work that cannot be asked. No rewrite takes so long."""

_PID_BITS, _HOST_BITS = 22, 15  # Linux numbers processes below 2**22; with 26 bits of minutes it makes 63.

_busy: set[str] = set()
_lock = threading.Lock()


@contextmanager
def alone(where: str) -> Generator[bool]:
    """Whether nobody else rewrites the table, and nobody will while the block runs."""
    with _lock:
        is_free = where not in _busy
        if is_free:
            _busy.add(where)
    try:
        claimed = is_free and _claim(where)
        try:
            yield claimed
        finally:
            if claimed:
                _release(where)
    finally:
        if is_free:
            with _lock:
                _busy.discard(where)


def _claim(where: str) -> bool:
    from deltalake import DeltaTable
    from deltalake.exceptions import CommitFailedError

    target = DeltaTable(where)
    if _is_at_work(target.transaction_version(CLAIM) or 0):
        return False
    try:
        _note(target, int(time.time() / 60) << (_PID_BITS + _HOST_BITS) | _host() << _PID_BITS | os.getpid())
    except CommitFailedError:  # Somebody else claimed it.
        return False
    return True


def _release(where: str) -> None:
    """Let go; a commit that is lost leaves the claim until this process ends."""
    from deltalake import DeltaTable
    from deltalake.exceptions import CommitFailedError

    with suppress(CommitFailedError):
        _note(DeltaTable(where), 0)


def _note(target: "DeltaTable", number: int) -> None:
    import pyarrow as pa

    append_rows(target, pa.schema(target.schema()).empty_table(), {CLAIM: number})


def _is_at_work(claim: int) -> bool:
    pid, host = claim & (2**_PID_BITS - 1), claim >> _PID_BITS & (2**_HOST_BITS - 1)
    if not claim or time.time() / 60 - (claim >> (_PID_BITS + _HOST_BITS)) >= BELIEVED_MINUTES:
        return False
    if host != _host():
        return True
    # This process knows what it is doing: a claim of its own is one of an earlier process of its number.
    return pid != os.getpid() and process_lives(pid)


def _host() -> int:
    return int.from_bytes(hashlib.sha256(socket.gethostname().encode()).digest()[:4]) % 2**_HOST_BITS
