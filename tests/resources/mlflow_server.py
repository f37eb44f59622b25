"""A real MLflow server on the loopback interface, for tests.

Lives here: starting it on a free port, waiting for it, and ending it with all its children.
Add here: nothing but settings of the server a test needs.
Not here: what is asked of it.

It is the process that `mlflow server --workers 1` starts, with the variables it is given then
(`mlflow/server/constants.py`). The command imports all of MLflow once more, three seconds of a core a server: only
`test_trace_store.py` and the benchmarks start it.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.server import end_session
from resources.platform import Platform


@contextmanager
def mlflow_server(store: Path, home: Path, **env: str) -> Iterator[Platform]:
    """A platform on a server over the SQLite file `store`; `env` are variables of the server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    log = (home / "server.log").open("wb")
    uri = f"sqlite:///{store}"
    settings = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "_MLFLOW_SERVER_FILE_STORE": uri,
        "_MLFLOW_SERVER_REGISTRY_STORE": uri,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(home / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        **env,
    }
    command = [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "mlflow.server.fastapi_app:app"],
        env={**os.environ, **settings},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, home / "server.log")
        yield Platform.from_env({"LIFECYCLE_HOME": str(home), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"})
    finally:
        end_session(process, 10)
        log.close()


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"no server after 90 s:\n{log.read_text()[-3000:]}")
