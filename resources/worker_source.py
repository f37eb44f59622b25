"""Where workers come from: a process that has imported MLflow, and forks one for each request.

Lives here: the source of workers (a process of each process that needs any), a worker's pipes and its end.
Add here: a library every worker imports.
Not here: what a worker is asked (`worker.py`), what it does (`worker_main.py`).

Importing MLflow takes three seconds and a release needs four workers. The source imports libraries once and runs none
of the agent's code, so what it forks is as clean as a new process. It ends with the process it serves, or after
`IDLE_SECONDS` without a worker. Off Linux it imports nothing before it forks: macOS frameworks do not survive that.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

IDLE_SECONDS = 60.0
"""How long a source without workers stays: it holds 300 MB, and a run asks for its next worker sooner."""

POLL_SECONDS = 0.02
"""How often the source looks whether a worker has ended, while it has any."""

PRELOADED = (
    "mlflow",
    "mlflow.genai",
    "mlflow.genai.evaluation.harness",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "resources.evaluation_steps",
    "resources.model_steps",
)
"""What workers import. Importing none of these starts a thread of Python's or opens a connection."""


@dataclass
class Worker:
    """A worker as its parent sees it: its pid (0 when there was none to be had), what it reads and what it prints.

    `status` is the pipe on which the source tells the exit code once the worker has ended.
    """

    pid: int
    stdin: IO[str]
    output: IO[str]
    status: IO[str]

    def tell(self, request: Mapping[str, Any]) -> None:
        """Give it its request. Raises `BrokenPipeError` when it has ended."""
        self.stdin.write(json.dumps(request) + "\n")
        self.stdin.flush()

    def lines(self) -> Iterator[str]:
        """What it prints, line by line, until it ends."""
        yield from self.output

    def kill(self) -> None:
        """End it at once; nothing when it has ended."""
        if self.pid and not select.select([self.status], [], [], 0)[0]:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def end(self) -> str:
        """Its exit code (negative: the signal that ended it), after ending it when it still runs."""
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.kill()
        code = self.status.read().strip()
        self.output.close()
        self.status.close()
        return code or "unknown"


class WorkerSource:
    """The parent's side of the source. Several threads may ask, and so may processes forked from this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._after_fork)
        self._python: dict[str, str] | None = None
        self._socket: socket.socket | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    def _after_fork(self) -> None:
        self._lock = threading.Lock()

    def worker(self, env: Mapping[str, str]) -> Worker:
        """A new worker. Python's own variables in `env` are those it was started with; the rest it is told."""
        with self._lock:
            self._open(env)
            worker = self._ask()
            if not worker.pid:  # It had just ended: nobody had asked it for a while.
                worker.end()
                self.close()
                self._open(env)
                worker = self._ask()
            return worker

    def close(self) -> None:
        """Ask for no more; the source ends when nobody may ask any more, and workers go on."""
        if self._socket is not None:
            self._socket.close()
        self._python = self._socket = None

    def _open(self, env: Mapping[str, str]) -> None:
        python = {name: value for name, value in env.items() if name.startswith("PYTHON")}
        if self._python == python:
            return
        self.close()
        mine, its = socket.socketpair()
        with its:
            self._processes = [one for one in self._processes if one.poll() is None]
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "resources.worker_source", str(its.fileno())],
                    stdin=subprocess.DEVNULL,
                    env={**env, "TQDM_DISABLE": "1"},
                    pass_fds=[its.fileno()],
                )
            )
        self._socket, self._python = mine, python

    def _ask(self) -> Worker:
        pipes = [os.pipe() for _ in range(3)]
        (its_stdin, stdin), (output, its_output), (status, its_status) = pipes
        assert self._socket is not None
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(self._socket, [b"w"], [its_stdin, its_output, its_status])
        finally:
            for fd in (its_stdin, its_output, its_status):
                os.close(fd)
        told = os.fdopen(status, encoding="utf-8")
        pid = told.readline().strip()
        return Worker(
            int(pid or 0),
            os.fdopen(stdin, "w", encoding="utf-8"),
            os.fdopen(output, encoding="utf-8", errors="replace"),
            told,
        )


def serve(requests: socket.socket) -> None:
    """The source's life: fork a worker for every three descriptors that arrive, tell how each worker ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        for module in PRELOADED:
            importlib.import_module(module)
    workers: dict[int, int] = {}
    while True:
        idle = not workers
        asked = select.select([requests], [], [], IDLE_SECONDS if idle else POLL_SECONDS)[0]
        for pid in [*workers]:
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                _tell(workers.pop(pid), str(os.waitstatus_to_exitcode(status)))
        if asked:
            message, descriptors, _, _ = socket.recv_fds(requests, 1, 3)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                requests.close()
                for status in workers.values():
                    os.close(status)
                _become_worker(descriptors)
            for descriptor in descriptors[:2]:
                os.close(descriptor)
            workers[pid] = descriptors[2]
            os.write(descriptors[2], f"{pid}\n".encode())
        elif idle:
            return


def _tell(status: int, code: str) -> None:
    with suppress(BrokenPipeError):  # The parent is gone.
        os.write(status, code.encode())
    os.close(status)


def _become_worker(descriptors: list[int]) -> None:
    """Take the pipes as standard input and output and serve one request; never returns."""
    from resources.worker_main import main

    its_stdin, its_output, _ = descriptors
    for source, target in ((its_stdin, 0), (its_output, 1), (its_output, 2)):
        os.dup2(source, target)
    for descriptor in descriptors:
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()  # Python's own generator is seeded anew by the fork, numpy's is not.
    main()
    os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
