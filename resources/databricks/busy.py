"""Calls of databricks-agents in a workspace that says it is busy.

Lives here: what an error of those calls carries, and calling again after the pause the workspace asks for.
Add here: a further answer after which the same call may be made again.
Not here: databricks-sdk and MLflow, which do this by themselves; calls that must not be made twice.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

BUSY = (429, 503)
"""Answers that say that nothing was done and that one should come again."""

_SECONDS = 40.0
_LONGEST_PAUSE = 10.0

Result = TypeVar("Result")


def when_free(ask: Callable[[], Result], *, seconds: float = _SECONDS, busy: tuple[int, ...] = BUSY) -> Result:
    """`ask`, again while the workspace answers one of `busy`, `seconds` in all; then its error is raised."""
    until = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except Exception as error:
            if status_of(error) not in busy or time.monotonic() + pause_of(error) > until:
                raise
            pause = pause_of(error)
        time.sleep(pause)


def status_of(error: BaseException) -> int:
    """The status of the answer behind an error, 0 without one: some calls hide it behind an error of their own."""
    return getattr(_answer(error), "status_code", 0)


def pause_of(error: BaseException) -> float:
    """The seconds after which the workspace wants to be asked again, within bounds."""
    said = getattr(_answer(error), "headers", None) or {}
    text = str(said.get("Retry-After") or "")
    return min(float(text), _LONGEST_PAUSE) if text.isdecimal() else 1.0


def _answer(error: BaseException) -> Any:
    link: BaseException | None = error
    while link is not None:
        response = getattr(link, "response", None)
        if response is not None:
            return response
        link = link.__cause__
    return None
