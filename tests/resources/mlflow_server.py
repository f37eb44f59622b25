"""A real MLflow server on the loopback interface, for tests.

Lives here: starting it on a free port, waiting for it, and ending it with all its children.
Add here: nothing but settings of the server a test needs.
Not here: what is asked of it.
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
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "true", **env}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", str(home / "artifacts")),
        ],
        env={**os.environ, **settings, "MLFLOW_DISABLE_TELEMETRY": "true"},
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
