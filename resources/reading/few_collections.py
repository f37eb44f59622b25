"""Garbage collection while many objects are made.

Lives here: holding it back, and putting it right again.
Add here: nothing.
Not here: what is read meanwhile (`public_reader.py`).
"""

import gc
import threading
from collections.abc import Generator
from contextlib import contextmanager

_bulk_lock, _bulks = threading.Lock(), 0


@contextmanager
def few_collections(traces: int) -> Generator[None]:
    """Rare garbage collections inside the block where many traces are read; nothing for a few.

    `import mlflow` leaves some 250 MB of live objects, which every full collection walks: 1.9 times as fast without.
    """
    global _bulks
    if traces < 1_000:
        yield
        return
    former = gc.get_threshold()
    with _bulk_lock:
        _bulks += 1
        if _bulks == 1:
            gc.collect()
            gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        with _bulk_lock:
            _bulks -= 1
            if _bulks == 0:
                gc.unfreeze()
                gc.set_threshold(*former)
