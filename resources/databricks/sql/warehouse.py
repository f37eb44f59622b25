"""The SQL warehouse through which traces in Unity Catalog are read.

Lives here: that it is named and running before MLflow is asked, which otherwise waits for it up to 20 minutes.
Add here: nothing of SQL. Not here: statements (`statements.py`).
"""

import time

from lifecycle_assets.refused import Refused
from resources.databricks.workspace import open_workspace, wait_for
from resources.platform import Platform

_STAYS_RUNNING = 60.0  # Seconds its state is believed, as MLflow does.
_IN_A_TICK = 20.0  # Seconds a sensor may wait for it.

_seen_running: dict[tuple[Platform, str], float] = {}


def named_warehouse(platform: Platform) -> str:
    """The warehouse's id. Raises `Refused` when none is named."""
    if not platform.warehouse_id:
        raise Refused(
            "DATABRICKS_WAREHOUSE_ID is not set, and traces in Unity Catalog are read through a SQL warehouse; "
            "set it to the id in the warehouse's connection details."
        )
    return platform.warehouse_id


def require_warehouse(platform: Platform, *, seconds: float = _IN_A_TICK) -> str:
    """The warehouse's id once it is running; a stopped one is started and awaited `seconds`.

    Raises `Refused` when none is named, or it is not running in time: it goes on starting.
    """
    warehouse_id = named_warehouse(platform)
    if time.monotonic() < _seen_running.get((platform, warehouse_id), 0.0):
        return warehouse_id
    warehouses = open_workspace(platform).warehouses
    from databricks.sdk.errors import NotFound

    asked_to_start = False

    def running() -> bool | None:
        nonlocal asked_to_start
        try:
            state = warehouses.get(warehouse_id).state
        except NotFound:
            raise Refused(
                f"DATABRICKS_WAREHOUSE_ID is '{warehouse_id[:60]}', and the workspace has no such SQL warehouse; set "
                "it to the id in the warehouse's connection details."
            ) from None
        if state is not None and state.value == "RUNNING":
            return True
        if state is not None and state.value == "STOPPED" and not asked_to_start:
            warehouses.start(warehouse_id)
            asked_to_start = True
        return None

    wait_for(f"SQL warehouse {warehouse_id}", running, seconds=seconds, progress=lambda line: None)
    _seen_running[platform, warehouse_id] = time.monotonic() + _STAYS_RUNNING
    return warehouse_id
