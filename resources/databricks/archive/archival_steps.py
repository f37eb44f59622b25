"""The worker's side of native trace archival.

Lives here: switching it on through databricks-agents, which sets MLflow's global registry URI and waits without bound.
Add here: another call that switches what the workspace archives by itself.
Not here: whether there is anything to switch on (`trace_source.py`).
"""

import logging
from collections.abc import Mapping
from typing import Any

from lifecycle_assets.refused import Refused
from resources.databricks.busy import status_of, when_free
from resources.databricks.workspace import open_workspace, require_agents
from resources.mlflow_store import open_mlflow
from resources.platform import Platform


def enable_archival(request: Mapping[str, Any]) -> dict[str, Any]:
    """Have the workspace archive the traces of `experiment_id` into `table`; `{"already": bool}`.

    Safe to repeat: archival that is on already is success. Raises `Refused` when the schema or the feature is missing.
    """
    require_agents()
    platform = Platform.from_env()
    open_mlflow(platform)
    # It logs in its own words what it is about to say by an exception.
    logging.getLogger("databricks").setLevel(logging.ERROR)
    import requests
    from mlflow.tracing.archival import enable_databricks_trace_archival

    try:
        when_free(
            lambda: enable_databricks_trace_archival(
                delta_table_fullname=request["table"], experiment_id=request["experiment_id"]
            )
        )
    except requests.HTTPError as error:
        status = status_of(error)
        if status == 409:
            return {"already": True}
        if status == 404:
            raise Refused(_missing(platform, request)) from None
        raise
    return {"already": False}


def _missing(platform: Platform, request: Mapping[str, Any]) -> str:
    """What a 404 means: the client says 'Experiment not found' whatever is missing."""
    from databricks.sdk.errors import NotFound

    schema = request["table"].rpartition(".")[0]
    try:
        open_workspace(platform).schemas.get(schema)
    except NotFound:
        return (
            f"Traces cannot be archived into {request['table']}: run CREATE SCHEMA {schema}, then run this step again."
        )
    return (
        f"The workspace does not archive traces of experiment {request['experiment']} ({request['experiment_id']}): it "
        "answers 'not found' though the experiment and the schema are there; have an administrator enable production "
        "monitoring in Previews, or set tracing.location: unity_catalog in defs.yaml."
    )
