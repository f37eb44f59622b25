"""Items of labeling sessions as the service has them, and whose traces they show.

Lives here: the requests for sessions, items and traces' infos; from a trace that is shown to its original.
Add here: a further fact of an item. Not here: what a caller makes of it (`labeling_desk.py`).

A session's id here is `<review app>/<labeling session>`: the service finds a session only below its app.

The review app shows traces of experiments. A trace that lives in Unity Catalog is therefore copied into the experiment
when it is added, and people answer on the copy, which carries the original's id as a tag from its first moment on
(`SOURCE_TAG`).
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lifecycle_assets.refused import Refused
from resources.databricks.managed_evals import BASE, NOWHERE, READ_SECONDS, ManagedEvals, part
from resources.mlflow_store import open_client
from resources.platform import Platform

SOURCE_TAG = "lifecycle.labeling_source"
"""Tag of a copy with the id of the trace it was copied from."""

_GONE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_THREADS = 8
_SOURCES: dict[str, str] = {}  # Id of a trace that was shown to its original's; it never changes.
_SOURCES_KEPT = 20_000


@dataclass(frozen=True)
class Entry:
    """An item as the service has it, the traces it shows, and the original of them."""

    item: Mapping[str, Any]
    shown: tuple[str, ...]
    original: str


class LabelingItems:
    """The requests. Raises what the clients raise; `explained` turns that into sentences."""

    def __init__(self, platform: Platform) -> None:
        """Opens nothing yet."""
        self._platform, self._requests = platform, ManagedEvals(platform)

    def sessions(self, app: str) -> list[dict[str, Any]]:
        """The labeling sessions of a review app; none when it was deleted."""
        return self._pages(f"{BASE}/review-apps/{part(app)}/labeling-sessions", "labeling_sessions")

    def complete(self, session_id: str, entry: Entry) -> None:
        """Set an item's state as a reviewer's client does when everything was answered."""
        path = f"{_session_path(session_id)}/items/{part(entry.item['item_id'])}"
        self._requests.send("PATCH", path, query={"update_mask": "state"}, body={"state": "COMPLETED"})

    def entries(self, session_id: str) -> list[Entry]:
        """The session's items as the service has them; none when it was deleted, or is no session of a workspace."""
        if "/" not in session_id:
            return []
        until = time.monotonic() + READ_SECONDS
        items = self._pages(f"{_session_path(session_id)}/items", "items")
        items.sort(key=lambda item: item.get("create_time") or "")
        shown = [tuple(dict.fromkeys(filter(None, _shown(item)))) for item in items]
        sources = self._originals([ids[0] for ids in shown if ids], until)
        return [Entry(item, ids, sources[ids[0]]) for item, ids in zip(items, shown, strict=True) if ids]

    def infos(self, trace_ids: Sequence[str]) -> dict[str, Any]:
        """MLflow's trace infos with tags and assessments by id; traces that are not there are left out."""
        tracing = _tracing(self._platform)
        from mlflow.exceptions import MlflowException

        def info(trace_id: str) -> Any:
            try:
                return tracing.get_trace_info(trace_id)
            except MlflowException as error:
                if error.error_code not in _GONE:
                    raise
                return None

        with ThreadPoolExecutor(_THREADS) as pool:
            found = zip(trace_ids, pool.map(info, trace_ids), strict=True)
        return {trace_id: one for trace_id, one in found if one is not None}

    def _originals(self, trace_ids: Sequence[str], until: float) -> dict[str, str]:
        """Original of each shown trace: itself, or what its tag names. Each is asked for once a process."""

        def original(trace_id: str) -> str:
            if time.monotonic() > until:
                raise Refused(f"The items of a labeling session were not read within {READ_SECONDS:g} s; try later.")
            place, _, number = trace_id.removeprefix("trace:/").partition("/")
            path = f"3.0/mlflow/traces/{part(trace_id)}"
            if in_catalog(trace_id):
                path = f"4.0/mlflow/traces/{part(place)}/{part(number)}/info"
            warehouse = {"sql_warehouse_id": self._platform.warehouse_id} if in_catalog(trace_id) else None
            found = self._requests.found(f"/api/{path}", query=warehouse)
            tags = (((found or {}).get("trace") or {}).get("trace_info") or {}).get("tags") or {}
            return tags.get(SOURCE_TAG) or trace_id

        unknown = [one for one in dict.fromkeys(trace_ids) if one not in _SOURCES]
        if len(_SOURCES) > _SOURCES_KEPT:
            _SOURCES.clear()
        with ThreadPoolExecutor(_THREADS) as pool:
            sources = dict(zip(unknown, pool.map(original, unknown), strict=True))
        _SOURCES.update(sources)
        return {trace_id: sources.get(trace_id) or _SOURCES.get(trace_id, trace_id) for trace_id in trace_ids}

    def _pages(self, path: str, field: str) -> list[dict[str, Any]]:
        from databricks.sdk.errors import NotFound

        try:
            return self._requests.pages(path, field, seconds=READ_SECONDS / 2)
        except NotFound as error:
            if (error.error_code or "") in NOWHERE:
                raise
            return []


def _tracing(platform: Any) -> Any:
    open_client(platform)
    from mlflow.tracing.client import TracingClient

    return TracingClient(platform.tracking_uri)


def _session_path(session_id: str) -> str:
    app, _, session = session_id.partition("/")
    return f"{BASE}/review-apps/{part(app)}/labeling-sessions/{part(session)}"


def _shown(item: Mapping[str, Any]) -> list[str]:
    rounds = [one.get("trace_id") or "" for one in item.get("chat_rounds") or []]
    return [(item.get("source") or {}).get("trace_id") or "", *rounds]


def in_catalog(trace_id: str) -> bool:
    """Whether a trace lives in Unity Catalog, by its id."""
    return trace_id.startswith("trace:/")
