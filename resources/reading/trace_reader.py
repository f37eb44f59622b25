"""Reading production traces for the archive: one interface, two readers, the same rows.

Lives here: what a reader answers, and which traces are of production.
Add here: a question the archive has of the store of traces.
Not here: picking a reader (`reading.py`), the readers (`public_reader.py`, `database_reader.py`), rows and columns
(`trace_rows.py`, `tables.py`), writing (`archive/archive.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.delta.data_files import DataFile
from resources.redaction import Redaction

if TYPE_CHECKING:
    import pyarrow as pa

FINISHED = "attributes.status != 'IN_PROGRESS'"
"""MLflow trace filter: no longer in progress."""

PRODUCTION = f"{FINISHED} AND metadata.mlflow.sourceRun IS NULL"
"""MLflow trace filter: finished, and not made by an evaluation."""


PAGE = 500
"""Traces of a listing that one batch with spans is about, unless a reader says otherwise: some 7 MB in memory."""


@dataclass(frozen=True)
class Listing:
    """Production traces that had ended, oldest first, ties by id; `unsettled` counts those that had not.

    Columns: `trace_id` (string) and `request_ms` (int64, the start, epoch milliseconds). `ends` are the ends of the
    same traces, in no order: `trace_id` and `ended_ms` (int64).
    """

    traces: "pa.Table"
    unsettled: int
    ends: "pa.Table"

    @property
    def ids(self) -> list[str]:
        """The ids, oldest first."""
        return self.traces.column("trace_id").to_pylist()


@dataclass(frozen=True)
class Quarantined:
    """A trace that could not be made into rows: id, start (epoch milliseconds), and why, in one sentence."""

    trace_id: str
    request_ms: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """Some traces in the columns of the archive (`tables.arrow_schema`; `archived_at` is null).

    `spans` is None where only heads were asked for.
    """

    traces: "pa.Table"
    assessments: "pa.Table"
    spans: "pa.Table | None" = None
    quarantined: tuple[Quarantined, ...] = ()


FILED = ("spans", "traces")
"""Tables of which a reader may write files."""

HEADS = ("trace_id", "trace_date", "request_time")
"""Columns of `traces` that are known of a trace whose row is in a file."""


@dataclass(frozen=True)
class Filed:
    """Some traces whose rows are in files, by table (`FILED`), that belong to no table yet.

    `heads` are these traces (`HEADS`), `assessments` theirs, as rows. What is out of the ordinary is in no file: it is
    `apart`, None when there is nothing.
    """

    files: Mapping[str, Sequence[DataFile]]
    heads: "pa.Table"
    assessments: "pa.Table"
    apart: Batch | None = None


@dataclass(frozen=True)
class Marks:
    """Up to where changes have been seen: name to a number that only grows. Empty: nothing was seen yet."""

    seen: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Touched:
    """Traces something came to, or changed of, since some marks; and the marks from here on.

    `heads` are those whose row or assessments may differ, `spans` those whose spans may. What the store gives no
    sign of (a tag set to another value has none) is in neither: compare the heads.
    """

    heads: frozenset[str]
    spans: frozenset[str]
    marks: Marks


class TraceReader(ABC):
    """Reads the production traces of one experiment: not those of evaluations, not those in progress.

    Ranges are epoch milliseconds of a trace's start, the end excluded. Everything is read only: nothing is written to
    the store, and everything may be repeated.
    """

    cheap_listing: int
    """Traces that can be listed and whose heads can be compared within some 20 ms."""
    page_size: int = PAGE
    """Traces of a listing that one batch with spans is about."""
    files_from: int | None = None
    """Traces from which on the reader writes files itself (`filed`); None: it never does."""

    @abstractmethod
    def state(self) -> int:
        """A number below 2**63 that names all the store holds now: it changes with every write. 0: it cannot be told.

        Take it before reading, so that what comes meanwhile makes a difference.
        """

    @abstractmethod
    def list(self, since_ms: int, until_ms: int, *, settled_before_ms: int) -> Listing:
        """Traces of the range that ended before `settled_before_ms`."""

    @abstractmethod
    def touched(self, since_ms: int, until_ms: int, marks: Marks) -> Touched:
        """What changed of traces of the range since `marks`. Without marks nothing is looked for: only marks are."""

    def digests(self, listing: "pa.Table") -> "Sequence[int] | None":
        """Of each listed trace a number that is another one when its row or its assessments may differ.

        That of a trace that is gone is 0. None where asking costs as much as reading the heads does.
        """
        return None

    @abstractmethod
    def heads(self, listing: "pa.Table", *, redact: Redaction = ()) -> Iterator[Batch]:
        """Traces and assessments of a listing without spans, a page at a time; `request` and `response` are null."""

    @abstractmethod
    def batches(self, listing: "pa.Table", *, redact: Redaction = ()) -> Iterator[Batch]:
        """The traces of a listing with spans, `page_size` at a time, in its order; memory holds a few such pages.

        A trace that cannot be made into rows is quarantined; one that was deleted meanwhile is left out.
        """

    def filed(self, listings: "Sequence[pa.Table]", folders: Mapping[str, Path]) -> Iterator[Filed]:
        """The traces of each listing in files below the tables' `folders`, nothing redacted; else as `batches`.

        Only for readers with `files_from`.
        """
        raise NotImplementedError

    @abstractmethod
    def traces(self, trace_ids: Sequence[str]) -> Iterator[Any]:
        """The traces as MLflow's `Trace` with spans and assessments, for scorers, in the given order.

        One that was deleted meanwhile is left out.
        """
