"""The worker's side of tracing: linking an experiment to Unity Catalog, and proving it with a trace.

Lives here: what sets MLflow's active experiment and trace destination, which are global to a process.
Add here: a step that sends traces of ours. Not here: whether there is anything to do (`tracing.py`).
"""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from lifecycle_assets.refused import Refused
from resources.databricks.sql.warehouse import require_warehouse
from resources.databricks.tracing.trace_grants import ensure_grants, trace_grants
from resources.databricks.tracing.trace_place import VERIFIED, Place, read_place
from resources.databricks.tracing.tracing import bind_warehouse, whoami
from resources.databricks.workspace import open_workspace, wait_for
from resources.mlflow_store import open_client, open_mlflow
from resources.platform import Platform

PROBE = "lifecycle-probe"
"""`mlflow.sourceRun` of the probe trace: it is no user's."""

_PROBE_SECONDS = 60.0  # Until a span that was taken in can be read.
_SHOWN_SECONDS = 30.0  # Until the experiment names a link that was made.
_WAREHOUSE_SECONDS = 300.0
_KEPT_DIGESTS = 8  # Principals take turns; each has its digest.
_ABSENT = ("NOT_FOUND", "RESOURCE_DOES_NOT_EXIST", "SCHEMA_DOES_NOT_EXIST", "CATALOG_DOES_NOT_EXIST")
_NO_REASON = ("UNAUTHENTICATED", "REQUEST_LIMIT_EXCEEDED", "TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR")


def settle_traces(request: Mapping[str, Any]) -> dict[str, Any]:
    """Link, bind the warehouse, grant, write a probe trace and read it back; then mark the experiment.

    Returns `{"path", "tables", "granted", "linked"}`. Raises `Refused` when Databricks does not link, a grant cannot
    be given, or the probe does not come back. Safe to repeat: a made link, grant or binding is seen and left alone.
    """
    platform = Platform.from_env()
    warehouse = require_warehouse(platform, seconds=_WAREHOUSE_SECONDS)
    experiment, before = request["experiment_id"], read_place(platform, request["experiment_id"])
    if not before.path:
        _say(f"linking experiment {request['experiment']} to {request['schema']}.{request['prefix']}")
        _link(platform, request, warehouse)
    place = before if before.path else _shown(platform, request)
    if place.warehouse_id != warehouse:
        bind_warehouse(platform, experiment)
    tables = _existing(platform, place)
    granted = _granted(platform, request, tables)
    _say(f"writing a probe trace to {place.path} and reading it back")
    _probe(platform, place)
    if not tables:  # They may be made by the first span.
        tables = _existing(platform, place)
        granted = _granted(platform, request, tables)
    if not tables and len(request["principals"]) > 1:  # For ourselves the probe is proof enough.
        raise Refused(
            f"Unity Catalog does not show {place.spans_table} to this principal, so what "
            f"{', '.join(request['principals'])} may do with it was not verified; have USE SCHEMA granted on "
            f"{request['schema']}, then run again."
        )
    digests = [*(digest for digest in place.verified if digest != request["digest"]), request["digest"]]
    open_client(platform).set_experiment_tag(experiment, VERIFIED, " ".join(digests[-_KEPT_DIGESTS:]))
    return {"path": place.path, "tables": tables, "granted": granted, "linked": not before.path}


def _link(platform: Platform, request: Mapping[str, Any], warehouse: str) -> None:
    mlflow = open_mlflow(platform)
    from mlflow.entities.trace_location import UCSchemaLocation, UnityCatalog
    from mlflow.exceptions import MlflowException

    catalog, _, schema = request["schema"].partition(".")
    try:
        try:
            location = UnityCatalog(catalog, schema, request["prefix"])
            mlflow.set_experiment(experiment_id=request["experiment_id"], trace_location=location)
        except MlflowException as error:
            # A gateway in between says "Not Found" without a code of Databricks.
            unknown = "No API found" in str(error) or str(error).endswith("Not Found")
            if _code(error) != "ENDPOINT_NOT_FOUND" and not unknown:
                raise
            _say("this workspace has no trace location by table prefix: taking the one by schema")
            mlflow.tracing.set_experiment_trace_location(
                location=UCSchemaLocation(catalog, schema),
                experiment_id=request["experiment_id"],
                sql_warehouse_id=warehouse,
            )
    except MlflowException as error:
        if read_place(platform, request["experiment_id"]).path:
            return  # The answer to an earlier try was lost, and the link cannot be made twice.
        if _code(error) in _NO_REASON and "DOES_NOT_EXIST" not in str(error):
            raise
        raise _not_linked(error, request, whoami(platform)) from error


