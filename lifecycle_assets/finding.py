"""What was found in one place somebody depends on.

Lives here: the one value. Add here: a fact every finding has. Not here: looking (`cli/places*.py`, `resources/`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was found in one place: `state` ok, warn or fail, and what to do about it when it is not ok."""

    name: str
    state: str
    text: str
    remedy: str = ""
