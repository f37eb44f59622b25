"""Fetching traces with their spans by MLflow's API, whatever is wrong with one of them.

Lives here: `TraceFetch`: many at once, fewer when one makes the store fail for all, and one that comes with no others.
Add here: a way in which the API gives a trace, or fails to.
Not here: which traces (`public_reader.py`), a server's answer (`server_traces.py`), rows (`trace_rows.py`).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any

from lifecycle_assets.refused import Refused
from resources.explain import explain, explained
from resources.mlflow_store import open_client
from resources.platform import Platform
from resources.reading.row_batches import UNREADABLE, unreadable

_PART = 100  # Traces in memory as objects of MLflow: more of them are slower, and take more memory.
_REQUEST, _CONNECTIONS = 50, 4  # Traces a request of a server, and requests at once: two workers of it are kept busy.
_SPANS_AT = "mlflow.trace.spansLocation"
_GONE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_PASSING = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED")
_STORE_ERRORS = ("OperationalError", "InterfaceError", "ProgrammingError", "ReadTimeout")  # Of SQLAlchemy, of requests.
_NOT_OF_A_TRACE = (Refused, MemoryError, ImportError, NameError, AssertionError)

Found = tuple[Any, list[Any]] | str | None
"""Info and spans of a trace; a sentence why it cannot be read; None when it is gone."""

Part = list[tuple[str, Found]]
"""Ids, in order, with what was found."""

Entities = list[Any]
"""Traces of MLflow's, in order; a sentence for one that cannot be read, None for one that is gone."""

Infos = tuple[list[Any], str | None]
"""Infos of a page of a search, and the token of the next one."""


class TraceFetch:
    """Traces of one tracking store. Nothing is written, and everything may be repeated."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._is_server = platform.tracking_uri.startswith("http")

    @cached_property
    def client(self) -> Any:
        """MLflow's client, opened with our settings before anything else of MLflow is imported."""
        return open_client(self._platform)

    @cached_property
    def _tracing(self) -> Any:
        self.client  # noqa: B018 opens mlflow with our settings, before anything of it is imported.
        from mlflow.tracing.client import TracingClient

        return TracingClient(self._platform.tracking_uri)

    @cached_property
    def _server(self) -> Any:
        from resources.reading.server_traces import ServerTraces

        return ServerTraces(self._tracing.store.get_host_creds())

    def search(self, experiment_id: str, clauses: str, limit: int, token: str | None = None) -> Infos:
        """Infos of a page of an experiment's traces that match, oldest first, and the token of the next one."""
        asked = {
            "max_results": limit,
            "order_by": ["timestamp_ms ASC"],
            **({"page_token": token} if token else {}),
        }
        store = self._tracing.store
        if self._is_server:
            from mlflow.exceptions import MlflowException

            try:
                return self._server.search(experiment_id, {"filter": clauses, **asked})
            except MlflowException as error:
                if error.error_code != "ENDPOINT_NOT_FOUND":  # An older server; MLflow's client knows its requests.
                    raise
        return store.search_traces(locations=[experiment_id], filter_string=clauses, **asked)

    def parts(self, ids: Sequence[str]) -> Iterator[Part]:
        """Every id with what was found, some at a time, in order; the sizes divide a page."""
        if not self._is_server:
            for start in range(0, len(ids), _PART):
                yield self.part(ids[start : start + _PART])
            return
        chunks = (ids[start : start + _REQUEST] for start in range(0, len(ids), _REQUEST))
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="traces") as pool:
            waiting: deque[Any] = deque(pool.submit(self.part, chunk) for chunk in islice(chunks, 2 * _CONNECTIONS))
            try:
                while waiting:
                    part: Part = waiting.popleft().result()
                    waiting.extend(pool.submit(self.part, chunk) for chunk in islice(chunks, 1))
                    yield part
            finally:
                pool.shutdown(cancel_futures=True)

    def part(self, ids: Sequence[str]) -> Part:
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
            return self.part(ids[:half]) + self.part(ids[half:])
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

    def alone(self, trace_id: str) -> Found:
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
        if "too many 500 error responses" in str(error):  # What a server says of one trace it cannot read.
            return False
        return explain(error, self._platform.tracking_uri) is not None or type(error).__name__ in _STORE_ERRORS

    def entities(self, ids: Sequence[str]) -> Entities:
        """MLflow's traces."""
        try:
            found = {trace.info.trace_id: trace for trace in self._tracing.store.batch_get_traces(list(ids))}
        except Exception as error:
            if self._is_of_the_store(error):
                raise
            if len(ids) == 1:
                return [self._trace_alone(ids[0])]
            half = len(ids) // 2
            return self.entities(ids[:half]) + self.entities(ids[half:])
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
