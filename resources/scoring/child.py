"""The process in which scorers are called: forked from the step's, so that a call that hangs can be ended.

Lives here: the child's side: reading the traces of a task, calling, answering.
Add here: something only the process that holds the traces knows.
Not here: starting and watching children (`crew.py`), one call (`call.py`).

Tasks and answers are lines of JSON on two pipes: a block of tasks a line, and some answers a line, of which null is the
last to a block. Code of the agent's own is called one at a time, and each call is written down in memory the parent
sees, which ends the process when a call takes too long. What has a price waits for others: it is called on threads; a
thread whose call takes too long is left behind, and ends with the process.
"""

import ctypes
import gc
import json
import os
import queue
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

from resources.scoring.call import Call
from resources.scoring.trace_scores import TIMEOUT, UNAVAILABLE, Answer, is_transient, scored_pair

Reading = Callable[[Sequence[str]], Iterator[Any]]
"""Traces by id, in that order, without those that are gone."""

BEAT = struct.Struct("@qqq")
"""Task, call (-1: none) and when it began (nanoseconds of the monotonic clock); each is written at once."""

BACKOFF_SECONDS = (0.5, 2.0)
"""Waits before a call is repeated whose service did not answer."""

BROKEN_AFTER = 5
"""Calls of a scorer in a row without an answer after which it is not called again in this run."""

ABANDONED = 16
"""Threads left behind with a call that hangs, after which the process is ended."""

_READ_PAGE = 200  # Traces with spans in memory.
_POLL_SECONDS = 0.01
_TELL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """What a child works with; `names` are `(registered name, version)` of the calls."""

    calls: Sequence[Call]
    names: Sequence[tuple[str, str]]
    read: Reading
    beat: Any
    tasks: IO[str]
    answers: IO[str]
    threads: int
    broken: dict[int, int] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)
    _unsaid: list[Any] = field(default_factory=list)
    _abandoned: int = 0
    _left: int = 0
    _told: float = 0.0

    def serve(self) -> None:
        """Answer every line of tasks until there are no more."""
        work = self._called_on_threads if self.threads else self._called_here
        for line in self.tasks:
            tasks = json.loads(line)
            for start in range(0, len(tasks), _READ_PAGE):
                work(self._subjects(tasks[start : start + _READ_PAGE]))
            self._say(None)

    def _subjects(self, tasks: Sequence[Any]) -> Iterator[tuple[int, int, Any]]:
        """Task, call and what it is about, for what MLflow does not hold an answer to; the rest is said at once."""
        BEAT.pack_into(self.beat, 0, -1, -1, time.monotonic_ns())
        wanted = list(dict.fromkeys(one for _, ids, _ in tasks for one in ids))
        traces = {trace.info.trace_id: trace for trace in self.read(wanted)}
        for key, ids, calls in tasks:
            found = [traces[one] for one in ids if one in traces]
            if not found or found[0].info.trace_id != ids[0]:
                self._say([key, -1, "gone", None, "", ""])
                continue
            for call in calls:
                there = held(found[0], self.names[call], len(found) if self.calls[call].session else 0)
                if there is not None:
                    self._say([key, call, "there", None, there, ""])
                elif self.broken.get(call, 0) < BROKEN_AFTER:
                    yield key, call, found if self.calls[call].session else found[0]

    def _called_here(self, subjects: Iterable[tuple[int, int, Any]]) -> None:
        for key, call, subject in subjects:
            BEAT.pack_into(self.beat, 0, key, call, time.monotonic_ns())
            self._said(key, call, self._asked(call, subject))
            BEAT.pack_into(self.beat, 0, -1, -1, time.monotonic_ns())

    def _called_on_threads(self, subjects: Iterable[tuple[int, int, Any]]) -> None:
        todo: queue.SimpleQueue[tuple[int, int, Any]] = queue.SimpleQueue()
        begun: dict[tuple[int, int], float] = {}
        for subject in subjects:
            todo.put(subject)
        self._left = todo.qsize()

        def work() -> None:
            while True:
                try:
                    key, call, subject = todo.get_nowait()
                except queue.Empty:
                    return
                with self.lock:
                    is_broken = self.broken.get(call, 0) >= BROKEN_AFTER
                    begun.update({} if is_broken else {(key, call): time.monotonic()})
                if not is_broken:
                    answer = self._asked(call, subject)
                    with self.lock:
                        if begun.pop((key, call), None) is None:
                            return  # Left behind: it was said that the time ran out, and another thread took over.
                    self._said(key, call, answer)
                with self.lock:
                    self._left -= 1

        for _ in range(min(self.threads, self._left)):
            self._thread(work)
        while self._left:
            BEAT.pack_into(self.beat, 0, -1, -1, time.monotonic_ns())
            time.sleep(_POLL_SECONDS)
            with self.lock:
                now = time.monotonic()
                late = [pair for pair, since in begun.items() if now - since > self.calls[pair[1]].seconds]
                for pair in late:
                    del begun[pair]
            for key, call in late:
                self._said(key, call, overdue(self.calls[call]))
                self._abandoned += 1
                if self._abandoned >= ABANDONED:
                    os._exit(0)
                self._thread(work)
                with self.lock:
                    self._left -= 1

    def _asked(self, call: int, subject: Any) -> Answer:
        """The answer; a call whose service does not answer is repeated, within the time one call may take."""
        ask = self.calls[call]
        until, answer = time.monotonic() + ask.seconds, ask(subject)
        for pause in BACKOFF_SECONDS:
            if answer.code != UNAVAILABLE or time.monotonic() + pause > until:
                break
            time.sleep(pause)
            answer = ask(subject)
        return answer

    def _said(self, key: int, call: int, answer: Answer) -> None:
        with self.lock:
            away = answer.code in (UNAVAILABLE, TIMEOUT)
            self.broken[call] = self.broken.get(call, 0) + 1 if away else 0
        self._say([key, call, "said", answer.value, answer.code, answer.message])

    def _say(self, answer: Any) -> None:
        with self.lock:
            self._unsaid.append(answer)
            now = time.monotonic()
            # What has a price is told at once: it is paid for.
            if self.threads or answer is None or now - self._told > _TELL_SECONDS:
                self.answers.write(json.dumps(self._unsaid) + "\n")
                self.answers.flush()
                self._unsaid.clear()
                self._told = now

    @staticmethod
    def _thread(work: Callable[[], None]) -> None:
        threading.Thread(target=work, daemon=True).start()


