"""Who holds a claim that is one number: which machine, which process, and until when it was heard of.

Lives here: the number, and whether the process behind it may still be at work.
Add here: something that tells two processes apart.
Not here: what is claimed (`scoring/score_claims.py`), claims that are words (`claims.py`).

A process number is used again, by another process after a restart and in every container: so the machine is its name,
the kernel's boot and the namespace processes are numbered in, and a process that began after its number was last heard
of is another one.
"""

import hashlib
import os
import socket
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from resources.run_marks import process_lives

UNIT_SECONDS = 16
"""Precision of the time in a number."""

_PID_BITS, _HOST_BITS = 22, 15  # Linux numbers processes below 2**22; 26 bits of time make 63, until 2059.
_SINCE = datetime(2025, 1, 1, tzinfo=UTC).timestamp()


def signed(pid: int | None = None, *, host: int | None = None, at: float | None = None) -> int:
    """The number of a process (default: this one, here, now), below 2**63 and never 0. `at` is epoch seconds."""
    units = int(((time.time() if at is None else at) - _SINCE) // UNIT_SECONDS)
    place = this_host() if host is None else host % 2**_HOST_BITS
    return units << (_HOST_BITS + _PID_BITS) | place << _PID_BITS | (os.getpid() if pid is None else pid)


def is_mine(number: int) -> bool:
    """Whether the number is one of this process, or of an earlier one with its number on this machine."""
    return _fields(number)[1:] == (this_host(), os.getpid())


def at_work(number: int, *, believed_seconds: float) -> bool:
    """Whether another process may be at work on what it claimed by this number; 0 is nobody.

    Of another machine it is believed for `believed_seconds` since it was last heard of; on this machine as long, unless
    that process has ended. A time ahead of this machine's clock by more than that is no claim.
    """
    heard, host, pid = _fields(number)
    if not number or abs(time.time() - heard) >= believed_seconds or is_mine(number):
        return False
    if host != this_host():
        return True
    return process_lives(pid) and _began(pid) < heard + UNIT_SECONDS


def _fields(number: int) -> tuple[float, int, int]:
    """When it was heard of (epoch seconds), machine, process."""
    units = number >> (_HOST_BITS + _PID_BITS)
    return _SINCE + units * UNIT_SECONDS, number >> _PID_BITS & (2**_HOST_BITS - 1), number & (2**_PID_BITS - 1)


@cache
def this_host() -> int:
    """A number for this machine; two containers on one have two, as long as both run."""
    said = [socket.gethostname(), _text("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid")]
    return int.from_bytes(hashlib.sha256("|".join(said).encode()).digest()[:4]) % 2**_HOST_BITS


def _began(pid: int) -> float:
    """When a process began, epoch seconds; 0.0 where the system does not say, as outside of Linux.

    proc(5): the 22nd field of `stat`, in clock ticks since the boot, which `btime` is; the second may hold blanks.
    """
    ticks = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    boot = _text("/proc/stat").partition("\nbtime ")[2].split()
    return int(boot[0]) + int(ticks[19]) / os.sysconf("SC_CLK_TCK") if len(ticks) > 19 and boot else 0.0


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # Not Linux, or the process has just ended: then nothing is known of it.
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""
