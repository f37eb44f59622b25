"""Reading production traces by MLflow's API: any tracking store, and any server.

Lives here: `PublicReader`: paging, and what is done about a trace that cannot be read.
Add here: a way in which the API gives a trace, or fails to.
Not here: fetching many traces from a server at once (`server_traces.py`), rows (`trace_rows.py`).

Pages go by time and id, never by offset: traces may come and go meanwhile. Spans are fetched once a trace.
"""

import gc
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from resources.explain import explain, explained
from resources.mlflow_store import open_client
from resources.platform import Platform
from resources.redaction import Redaction, Text
from resources.row_batches import UNREADABLE, batch_of, listing_of, rows_or_why, unreadable
from resources.store_state import store_state
from resources.trace_reader import PRODUCTION, Batch, Listing, Marks, Quarantined, Touched, TraceReader
from resources.trace_rows import rows_of

if TYPE_CHECKING:
    import pyarrow as pa

_SEARCH_PAGE = 500  # The most a server gives at once.
_PAGE = 500  # Traces with spans in memory.
_REQUEST, _CONNECTIONS = 50, 4  # Traces a request of a server, and requests at once: two workers of it are kept busy.
_HEADS_PAGE = 200  # Ids of a search: 40 characters each, in one address of a GET request or one query.
_SPANS_AT = "mlflow.trace.spansLocation"
_GONE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_PASSING = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED")
_STORE_ERRORS = ("OperationalError", "InterfaceError", "ProgrammingError", "ReadTimeout")  # Of SQLAlchemy, of requests.
_NOT_OF_A_TRACE = (Refused, MemoryError, ImportError, NameError, AssertionError)

Found = tuple[Any, list[Any]] | str | None
"""Info and spans of a trace; a sentence why it cannot be read; None when it is gone."""

Page = list[tuple[str, Found]]
"""Ids, in order, with what was found."""

Entities = list[Any]
"""Traces of MLflow's, in order; a sentence for one that cannot be read, None for one that is gone."""


