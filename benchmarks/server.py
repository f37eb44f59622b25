"""A real `mlflow server` on the loopback interface.

Lives here: starting it in front of a store, and ending a process with all those it started.
Add here: a setting of the server that a job needs. Not here: what is asked of it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mlflow_server(store: Path, workers: int, folder: Path) -> Iterator[str]:
    """The address of a server over the SQLite file `store`. Raises `RuntimeError` when it does not come up in 90 s."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"server-{port}.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", str(workers), "--backend-store-uri", f"sqlite:///{store}"]
    command += ["--artifacts-destination", str(folder / "served")]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "true"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **settings, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        end_session(process, 10)


def end_session(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """End a process that began a session, with all of it: kindly, and after so many seconds by force."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"mlflow server did not come up:\n{log.read_text()[-3000:]}")
