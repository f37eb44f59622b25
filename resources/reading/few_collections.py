"""Garbage collection while many objects are made.

Lives here: holding it back, and putting it right again.
Add here: nothing.
Not here: what is made meanwhile (`public_reader.py`, `scoring/local_scoring.py`).
"""

import gc
import threading
from collections.abc import Generator
from contextlib import contextmanager

_bulk_lock, _bulks, _former = threading.Lock(), 0, gc.get_threshold()


@contextmanager
def few_collections(traces: int) -> Generator[None]:
    """Rare garbage collections inside the block where many traces are read or scored; nothing for a few.

    `import mlflow` leaves some 250 MB of live objects, which every full collection walks: 1.9 times as fast without.
    """
    global _bulks, _former
    if traces < 100:
        yield
        return
    with _bulk_lock:
        _bulks += 1
        if _bulks == 1:
            gc.freeze()  # Without collecting first, which takes 0.3 s: what is garbage now is found afterwards.
            _former = gc.get_threshold()
            gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        with _bulk_lock:
            _bulks -= 1
            if _bulks == 0:
                gc.unfreeze()
                gc.set_threshold(*_former)
