"""Which production traces a scorer looks at.

Lives here: the one decision, made from ids alone.
Add here: another way of choosing, such as by session, when scorers look at sessions.
Not here: filters (MLflow applies them when traces are searched), rates (`spec.py`), scoring.
"""

import hashlib


def is_sampled(trace_id: str, scorer: str, rate: float) -> bool:
    """Whether `scorer` looks at this trace when it samples the share `rate` (0..1) of traces.

    The first 64 bits of SHA-256 over `<trace_id>:<scorer>`, read as a fraction of 2**64, are compared with `rate`.
    So every process decides alike for ever, scorers sample independently of each other, and raising the rate only
    adds traces: what was scored stays part of the sample. Use the scorer's registered name, the same everywhere.
    """
    fraction = int.from_bytes(hashlib.sha256(f"{trace_id}:{scorer}".encode()).digest()[:8], "big")
    return fraction < rate * 2**64
