"""Pages of many traces, read by the caller and by a second process at once.

Lives here: who reads which page, and that they come in order.
Add here: nothing of what a page holds.
Not here: what the process does (`public_child.py`), reading a page (`public_reader.py`).

MLflow's API makes some twenty Python objects a trace, so one process reads as fast as one core makes objects. Nobody
waits for the second one: pages are taken by whoever is free, and a page it loses is read by the caller.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from resources.platform import Platform
from resources.reading.arrow_pipe import take, widen
from resources.reading.trace_reader import Batch, Quarantined
from resources.redaction import Redaction

if TYPE_CHECKING:
    from subprocess import Popen

Ask = tuple[list[str], list[int]]
"""Ids and starts (epoch milliseconds) of a page."""

_CHILD = "resources.reading.public_child"
_ROOT = Path(__file__).resolve().parents[2]
_AHEAD = 2  # Pages that may be done before the one that is waited for.
_ENOUGH = 12  # Pages from which on two processes are faster: the second one is ready some 4 seconds later.


def may_help(platform: Platform, pages: int) -> bool:
    """Whether a second process pays, and can open the same store; it holds some 300 MB itself."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    uri = platform.tracking_uri
    return pages >= _ENOUGH and cores > 1 and uri.startswith("sqlite:///") and ":memory:" not in uri


def read_together(
    platform: Platform, experiment_id: str, redact: Redaction, pages: Sequence[Ask], read: Callable[[Ask], Batch]
) -> Generator[Batch]:
    """The pages in order; `read` reads one here. Raises what it raises."""
    shared = _Shared(len(pages))
    helper = _Helper(platform, experiment_id, redact, pages, shared)
    try:
        for nth in range(len(pages)):
            while (mine := shared.wanted(nth)) is not None:
                shared.finish(mine, read(pages[mine]))
            yield shared.take(nth)
    finally:
        shared.stop()
        helper.end()


class _Shared:
    """Which page is whose: they are given out in order, a few ahead of the one that is waited for."""

    def __init__(self, count: int) -> None:
        self._count, self._next, self._wanted = count, 0, 0
        self._lost: list[int] = []
        self._done: dict[int, Batch] = {}
        self._stopped, self._changed = False, threading.Condition()

    def _may(self) -> bool:
        return self._next < self._count and self._next <= self._wanted + _AHEAD

    def wanted(self, nth: int) -> int | None:
        """A page the caller is to read while it waits for page `nth`; None when that one is done."""
        with self._changed:
            self._wanted = nth
            self._changed.notify_all()
            self._changed.wait_for(lambda: nth in self._done or self._lost or self._may())
            if nth in self._done:
                return None
            return self._lost.pop() if self._lost else self._given()

    def claim(self) -> int | None:
        """A page for the second process, when there is one; None when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._next >= self._count or self._may())
            return None if self._stopped or self._next >= self._count else self._given()

    def _given(self) -> int:
        self._next += 1
        return self._next - 1

    def finish(self, nth: int, batch: Batch) -> None:
        """A page is done."""
        with self._changed:
            self._done[nth] = batch
            self._changed.notify_all()

    def lose(self, nth: int) -> None:
        """A page was given out in vain."""
        with self._changed:
            self._lost.append(nth)
            self._changed.notify_all()

    def take(self, nth: int) -> Batch:
        """A page that is done."""
        with self._changed:
            return self._done.pop(nth)

    def stop(self) -> None:
        """Nobody wants more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class _Helper:
    """The second process, and the thread that asks it for pages."""

    def __init__(
        self, platform: Platform, experiment_id: str, redact: Redaction, pages: Sequence[Ask], shared: _Shared
    ) -> None:
        self._pages, self._shared = pages, shared
        rules = [[pattern.pattern, pattern.flags, to] for pattern, to in redact]
        self._first = {"experiment_id": experiment_id, "redact": rules}
        self._child = _started(platform)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._to, self._from = self._child.stdin, self._child.stdout
        widen(self._from)
        self._thread = threading.Thread(target=self._ask, name="second reader", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        asked: int | None = None
        try:
            with suppress(OSError, EOFError, ValueError):  # It ended: all that is not done is the caller's.
                self._say(self._first)
                if not self._from.readline():
                    return
                while (asked := self._shared.claim()) is not None:
                    self._say(self._pages[asked])
                    self._shared.finish(asked, self._taken())
        finally:
            if asked is not None:
                self._shared.lose(asked)

    def _say(self, line: object) -> None:
        self._to.write(json.dumps(line).encode() + b"\n")
        self._to.flush()

    def _taken(self) -> Batch:
        head, (traces, assessments, spans) = take(self._from)
        return Batch(traces, assessments, spans, tuple(Quarantined(*one) for one in head["quarantined"]))

    def end(self) -> None:
        """End the process; what it was reading is nobody's."""
        self._child.kill()
        self._thread.join()
        with self._child, suppress(BrokenPipeError):  # Closes its pipes and waits.
            self._to.close()


def _started(platform: Platform) -> "Popen[bytes]":
    where = {"LIFECYCLE_PLATFORM": platform.name, "LIFECYCLE_HOME": str(platform.home)}
    paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **where, "MLFLOW_TRACKING_URI": platform.tracking_uri, "PYTHONPATH": paths},
    )
