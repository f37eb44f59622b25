"""Searching traces: by filter, in an order, page by page.

Lives here: the routes of search, filters read by MLflow's own grammar, order.
Add here: a key of a filter. Not here: the traces (`traces.py`).
"""

import operator
from collections.abc import Mapping
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace, not_found
from tests.workspace.traces import V3, V4, Traces, needs_warehouse, place_of, started_ms, wire_info

_COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EQUALITY, _TIMES = ("=", "!="), ("timestamp_ms", "execution_time_ms", "end_time_ms")


class TraceSearch:
    """Search of experiments and of Unity Catalog.

    `long_running` is what search-long-running takes: `all` locations, only those of Unity Catalog (`uc_only`), or it
    is not there (`none`). `documented_filters_only` refuses what Databricks' documentation does not list, such as IS
    NULL.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.long_running = "all"
        self.documented_filters_only = True
        self._operations: dict[str, list[Any]] = {}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("POST", f"{V3}/search", self.search),
            Route("POST", f"{V4}/search-long-running", self.search_long_running),
            Route("GET", f"{V4}/search/operations/{{name}}", self.operation),
            Route("GET", "/api/2.0/mlflow/unified-traces", self.unified),
        ]

    def search(self, call: Call) -> dict[str, Any]:
        """POST 3.0/mlflow/traces/search: experiments only."""
        some, token = self._page(call, call.json.get("locations", []))
        return {"traces": some, **({"next_page_token": token} if token else {})}

    def search_long_running(self, call: Call) -> dict[str, Any]:
        """POST search-long-running: an operation, done after `slow_states` polls."""
        locations = call.json.get("locations", [])
        if self.long_running == "none":
            raise Failure(404, "ENDPOINT_NOT_FOUND", f"No API found for 'POST {call.path}'")
        if self.long_running == "uc_only" and any("mlflow_experiment" in location for location in locations):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "MLFLOW_EXPERIMENT locations not yet supported.")
        if any("mlflow_experiment" not in location for location in locations):
            needs_warehouse(call.json.get("sql_warehouse_id"))
        some, token = self._page(call, locations)
        name = f"op-{len(self._operations)}"
        answer = {"trace_infos": some, **({"next_page_token": token} if token else {})}
        self._operations[name] = [self.workspace.slow_states, answer]
        return self._state(name)

    def operation(self, call: Call) -> dict[str, Any]:
        """GET search/operations/{name}."""
        operation = self._operations.get(call.parts["name"])
        if operation is None:
            raise not_found(f"Operation {call.parts['name']}")
        operation[0] -= 1
        return self._state(call.parts["name"])

    def unified(self, call: Call) -> dict[str, Any]:
        """GET unified-traces: by model id, in the older shape of a trace info."""
        needs_warehouse(call.query.get("sql_warehouse_id"))
        found = [trace for id_ in call.queries["experiment_ids"] for trace in self.workspace[Traces].all(id_)]
        mine = [
            trace for trace in found if trace["info"]["trace_metadata"].get("mlflow.modelId") == call.query["model_id"]
        ]
        some, token = self.workspace.page([_older(trace) for trace in mine], call)
        return {"traces": some, **({"next_page_token": token} if token else {})}

    def _state(self, name: str) -> dict[str, Any]:
        left, answer = self._operations[name]
        if left > 0:
            return {"name": name, "done": False, "metadata": {"state": "RUNNING"}}
        return {"name": name, "done": True, "metadata": {"state": "SUCCEEDED"}, "response": answer}

    def _page(self, call: Call, locations: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        places = {place_of(location) for location in locations}
        found = [
            trace
            for trace in self.workspace[Traces].traces.values()
            if trace["experiment_id"] in places or place_of(trace["info"]["trace_location"]) in places
        ]
        ordered = matching(
            found,
            call.json.get("filter") or "",
            call.json.get("order_by") or [],
            linked=self.workspace[Traces].linked,
            documented_only=self.documented_filters_only,
        )
        return self.workspace.page([wire_info(trace["info"]) for trace in ordered], call)


def matching(
    traces: list[dict[str, Any]],
    filter_string: str,
    order_by: list[str],
    *,
    linked: Mapping[str, list[str]],
    documented_only: bool,
) -> list[dict[str, Any]]:
    """Traces the filter means, in the order asked for (newest first by default).

    Raises 400 for a filter MLflow's grammar refuses, and with `documented_only` for operators and fields that
    Databricks does not document.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.search_utils import SearchTraceUtils

    try:
        clauses = SearchTraceUtils.parse_search_filter_for_search_traces(filter_string) if filter_string else []
        order = [SearchTraceUtils.parse_order_by_for_search_traces(one) for one in order_by]
    except MlflowException as error:
        raise Failure(400, "INVALID_PARAMETER_VALUE", str(error)) from None
    for clause in clauses if documented_only else []:
        _documented(clause)
    found = [trace for trace in traces if all(_meets(trace, clause, linked) for clause in clauses)]
    for _, key, ascending in reversed(order or [("attribute", "timestamp_ms", False)]):
        found.sort(key=lambda trace, key=key: _attribute(trace["info"], key) or 0, reverse=not ascending)
    return found


def _documented(clause: Mapping[str, Any]) -> None:
    kind, key, comparator = clause["type"], clause["key"], clause["comparator"].upper()
    numeric = kind == "attribute" and key in _TIMES
    known = kind in ("tag", "request_metadata", "attribute")
    if not known or (not numeric and comparator not in _EQUALITY):
        raise Failure(400, "INVALID_PARAMETER_VALUE", f"Unsupported filter: {kind} '{key}' with '{comparator}'.")


def _meets(trace: Mapping[str, Any], clause: Mapping[str, Any], linked: Mapping[str, list[str]]) -> bool:
    info, key, comparator = trace["info"], clause["key"], clause["comparator"].upper()
    if key == "mlflow.sourceRun" and comparator == "=" and info["trace_id"] in linked.get(clause["value"], ()):
        return True
    facts = {one["assessment_name"]: one["expectation"] for one in info.get("assessments", []) if "expectation" in one}
    values = {"tag": info["tags"], "request_metadata": info["trace_metadata"], "expectation": facts}.get(clause["type"])
    value = values.get(key) if values is not None else _attribute(info, key)
    if comparator in ("IS NULL", "IS NOT NULL"):
        return (value is None) == (comparator == "IS NULL")
    if value is None:
        return False
    wanted = int(clause["value"]) if isinstance(value, int) else clause["value"]
    return bool(_COMPARE[comparator](value, wanted))


def _attribute(info: Mapping[str, Any], key: str) -> Any:
    took = round(float(info.get("execution_duration", "0s")[:-1]) * 1000)
    numbers = {"timestamp_ms": 0, "execution_time_ms": took, "end_time_ms": took}
    if key in numbers:
        return numbers[key] + (started_ms(info) if key != "execution_time_ms" else 0)
    return {"status": info.get("state"), "request_id": info["trace_id"]}.get(key) or info.get(key)


def _older(trace: dict[str, Any]) -> dict[str, Any]:
    info = trace["info"]
    return {
        "request_id": info["trace_id"],
        "experiment_id": trace["experiment_id"],
        "timestamp_ms": started_ms(info),
        "status": info["state"],
        "request_metadata": [{"key": key, "value": value} for key, value in info["trace_metadata"].items()],
        "tags": [{"key": key, "value": value} for key, value in info["tags"].items()],
    }
