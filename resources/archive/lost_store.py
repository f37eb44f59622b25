"""Whether MLflow's store still is the one whose traces the tables hold.

Lives here: telling a store that was deleted, and perhaps made anew, from one that is only empty.
Add here: another sign of a store that is not the one the tables were filled from.
Not here: tables that hold traces of another experiment (`look.py`), archiving.

MLflow makes a database for whoever opens one, and gives its first experiment the number it gave the one before: so a
deleted file looks like a store without traces. Traces that left the store, by its own retention or ours, are no sign:
the experiment stays.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lifecycle_assets.refused import Refused
from resources.archive.marks import log_of, strangers
from resources.delta.table import open_table, storage
from resources.explain import explained, without_password
from resources.mlflow_store import experiment_id, open_client
from resources.platform import Platform

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

CLOCKS_MS = 3_600_000
"""How much later than the table its experiment may seem to have been made: clocks of two machines differ."""


def known_experiment(platform: Platform, prefix: str, experiment: str) -> str:
    """The id of the experiment, created when absent. Raises `Refused` where the tables say that it was there before."""

    def refuse() -> None:
        if why := lost_store(platform, prefix, experiment):
            raise Refused(why)

    if not _has_file(platform):
        refuse()
    return experiment_id(platform, experiment, refuse)


def lost_store(platform: Platform, prefix: str, experiment: str) -> str:
    """Why the store is not the one the tables were filled from; empty when nothing speaks against it. Makes nothing.

    `experiment` is a name. Raises `Refused` when the table or the store cannot be read.
    """
    where = platform.table_uri(f"{prefix}traces")
    with storage(where):
        target = open_table(where)
        log = log_of(target)
    if target is None or log is None or not any(log.column("num_records").to_pylist()):
        return ""
    store, held = without_password(platform.tracking_uri), _held(prefix, log)
    if not _has_file(platform):
        return _sentence(f"{store} is gone, and {held}")
    with explained(platform.tracking_uri):
        found = open_client(platform).get_experiment_by_name(experiment)
    if found is None:
        return _sentence(f"{store} has no experiment {experiment[:80]}, and {held}")
    if strangers(log, found.experiment_id):
        return ""  # Archiving says so in its own words.
    return made_anew(platform, prefix, experiment, found.creation_time or 0, target, log)


def made_anew(
    platform: Platform, prefix: str, experiment: str, made_ms: int, target: "DeltaTable", log: "pa.Table | None"
) -> str:
    """Why the experiment, made at `made_ms`, is not the one of which `target`, the table of traces, holds some."""
    began = target.metadata().created_time or 0
    if log is None or not began or made_ms <= began + CLOCKS_MS:
        return ""
    store = without_password(platform.tracking_uri)
    new = f"{store} is a new one: its experiment {experiment[:80]} is of {_said(made_ms)}"
    return _sentence(f"{new}, and {_held(prefix, log)} since {_said(began)}")


def _held(prefix: str, log: "pa.Table") -> str:
    return f"{prefix}traces holds {sum(log.column('num_records').to_pylist())} traces archived from it"


def _sentence(what: str) -> str:
    return (
        f"{what}: put the store back from a backup, or correct MLFLOW_TRACKING_URI; to begin anew, set "
        "archive.table_prefix in defs.yaml to a prefix that is not used yet. The tables stay as they are."
    )


def _has_file(platform: Platform) -> bool:
    """Whether an embedded store's file is there and holds something; True for a server."""
    file = platform.store_file
    return file is None or (file.exists() and file.stat().st_size > 0)


def _said(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