def _not_linked(error: Any, request: Mapping[str, Any], me: str) -> Refused:
    reason, (catalog, schema) = " ".join(str(error).split())[:300].rstrip("."), request["schema"].split(".")
    said = f"Experiment {request['experiment']} was not linked to {request['schema']}.{request['prefix']} ({reason})"
    if "already contains traces" in reason:
        return Refused(
            f"{said}: Databricks links only an experiment that has no traces; name a new experiment, or declare "
            "tracing.location: experiment."
        )
    if _code(error) in ("PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"):
        return Refused(
            f"{said}; have the schema's owner run: GRANT USE CATALOG ON CATALOG `{catalog}` TO `{me}`; GRANT USE "
            f"SCHEMA, CREATE TABLE ON SCHEMA `{catalog}`.`{schema}` TO `{me}`."
        )
    if _code(error) in _ABSENT or "DOES_NOT_EXIST" in reason:
        return Refused(f"{said}: run CREATE SCHEMA `{catalog}`.`{schema}`, or correct tracing.schema_path.")
    return Refused(
        f"{said}: have an administrator enable 'OpenTelemetry on Databricks' in Previews, in a region that has it, or "
        "declare tracing.location: experiment."
    )


def _granted(platform: Platform, request: Mapping[str, Any], tables: list[str]) -> list[str]:
    wanted = trace_grants(tables, request["principals"]) if tables else []
    return ensure_grants(platform, wanted, me=whoami(platform))


def _shown(platform: Platform, request: Mapping[str, Any]) -> Place:
    """The place once the experiment names it."""

    def look() -> Place | None:
        place = read_place(platform, request["experiment_id"])
        return place if place.path else None

    return wait_for(f"the link of experiment {request['experiment']}", look, seconds=_SHOWN_SECONDS, progress=_say)


def _existing(platform: Platform, place: Place) -> list[str]:
    """The place's tables that are there."""
    tables = open_workspace(platform).tables
    return [name for name in place.tables if tables.exists(name).table_exists]


def _probe(platform: Platform, place: Place) -> None:
    """Write a trace as an application would, and read it back through the warehouse."""
    mlflow, client = open_mlflow(platform), open_client(platform)
    from mlflow.exceptions import MlflowException

    if place.destination:
        os.environ["MLFLOW_TRACING_DESTINATION"] = place.destination
    mlflow.set_experiment(experiment_id=place.experiment_id)
    heard = _Warnings()
    exporters = [logging.getLogger(f"mlflow.tracing.export.{name}") for name in ("uc_table", "mlflow_v3")]
    for logger in exporters:
        logger.addHandler(heard)
    span = mlflow.start_span_no_context(
        "lifecycle probe", inputs={"probe": place.path}, metadata={"mlflow.sourceRun": PROBE}
    )
    span.set_outputs({"read back": True})
    span.end()
    mlflow.flush_trace_async_logging()
    for logger in exporters:
        logger.removeHandler(heard)
    until = time.monotonic() + (0 if heard.said else _PROBE_SECONDS)
    while True:
        try:
            if span.trace_id.startswith(f"trace:/{place.path}/") and client.get_trace(span.trace_id).data.spans:
                return
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
        if time.monotonic() > until:
            why = f" ({heard.said})" if heard.said else ""
            raise Refused(
                f"A probe trace sent to {place.path} could not be read back{why}: lifecycle doctor shows which grant "
                "or preview is missing; then run again."
            )
        time.sleep(2)


class _Warnings(logging.Handler):
    """Keeps the first warning: MLflow's exporters never raise."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and not self.said:
            self.said = " ".join(record.getMessage().split())[:300].rstrip(".")


def _code(error: Any) -> str:
    """The server's code; MLflow turns one it does not know into INTERNAL_ERROR."""
    return str(getattr(error, "json", {}).get("error_code") or error.error_code)


def _say(line: str) -> None:
    print(f"progress: {line}", flush=True)
