"""What the archive notes beside the rows, in the commits that carry them: Delta's application transactions.

Lives here: the names and meaning of the notes, and what the log says of a day without reading a row.
Add here: something the next run has to know of a day to do less.
Not here: rows (`append.py`, `upsert.py`), the order of steps (`run.py`).

A note is a number under `<kind>:<experiment id>:<day>`, in `traces`; `archive`, the number of the last batch, is in
`spans` and `assessments` too. A transaction is a label, not a guard: delta-rs refuses it only to a writer with an
older snapshot, so whoever writes compares the number in the very snapshot the write goes through.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from resources.arrow_compute import compute
from resources.redaction import Redaction
from resources.tables import PARTITION

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

BATCH = "archive"
"""Number of the last batch of a day; children ahead of `traces` show a batch that was interrupted."""

DONE = "done"
"""Digest of what the store, the rules and the table were when the day was complete."""

RULES = "rules"
"""Digest of the redaction rules the day was written with."""

COMPARED = "compared"
"""When all traces of the day were last compared, epoch milliseconds."""

SAID = "said"
"""Digest of what the store says of the day's traces in the table, spans aside; 0: compare them."""

SETTLED, QUARANTINED = "settled", "quarantined"
"""Traces of the day that had ended, and how many of them are in quarantine."""

_FORM = 1  # Raise it when the same trace gives other rows than before: every day is compared once then.


@dataclass(frozen=True)
class Days:
    """The days from `first` to `last`, both included."""

    first: date
    last: date

    def __iter__(self) -> Iterator[date]:
        return (self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1))

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}/{self.last}"

    @property
    def since_ms(self) -> int:
        """Epoch milliseconds at which the first day begins."""
        return _midnight_ms(self.first)

    @property
    def until_ms(self) -> int:
        """Epoch milliseconds at which the last day ends."""
        return _midnight_ms(self.last + timedelta(days=1))

    @property
    def condition(self) -> str:
        """A condition in SQL that the rows of these days meet."""
        if self.first == self.last:
            return f"{PARTITION} = DATE '{self.first}'"
        return f"{PARTITION} BETWEEN DATE '{self.first}' AND DATE '{self.last}'"


@dataclass(frozen=True)
class Files:
    """What the log says of a day: rows, and the newest start of a trace in epoch milliseconds (0: it does not say)."""

    rows: int = 0
    newest_ms: int = 0

    def __add__(self, other: "Files") -> "Files":
        return Files(self.rows + other.rows, max(self.newest_ms, other.newest_ms))


class Notes:
    """The notes on one experiment in one snapshot of a table; 0 where nothing was noted. Each is looked up once."""

    def __init__(self, target: "DeltaTable | None", experiment_id: str) -> None:
        self._target, self._experiment_id = target, experiment_id
        self._found: dict[str, int] = {}

    def get(self, kind: str, day: date | Days) -> int:
        """The number noted of a day."""
        name = self.name(kind, day)
        if name not in self._found:
            self._found[name] = 0 if self._target is None else self._target.transaction_version(name) or 0
        return self._found[name]

    def name(self, kind: str, day: date | Days) -> str:
        """The application id of a note."""
        return f"{kind}:{self._experiment_id}:{day}"


def rules_digest(redact: Redaction) -> int:
    """A number that names the redaction rules, and the form of the rows."""
    return _number([_FORM, [(rule[0].pattern, rule[0].flags, rule[1]) for rule in redact]])


def done_digest(state: int, rules: int, rows: int) -> int:
    """A number that names a complete day: the store's state, the rules, and the rows in `traces`; 0 without a state."""
    return _number([state, rules, rows]) if state else 0


def said_digest(digests: Iterable[int]) -> int:
    """A number that names what a day's traces say, given the digest of each, in any order; none is 0."""
    return sum(digests) % (2**63 - 1) + 1


def log_of(target: "DeltaTable | None") -> "pa.Table | None":
    """The log's entries on files, in one snapshot; None without any."""
    import pyarrow as pa

    if target is None:
        return None
    table = pa.table(target.get_add_actions(flatten=True))
    return table if table.num_rows and "num_records" in table.column_names else None


def files_by_day(log: "pa.Table | None", days: Days) -> dict[date, Files]:
    """The days of the range that the table has files of, by the statistics in its log."""
    if log is None:
        return {}
    table = _of_days(log, days)
    newest = [None] * table.num_rows
    if "max.request_time" in table.column_names:
        newest = table.column("max.request_time").to_pylist()
    found: dict[date, Files] = {}
    for day, rows, latest in zip(
        table.column(f"partition.{PARTITION}").to_pylist(), table.column("num_records").to_pylist(), newest, strict=True
    ):
        found[day] = found.get(day, Files()) + Files(rows or 0, epoch_ms(latest))
    return found


def strangers(log: "pa.Table | None", experiment_id: str) -> list[str]:
    """Experiments other than this one whose traces the table holds, as far as the log says."""
    pc = compute()

    if log is None or "min.experiment_id" not in log.column_names:
        return []
    found = {one for end in ("min", "max") for one in pc.unique(log.column(f"{end}.experiment_id")).to_pylist()}
    return sorted(found - {None, experiment_id})


def paths_of(log: "pa.Table", days: Days) -> list[str]:
    """The files that hold these days, below the table's folder."""
    return [unquote(path) for path in _of_days(log, days).column("path").to_pylist()]


def _of_days(log: "pa.Table", days: Days) -> "pa.Table":
    pc = compute()

    day = log.column(f"partition.{PARTITION}")
    return log.filter(pc.and_(pc.greater_equal(day, days.first), pc.less_equal(day, days.last)))


def _number(said: Any) -> int:
    """A positive number below 2**63."""
    return int.from_bytes(hashlib.sha256(repr(said).encode()).digest()[:8]) >> 1 or 1


def _midnight_ms(day: date) -> int:
    return epoch_ms(datetime(day.year, day.month, day.day, tzinfo=UTC))


def epoch_ms(moment: datetime | None) -> int:
    """Whole milliseconds since 1970; 0 for no moment."""
    return 0 if moment is None else (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
