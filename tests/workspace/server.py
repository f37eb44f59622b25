"""The workspace as a server on loopback.

Lives here: starting and stopping it in a thread of this process, so that a test sees its state.
Add here: how it is served. Not here: what it answers.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from tests.workspace.app import Workspace
from tests.workspace.parts import PARTS


@contextmanager
def served_workspace(port: int = 0) -> Iterator[Workspace]:
    """A new workspace, served while the block runs; its address is `url`."""
    workspace = Workspace(PARTS)
    listener = socket.create_server(("127.0.0.1", port))
    workspace.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(workspace, log_level="error", http="h11", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended while it started"
        time.sleep(0.005)
    try:
        yield workspace
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


def client_environment(workspace: Workspace) -> dict[str, str]:
    """Variables under which the unmodified clients talk to this workspace and nowhere else."""
    return {
        "DATABRICKS_HOST": workspace.url,
        "DATABRICKS_TOKEN": workspace.token,
        "DATABRICKS_CONFIG_FILE": "/dev/null",
        "DATABRICKS_WAREHOUSE_ID": "wh-1",
        "LIFECYCLE_PLATFORM": "databricks",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
