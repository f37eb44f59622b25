"""How far memory rises while something runs, child processes included.

Lives here: the peak of one block, on Linux.
Add here: nothing. Not here: what is measured (`job.py`).

The process' own peak is the kernel's. With children the sum counts, and of that only what is seen when one looks.
"""

import os
import threading
from pathlib import Path

_EVERY_S = 0.05
_FORKED_ONLY = 0x40  # PF_FORKNOEXEC of Linux: a child that still is a copy of its parent, page by page the same.


class Peak:
    """Watches from `start` to `stop`."""

    def __init__(self) -> None:
        self._parent_of: dict[int, int] = {}
        self._sum_mb = 0.0
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look_again, name="memory", daemon=True)

    def start(self) -> None:
        """Forget the peak so far, and begin."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before_mb = _status_mb("self", "VmRSS:") + self.children_mb()
        self._watch.start()

    def stop(self) -> float:
        """MB above where it began: of this process and its children together, at the highest."""
        self._ended.set()
        self._watch.join()
        return max(_status_mb("self", "VmHWM:"), self._sum_mb) - self._before_mb

    def _look_again(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self.look()

    def look(self) -> None:
        """Note the sum of this moment."""
        self._sum_mb = max(self._sum_mb, _status_mb("self", "VmRSS:") + self.children_mb())

    def children_mb(self) -> float:
        """What the children hold, and theirs. A process that is known is not looked up again."""
        there = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        parents = {pid: self._parent_of.get(pid) or _parent(pid) for pid in there}
        self._parent_of = {pid: parent for pid, parent in parents.items() if parent}
        ours: set[int] = {os.getpid()}
        while more := {pid for pid, parent in self._parent_of.items() if parent in ours} - ours:
            ours |= more
        return sum(_status_mb(str(pid), "VmRSS:") for pid in ours - {os.getpid()} if not _is_copy(pid))


def _stat(pid: int) -> list[str]:
    """Fields of a process from its state on; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int:
    found = _stat(pid)
    return int(found[1]) if found else 0


def _is_copy(pid: int) -> bool:
    found = _stat(pid)
    return not found or bool(int(found[6]) & _FORKED_ONLY)


def _status_mb(process: str, name: str) -> float:
    """A number of a process' status, which the kernel gives in KB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0) / 1024
