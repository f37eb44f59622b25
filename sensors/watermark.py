"""Cursors: what a sensor remembers between ticks.

Lives here: frozen dataclasses to and from JSON, and the watermark with its tie-breaker; pure.
Add here: a cursor when a sensor needs to remember something else.
Not here: decisions (each sensor's module).
"""

import json
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Self


@dataclass(frozen=True)
class Cursor:
    """What every cursor can do. A cursor that cannot be read is the initial one: sensors are safe to repeat."""

    def to_json(self) -> str:
        """The cursor as Dagster keeps it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | None) -> Self:
        """The cursor of `text`; the initial one for None, for text of another shape, and for unknown fields."""
        try:
            value: Any = json.loads(text) if text else {}
        except json.JSONDecodeError:
            value = {}
        known = {field.name for field in fields(cls)}
        return cls(**{k: v for k, v in value.items() if k in known}) if isinstance(value, dict) else cls()


@dataclass(frozen=True)
class Watermark(Cursor):
    """The last thing seen: its time as ISO 8601 and the ids seen at exactly that time."""

    at: str = ""
    ids: tuple[str, ...] = ()

    def is_new(self, at: str, key: str) -> bool:
        """Whether something of that time and id was not seen yet."""
        return not self.at or at > self.at or (at == self.at and key not in self.ids)

    def advance(self, at: str, key: str) -> Self:
        """The watermark after seeing it."""
        if at == self.at:
            return type(self)(at, tuple(sorted({*self.ids, key})))
        return type(self)(at, (key,)) if at > self.at else self

    @property
    def time(self) -> datetime | None:
        """The time as a datetime, None at the beginning."""
        return datetime.fromisoformat(self.at) if self.at else None


@dataclass(frozen=True)
class BackfillCursor(Cursor):
    """What the scorer backfill has looked at, and what it has spent on the present set of scorers."""

    scorers: str = ""
    scores_event: int = -1
    spent_usd: float = 0.0
    spent_traces: int = 0


@dataclass(frozen=True)
class LabelingCursor(Cursor):
    """The table versions and the champion the labeling sensor has decided on."""

    tables: str = ""
    champion: str = ""


@dataclass(frozen=True)
class SyncCursor(Cursor):
    """Completions already asked to be synced, as a digest."""

    completions: str = ""


@dataclass(frozen=True)
class DriftCursor(Cursor):
    """The drift already reported, as a digest."""

    reported: str = ""
