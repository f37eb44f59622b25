"""Cursors: what a sensor remembers between ticks.

Lives here: frozen dataclasses to and from JSON, and the watermark with its tie-breaker; pure.
Add here: a cursor when a sensor needs to remember something else.
Not here: decisions (each sensor's module).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Self

_TRACE = re.compile(r"\d{4}-\d\d-\d\d -?\d{1,18} .+", re.DOTALL)
"""Day, time and id of a trace."""


@dataclass(frozen=True)
class Cursor:
    """What every cursor can do. A cursor that cannot be read is the initial one: sensors are safe to repeat."""

    def to_json(self) -> str:
        """The cursor as Dagster keeps it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | None) -> Self:
        """The cursor of `text`; the initial one for None and for text of another shape. Unknown fields are left out."""
        try:
            value: Any = json.loads(text) if text else {}
        except json.JSONDecodeError:
            return cls()
        initial = asdict(cls())
        if not isinstance(value, dict) or not all(_alike(value.get(k, v), v) for k, v in initial.items()):
            return cls()
        kept = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k in initial}
        return cls(**kept).usable()

    def usable(self) -> Self:
        """The cursor, or the initial one when its values cannot be worked with."""
        return self


def _alike(value: object, initial: object) -> bool:
    """Whether a value read from JSON is of the kind of the initial one."""
    if isinstance(initial, tuple):
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if isinstance(initial, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(initial)


@dataclass(frozen=True)
class Watermark(Cursor):
    """What was seen: everything that ended before `at` (ISO 8601), and of what ended since then `ids`.

    `at` stays a lookback behind the newest thing seen, so that something committed a little late is still found.
    """

    at: str = ""
    ids: tuple[str, ...] = ()

    def is_new(self, at: str, key: str) -> bool:
        """Whether something of that time and id was not seen yet."""
        return at >= self.at and key not in self.ids

    def advance(self, seen: Mapping[str, str], lookback: timedelta) -> Self:
        """The watermark after seeing `seen`, id to time: all since `at`, what was seen before included."""
        if not seen:
            return self
        newest = datetime.fromisoformat(max(seen.values()))
        at = max(self.at, (newest - lookback).isoformat())
        return type(self)(at, tuple(sorted(key for key, when in seen.items() if when >= at)))

    @property
    def time(self) -> datetime | None:
        """The time as a datetime, None at the beginning."""
        return datetime.fromisoformat(self.at) if self.at else None

    def usable(self) -> Self:
        """The watermark when its time has a meaning and a zone."""
        try:
            return self if self.time is None or self.time.tzinfo else type(self)()
        except ValueError:
            return type(self)()


@dataclass(frozen=True)
class AlertCursor(Watermark):
    """The runs people were told of, and the checks they know to fail (digests of their subjects, oldest first)."""

    failing: tuple[str, ...] = ()


@dataclass(frozen=True)
class BackfillCursor(Cursor):
    """What the scorer backfill has decided on: scorers, newest scores, newest change of its runs, and the UTC day."""

    scorers: str = ""
    scores_event: int = -1
    runs: str = ""
    day: str = ""


@dataclass(frozen=True, kw_only=True)
class Looked(Cursor):
    """What a look (`sensors/look.py`) saw before the last decision: first of all, and of the store's rows.

    Both are digests; an empty one is equal to nothing that a look sees.
    """

    seen: str = ""
    things: str = ""


@dataclass(frozen=True)
class LabelingCursor(Looked):
    """The table versions and the champion the labeling sensor has decided on.

    `negative` are the traces with negative feedback that were known then (`review/negative.py`), all of them when
    `whole`; `commits` says what was asked, and the newest commit of each table before it was.
    """

    tables: str = ""
    champion: str = ""
    negative: tuple[str, ...] = ()
    whole: bool = False
    commits: tuple[str, ...] = ()

    def usable(self) -> Self:
        """The cursor when its traces are such."""
        return self if all(map(_TRACE.fullmatch, self.negative)) else type(self)()


@dataclass(frozen=True)
class SyncCursor(Looked):
    """Completions already asked to be synced, as a digest, and the sessions they were looked for in."""

    completions: str = ""
    sessions: tuple[str, ...] = ()


@dataclass(frozen=True)
class LandedCursor(Looked):
    """The dataset when its records were last read: name and id, MLflow's mark of it, and the digest recorded then."""

    dataset: str = ""
    dataset_id: str = ""
    mark: str = ""
    recorded: str = ""
    said: str = ""


@dataclass(frozen=True)
class ApprovalCursor(Looked):
    """What was said of the version that waits: while nothing changes, that still is so."""

    said: str = ""


@dataclass(frozen=True)
class DriftCursor(Looked):
    """The drift already reported, as a digest, and what was said of it."""

    reported: str = ""
    said: str = ""


@dataclass(frozen=True)
class RollbackCursor(Looked):
    """The champion last judged, up to when its traces were archived then, and the one asked to be taken back."""

    champion: str = ""
    until: str = ""
    fired: str = ""
    said: str = ""
