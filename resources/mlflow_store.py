"""How this product opens MLflow: explicit URIs and ids, no fluent state.

Lives here: importing mlflow with the settings we need, the client, the experiment.
Add here: a setting every use of MLflow needs.
Not here: what is asked of MLflow (the gateways).
"""

import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from lifecycle_assets.refused import Refused
from resources.platform import Platform

if TYPE_CHECKING:
    from mlflow import MlflowClient

SETTINGS = {
    # Telemetry and the price catalog reach out to the internet: 6.8 s of retries offline, once a process.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    # Open-source MLflow stores and loads code scorers only with this set, in the client as in the server.
    "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "true",
    # A trace read right after it was written must be whole.
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
    # A duplicate assessment is a 500 over HTTP, which MLflow otherwise retries for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # A bar of MLflow's would share its line with our progress.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Standard output belongs to the commands: a line about a run would break their JSON.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # On SQLite more search threads only wait for each other.
    "MLFLOW_SEARCH_TRACES_MAX_THREADS": "1",
}
"""Environment of every process that uses MLflow; what the user has set wins."""


DATABRICKS_SETTINGS = {
    # 429 and hanging requests are retried this long in all (default 500 s): a sensor's tick ends before Dagster's 60 s.
    "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "20",
    # Retries of databricks-agents when it lists sessions and items (default 60, up to 30 s apart).
    "AGENT_EVAL_GENERATE_EVALS_MAX_RETRIES": "2",
    "AGENT_EVAL_GENERATE_EVALS_BACKOFF_JITTER": "1",
    # A trace that was just written to Unity Catalog is looked for this long (default 15 s).
    "MLFLOW_GET_TRACE_OTEL_RETRY_TIMEOUT_SECONDS": "5",
}
"""Further settings against a workspace. MLflow's workspace client is cached, so they count from its first use."""


def settings(platform: Platform) -> dict[str, str]:
    """Environment of a process that uses MLflow on this platform."""
    if not platform.is_databricks:
        return SETTINGS
    # Traces in Unity Catalog are read through a warehouse, by every process that reads them.
    warehouse = {"MLFLOW_TRACING_SQL_WAREHOUSE_ID": platform.warehouse_id} if platform.warehouse_id else {}
    return {**SETTINGS, **DATABRICKS_SETTINGS, **warehouse}


def open_mlflow(platform: Platform) -> Any:
    """The `mlflow` module with tracking and registry set to the platform's. Imports mlflow (about 3 s, once)."""
    for name, value in settings(platform).items():
        os.environ.setdefault(name, value)
    if platform.tracking_uri.startswith("sqlite"):
        platform.prepare()
    import mlflow

    mlflow.set_tracking_uri(platform.tracking_uri)
    mlflow.set_registry_uri(platform.registry_uri)
    return mlflow


def open_client(platform: Platform) -> "MlflowClient":
    """A client of the platform's tracking store and registry."""
    return open_mlflow(platform).MlflowClient(tracking_uri=platform.tracking_uri, registry_uri=platform.registry_uri)


def experiment_id(platform: Platform, name: str, before_making: Callable[[], None] | None = None) -> str:
    """The id of the experiment, which is created when absent; two processes at once get the same one.

    `before_making` may refuse that it is created.
    """
    try:
        return _experiment(platform, name)[0]
    except LookupError:
        if before_making is not None:
            before_making()
        _make_experiment(platform, name)
        return _experiment(platform, name)[0]


def experiment_made_ms(platform: Platform, name: str) -> int:
    """When the experiment was created, epoch milliseconds; 0 where the store does not say. It has to be there."""
    return _experiment(platform, name)[1]


@cache
def _experiment(platform: Platform, name: str) -> tuple[str, int]:
    """Id and time of creation. Raises `LookupError` when there is none."""
    if platform.is_databricks and not name.startswith("/"):
        raise Refused(
            f"experiment '{name[:80]}' is not an absolute path: on Databricks write it like /Shared/{name[:80]}, "
            "in the field experiment of defs.yaml."
        )
    found = open_client(platform).get_experiment_by_name(name)
    if found is None:
        raise LookupError(name)
    return found.experiment_id, found.creation_time or 0


def _make_experiment(platform: Platform, name: str) -> None:
    """Create the experiment; that another process was faster is no error."""
    from mlflow.exceptions import MlflowException

    artifacts = (platform.home / "artifacts").as_uri() if platform.tracking_uri.startswith("sqlite") else None
    try:
        location = f"{artifacts}/{name.strip('/').replace('/', '_')}" if artifacts else None
        open_client(platform).create_experiment(name, artifact_location=location)
    except MlflowException as error:
        if platform.is_databricks and error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
            folder = name.rpartition("/")[0] or "/"
            raise Refused(
                f"experiment {name[:80]}: the workspace has no folder {folder[:80]}; make it (databricks workspace "
                f"mkdirs {folder[:80]}), or write another path, such as /Shared/..., in the field experiment."
            ) from None
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
