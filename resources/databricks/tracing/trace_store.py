"""Production traces in a workspace: in the experiment, or in Unity Catalog when it is linked there.

Lives here: what differs from any other MLflow server: where to look, what a filter may say, how spans are fetched.
Add here: a difference of Databricks in reading or tagging traces.
Not here: the questions themselves (`resources/trace_store.py`), the link (`tracing.py`), tables by SQL (`archive.py`).

Databricks' filters join clauses by AND and compare by = and !=; they cannot ask that something is absent. So traces
of evaluations are left out here, among what a search gave.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

from lifecycle_assets.refused import Refused
from resources.databricks.sql.warehouse import require_warehouse
from resources.databricks.tracing.trace_place import place_of
from resources.explain import explained
from resources.reading.trace_reader import FINISHED
from resources.run_marks import EVALUATION
from resources.sql.filters import split_judged
from resources.trace_store import MlflowTraceStore, TraceInfo, as_info

SOURCE_RUN = "mlflow.sourceRun"
"""Metadata key that traces of evaluations, and our probe, carry."""

_FIRST_PAGE, _PAGE = 20, 500  # Infos a search gives: mostly the newest is of production.
_LOOKED_AT = 5_000  # Infos `newest` looks at before it gives up.
_BATCH = 10  # Traces with spans the workspace gives at once.
_GONE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


class DatabricksTraceStore(MlflowTraceStore):
    """Traces of an experiment of the workspace.

    Reads change nothing, a tag is compared first: everything may be repeated. Scores are the workspace's to write.
    """

    production = FINISHED

    def infos(self, experiment: str, day: date, *, settled_before_ms: int, filter_string: str = "") -> list[TraceInfo]:
        """See `TraceStore.infos`; whether there is a feedback or an expectation is looked at in what was found."""
        asked, judged = split_judged(filter_string)
        found = super().infos(experiment, day, settled_before_ms=settled_before_ms, filter_string=asked)
        return [info for info in found if all((name in info.judged) is there for name, there in judged.items())]

    def newest(self, experiment: str, *, model_id: str = "", settled_before_ms: int | None = None) -> TraceInfo | None:
        """See `TraceStore.newest`: one search; more when evaluations are newer than any user's trace.

        Raises `Refused` when none is among the newest 5000: that is not to say there is none.
        """
        mine = [[f"{field}.`mlflow.modelId` = '{model_id}'"] for field in ("metadata", "tags")] if model_id else [[]]
        begun = [] if settled_before_ms is None else [f"attributes.timestamp_ms < {settled_before_ms}"]
        with explained(self._platform.tracking_uri):
            for clause in mine:
                for info in self._newest_first(experiment, [FINISHED, *begun, *clause]):
                    is_open = settled_before_ms is not None and as_info(info).ended_ms >= settled_before_ms
                    if not is_open and self._is_production(info) and not self._left_by_evaluation(info):
                        return as_info(info)
        return None

    def _newest_first(self, experiment: str, clauses: list[str]) -> Iterator[Any]:
        seen, token = 0, None
        while seen < _LOOKED_AT:
            page = self._search(experiment, clauses, "", "DESC", _PAGE if seen else _FIRST_PAGE, token)
            yield from (trace.info for trace in page)
            seen, token = seen + len(page), page.token
            if not token:
                return
        raise Refused(
            f"The newest {seen} traces of experiment {experiment} all come from evaluations, so the newest one of a "
            "user was not found; name another experiment for the agent, or delete traces of old evaluations."
        )

    def _location(self, experiment: str) -> str:
        place = place_of(self._platform, experiment)
        if place.path:
            require_warehouse(self._platform)
        return place.location

    def _is_production(self, info: Any) -> bool:
        return not (info.trace_metadata or {}).get(SOURCE_RUN)

    def _left_by_evaluation(self, info: Any) -> bool:
        """Whether a killed evaluation left it: its spans came, what is said of a trace did not."""
        if info.trace_metadata or not _catalog_place(info.trace_id):
            return False
        spans = [span for trace in self._read_page([info.trace_id]) for span in trace.data.spans]
        return any(EVALUATION in (span.attributes or {}) for span in spans)

    def _read_page(self, trace_ids: Sequence[str]) -> list[Any]:
        places: dict[str, list[str]] = defaultdict(list)
        for trace_id in trace_ids:
            places[_catalog_place(trace_id)].append(trace_id)
        found = [trace for trace_id in places.pop("", []) if (trace := self._whole(trace_id))]
        if places:
            require_warehouse(self._platform)
        for place, ids in places.items():
            for start in range(0, len(ids), _BATCH):
                found += self._tracing.batch_get_traces(ids[start : start + _BATCH], place)
        return found

    def _whole(self, trace_id: str) -> Any:
        """A trace of the experiment with its spans; None when it has none, or is gone."""
        client = self._client
        from mlflow.exceptions import MlflowException

        try:
            return client.get_trace(trace_id)
        except MlflowException as error:
            # BAD_REQUEST is how MLflow says that the payload is missing or broken.
            if error.error_code not in (*_GONE, "BAD_REQUEST"):
                raise
            return None

    def _mlflow_info(self, trace_id: str) -> Any:
        if _catalog_place(trace_id):
            require_warehouse(self._platform)
        return super()._mlflow_info(trace_id)


def _catalog_place(trace_id: str) -> str:
    """`catalog.schema[.prefix]` of a trace in Unity Catalog, empty for one of an experiment."""
    place, separator, _ = trace_id.removeprefix("trace:/").rpartition("/")
    return place if separator and trace_id.startswith("trace:/") else ""
