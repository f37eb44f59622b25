"""Where an experiment keeps its traces, as the workspace says it.

Lives here: the experiment's link to Unity Catalog, read from its tags; the names of the trace tables.
Add here: a fact about the place that the workspace records on the experiment.
Not here: making the link (`tracing_steps.py`), reading traces (`trace_store.py`), the tables' columns (`archive.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from resources.mlflow_store import experiment_id, open_client
from resources.platform import Platform

_TAG = "mlflow.experiment.databricks"
_PATH = f"{_TAG}TraceDestinationPath"
_TABLES = (f"{_TAG}TraceSpanStorageTable", f"{_TAG}TraceLogStorageTable", f"{_TAG}TraceAnnotationsTable")
_WAREHOUSE = "mlflow.monitoring.sqlWarehouseId"
_OLDER = "mlflow_experiment_trace"

VERIFIED = "lifecycle.traces_verified"
"""Experiment tag: digests of what was granted and proven by a probe, newest last."""


@dataclass(frozen=True)
class Place:
    """Where traces of an experiment are.

    `path` is `catalog.schema.prefix`, `catalog.schema` for the older location, empty when the experiment itself keeps
    them; `warehouse_id` is the one bound for monitoring; `named` are the tables the workspace names; `verified` are
    the digests of `VERIFIED`.
    """

    experiment_id: str
    path: str = ""
    warehouse_id: str = ""
    named: tuple[str, ...] = ()
    verified: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """experiment, unity_catalog or unity_schema (the older location)."""
        return {0: "experiment", 1: "unity_schema"}.get(self.path.count(".") if self.path else 0, "unity_catalog")

    @property
    def location(self) -> str:
        """What a search of traces is told."""
        return self.path or self.experiment_id

    @property
    def destination(self) -> str:
        """What an application sets as MLFLOW_TRACING_DESTINATION.

        Only the older location is set so. By table prefix, mlflow 3.17 refuses the variable and takes the place from
        the experiment the application names.
        """
        return self.path if self.kind == "unity_schema" else ""

    @property
    def spans_table(self) -> str:
        """Full name of the table spans go to; empty when the experiment keeps them."""
        return self.tables[0] if self.path else ""

    @property
    def tables(self) -> tuple[str, ...]:
        """Full names of the tables the place may have, that of the spans first."""
        if not self.path:
            return ()
        older = self.kind == "unity_schema"
        before = f"{self.path}.{_OLDER}" if older else self.path
        schema = ".".join(self.path.split(".")[:2])
        named = [name if name.count(".") == 2 else f"{schema}.{name}" for name in self.named]
        usual = [f"{before}_otel_{kind}" for kind in ("spans", "logs", "metrics", *([] if older else ["annotations"]))]
        return tuple(dict.fromkeys([*named, *usual]))


_linked: dict[tuple[Platform, str], Place] = {}  # A link cannot be changed, so it is asked for once a process.


def read_place(platform: Platform, experiment: str) -> Place:
    """The place of the experiment with this id, asked now; one request."""
    return place_from(experiment, open_client(platform).get_experiment(experiment).tags)


def place_from(experiment: str, tags: Mapping[str, str]) -> Place:
    """The place that an experiment's tags name."""
    named = tuple(tags[name] for name in _TABLES if tags.get(name))
    verified = tuple(tags.get(VERIFIED, "").split())
    return Place(experiment, tags.get(_PATH, ""), tags.get(_WAREHOUSE, ""), named, verified)


def place_of(platform: Platform, name: str) -> Place:
    """The place of the experiment with this name; no request once it is known to be linked.

    The experiment is created when absent.
    """
    known = _linked.get((platform, name))
    if known:
        return known
    found = read_place(platform, experiment_id(platform, name))
    if found.path:
        _linked[platform, name] = found
    return found
