"""MLflow's own trace archival: spans move from its database to its artifact store, and stay readable.

Lives here: when it may be run, running it for one experiment up to a day, and remembering that day.
Add here: nothing but what MLflow's archival needs.
Not here: which days may go (`store_retention.py`).

MLflow 3.17 archives what is older than a moment, of every experiment that asks for it by a tag; `archive_traces` of
the store runs one pass (mlflow/store/tracking/sqlalchemy_store.py). So ours asks by the tag, for the time up to the
last proven day, and the pass is given a retention of a hundred years for all others. Killed in between, the tag and
the traces that have moved are what the next run finds: a pass goes on where one ended.
"""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

from resources.archive.marks import Days
from resources.explain import explained, without_password
from resources.mlflow_store import open_client, open_mlflow
from resources.platform import Platform

EPOCH = date(1970, 1, 1)
UNTIL_TAG = "lifecycle.spans_archived_until"
"""Experiment tag: the first day whose spans are still in MLflow's database."""

_NOBODY_ELSE = "36500d"
_MINUTE_MS = 60_000


def archived_until(platform: Platform, experiment: str) -> date:
    """The first day whose spans are still in MLflow's database."""
    with explained(platform.tracking_uri):
        said = open_client(platform).get_experiment(experiment).tags.get(UNTIL_TAG, "")
    return date.fromisoformat(said) if said else EPOCH


def why_not_archivable(platform: Platform, experiment: str) -> str:
    """Why MLflow's archival cannot be run for this experiment alone, in one sentence; empty when it can."""
    where = without_password(platform.tracking_uri)
    if platform.tracking_uri.startswith(("http://", "https://", "databricks")):
        return (
            f"{where}: a server archives spans by its own MLFLOW_TRACE_ARCHIVAL_CONFIG and does not wait for a proof; "
            "write how: delete under archive.store_retention, or remove that field."
        )
    with explained(platform.tracking_uri):
        open_mlflow(platform)
        from mlflow.tracing.constant import TraceExperimentTagKey as Key

        client = open_client(platform)
        asks = {
            tag: client.search_experiments(filter_string=f"tags.`{tag}` LIKE '%'")
            for tag in (Key.ARCHIVAL_RETENTION, Key.ARCHIVE_NOW)
        }
    for tag, found in asks.items():
        others = [one.name for one in found if tag == Key.ARCHIVAL_RETENTION or one.experiment_id != experiment]
        if others:
            return (
                f"experiment {others[0][:80]} has the tag {tag}, so MLflow would archive traces nobody has proven; "
                "remove the tag, then run again."
            )
    return ""


def archive_until(platform: Platform, experiment: str, last: date) -> int:
    """Have MLflow archive the spans of this experiment up to the end of the day `last`; how many traces moved.

    MLflow leaves out traces in progress and those it cannot archive; it says which in its log.
    """
    with explained(platform.tracking_uri):
        open_mlflow(platform)
        from mlflow.tracing.client import TracingClient
        from mlflow.tracing.constant import TraceExperimentTagKey as Key

        client = open_client(platform)
        age_ms = int(datetime.now(UTC).timestamp() * 1000) - Days(last, last).until_ms
        # Rounded up to minutes, which are the unit: the moment lies before the end of the day.
        older_than = f"{age_ms // _MINUTE_MS + 1}m"
        client.set_experiment_tag(experiment, Key.ARCHIVE_NOW, json.dumps({"older_than": older_than}))
        store: Any = TracingClient(platform.tracking_uri).store
        moved = store.archive_traces(
            resolved_trace_archival_location=_location(client, experiment), broader_retention=_NOBODY_ELSE
        )
        client.set_experiment_tag(experiment, UNTIL_TAG, (last + timedelta(days=1)).isoformat())
    return int(moved)


def _location(client: Any, experiment: str) -> str:
    return client.get_experiment(experiment).artifact_location.rstrip("/") + "/archived"
