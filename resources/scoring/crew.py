"""The children that call scorers, watched: what hangs or dies is known, answered for, and does not stop the day.

Lives here: starting children, giving them blocks of tasks, taking answers, ending a call that takes too long.
Add here: another reason to end a child.
Not here: the child's side (`child.py`), what is owed (`local_scoring.py`).

A child is forked from this process: MLflow is imported, and the registered copies are there. It reads the traces
itself, on connections of its own. A child that is ended is replaced; what it had not answered is given out again.
"""

import json
import mmap
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from lifecycle_assets.refused import Refused
from resources.scoring.call import Call
from resources.scoring.child import BEAT, BROKEN_AFTER, Child, Reading, become_child, overdue
from resources.scoring.tasks import Said, Task, without
from resources.scoring.trace_scores import FAILED, TRANSIENT, Answer

BLOCKS_AHEAD = 2
"""Blocks a child has at most, so that it never waits for the next one."""

READ_SECONDS = 300.0
"""How long a child may do anything else than calling a scorer, which is reading traces."""

DEATHS = 5
"""Children that end without a word between two answers, after which it is not a scorer's fault."""

_TICK_SECONDS = 0.1


@dataclass(eq=False)
class _Running:
    """A child as its parent sees it."""

    pid: int
    tasks: int
    answers: int
    beat: mmap.mmap
    blocks: deque[list[Task]] = field(default_factory=deque)
    heard: set[tuple[int, int]] = field(default_factory=set)
    rest: bytes = b""
    late: tuple[int, ...] = ()

    def fileno(self) -> int:
        """Where its answers come from: for `select`."""
        return self.answers


class Crew:
    """`size` children; `threads` is 0 for code of the agent's own, else the calls at once of what has a price."""

    def __init__(
        self, calls: Sequence[Call], names: Sequence[tuple[str, str]], read: Reading, *, size: int, threads: int = 0
    ) -> None:
        self._calls, self._names, self._read = calls, names, read
        self._size, self._threads = size, threads
        self._broken: dict[int, int] = {}
        self._deaths = 0
        self._running: list[_Running] = []

    @property
    def broken(self) -> set[int]:
        """Calls that gave no answer so often in a row that they are not made any more."""
        return {call for call, times in self._broken.items() if times >= BROKEN_AFTER}

    def answers(self, blocks: Iterable[list[Task]]) -> Generator[Said | None]:
        """Answers as they come, in no order; None now and then, so that whoever asks can do something else.

        The next block is taken when a child has room for it. Raises `Refused` when traces cannot be read. What a
        broken scorer owes is not answered. The children are ended when this is closed.
        """
        todo = iter(blocks)
        try:
            while self._hand_out(todo):
                for child in select.select(self._running, [], [], _TICK_SECONDS)[0]:
                    yield from self._listen(child)
                yield from self._watch()
                yield None
        finally:
            for child in self._running:
                self._end(child)
            self._running.clear()

    def _hand_out(self, todo: Iterator[list[Task]]) -> bool:
        """Give blocks to whoever has room; whether there is anything to wait for."""
        for _ in range(BLOCKS_AHEAD * self._size):
            free = min(self._running, key=lambda child: len(child.blocks), default=None)
            if len(self._running) < self._size and (free is None or free.blocks):
                free = None
            elif free is None or len(free.blocks) >= BLOCKS_AHEAD:
                break
            block = next(todo, None)
            if block is None:
                break
            if free is None:
                free = self._start()
            self._give(free, block)
        return any(child.blocks for child in self._running)

    def _give(self, child: _Running, block: list[Task]) -> None:
        child.blocks.append(block)
        line = json.dumps([[task.key, task.trace_ids, task.calls] for task in block]) + "\n"
        with suppress(BrokenPipeError):  # It died: that is seen when its answers are read.
            left = memoryview(line.encode())
            while left:
                left = left[os.write(child.tasks, left) :]

    def _start(self) -> _Running:
        its_tasks, tasks = os.pipe()
        answers, its_answers = os.pipe()
        beat = mmap.mmap(-1, BEAT.size)
        BEAT.pack_into(beat, 0, -1, -1, time.monotonic_ns())
        parent, broken = os.getpid(), dict(self._broken)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(tasks)
            os.close(answers)
            become_child(
                lambda given, said: Child(
                    self._calls, self._names, self._read, beat, given, said, self._threads, broken
                ),
                its_tasks,
                its_answers,
                parent,
            )
        os.close(its_tasks)
        os.close(its_answers)
        child = _Running(pid, tasks, answers, beat)
        self._running.append(child)
        return child

    def _listen(self, child: _Running) -> Iterator[Said]:
        read = os.read(child.answers, 1 << 16)
        if not read:
            yield from self._bury(child)
            return
        *lines, child.rest = (child.rest + read).split(b"\n")
        for told in chain.from_iterable(map(json.loads, lines)):
            if told is None:
                child.blocks.popleft()
                child.heard.clear()
                continue
            key, call, kind, value, code, message = told
            child.heard.add((key, call))
            yield self._noted(Said(key, call, kind, Answer(value, code, message)))

    def _watch(self) -> Iterator[Said]:
        """End every child whose call takes too long; say so of the call."""
        for child in [*self._running]:
            seen = BEAT.unpack_from(child.beat, 0)
            key, call, begun = seen
            seconds = (time.monotonic_ns() - begun) / 1e9
            allowed = self._calls[call].seconds if call >= 0 else READ_SECONDS
            # Twice the same: what is read while it is written is no reason to end anything.
            was_late, child.late = child.late == seen, seen
            if seconds <= allowed or not child.blocks or not was_late:
                continue
            os.kill(child.pid, signal.SIGKILL)
            if call >= 0:
                yield from self._replace(child, Said(key, call, "said", overdue(self._calls[call])))
            else:
                raise Refused(
                    f"Traces could not be read within {READ_SECONDS:g} s; look whether the tracking store answers, "
                    "then run this again: it goes on where it stopped."
                )

    def _bury(self, child: _Running) -> Iterator[Said]:
        """A child ended by itself: in a call, that is the call's doing."""
        key, call, _ = BEAT.unpack_from(child.beat, 0)
        culprit = None
        if call >= 0:
            _, status = os.waitpid(child.pid, 0)
            child.pid = 0
            code = os.waitstatus_to_exitcode(status)
            culprit = Said(key, call, "said", Answer(code=FAILED, message=f"its process ended with code {code}"))
        elif child.blocks:
            self._deaths += 1
            if self._deaths >= DEATHS:
                raise Refused(
                    f"The processes that read traces and call scorers ended {DEATHS} times without an answer; what "
                    "they printed is in this step's output. Correct that, then run this again."
                )
        yield from self._replace(child, culprit)

    def _replace(self, child: _Running, culprit: Said | None) -> Iterator[Said]:
        """Take what a child has not answered, but for the culprit, and give it to a new one."""
        if culprit is not None:
            child.heard.add((culprit.key, culprit.call))
            yield self._noted(culprit)
        self._running.remove(child)
        self._end(child)
        blocks = [without(block, child.heard) for block in child.blocks]
        if left := [block for block in blocks if block]:
            fresh = self._start()
            for block in left:
                self._give(fresh, block)

    def _noted(self, said: Said) -> Said:
        self._deaths = 0
        if said.kind == "said":
            away = said.answer.code in TRANSIENT
            self._broken[said.call] = self._broken.get(said.call, 0) + 1 if away else 0
        return said

    @staticmethod
    def _end(child: _Running) -> None:
        os.close(child.tasks)
        os.close(child.answers)
        if child.pid:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
        child.beat.close()
