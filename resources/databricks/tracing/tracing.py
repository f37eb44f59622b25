"""Where an agent's traces are kept in a workspace: the experiment, or tables in Unity Catalog.

Lives here: comparing the declared place with the one there is, and what applications have to be told.
Add here: a question about the place of traces.
Not here: making the link (`tracing_steps.py`), reading traces (`trace_store.py`), tables of ours (`archive.py`).
"""

import hashlib
import json
from functools import cache
from typing import Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.grants import missing_grants, needed_grants
from resources.databricks.sql.warehouse import named_warehouse
from resources.databricks.tracing.otlp import exporter_environment
from resources.databricks.tracing.trace_place import Place, place_from, place_of, read_place
from resources.databricks.workspace import open_workspace
from resources.explain import explained
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.platform import Platform
from resources.tracing import TraceLocation, Tracing
from resources.worker import Progress, run_worker

SETTLING_SECONDS = 600
"""How long linking, granting and the probe may take in all; a stopped warehouse is part of it."""


class DatabricksTracing(Tracing):
    """Traces are where the experiment's link says.

    Safe to repeat and to kill: each step is looked for before it is done, and the experiment is marked as verified
    last. A marked one costs two requests.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def ensure(self, agent: Agent, *, progress: Progress) -> TraceLocation:
        """See `Tracing.ensure`. Linking sets MLflow's global state, so it is done in a process of its own.

        Raises `Refused` also when the probe trace cannot be read back.
        """
        name = agent.spec.experiment
        if not name.startswith("/"):
            raise Refused(
                f"experiment '{name[:200]}' is not an absolute path; on Databricks write /Users/<you>/<name> or "
                "/Shared/<name>."
            )
        with explained(self._platform.tracking_uri):
            found = read_place(self._platform, experiment_id(self._platform, name))
            _refuse_elsewhere(agent, found)
            if agent.spec.tracing.location == "experiment":
                self._bind_warehouse(found)
                return TraceLocation("experiment")
            request = settling_request(self._platform, agent, found.experiment_id)
            warehouse = named_warehouse(self._platform)
            if request["digest"] in found.verified and found.path and found.warehouse_id == warehouse:
                return TraceLocation(found.kind, found.destination, found.tables)
        answer = run_worker(
            "settle_traces", request, platform=self._platform, progress=progress, timeout_seconds=SETTLING_SECONDS
        )
        settled = Place(found.experiment_id, answer["path"])
        return TraceLocation(
            settled.kind, settled.destination, tuple(answer["tables"]), tuple(answer["granted"]), answer["linked"]
        )

    def destination(self, agent: Agent) -> str:
        """What an application sets as MLFLOW_TRACING_DESTINATION; one request until the experiment is linked.

        `catalog.schema` for the older location alone: for the location by table prefix mlflow 3.17 refuses the
        variable, and the application names the experiment by MLFLOW_EXPERIMENT_ID, whose link MLflow follows.
        """
        with explained(self._platform.tracking_uri):
            return place_of(self._platform, agent.spec.experiment).destination

    def missing_grants(self, agent: Agent) -> list[str] | None:
        """See `Tracing.missing_grants`; makes no experiment."""
        with explained(self._platform.tracking_uri):
            found = open_client(self._platform).get_experiment_by_name(agent.spec.experiment)
            tables = place_from(found.experiment_id, found.tags).tables if found else ()
            me = open_workspace(self._platform).current_user.me()
            wanted = needed_grants(agent, me.user_name or "", trace_tables=tables)
            return [grant.statement for grant in missing_grants(self._platform, wanted, me=me)]

    def otlp_environment(self, agent: Agent) -> dict[str, str]:
        """See `Tracing.otlp_environment`; empty when the experiment keeps its traces: only tables take spans in."""
        with explained(self._platform.tracking_uri):
            place = place_of(self._platform, agent.spec.experiment)
            host = open_workspace(self._platform).config.host
        if not place.path or not host:
            return {}
        return exporter_environment(host, place.spans_table)

    def _bind_warehouse(self, found: Place) -> None:
        if self._platform.warehouse_id and found.warehouse_id != self._platform.warehouse_id:
            bind_warehouse(self._platform, found.experiment_id)


def settling_request(platform: Platform, agent: Agent, experiment: str) -> dict[str, Any]:
    """What `settle_traces` is asked; `digest` names what has to be granted and proven, and to whom."""
    spec = agent.spec
    principals = sorted({*spec.tracing.principals, whoami(platform)} - {""})
    wanted = json.dumps([spec.trace_schema, spec.trace_prefix, principals])
    return {
        "experiment_id": experiment,
        "experiment": spec.experiment,
        "schema": spec.trace_schema,
        "prefix": spec.trace_prefix,
        "principals": principals,
        "digest": hashlib.sha256(wanted.encode()).hexdigest()[:16],
    }


@cache
def whoami(platform: Platform) -> str:
    """The principal we are, as grants name it: user name, or a service principal's application id."""
    return open_workspace(platform).current_user.me().user_name or ""


def bind_warehouse(platform: Platform, experiment: str) -> None:
    """Have production monitoring of this experiment use the platform's warehouse; again is the same."""
    open_mlflow(platform).tracing.set_databricks_monitoring_sql_warehouse_id(
        sql_warehouse_id=named_warehouse(platform), experiment_id=experiment
    )


def _refuse_elsewhere(agent: Agent, found: Place) -> None:
    spec, name = agent.spec, agent.spec.experiment
    if not found.path:
        return
    schema, prefix = ".".join(found.path.split(".")[:2]), ".".join(found.path.split(".")[2:])
    declare = f"tracing.schema_path: {schema}" + (f" and tracing.table_prefix: {prefix}" if prefix else "")
    if spec.tracing.location == "experiment":
        raise Refused(
            f"tracing.location is experiment, but experiment {name} keeps its traces in {found.path}, which cannot be "
            f"changed; declare tracing.location: unity_catalog with {declare}, or name another experiment."
        )
    # Unity Catalog's names have no case, MLflow's tags keep it.
    wanted = f"{spec.trace_schema}.{spec.trace_prefix}".lower()
    if found.path.lower() not in (wanted, spec.trace_schema.lower()):
        raise Refused(
            f"Experiment {name} keeps its traces in {found.path}, not in {wanted} as declared, and the place of traces "
            f"cannot be changed; declare {declare}, or name another experiment."
        )
