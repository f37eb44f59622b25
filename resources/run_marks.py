"""The marks this product leaves on MLflow runs and logged models.

Lives here: tag names, opening a run that names its worker, finding runs whose worker is gone.
Add here: a tag two gateways read, a fact every run of ours carries.
Not here: what is logged in a run (`model_steps.py`, `evaluation_steps.py`).

A worker that is killed cannot close its run. Every run therefore names its worker, and the next request of the same
kind closes what no living worker holds. Only a model or run with `COMPLETE` counts: it is the last thing written.
"""

import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.explain import without_password
from resources.platform import Platform

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

AGENT = "lifecycle.agent"
STEP = "lifecycle.step"
WORKER = "lifecycle.worker"
DAGSTER_RUN = "lifecycle.dagster_run_id"
SOURCE_DIGEST = "lifecycle.source_digest"
GIT_COMMIT = "lifecycle.git_commit"
COMPLETE = "lifecycle.complete"
LOGGED_BY = "lifecycle.run_id"
FACTS = "lifecycle.facts"
SMOKE = "lifecycle.smoke"
MODEL_ID = "lifecycle.model_id"
EVALUATION = "lifecycle.eval_run_id"
DATASET_DIGEST = "lifecycle.dataset_digest"
SCORERS_DIGEST = "lifecycle.scorers_digest"
SHADOWED = "lifecycle.shadowed_model_id"
CONTENT = "lifecycle.evaluation_digest"
"""Parameter of a run, written once: the digest of its `evaluation.json`."""
REFUSAL = "lifecycle.refusal"

ELSEWHERE_HOURS = 6
"""A run of another machine counts as abandoned after this long: its worker cannot be asked."""

PREVIEW = 300
"""Characters of an answer that are shown."""


def shortened(text: str, limit: int = PREVIEW) -> str:
    """`text` in at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def preview(answer: Any) -> str:
    """An agent's answer in at most `PREVIEW` characters: its text when it has one, else its JSON."""
    if isinstance(answer, dict) and isinstance(answer.get("output"), list):
        contents = [part for item in answer["output"] if isinstance(item, dict) for part in item.get("content") or []]
        texts = [part["text"] for part in contents if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if texts:
            return shortened("\n".join(texts))
    return shortened(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, default=str))


def where_filter(tags: Mapping[str, str], *, prefix: str = "tags") -> str:
    """An MLflow filter for entities that carry all of `tags`."""
    return " AND ".join(f"{prefix}.`{name}` = '{value}'" for name, value in tags.items())


def open_run(client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    """Create a run that names this process as its worker; returns its id. Tags with empty values are left out.

    A client that gets no answer asks again, and the server makes a second run: the twin is closed at once.
    """
    worker = f"{socket.gethostname()}:{os.getpid()}"
    marks = {key: value for key, value in {**tags, WORKER: worker}.items() if value}
    run_id = client.create_run(experiment_id, run_name=name, tags=marks).info.run_id
    mine = {WORKER: worker, **{key: tags[key] for key in (AGENT, STEP) if tags.get(key)}}
    for run in client.search_runs([experiment_id], f"attributes.status = 'RUNNING' AND {where_filter(mine)}"):
        if run.info.run_id != run_id:
            client.set_terminated(run.info.run_id, "KILLED")
    return run_id


def abandoned_runs(client: "MlflowClient", experiment_id: str, tags: Mapping[str, str]) -> "list[Run]":
    """Runs with `tags` that say RUNNING although their worker is gone."""
    found = client.search_runs(
        [experiment_id], filter_string=f"attributes.status = 'RUNNING' AND {where_filter(tags)}", max_results=100
    )
    return [run for run in found if not _worker_lives(run.data.tags.get(WORKER, ""), run.info.start_time)]


def started_at(run: "Run") -> str:
    """When the run started, UTC ISO 8601 in seconds."""
    return datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds")


def _worker_lives(mark: str, started_ms: int) -> bool:
    host, _, pid = mark.rpartition(":")
    if host != socket.gethostname():
        return time.time() - started_ms / 1000 < ELSEWHERE_HOURS * 3600
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        return "resources.worker_source" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    return process_lives(int(pid))


def process_lives(pid: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It runs, as another user.
    return True


def page(platform: Platform, path: str) -> str:
    """The address of a page of the MLflow UI, or of the workspace's; empty without a server."""
    if platform.is_databricks:
        from resources.databricks.workspace import open_workspace

        return f"{without_password(open_workspace(platform).config.host or '').rstrip('/')}/ml/{path}"
    uri = platform.tracking_uri
    return f"{without_password(uri).rstrip('/')}/#/{path}" if uri.startswith(("http://", "https://")) else ""
