"""Steps that change process-global state, each in a process of its own.

Lives here: the parent's side: ask for a worker, follow its progress, take its answer.
Add here: nothing; a new action goes into `worker_main.py`.
Not here: what the actions do, where workers come from (`worker_source.py`).

MLflow keeps `set_model`, the active model and loaded agent code in the process: two agents in one process can
swap their models. A worker serves one action for one agent and ends. It also ends when its parent dies, because
it watches the pipe the parent holds open.
"""

import atexit
import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lifecycle_assets.refused import Refused
from resources.mlflow_store import settings
from resources.platform import Platform
from resources.worker_source import WorkerSource

Progress = Callable[[str], None]
"""Called with one line of progress at a time."""


_FLUENT = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ACTIVE_MODEL_ID")
"""Variables by which a shell would choose the run, experiment or model a worker writes to; workers are told."""


_source = WorkerSource()
atexit.register(_source.close)


class WorkerFailed(Exception):  # noqa: N818 - it reads as what happened
    """The agent's or a library's code raised inside the worker; the text holds its traceback."""


def run_worker(
    action: str,
    request: Mapping[str, Any],
    *,
    platform: Platform,
    progress: Progress,
    timeout_seconds: float | None = None,
) -> dict[str, Any]:
    """Run `action` with a JSON `request` and return its JSON answer.

    Raises `Refused` when the worker refused, or was killed because it gave no answer within `timeout_seconds`;
    `WorkerFailed` when code in it raised or it was killed.
    """
    with tempfile.TemporaryDirectory(prefix="lifecycle-") as folder:
        answer_file = Path(folder) / "answer.json"
        environment = _environment(platform)
        worker = _source.worker(environment)
        tail: list[str] = []
        late = threading.Event()
        timer = threading.Timer(timeout_seconds or 0, lambda: (late.set(), worker.kill()))
        if timeout_seconds:
            timer.start()
        try:
            with suppress(BrokenPipeError):  # It ended at once: its last lines say why.
                worker.tell({"action": action, "answer": str(answer_file), "env": environment, "request": request})
            for line in worker.lines():
                tail = [*tail[-19:], line.rstrip()]
                if line.startswith("progress: "):
                    progress(line.removeprefix("progress: ").rstrip())
        finally:
            timer.cancel()
            code = worker.end()
        if not answer_file.exists():
            if late.is_set():
                raise Refused(
                    f"{action}: {platform.tracking_uri} gave no answer within {timeout_seconds:g} s; the step was "
                    "stopped. Look whether the service is reachable, then run again: it goes on where it stopped."
                )
            raise WorkerFailed(f"{action} ended with code {code}:\n" + "\n".join(tail))
        answer = json.loads(answer_file.read_text(encoding="utf-8"))
    if "refused" in answer:
        raise Refused(answer["refused"], check=answer.get("check"))
    if "failed" in answer:
        raise WorkerFailed(answer["failed"])
    return answer["answer"]


def _environment(platform: Platform) -> dict[str, str]:
    root = Path(__file__).resolve().parents[1]
    env = {
        **settings(platform),
        **os.environ,
        "MLFLOW_TRACKING_URI": platform.tracking_uri,
        "MLFLOW_REGISTRY_URI": platform.registry_uri,
        "LIFECYCLE_HOME": str(platform.home),
        "LIFECYCLE_ENVIRONMENT": platform.environment,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")])),
        "PYTHONUNBUFFERED": "1",
    }
    return {name: value for name, value in env.items() if name not in _FLUENT}
