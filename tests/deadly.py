"""A function of ours at which a process dies as after kill -9.

Lives here: that one. Not here: the processes that die (`moving.py`, `lifecycle/dying.py`).
"""

import importlib
import os
import signal
from functools import wraps
from typing import Any


def deadly(function: str, event: str, times: int) -> None:
    """Have this process kill itself when `function` is entered (`event` call) or left (return) for the `times`th time.

    `function` is `module:qualified.name`.
    """
    module, _, path = function.partition(":")
    owner_path, _, name = path.rpartition(".")
    owner = importlib.import_module(module)
    owner = getattr(owner, owner_path) if owner_path else owner
    real, left = getattr(owner, name), [times]

    def count() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    @wraps(real)
    def run(*args: Any, **kwargs: Any) -> Any:
        if event == "call":
            count()
        answer = real(*args, **kwargs)
        if event == "return":
            count()
        return answer

    setattr(owner, name, run)
