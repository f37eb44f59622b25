"""Which production traces a scorer looks at.

Lives here: the one decision, made from ids alone, and when a sample that somebody else drew is short.
Add here: another way of choosing, such as by session, when scorers look at sessions.
Not here: filters (MLflow applies them when traces are searched), rates (`spec.py`), scoring.
"""

import hashlib
import math

CHANCE = 0.001
"""How often a complete sample is taken for a short one."""


def is_sampled(trace_id: str, scorer: str, rate: float) -> bool:
    """Whether `scorer` looks at this trace when it samples the share `rate` (0..1) of traces.

    The first 64 bits of SHA-256 over `<trace_id>:<scorer>`, read as a fraction of 2**64, are compared with `rate`.
    So every process decides alike for ever, scorers sample independently of each other, and raising the rate only
    adds traces: what was scored stays part of the sample. Use the scorer's registered name, the same everywhere.
    """
    fraction = int.from_bytes(hashlib.sha256(f"{trace_id}:{scorer}".encode()).digest()[:8], "big")
    return fraction < rate * 2**64


def least_expected(n: int, rate: float) -> int:
    """The least number of scores a complete sample of `n` traces at `rate` has, but for a chance of 1 in 1000.

    The largest k with P(X < k) <= 0.001 for X ~ Binomial(n, rate): the one-sided 99.9 % bound by the exact tail
    (Clopper and Pearson 1934). Each trace is sampled by itself, so X is binomial.
    """
    if not 0 < rate < 1:
        return n if rate >= 1 else 0
    log_p, log_q, whole = math.log(rate), math.log1p(-rate), math.lgamma(n + 1)
    tail, first = 0.0, max(0, int(n * rate - 8 * math.sqrt(n * rate * (1 - rate)) - 8))
    for k in range(first, n + 1):
        chance = whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q
        tail += math.exp(chance)
        if tail > CHANCE:
            return k
    return n


def hash_bound(rate: float) -> str:
    """The least first 64 bits, as 16 hexadecimal digits, a trace is left out with at `rate`; `g` when none is.

    For SQL: `substr(sha256(trace_id || ':' || scorer), 1, 16) < '<bound>'` decides as `is_sampled` does, because
    digits sort before letters.
    """
    whole = math.ceil(rate * 2**64)
    return "g" if whole >= 2**64 else f"{whole:016x}"
