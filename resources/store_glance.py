"""Cheap looks at where state is kept: whether what a sensor watches has changed since its last tick.

Lives here: what can be watched in MLflow's store, one query each; the state of its SQLite file and of Delta tables.
Add here: a further thing a sensor watches, as the rows its decision rests on.
Not here: what the facts of files say (`file_facts.py`), asking a server (`server_glance.py`), what the rows mean.

A glance answers "as it was" or nothing; who sees a change asks the gateways.
Every answer is a text to compare with an earlier one: equal means unchanged. The empty text means that it cannot be
told (a workspace, an object store, a schema we never tested, a file that is being written): then the platform's client
is asked as if there were no glance. No module of MLflow, Delta or Arrow is imported, unless a server is to be asked.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from resources.delta.changed_days import changed_days
from resources.file_facts import file_state, newest_commit
from resources.platform import Platform
from resources.reading.database import KNOWN_REVISIONS

if TYPE_CHECKING:
    from resources.server_glance import ServerAnswers


@dataclass(frozen=True)
class Watched:
    """What a decision rests on: rows of MLflow's own tables, one query, read-only; the same facts of a server."""

    sql: str
    parameters: tuple[str, ...]
    ask: "Callable[[ServerAnswers], object]"


def aliases(model: str) -> Watched:
    """The aliases of a registered model."""
    return Watched(
        "SELECT a.alias, a.version FROM registered_models m JOIN registered_model_aliases a "
        "ON a.workspace = m.workspace AND a.name = m.name WHERE m.name = ?",
        (model,),
        lambda server: server.aliases(model),
    )


def versions(model: str, tags: Sequence[str]) -> Watched:
    """The versions of a registered model with those of their tags."""
    return Watched(
        "SELECT v.version, v.current_stage, v.creation_time, t.key, t.value FROM registered_models m "
        "JOIN model_versions v ON v.workspace = m.workspace AND v.name = m.name LEFT JOIN model_version_tags t "
        "ON t.workspace = v.workspace AND t.name = v.name AND t.version = v.version "
        "AND t.key IN (SELECT value FROM json_each(?)) WHERE m.name = ?",
        (json.dumps(tags), model),
        lambda server: server.versions(model, tags),
    )


def version_at(model: str, alias: str) -> Watched:
    """The version an alias names, with all its tags."""
    return Watched(
        "SELECT a.version, v.current_stage, t.key, t.value FROM registered_models m JOIN registered_model_aliases a "
        "ON a.workspace = m.workspace AND a.name = m.name AND a.alias = ? LEFT JOIN model_versions v "
        "ON v.workspace = a.workspace AND v.name = a.name AND v.version = a.version LEFT JOIN model_version_tags t "
        "ON t.workspace = a.workspace AND t.name = a.name AND t.version = a.version WHERE m.name = ?",
        (alias, model),
        lambda server: server.version_at(model, alias),
    )


def run_named_by(model: str, experiment: str, tag: str) -> Watched:
    """The run that a registered model or an experiment names by a tag: its stage, parameters and tags.

    A server is asked for the experiment only when the model names none, as by who reads the ledger.
    """
    return Watched(
        "WITH named(run, by) AS (SELECT t.value, m.name FROM registered_models m JOIN registered_model_tags t "
        "ON t.workspace = m.workspace AND t.name = m.name AND t.key = ?1 WHERE m.name = ?2 "
        "UNION SELECT t.value, e.name || ' ' || e.lifecycle_stage FROM experiments e LEFT JOIN experiment_tags t "
        "ON t.experiment_id = e.experiment_id AND t.key = ?1 WHERE e.name = ?3) "
        "SELECT 'by', run, by FROM named "
        "UNION ALL SELECT 'run', run_uuid, lifecycle_stage FROM runs WHERE run_uuid IN (SELECT run FROM named) "
        "UNION ALL SELECT 'param', key, value FROM params WHERE run_uuid IN (SELECT run FROM named) "
        "UNION ALL SELECT 'tag', key, value FROM tags WHERE run_uuid IN (SELECT run FROM named)",
        (tag, model, experiment),
        lambda server: server.run_named_by(model, experiment, tag),
    )


