"""Reading production traces by MLflow's API: any tracking store, and any server.

Lives here: `PublicReader`: paging.
Add here: a question of `TraceReader` that MLflow's API answers.
Not here: fetching spans (`trace_fetch.py`), rows (`trace_rows.py`).

Pages go by time and id, never by offset: traces may come and go meanwhile. Spans are fetched once a trace.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from resources.explain import explained
from resources.platform import Platform
from resources.reading.few_collections import few_collections
from resources.reading.row_batches import batch_of, joined, listing_of, rows_or_why
from resources.reading.store_state import store_state
from resources.reading.trace_fetch import Infos, Part, TraceFetch
from resources.reading.trace_reader import PAGE, PRODUCTION, Batch, Listing, Marks, Quarantined, Touched, TraceReader
from resources.redaction import Redaction, Text
from resources.trace_rows import rows_of

if TYPE_CHECKING:
    import pyarrow as pa

_SEARCH_PAGE = 500  # The most a server gives at once.
_HEADS_PAGE = 200  # Ids of a search: 40 characters each, in one address of a GET request or one query.
_SCORED_PAGE = 50


class PublicReader(TraceReader):
    """Reads traces by MLflow's client, and over HTTP by the requests behind it."""

    def __init__(self, platform: Platform, experiment_id: str) -> None:
        self._platform, self._experiment_id = platform, experiment_id
        self.fetch = TraceFetch(platform)
        self.cheap_listing = 50 if platform.tracking_uri.startswith("http") else 200

    def state(self) -> int:
        """See `TraceReader.state`; a server does not say."""
        return store_state(self._platform.tracking_uri)

    def list(self, since_ms: int, until_ms: int, *, settled_before_ms: int) -> Listing:
        """See `TraceReader.list`; one search a page of 500."""
        import pyarrow as pa

        ids, starts, ends, unsettled = [], [], [], 0
        with explained(self._platform.tracking_uri), ExitStack() as many:
            for nth, info in enumerate(self._infos(since_ms, until_ms), 1):
                if nth == 2 * _SEARCH_PAGE:
                    many.enter_context(few_collections(nth))
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
            page, following = self._search(f"{PRODUCTION} AND {clauses}", _SEARCH_PAGE, token)
            yield from (info for info in page if info.trace_id not in seen)
            if len(page) < _SEARCH_PAGE:
                return
            last = page[-1].request_time
            at_last = {info.trace_id for info in page if info.request_time == last}
            # A full page of one instant: only an offset leads past it.
            seen = at_last | (seen if last == since else set())
            since, token = (last, None) if last > since else (since, following)

    def _search(self, clauses: str, limit: int, token: str | None = None) -> Infos:
        return self.fetch.search(self._experiment_id, clauses, limit, token)

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
                found = {info.trace_id: info for info in self._search(clauses, _HEADS_PAGE)[0]}
                rows = [rows_of(found[one], (), text) for one in page if one in found]
            yield batch_of(rows, with_spans=False)

    def batches(self, listing: "pa.Table", *, redact: Redaction = ()) -> Iterator[Batch]:
        """See `TraceReader.batches`."""
        text, starts = Text(redact), listing.column("request_ms").to_pylist()
        ids = listing.column("trace_id").to_pylist()
        with explained(self._platform.tracking_uri), few_collections(len(ids)):
            yield from self._pages(ids, starts, text)

    def _pages(self, ids: Sequence[str], starts: Sequence[int], text: Text) -> Iterator[Batch]:
        done, parts = 0, []
        for found in self.fetch.parts(ids):
            parts.append(self._rows(found, starts[done : done + len(found)], text))
            done += len(found)
            if done % PAGE == 0 or done == len(ids):
                yield joined(parts)
                parts = []

    def _rows(self, part: Part, starts: Sequence[int], text: Text) -> Batch:
        rows, lost = [], []
        for (trace_id, found), started_ms in zip(part, starts, strict=True):
            made = rows_or_why(*found, text) if isinstance(found, tuple) else found
            if isinstance(made, str):
                lost.append(Quarantined(trace_id, started_ms, made))
            elif made is not None:
                rows.append(made)
        return batch_of(rows, quarantined=tuple(lost))

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Any]:
        """See `TraceReader.traces`."""
        for start in range(0, len(trace_ids), _SCORED_PAGE):
            with explained(self._platform.tracking_uri):
                found = [
                    trace for trace in self.fetch.entities(trace_ids[start : start + _SCORED_PAGE]) if trace is not None
                ]
            for trace in found:
                if isinstance(trace, str):
                    raise Refused(f"A trace that is to be scored cannot be read: {trace}")
            yield from found
