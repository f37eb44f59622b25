"""A bound on how long a tick may take.

Lives here: the one decorator. Add here: nothing. Not here: bounds of single requests (`resources/`).

Dagster ends a tick after 60 s by killing the evaluation, which says nothing of why. A workspace that hangs or answers
429 makes single requests wait; several of them in a row would outlive a tick.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from lifecycle_assets.refused import Refused
from resources.explain import explained
from resources.platform import Platform

TICK_SECONDS = 40.0
"""How long a tick's body may take; with starting and storing the tick it stays below 45 s."""

Evaluate = TypeVar("Evaluate", bound=Callable[..., Any])


def bounded(evaluate: Evaluate, *, seconds: float = TICK_SECONDS) -> Evaluate:
    """`evaluate` with a time limit, after which the tick fails with a sentence; known faults are sentences too.

    What is late goes on in a thread of its own and its result is dropped: only reads may be bounded like this, and a
    tick's effect is what it returns.
    """

    @wraps(evaluate)
    def limited(*args: Any, **kwargs: Any) -> Any:
        outcome: list[Any] = []
        raised: list[BaseException] = []

        def run() -> None:
            try:
                with explained(Platform.from_env().tracking_uri):
                    outcome.append(evaluate(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it is raised again in the tick's own thread
                raised.append(error)

        thread = threading.Thread(target=run, daemon=True, name="bounded tick")
        thread.start()
        thread.join(seconds)
        if raised and isinstance(raised[0], Refused):
            raise raised[0].with_traceback(None) from None  # A sentence: where it was said is of no use to anybody.
        if raised:
            raise raised[0]
        if not outcome:
            raise Refused(
                f"The tick was stopped after {seconds:g} s: the platform did not answer in time; the next tick asks "
                "again. If it stays so, run lifecycle doctor."
            )
        return outcome[0]

    return limited  # ty: ignore[invalid-explicit-return]
