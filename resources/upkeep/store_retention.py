"""Traces leaving MLflow's own store, once the tables are proven to hold them.

Lives here: the proof of a day, and the two ways in which a day leaves: deleted, or its spans archived by MLflow.
Add here: a further reason for which a day has to wait.
Not here: how old a day must be (`lifecycle_assets/retention.py`), MLflow's archival (`mlflow_archival.py`).

Proven is: every trace of the day that had ended is in `traces`; each of its spans and assessments in MLflow has its
row; no trace of the day is in quarantine; every score of the tables is published; no review that is open shows one of
the traces. What MLflow holds is read anew right before it goes, a page at a time, and only that page's traces go.
Killed in between, the traces that went were proven, and the next run starts with those that are left.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence, Set
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from lifecycle_assets.retention import leaves_store_before
from lifecycle_assets.spec_file import Agent
from resources.archive.marks import Days
from resources.archive.snapshots import ArchiveTables
from resources.archive.utc_days import days_of
from resources.explain import explained
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.platform import Platform
from resources.reading.reading import open_reader
from resources.reading.trace_reader import Batch, TraceReader
from resources.scoring.score_table import ScoreTable
from resources.upkeep.mlflow_archival import EPOCH, archive_until, archived_until, why_not_archivable
from resources.upkeep.upkeep import Released
from resources.worker import Progress

if TYPE_CHECKING:
    import pyarrow as pa

_AGAIN = "run the day's archived_traces again"

CHUNK = 100
"""Traces that are proven and deleted at a time: for so long MLflow's database is locked, and memory is taken."""


def release(platform: Platform, agent: Agent, now: date, progress: Progress) -> list[Released]:
    """See `Upkeep.release`. Days oldest first; a day that has to wait lets the others go, but for MLflow's archival."""
    retention = agent.spec.archive.store_retention
    if retention is None:
        return []
    experiment, before = experiment_id(platform, agent.spec.experiment), leaves_store_before(agent.spec.archive, now)
    if retention.how == "archive":
        why = why_not_archivable(platform, experiment)
        if why:
            return [Released(before - timedelta(days=1), 0, why)]
    first = archived_until(platform, experiment) if retention.how == "archive" else EPOCH
    reader = open_reader(platform, experiment, progress)
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    listing = reader.list(Days(first, first).since_ms, Days(before, before).since_ms, settled_before_ms=now_ms).traces
    review = in_review(platform, experiment) if listing.num_rows else frozenset()
    done: list[Released] = []
    for day in days_of(listing):
        proof = Proof(platform, agent, experiment, day, review)
        done.append(_release_day(platform, proof, reader, _of_day(listing, day), deletes=retention.how == "delete"))
        progress(done[-1].why or f"{day}: {done[-1].traces} traces in MLflow are proven to be in the tables")
        if retention.how == "archive" and done[-1].why:
            break  # MLflow archives everything older than a moment: the days after this one wait with it.
    proven = [one.day for one in done if not one.why]
    if proven and retention.how == "archive":
        progress(f"{archive_until(platform, experiment, max(proven))} traces' spans moved to MLflow's artifact store")
    return done


def _release_day(
    platform: Platform, proof: "Proof", reader: TraceReader, listing: "pa.Table", *, deletes: bool
) -> Released:
    """Prove a day a page at a time, and delete each page that is proven where `deletes`."""
    why, gone = proof.of_day(listing.column("trace_id").to_pylist()), 0
    for start in range(0, 0 if why else listing.num_rows, CHUNK):
        page = listing.slice(start, CHUNK)
        for batch in reader.batches(page):
            why = proof.of_batch(batch)
            if why:
                return Released(proof.day, gone, why)
            ids = batch.traces.column("trace_id").to_pylist()
            gone += _delete(platform, proof.experiment, ids) if deletes else len(ids)
    return Released(proof.day, gone, why)


def _delete(platform: Platform, experiment: str, ids: list[str]) -> int:
    with explained(platform.tracking_uri):
        return open_client(platform).delete_traces(experiment, trace_ids=ids) if ids else 0


