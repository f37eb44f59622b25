"""Tasks of the processes that call scorers, and what came of them.

Lives here: the two values, tasks in blocks, and doing them without another process.
Add here: something both sides of the pipe have to know of a task.
Not here: processes (`crew.py`, `child.py`), what is owed (`units.py`).
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from resources.scoring.call import Call
from resources.scoring.child import Reading, held
from resources.scoring.trace_scores import Answer

_PIPE_BYTES = 24_000  # Two blocks and their answers fit into the pipes: nobody waits for the other.


@dataclass(frozen=True)
class Task:
    """A trace, or the traces of a session in order, and the calls it is owed (their numbers)."""

    key: int
    trace_ids: tuple[str, ...]
    calls: tuple[int, ...]


class Said(NamedTuple):
    """What came of a task's call.

    `kind` is `said`, with the answer; `there`: MLflow has it (code `error`: an error that stays); `gone`: the trace was
    deleted (`call` is -1).
    """

    key: int
    call: int
    kind: str
    answer: Answer


def in_blocks(tasks: Iterable[Task], most: int) -> Iterator[list[Task]]:
    """Tasks in blocks of at most `most`, and not larger than what fits into a pipe."""
    block: list[Task] = []
    size = 0
    for task in tasks:
        more = 30 + sum(len(one) + 4 for one in task.trace_ids) + 4 * len(task.calls)
        if block and (len(block) >= most or size + more > _PIPE_BYTES):
            yield block
            block, size = [], 0
        block.append(task)
        size += more
    if block:
        yield block


def without(block: Sequence[Task], heard: set[tuple[int, int]]) -> list[Task]:
    """What of a block has not been answered, given the (task, call) pairs that were."""
    left = []
    for task in block:
        calls = tuple(call for call in task.calls if (task.key, call) not in heard)
        if calls and (task.key, -1) not in heard:
            left.append(Task(task.key, task.trace_ids, calls))
    return left


def called_here(
    calls: Sequence[Call], names: Sequence[tuple[str, str]], read: Reading, blocks: Iterable[list[Task]]
) -> Generator[Said | None]:
    """As `score_crew.Crew.answers`, in this process, where none can be forked: nothing ends a call that hangs."""
    for block in blocks:
        traces = {trace.info.trace_id: trace for trace in read([one for task in block for one in task.trace_ids])}
        for task in block:
            found = [traces[one] for one in task.trace_ids if one in traces]
            for call in task.calls if found else ():
                there = held(found[0], names[call], len(found) if calls[call].session else 0)
                if there is not None:
                    yield Said(task.key, call, "there", Answer(code=there))
                else:
                    yield Said(task.key, call, "said", calls[call](found if calls[call].session else found[0]))
        yield None
