"""The folder that holds all local state, and the Dagster instance in it.

Lives here: preparing and opening them; run as a module it prepares them.
Add here: a setting of the instance this product relies on.
Not here: what is kept in them.
"""

import os
import sys
from pathlib import Path

import dagster as dg

from lifecycle_assets.refused import Refused
from resources.platform import Platform

DAGSTER_YAML = """\
# Written once by lifecycle-assets; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    default_limit: 1   # one writer a table, one run at a time on an agent's registry
    granularity: op
  runs:
    max_concurrent_runs: 4
run_monitoring:
  enabled: true        # a run whose process died is failed, and its pools are freed
  free_slots_after_run_end_seconds: 30
sensors:
  use_threads: true    # a tick that waits, as for a workspace that does not answer, holds up no other
  num_workers: 4
"""


def prepare_home(platform: Platform) -> Path:
    """Make the Dagster instance's folder with its settings, when absent. Safe to repeat; returns the folder."""
    platform.prepare()
    folder = platform.dagster_home
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    if not settings.exists():
        partial = settings.with_suffix(f".{os.getpid()}")
        partial.write_text(DAGSTER_YAML, encoding="utf-8")
        partial.rename(settings)
    os.environ["DAGSTER_HOME"] = str(folder)
    return folder


def open_instance(platform: Platform) -> dg.DagsterInstance:
    """The Dagster instance, which must be there. Raises `Refused` with the remedy when it is not."""
    folder = platform.dagster_home
    if not (folder / "dagster.yaml").exists():
        raise Refused(f"{folder}: nothing has run here yet; run make demo, or make ui and materialize an asset.")
    os.environ["DAGSTER_HOME"] = str(folder)
    return dg.DagsterInstance.get()


if __name__ == "__main__":
    try:
        prepare_home(Platform.from_env())
    except Refused as refusal:
        sys.exit(str(refusal))