class PublicReader(TraceReader):
    """Reads traces by MLflow's client, and over HTTP by the requests behind it."""

    def __init__(self, platform: Platform, experiment_id: str) -> None:
        self._platform, self._experiment_id = platform, experiment_id
        self._is_server = platform.tracking_uri.startswith("http")
        self.cheap_listing = 50 if self._is_server else 200

    @cached_property
    def _client(self) -> Any:
        return open_client(self._platform)

    @cached_property
    def _tracing(self) -> Any:
        self._client  # noqa: B018 opens mlflow with our settings, before anything of it is imported.
        from mlflow.tracing.client import TracingClient

        return TracingClient(self._platform.tracking_uri)

    @cached_property
    def _server(self) -> Any:
        from resources.server_traces import ServerTraces

        return ServerTraces(self._tracing.store.get_host_creds())

    def state(self) -> int:
        """See `TraceReader.state`; a server does not say."""
        return store_state(self._platform.tracking_uri)

    def list(self, since_ms: int, until_ms: int, *, settled_before_ms: int) -> Listing:
        """See `TraceReader.list`; one search a page of 500."""
        import pyarrow as pa

        ids, starts, ends, unsettled = [], [], [], 0
        with explained(self._platform.tracking_uri):
            for info in self._infos(since_ms, until_ms):
                ended_ms = info.request_time + (info.execution_duration or 0)
                if ended_ms < settled_before_ms:
                    ids.append(info.trace_id)
                    starts.append(info.request_time)
                    ends.append(ended_ms)
                else:
                    unsettled += 1
        ended = pa.table({"trace_id": pa.array(ids, pa.string()), "ended_ms": pa.array(ends, pa.int64())})
        return Listing(listing_of(ids, starts), unsettled, ended)

    def _infos(self, since_ms: int, until_ms: int) -> Iterator[Any]:
        """Infos of finished production traces, each once, oldest first."""
        since, token = since_ms, None
        seen: set[str] = set()  # Of the instant a page begins with.
        while since < until_ms:
            clauses = f"attributes.timestamp_ms >= {since} AND attributes.timestamp_ms < {until_ms}"
            page = self._search(f"{PRODUCTION} AND {clauses}", _SEARCH_PAGE, token)
            for trace in page:
                if trace.info.trace_id not in seen:
                    yield trace.info
            if len(page) < _SEARCH_PAGE:
                return
            last = page[-1].info.request_time
            at_last = {trace.info.trace_id for trace in page if trace.info.request_time == last}
            # A full page of one instant: only an offset leads past it.
            seen = at_last | (seen if last == since else set())
            since, token = (last, None) if last > since else (since, page.token)

    def _search(self, clauses: str, limit: int, token: str | None = None) -> Any:
        return self._client.search_traces(
            locations=[self._experiment_id],
            filter_string=clauses,
            max_results=limit,
            order_by=["timestamp_ms ASC"],
            page_token=token,
            include_spans=False,
        )

    def touched(self, since_ms: int, until_ms: int, marks: Marks) -> Touched:
        """See `TraceReader.touched`; the API gives no sign of a change, so that heads have to be compared."""
        return Touched(frozenset(), frozenset(), Marks())

    def heads(self, listing: "pa.Table", *, redact: Redaction = ()) -> Iterator[Batch]:
        """See `TraceReader.heads`."""
        ids, text = listing.column("trace_id").to_pylist(), Text(redact)
        for start in range(0, len(ids), _HEADS_PAGE):
            page = ids[start : start + _HEADS_PAGE]
            quoted = ", ".join("'" + one.replace("'", "''") + "'" for one in page)
            with explained(self._platform.tracking_uri):
                clauses = f"attributes.request_id IN ({quoted})"
                found = {trace.info.trace_id: trace.info for trace in self._search(clauses, _HEADS_PAGE)}
                rows = [rows_of(found[one], (), text) for one in page if one in found]
            yield batch_of(rows, with_spans=False)

    def batches(self, listing: "pa.Table", *, redact: Redaction = ()) -> Iterator[Batch]:
        """See `TraceReader.batches`."""
        text, starts = Text(redact), listing.column("request_ms").to_pylist()
        ids = listing.column("trace_id").to_pylist()
        with explained(self._platform.tracking_uri), few_collections(len(ids)):
            done = 0
            for page in self._pages(ids):
                rows, lost = [], []
                for trace_id, found in page:
                    made = rows_or_why(*found, text) if isinstance(found, tuple) else found
                    if isinstance(made, str):
                        lost.append(Quarantined(trace_id, starts[done], made))
                    elif made is not None:
                        rows.append(made)
                    done += 1
                yield batch_of(rows, quarantined=tuple(lost))

    def _pages(self, ids: Sequence[str]) -> Iterator[Page]:
        """Every id with what was found, some hundreds at a time, in order."""
        if not self._is_server:
            for start in range(0, len(ids), _PAGE):
                yield self._read(ids[start : start + _PAGE])
            return
        chunks = (ids[start : start + _REQUEST] for start in range(0, len(ids), _REQUEST))
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="traces") as pool:
            waiting: deque[Any] = deque(pool.submit(self._read, chunk) for chunk in islice(chunks, 2 * _CONNECTIONS))
            try:
                while waiting:
                    page: Page = []
                    while waiting and len(page) < _PAGE:
                        page += waiting.popleft().result()
                        waiting.extend(pool.submit(self._read, chunk) for chunk in islice(chunks, 1))
                    yield page
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, ids: Sequence[str]) -> Page:
        """What is found of each id: its info and spans; a sentence when it cannot be read, None when it is gone.

        One trace that cannot be read makes the store fail for all it is asked for: then it is asked for fewer.
        """
        try:
            found = self._fetch(ids)
        except Exception as error:
            if self._is_of_the_store(error):
                raise
            if len(ids) == 1:
                return [(ids[0], self._alone(ids[0]))]
            half = len(ids) // 2
            return self._read(ids[:half]) + self._read(ids[half:])
        return [(one, _complete(found[one]) if one in found else self._alone(one)) for one in ids]

    def _fetch(self, ids: Sequence[str]) -> dict[str, Found]:
        """Info and spans of those traces that are whole."""
        if self._is_server:
            return self._server.read(ids)
        # The store is asked, not the client above it, which reads every trace twice and ten at a time.
        return {trace.info.trace_id: _parts(trace) for trace in self._tracing.store.batch_get_traces(list(ids))}

    def _alone(self, trace_id: str) -> Found:
        """A trace that does not come with others: it lacks spans, keeps them elsewhere, or cannot be read."""
        trace = self._trace_alone(trace_id)
        if trace is None or isinstance(trace, str):
            return trace
        try:
            return _complete(_parts(trace))
        except UNREADABLE as error:
            return unreadable(error)

    def parts(self, trace_id: str) -> Found:
        """Info and spans of one trace, wherever its spans are kept."""
        with explained(self._platform.tracking_uri):
            return self._alone(trace_id)

    def _trace_alone(self, trace_id: str) -> Any:
        tracing = self._tracing
        from mlflow.exceptions import MlflowException

        try:
            info = tracing.get_trace_info(trace_id)
        except MlflowException as error:
            if error.error_code not in _GONE:
                raise
            return None
        try:
            # Elsewhere is a file of the artifact store, which the client fetches by itself.
            if info.tags.get(_SPANS_AT) in ("TRACKING_STORE", "ARCHIVE_REPO"):
                return tracing.store.get_trace(trace_id, allow_partial=True)
            return tracing.get_trace(trace_id)
        except Exception as error:
            if self._is_of_the_store(error):
                raise
            if _SPANS_AT not in info.tags and getattr(error, "error_code", "") == "BAD_REQUEST":
                return _without_spans(info)  # Left by a process that died: MLflow never had spans of it.
            return unreadable(error)

    def _is_of_the_store(self, error: Exception) -> bool:
        """Whether a failure says nothing of a trace: the store itself does not answer."""
        if getattr(error, "error_code", "") in _PASSING or isinstance(error, _NOT_OF_A_TRACE):
            return True
        return explain(error, self._platform.tracking_uri) is not None or type(error).__name__ in _STORE_ERRORS

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Any]:
        """See `TraceReader.traces`."""
        for start in range(0, len(trace_ids), _REQUEST):
            with explained(self._platform.tracking_uri):
                found = [trace for trace in self._entities(trace_ids[start : start + _REQUEST]) if trace is not None]
            for trace in found:
                if isinstance(trace, str):
                    raise Refused(f"A trace that is to be scored cannot be read: {trace}")
            yield from found

    def _entities(self, ids: Sequence[str]) -> Entities:
        try:
            found = {trace.info.trace_id: trace for trace in self._tracing.store.batch_get_traces(list(ids))}
        except Exception as error:
            if self._is_of_the_store(error):
                raise
            if len(ids) == 1:
                return [self._trace_alone(ids[0])]
            half = len(ids) // 2
            return self._entities(ids[:half]) + self._entities(ids[half:])
        return [found[one] if one in found else self._trace_alone(one) for one in ids]


def _parts(trace: Any) -> tuple[Any, list[Any]]:
    return trace.info, [span.to_dict() for span in trace.data.spans or ()]


def _complete(found: Found) -> Found:
    """What was found; a sentence when spans were archived, since MLflow takes a lost file for one without any."""
    if isinstance(found, tuple) and not found[1] and found[0].tags.get(_SPANS_AT) == "ARCHIVE_REPO":
        return "its spans were moved out of the database, and MLflow finds none there"
    return found


def _without_spans(info: Any) -> Any:
    from mlflow.entities import Trace, TraceData

    return Trace(info, TraceData(spans=[]))


_bulk_lock, _bulks = threading.Lock(), 0


@contextmanager
def few_collections(traces: int) -> Generator[None]:
    """Rare garbage collections inside the block where many traces are read; nothing for a few.

    `import mlflow` leaves some 250 MB of live objects, which every full collection walks: 1.9 times as fast without.
    """
    global _bulks
    if traces < 1_000:
        yield
        return
    former = gc.get_threshold()
    with _bulk_lock:
        _bulks += 1
        if _bulks == 1:
            gc.collect()
            gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        with _bulk_lock:
            _bulks -= 1
            if _bulks == 0:
                gc.unfreeze()
                gc.set_threshold(*former)
