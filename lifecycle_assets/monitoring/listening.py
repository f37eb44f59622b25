"""What a day's step tells while it runs, heard also by who started the run in this process.

Lives here: listeners by run, and telling.
Add here: nothing. Not here: what is told (the steps), how a command shows it (`cli/progress_line.py`).

Dagster keeps every line in the run's own log, which its UI shows. A command that runs a job in its process hears the
lines as they are told, without asking that log again and again.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from resources.worker import Progress

_listeners: dict[str, Progress] = {}


@contextmanager
def heard(run_id: str, listener: Progress) -> Generator[None]:
    """Have `listener` hear what the steps of a run in this process tell, as long as the block runs."""
    _listeners[run_id] = listener
    try:
        yield
    finally:
        del _listeners[run_id]


def telling(run_id: str, log: Callable[[str], object]) -> Progress:
    """A function that writes a line of progress to `log`, and tells it to who listens to the run."""

    def tell(line: str) -> None:
        log(line)
        if listener := _listeners.get(run_id):
            listener(line)

    return tell
