"""What `lifecycle plan` says of one thing.

Lives here: the shape every reader of a thing gives.
Add here: a kind of difference.
Not here: finding them (`plan.py`, `plan_release.py`).
"""

from dataclasses import dataclass

UNCHANGED, BARRED = "unchanged", "barred"

STANDS = (UNCHANGED, "waiting", "refused", BARRED)
"""Kinds that change nothing by themselves: as declared, or waiting for a person or for other evidence."""


@dataclass(frozen=True)
class Difference:
    """One declared thing, what would happen in words, and the job that does it (empty when nothing would).

    `change` is `new`, `changed`, `stopped`, `drift`, `interrupted`, `missing`, `waiting`, `refused`, `barred` or
    `unchanged`.
    """

    what: str
    change: str
    text: str
    job: str = ""
