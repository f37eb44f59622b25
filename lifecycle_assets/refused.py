"""The one error for everything a person can mend.

Lives here: `Refused`, a `dg.Failure` whose text is a whole sentence or two: what is wrong, where, what to do.
Add here: nothing but further facts every refusal carries.
Not here: turning library errors into refusals (`resources/explain.py`).
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg


class Refused(dg.Failure):
    """A stop with a remedy; never retried, because a retry meets the same fact.

    `check` names the asset check of the running asset that the refusal answers, when there is one:
    the asset then reports that check as failed before it stops.
    """

    def __init__(self, sentence: str, *, check: str | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__(description=sentence, metadata=metadata, allow_retries=False)
        self.check = check

    def __str__(self) -> str:
        """The sentence itself, so that logs and terminals print nothing else."""
        return self.description or ""
