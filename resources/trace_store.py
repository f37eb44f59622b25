"""Production traces: reading them, and writing assessments and tags on them.

Lives here: `TraceStore`, what it returns, and its one implementation, MLflow's client: SQLite or a server alike.
Add here: a question asked of production traces, or something written on one.
Not here: which field becomes which column (`trace_rows.py`), labels of people (`labeling_desk.py`).
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any

from lifecycle_assets.refused import Refused
from resources.explain import explained
from resources.mlflow_store import experiment_id, open_client
from resources.platform import Platform
from resources.reading.trace_reader import PRODUCTION
from resources.redaction import Redaction
from resources.scoring.trace_scores import is_error, scored_pair, scores_of
from resources.trace_rows import TraceRows, model_of, trace_rows

_DAY_MS = 86_400_000
_SPANS_AT, _IN_STORE = "mlflow.trace.spansLocation", ("TRACKING_STORE", "ARCHIVE_REPO")
_SEARCH_PAGE = 500  # The most a server gives at once.

MOST_COUNTED = 500
"""Traces that `dated_from` counts at most: one page."""

_READ_PAGE = 100  # With spans and their payloads in memory.


@dataclass(frozen=True)
class TraceInfo:
    """A production trace without its spans.

    `scored` holds `(registered scorer name, version)` of its assessments that carry a value or say
    'not applicable'; `errored` those of which only an error is there; `judged` all of them, such as
    `expectation.answer`; `scores` are those of `scores_of`.
    """

    trace_id: str
    request_ms: int
    ended_ms: int
    state: str
    model_id: str
    session_id: str
    tags: Mapping[str, str]
    scored: frozenset[tuple[str, str]]
    errored: frozenset[tuple[str, str]]
    judged: frozenset[str] = frozenset()
    scores: frozenset[tuple[str, str, int, bool]] = frozenset()


class TraceStore(ABC):
    """The experiment's production traces: not those of evaluations, not those still in progress."""

    @abstractmethod
    def infos(self, experiment: str, day: date, *, settled_before_ms: int, filter_string: str = "") -> list[TraceInfo]:
        """Traces that started on `day` (UTC) and ended before `settled_before_ms`, oldest first.

        `filter_string` is a further MLflow trace filter. Raises `Refused` when MLflow does not understand it.
        """

    @abstractmethod
    def read(self, trace_ids: Sequence[str]) -> Iterator[Any]:
        """The MLflow traces with spans, a page at a time, in the given order. Raises `Refused` for a missing one."""

    @abstractmethod
    def rows(self, trace: Any, *, redact: Redaction = ()) -> TraceRows:
        """A trace in the columns of the archive, with every text redacted."""

    @abstractmethod
    def newest(self, experiment: str, *, model_id: str = "", settled_before_ms: int | None = None) -> TraceInfo | None:
        """The newest production trace, of any model or of one; None when there is none.

        With `settled_before_ms` (epoch milliseconds) the newest of those that had ended by then.
        """

    @abstractmethod
    def dated_from(self, experiment: str, since_ms: int) -> int:
        """How many production traces started at `since_ms` (epoch milliseconds) or later; `MOST_COUNTED` at most."""

    @abstractmethod
    def tag(self, trace_id: str, key: str, value: str) -> None:
        """Set a tag on a trace; no write when it has that value."""


