"""Killing a process in the middle of a step, as a power cut or an operator would.

Lives here: starting a step in a process of its own, waiting until its MLflow run is under way, SIGKILL.
Add here: a further step that must survive being killed.
Not here: what must hold afterwards (the tests).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lifecycle_assets.spec_file import Agent
from resources.mlflow_store import open_client
from resources.platform import Platform

_SCRIPT = """
import json, sys
from pathlib import Path
from lifecycle_assets.records import DatasetRecord, SourceRecord
from lifecycle_assets.spec_file import read_agent
from resources.platform import Platform
step, file, model_id, dataset = sys.argv[1:]
agent, platform = read_agent(Path(file)), Platform.from_env()
if step == "log":
    from resources.model_registry import MlflowModelRegistry
    MlflowModelRegistry(platform).log(agent, SourceRecord("digest-1", ""), progress=print)
else:
    from resources.evaluator import MlflowEvaluator
    record = DatasetRecord.from_json(json.loads(dataset))
    MlflowEvaluator(platform).evaluate(agent, model_id, record, progress=print)
"""


def kill_when(
    action: str, agent: Agent, platform: Platform, *, step: str, model_id: str = "", dataset: dict | None = None
) -> int:
    """Start `action`, kill its process with SIGKILL once a run of `step` is RUNNING; returns the worker's pid."""
    arguments = [action, str(agent.folder / "defs.yaml"), model_id, json.dumps(dataset)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments],
        env={
            **os.environ,
            "LIFECYCLE_HOME": str(platform.home),
            "MLFLOW_TRACKING_URI": platform.tracking_uri,
            "PYTHONPATH": str(root),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    source = 0
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            worker = _worker(agent, platform, step)
            if worker:
                source = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
                time.sleep(1.0)  # Into the step, past the start of its run.
                return worker
            time.sleep(0.1)
        raise AssertionError(f"{action} never got to its run")
    finally:
        process.kill()
        process.wait()
        assert source == 0 or worker_is_gone(source), "the source of workers outlived the process it served"


def worker_is_gone(pid: int, seconds: float = 10) -> bool:
    """Whether the worker ends within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists() or "worker_source" not in Path(f"/proc/{pid}/cmdline").read_text():
            return True
        time.sleep(0.05)
    return False


def _worker(agent: Agent, platform: Platform, step: str) -> int | None:
    client = open_client(platform)
    experiment = client.get_experiment_by_name(agent.spec.experiment)
    if experiment is None:
        return None
    runs = client.search_runs(
        [experiment.experiment_id], f"attributes.status = 'RUNNING' AND tags.`lifecycle.step` = '{step}'"
    )
    return int(runs[0].data.tags["lifecycle.worker"].rpartition(":")[2]) if runs else None