def experiment_tags(experiment: str, prefix: str) -> Watched:
    """The tags of an experiment whose names begin with `prefix`."""
    return Watched(
        "SELECT e.lifecycle_stage, t.key, t.value FROM experiments e LEFT JOIN experiment_tags t "
        "ON t.experiment_id = e.experiment_id AND substr(t.key, 1, length(?1)) = ?1 WHERE e.name = ?2",
        (prefix, experiment),
        lambda server: server.experiment_tags(experiment, prefix),
    )


def completed_items(queue_id: str) -> Watched:
    """The completed items of a review queue, and when each was completed."""
    return Watched(
        "SELECT item_id, last_update_time_ms FROM review_queue_items WHERE queue_id = ? AND status = 'complete'",
        (queue_id,),
        lambda server: server.completed_items(queue_id),
    )


def evaluation_dataset(name: str, dataset_id: str) -> Watched:
    """The evaluation datasets of a name: every write of records changes the digest or the number of records.

    A server is asked for the one of that id; without an id nothing can be told there.
    """
    return Watched(
        "SELECT dataset_id, digest, profile, last_update_time FROM evaluation_datasets WHERE name = ?",
        (name,),
        lambda server: server.dataset(dataset_id),
    )


class StoreGlance:
    """Cheap looks at one platform's store and tables; nothing is written, nothing stays open."""

    def __init__(self, platform: Platform) -> None:
        """Opens nothing."""
        uri = platform.tracking_uri
        plain = not platform.is_databricks and uri.startswith("sqlite:///") and not set(uri) & set("?#")
        self._file = Path(uri.removeprefix("sqlite:///")) if plain else None
        self._served = not platform.is_databricks and uri.startswith(("http://", "https://"))
        self._platform = platform

    def state(self) -> str:
        """Names everything the SQLite file holds: another text after every commit, restore, VACUUM or checkpoint.

        No SQL. Take it before reading, so that what comes meanwhile makes a difference.
        """
        return file_state(self._file) if self._file else ""

    def rows(self, watched: Sequence[Watched]) -> str:
        """Digest of all rows watched, one query each: those of a file as of one moment, of a server one by one.

        Raises `MlflowException` when a server does not answer.
        """
        if self._served and watched:
            from resources.server_glance import facts_of

            return facts_of(self._platform, [(one.parameters, one.ask) for one in watched])
        if self._file is None:
            return ""
        uri = f"file:{quote(str(self._file.absolute()))}?mode=ro"
        try:
            con = sqlite3.connect(uri, uri=True, timeout=1.0, isolation_level=None)
        except sqlite3.Error:
            return ""
        try:
            con.text_factory = bytes
            con.execute("BEGIN")  # One snapshot for all; it ends with the connection.
            found = hashlib.sha256()
            for one in watched:
                # The revision comes with the rows: a store that is migrated under us is not misread.
                query = f"SELECT r.version_num, w.* FROM alembic_version r LEFT JOIN ({one.sql}) w"  # noqa: S608 ours
                rows = con.execute(query, one.parameters).fetchall()
                if not rows or any(row[0].decode() not in KNOWN_REVISIONS for row in rows):
                    return ""
                found.update(repr((one.parameters, sorted(map(repr, rows)))).encode())
            return found.hexdigest()[:32]
        except sqlite3.Error:
            return ""  # Locked, damaged, or another schema: MLflow's client says which.
        finally:
            con.close()

    def table(self, table: str) -> str:
        """Names the newest commit of the Delta table `catalog.schema.table` in a folder.

        As many files are looked at as commits are new since this process looked last.
        """
        log = self._log(table)
        if log is None:
            return ""
        try:
            return newest_commit(log)
        except OSError:
            return ""

    def days_changed(self, table: str, since: str, until: str) -> frozenset[date] | None:
        """The days with rows written to a table between two answers of `table`; None when every day may be one."""
        log = self._log(table)
        return changed_days(log, since, until) if log and since and until else None

    def _log(self, table: str) -> Path | None:
        """The log of a table in a folder."""
        uri = self._platform.table_uri(table) if self._platform.warehouse else "://"
        return None if "://" in uri else Path(uri) / "_delta_log"