class MlflowTraceStore(TraceStore):
    """Traces of an MLflow tracking store.

    Everything here may be repeated: reads change nothing, an assessment has an id of what it is about, a tag is
    compared first.
    """

    production = PRODUCTION
    """What is asked of the store; what it cannot be asked, `_is_production` leaves out."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._elsewhere: set[str] = set()  # Traces listed that keep their spans outside of the store.

    @cached_property
    def _client(self) -> Any:
        return open_client(self._platform)

    @cached_property
    def _tracing(self) -> Any:
        self._client  # noqa: B018 opens mlflow with our settings, before anything of it is imported.
        from mlflow.tracing.client import TracingClient

        return TracingClient(self._platform.tracking_uri)

    def infos(self, experiment: str, day: date, *, settled_before_ms: int, filter_string: str = "") -> list[TraceInfo]:
        """See `TraceStore.infos`. Pages by start time, never by offset: traces may come and go meanwhile."""
        start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
        found: dict[str, Any] = {}
        since, token = start, None
        with explained(self._platform.tracking_uri):
            while True:
                within = [f"attributes.timestamp_ms >= {since}", f"attributes.timestamp_ms < {start + _DAY_MS}"]
                clauses = [self.production, *within]
                page = self._search(experiment, clauses, filter_string, "ASC", _SEARCH_PAGE, token)
                found.update((trace.info.trace_id, trace.info) for trace in page)
                if len(page) < _SEARCH_PAGE:
                    break
                last = page[-1].info.request_time
                # A full page of one instant: only an offset leads past it.
                since, token = (last, None) if last > since else (since, page.token)
        self._elsewhere.update(info.trace_id for info in found.values() if info.tags.get(_SPANS_AT) not in _IN_STORE)
        infos = [as_info(info) for info in found.values() if self._is_production(info)]
        return [info for info in infos if info.ended_ms < settled_before_ms]

    def _search(
        self, experiment: str, clauses: list[str], extra: str, order: str, limit: int, token: str | None = None
    ) -> Any:
        location = self._location(experiment)
        client = self._client
        from mlflow.exceptions import MlflowException

        try:
            return client.search_traces(
                locations=[location],
                filter_string=" AND ".join([*clauses, extra] if extra.strip() else clauses),
                max_results=limit,
                order_by=[f"timestamp_ms {order}"],
                page_token=token,
                include_spans=False,
            )
        except MlflowException as error:
            if not extra.strip() or error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            reason = str(error).removeprefix("INVALID_PARAMETER_VALUE: ").partition("\n")[0][:300]
            raise Refused(
                f"The trace filter {extra!r} is not understood by MLflow ({reason}); "
                "correct it: clauses such as tags.environment = 'prod' joined by AND."
            ) from None

    def _location(self, experiment: str) -> str:
        """What is searched for the traces of an experiment."""
        return experiment_id(self._platform, experiment)

    def _is_production(self, info: Any) -> bool:
        """Whether a found trace counts; the filter said it all."""
        return True

    def read(self, trace_ids: Sequence[str]) -> Iterator[Any]:
        """See `TraceStore.read`. Spans are fetched page by page, so memory holds one page of payloads.

        The store is asked where it can be, not the client above it, which reads every trace twice and ten at a
        time: 4 times as fast.
        """
        for start in range(0, len(trace_ids), _READ_PAGE):
            page = trace_ids[start : start + _READ_PAGE]
            with explained(self._platform.tracking_uri):
                found = {trace.info.trace_id: trace for trace in self._read_page(page)}
                traces = [found.get(trace_id) or self._read_without_spans(trace_id) for trace_id in page]
            yield from traces

    def _read_page(self, trace_ids: Sequence[str]) -> list[Any]:
        """What has spans; one trace that keeps them elsewhere makes the store fail for all it is asked for."""
        tracing = self._tracing
        from mlflow.exceptions import MlflowException

        elsewhere = [trace_id for trace_id in trace_ids if trace_id in self._elsewhere]
        here = [trace_id for trace_id in trace_ids if trace_id not in self._elsewhere]
        try:
            found = tracing.store.batch_get_traces(here) if here else []
        except MlflowException:
            return tracing.batch_get_traces(list(trace_ids))
        return [*found, *tracing.batch_get_traces(elsewhere)]

    def _read_without_spans(self, trace_id: str) -> Any:
        """A trace of which MLflow has no spans, as left by a process that died."""
        info = self._mlflow_info(trace_id)
        from mlflow.entities import Trace, TraceData

        return Trace(info, TraceData(spans=[]))

    def _mlflow_info(self, trace_id: str) -> Any:
        tracing = self._tracing
        from mlflow.exceptions import MlflowException

        try:
            return tracing.get_trace_info(trace_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
                raise
            raise Refused(
                f"Trace {trace_id} is gone from MLflow: it was deleted after it was listed; run the step again."
            ) from None

    def rows(self, trace: Any, *, redact: Redaction = ()) -> TraceRows:
        """See `TraceStore.rows`."""
        return trace_rows(trace, redact)

    def newest(self, experiment: str, *, model_id: str = "", settled_before_ms: int | None = None) -> TraceInfo | None:
        """See `TraceStore.newest`; one query, and one more for a model whose traces came by OTLP (a tag).

        Of many that began in time and ended later, as under heavy traffic, the last one looked at is returned.
        """
        mine = [f"metadata.`mlflow.modelId` = '{model_id}'", f"tags.`mlflow.modelId` = '{model_id}'"]
        begun = [] if settled_before_ms is None else [f"attributes.timestamp_ms < {settled_before_ms}"]
        with explained(self._platform.tracking_uri):
            pages = [
                self._search(experiment, [self.production, *begun, *clause], "", "DESC", _READ_PAGE if begun else 1)
                for clause in ([[one] for one in mine] if model_id else [[]])
            ]
        ends = sys.maxsize if settled_before_ms is None else settled_before_ms
        found = [
            as_info(next((t.info for t in page if _ended(t.info) < ends), page[-1].info)) for page in pages if page
        ]
        return max(found, key=lambda info: info.request_ms) if found else None

    def dated_from(self, experiment: str, since_ms: int) -> int:
        """See `TraceStore.dated_from`. One query."""
        with explained(self._platform.tracking_uri):
            clauses = [self.production, f"attributes.timestamp_ms >= {since_ms}"]
            page = self._search(experiment, clauses, "", "ASC", MOST_COUNTED)
        return sum(self._is_production(trace.info) for trace in page)

    def tag(self, trace_id: str, key: str, value: str) -> None:
        """See `TraceStore.tag`. Raises `Refused` when the trace is gone."""
        with explained(self._platform.tracking_uri):
            if self._mlflow_info(trace_id).tags.get(key) != value:
                self._client.set_trace_tag(trace_id, key, value)


def _ended(info: Any) -> int:
    return info.request_time + (info.execution_duration or 0)


def as_info(info: Any) -> TraceInfo:
    """MLflow's trace info as ours."""
    pairs = [(scored_pair(a), is_error(a)) for a in info.assessments if scored_pair(a)]
    scored = frozenset(pair for pair, error in pairs if pair and not error)
    return TraceInfo(
        trace_id=info.trace_id,
        request_ms=info.request_time,
        ended_ms=_ended(info),
        state=str(getattr(info.state, "value", info.state)),
        model_id=model_of(info),
        session_id=info.trace_metadata.get("mlflow.trace.session", ""),
        tags=dict(info.tags),
        scored=scored,
        errored=frozenset(pair for pair, error in pairs if pair and error) - scored,
        judged=frozenset(f"{'expectation' if a.expectation else 'feedback'}.{a.name}" for a in info.assessments),
        scores=scores_of(info),
    )
