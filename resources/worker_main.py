"""The worker's side of `worker.py`: one action for one agent, then the process ends.

Lives here: reading the request, choosing the action, writing the answer, dying with the parent.
Add here: an entry of `ACTIONS`; the action itself belongs to the gateway that asks for it, in a `*_steps.py`.
Not here: anything a caller could do in its own process.
"""

import importlib
import json
import os
import sys
import threading
import traceback
from pathlib import Path

from lifecycle_assets.refused import Refused
from resources.explain import explain, without_password

ACTIONS = {
    "log_model": "resources.model_steps",
    "predict": "resources.model_steps",
    "evaluate": "resources.evaluation_steps",
    "shadow": "resources.shadow_steps",
    "try_scorers": "resources.scorer_steps",
    "open_labeling": "resources.databricks.labeling.labeling_steps",
    "settle_traces": "resources.databricks.tracing.tracing_steps",
    "register_scorers": "resources.databricks.scoring.scorer_steps",
    "ask_backfill": "resources.databricks.scoring.backfill_steps",
    "enable_archival": "resources.databricks.archive.archival_steps",
}
"""Action to the module whose function of that name takes the request and returns the answer."""


def _die_with_parent() -> None:
    """Leave when the parent's end of the pipe closes: it finished with us, or it was killed."""
    sys.stdin.read()
    os._exit(3)


def main() -> None:
    """Serve one request from standard input; the answer file appears whole or not at all. Never returns."""
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    action, answer_file = asked["action"], Path(asked["answer"])
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(answer_file.parent)
    try:
        step = getattr(importlib.import_module(ACTIONS[action]), action)
        outcome = {"answer": step(asked["request"])}
    except Refused as refusal:
        outcome = {"refused": str(refusal), "check": refusal.check}
    except BaseException as error:  # noqa: BLE001 - the boundary: whatever was raised goes to the caller
        known = explain(error, without_password(os.environ.get("MLFLOW_TRACKING_URI", "")))
        outcome = {"refused": known} if known else {"failed": traceback.format_exc(limit=-8)}
    partial = answer_file.with_suffix(".partial")
    partial.write_text(json.dumps(outcome), encoding="utf-8")
    partial.rename(answer_file)
    sys.stdout.flush()
    os._exit(0)
