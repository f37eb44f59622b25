"""Keeping the agent's tables quick and small, and MLflow's store free of what the tables hold.

Lives here: what upkeep does and answers, on any platform.
Add here: a further kind of upkeep both platforms have.
Not here: Delta by delta-rs (`delta_upkeep.py`), MLflow's store (`store_retention.py`), Unity Catalog
(`databricks/archive/upkeep.py`), the policy (`lifecycle_assets/spec_monitoring.py`).

Each part is safe beside readers and writers, and safe to repeat: it looks at what is there, and does what is left.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import date

from lifecycle_assets.spec_file import Agent
from resources.worker import Progress

SORTED = ("traces", "spans", "assessments")
"""Tables whose closed days are sorted by trace_id."""

EXPIRING = ("traces", "spans", "assessments", "publications", "quarantine")
"""Tables that lose days older than the retention, in that order: a trace that is there has its spans and assessments.

`quality_metrics` stays: it holds numbers and no text, and could not be computed again.
"""


@dataclass(frozen=True)
class Tended:
    """One table after its upkeep.

    `files` are those that hold its rows, before and after; `days` were rewritten, `vacuumed` files deleted; `left` says
    in one sentence what could not be done and what to do about it, empty when all was done.
    """

    table: str
    files_before: int
    files: int
    days: int = 0
    vacuumed: int = 0
    left: str = ""


@dataclass(frozen=True)
class Restored:
    """A day some of whose files were gone or damaged: what happened to it.

    `is_lost` when MLflow no longer has all its traces: then nothing was changed. `said` is one sentence.
    """

    day: date
    is_lost: bool
    said: str


@dataclass(frozen=True)
class Released:
    """A day that was due to leave MLflow's own store.

    `traces` left it; `why` says in one sentence why the day has to wait, empty when it left.
    """

    day: date
    traces: int
    why: str = ""


class Upkeep(ABC):
    """Maintains the tables of an agent by its declared policy. `now` is the present UTC day."""

    @abstractmethod
    def restore(self, agent: Agent, progress: Progress) -> list[Restored]:
        """Take days out of the tables whose files are gone or damaged, where MLflow still has all their traces.

        `archived_traces` writes such a day again.
        """

    @abstractmethod
    def tend(self, agent: Agent, now: date, progress: Progress) -> list[Tended]:
        """Rewrite days of many small files, sort closed days, delete files nobody needs, shorten the log.

        Rows stay the same. A writer that gets in between wins: the day is left for the next time.
        """

    @abstractmethod
    def expire(self, agent: Agent, now: date, progress: Progress) -> dict[str, int]:
        """Remove days older than `archive.retention_days` by partition; returns rows removed by table."""

    @abstractmethod
    def release(self, agent: Agent, now: date, progress: Progress) -> list[Released]:
        """Have days leave MLflow's own store as declared, once the tables are proven to hold them.

        Days that hold nothing to release are left out.
        """