def held(trace: Any, name: tuple[str, str], session: int) -> str | None:
    """What MLflow holds of this version on the trace: `value` or `error`; None when it owes a score.

    `session` is the number of traces of a session: one that has grown is owed again.
    """
    found = [a for a in trace.info.assessments or () if scored_pair(a) == name]
    if session:
        found = [a for a in found if session_size(a.rationale) >= session]
    if any(a.feedback.error is None for a in found):
        return "value"
    errors = [f"{a.feedback.error.error_code}: {a.feedback.error.error_message or ''}" for a in found]
    return "error" if any(not is_transient(error) for error in errors) else None


def session_size(rationale: str | None) -> int:
    """How many traces a session had when it was scored; 0 when nobody said."""
    number = (rationale or "").partition(" trace")[0]
    return int(number) if number.isdecimal() else 0


def overdue(call: Call) -> Answer:
    """The answer of a call that took too long."""
    return Answer(code=TIMEOUT, message=f"no answer within {call.seconds:g} s")


def become_child(child: Callable[[IO[str], IO[str]], Child], tasks: int, answers: int, parent: int) -> NoReturn:
    """Serve, in a process just forked from `parent`, and end it; never returns."""
    code = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(3)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.freeze()  # What the parent holds is neither looked through nor copied.
        gc.set_threshold(50_000, 20, 20)
        with os.fdopen(tasks) as given, os.fdopen(answers, "w", buffering=1 << 15) as said:
            child(given, said).serve()
        sys.stdout.flush()
        code = 0
    except BrokenPipeError:
        code = 3  # The parent is gone.
    except BaseException:  # noqa: BLE001 - the boundary of a process: what was raised is printed before it ends
        sys.excepthook(*sys.exc_info())  # ty: ignore[invalid-argument-type]
        sys.stderr.flush()
    finally:
        os._exit(code)