class Proof:
    """What the tables hold of one day, to be compared with what MLflow holds."""

    def __init__(self, platform: Platform, agent: Agent, experiment: str, day: date, review: Set[str]) -> None:
        self.day, self.experiment = day, experiment
        self._review = review
        tables = ArchiveTables(platform, agent.spec.table_prefix, experiment)
        self._quarantined = len(tables.ids("quarantine", Days(day, day)))
        self._unpublished = ScoreTable(platform, agent.spec.table_prefix).pending(day).num_rows
        self._traces = set(tables.ids("traces", Days(day, day)).to_pylist())
        self._spans = set(_keyed(self._rows(tables, "spans", "span_id"), "span_id"))
        self._said = _keyed(self._rows(tables, "assessments", "assessment_id", "updated_at"), "assessment_id")

    def of_day(self, ids: Sequence[str]) -> str:
        """Why the day has to wait, by what needs no trace to be read; empty when nothing speaks against it."""
        missing = [one for one in ids if one not in self._traces]
        if missing:
            return self._waits(f"{len(missing)} of its traces are not in the tables ({missing[0]})", _AGAIN)
        if self._quarantined:
            return self._waits(f"{self._quarantined} of its traces are in quarantine", "see the table quarantine")
        if self._unpublished:
            return self._waits(f"{self._unpublished} scores are not in MLflow yet", "run the day's trace_scores again")
        shown = [one for one in ids if one in self._review]
        if shown:
            return self._waits(f"{len(shown)} of its traces are under review ({shown[0]})", "have the review completed")
        return ""

    def of_batch(self, batch: Batch) -> str:
        """Why these traces have to stay; empty when the tables hold all that MLflow holds of them."""
        if batch.quarantined:
            one = batch.quarantined[0]
            return self._waits(f"trace {one.trace_id} cannot be read ({one.reason[:160].rstrip('.')})", _AGAIN)
        lacking = set(batch.traces.column("trace_id").to_pylist()) - self._traces
        spans = set(_keyed(batch.spans, "span_id")) - self._spans if batch.spans is not None else set()
        there = _keyed(batch.assessments, "assessment_id")
        said = [key for key, at in there.items() if key not in self._said or _later(at, self._said[key])]
        for found, what in ((lacking, "traces"), (spans, "spans"), (said, "assessments")):
            if found:
                return self._waits(f"{len(found)} {what} in MLflow are not in the tables as they are now", _AGAIN)
        return ""

    def _waits(self, what: str, remedy: str) -> str:
        return f"{self.day}: stays in MLflow, {what}; {remedy}."

    def _rows(self, tables: ArchiveTables, table: str, *names: str) -> "pa.Table":
        listed = ["trace_id", *names]
        query = f"SELECT {', '.join(listed)} FROM t WHERE {Days(self.day, self.day).condition}"  # noqa: S608 names of ours
        return tables.select(table, query, listed)


def in_review(platform: Platform, experiment: str) -> frozenset[str]:
    """Ids of traces that wait in a review queue of the experiment, whoever made the queue."""
    with explained(platform.tracking_uri):
        open_mlflow(platform)
        from mlflow.genai.review_queues import list_review_queue_items, list_review_queues

        queues = _pages(partial(list_review_queues, experiment_id=experiment))
        return frozenset(
            item.item_id
            for queue in queues
            for item in _pages(partial(list_review_queue_items, queue.queue_id, status="pending"))
        )


def _pages(read: Callable[..., Any]) -> Iterator[Any]:
    token = None
    while True:
        some = read(max_results=500, page_token=token)
        yield from some
        token = some.token
        if not token:
            return


def _of_day(listing: "pa.Table", day: date) -> "pa.Table":
    """The part of a listing, which is in the order of starts, that started on this day."""
    starts, days = listing.column("request_ms").to_pylist(), Days(day, day)
    first = bisect_left(starts, days.since_ms)
    return listing.slice(first, bisect_left(starts, days.until_ms) - first)


def _keyed(rows: "pa.Table", key: str) -> dict[tuple[str, str], datetime | None]:
    """The ids of traces with the keys of what belongs to them, and when that was last changed, where it is said."""
    nothing = [None] * rows.num_rows
    changed = rows.column("updated_at").to_pylist() if "updated_at" in rows.column_names else nothing
    keys = zip(rows.column("trace_id").to_pylist(), rows.column(key).to_pylist(), strict=True)
    return dict(zip(keys, changed, strict=True))


def _later(one: datetime | None, other: datetime | None) -> bool:
    """Whether `one` is later by a millisecond, which is what MLflow counts."""
    return one is not None and (other is None or one - other >= timedelta(milliseconds=1))
