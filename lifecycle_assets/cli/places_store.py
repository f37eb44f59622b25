"""MLflow's store as an embedded platform has it, looked at without making it.

Lives here: whether it answers, how traces are read from it, the registry in it, the scorers it takes.
Add here: a promise the tracking store has to keep.
Not here: the machine (`places_machine.py`), a workspace (`resources/databricks/inspection.py`), what is declared
(`places.py`).
"""

import importlib.metadata
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from lifecycle_assets.cli.release_state import read_state
from lifecycle_assets.cli.sources import Sources, probe_sqlite, shown_uri
from lifecycle_assets.finding import Finding
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.explain import explain, explained, without_password
from resources.mlflow_store import SETTINGS
from resources.platform import Platform

CUSTOM_SCORERS = "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS"
SERVER_SECONDS = 3
"""How long a server may take to say its version."""


def tracking_store(platform: Platform) -> Iterator[Finding]:
    """Whether MLflow's store answers, and whether somebody holds it."""
    file = platform.store_file
    if file is not None:
        yield _sqlite(file, shown_uri(platform))
    elif platform.tracking_uri.startswith(("http://", "https://")):
        yield _server(platform)
    else:
        yield Finding(
            "tracking store", "warn", f"{shown_uri(platform)} is not looked at", "Run lifecycle status to see."
        )


def _sqlite(file: Path, where: str) -> Finding:
    if not file.exists():
        return Finding("tracking store", "ok", f"{where} is not there yet; the first run makes it")
    try:
        probe_sqlite(file)
    except sqlite3.Error as error:
        return Finding(
            "tracking store", "fail", explain(error, where) or f"{where}: {error}", "Then run lifecycle doctor again."
        )
    try:
        probe_sqlite(file, write=True)
    except sqlite3.Error as error:
        reason = explain(error, where) or f"{where}: {error}"
        return Finding(
            "tracking store", "warn", f"It can be read but not written now. {reason}", "Runs would wait, then fail."
        )
    return Finding("tracking store", "ok", f"{where} can be read and written")


def _server(platform: Platform) -> Finding:
    where, uri = shown_uri(platform), platform.tracking_uri.rstrip("/")
    try:
        # A user name and password in the address are not for urllib; whether the server lives needs neither.
        with urllib.request.urlopen(f"{without_password(uri)}/version", timeout=SERVER_SECONDS) as answer:  # noqa: S310
            version = answer.read(40).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return Finding("tracking store", "warn", f"{where} answers {error.code}", "Check the address and your sign-in.")
    except (urllib.error.URLError, OSError, ValueError):
        remedy = "Start it, or correct MLFLOW_TRACKING_URI."
        return Finding("tracking store", "fail", f"{where} does not answer within {SERVER_SECONDS} s", remedy)
    have = importlib.metadata.version("mlflow")
    well = version == have
    return Finding(
        "tracking store",
        "ok" if well else "warn",
        f"{where} answers, MLflow {version}",
        "" if well else f"The client is MLflow {have}: use the same version on both sides.",
    )


def trace_reading(platform: Platform) -> Iterator[Finding]:
    """How the archive reads traces; nothing where there is no store yet."""
    from resources.reading.database import KNOWN_REVISIONS, database_of

    name = "trace reading"
    try:
        database = database_of(platform)
        revision = database.revision() if database else ""
    except Refused as refusal:
        yield Finding(name, "fail", str(refusal), "Then run lifecycle doctor again.")
        return
    if database is None:
        yield Finding(name, "ok", "by MLflow's API")
    elif revision in KNOWN_REVISIONS:
        yield Finding(name, "ok", f"straight from the database, whose schema {revision} is one this release knows")
    elif revision:
        yield Finding(
            name,
            "warn",
            f"by MLflow's API: the database's schema {revision[:40]} is none of those this release knows "
            f"({', '.join(KNOWN_REVISIONS)})",
            "Archiving is slower and as right; a release tested with that MLflow reads the database.",
        )


def archived_store(sources: Sources, agents: Sequence[Agent]) -> Iterator[Finding]:
    """Whether the tables were filled from this store; nothing while nothing is archived, or all is well."""
    from resources.archive.lost_store import lost_store

    for agent in agents:
        try:
            why = lost_store(sources.platform, agent.spec.table_prefix, agent.spec.experiment)
        except Refused as refusal:
            why = str(refusal)
        if why:
            yield Finding(f"archive of {agent.name}", "fail", why, "Then run lifecycle doctor again.")


def registry(sources: Sources, agents: Sequence[Agent]) -> Finding:
    """Whether versions, aliases and the ledger can be read, and whether every alias of ours names a version."""
    if not agents or not sources.has_store:
        return Finding("registry", "ok", "nothing is registered yet")
    try:
        with explained(sources.platform.registry_uri):
            states = {agent.name: read_state(agent, sources) for agent in agents}
    except Refused as refusal:
        return Finding("registry", "fail", str(refusal), "Then run lifecycle doctor again.")
    lost = [
        f"{name}: {alias} is version {number}, which was deleted"
        for name, state in states.items()
        for alias, number in state.named.items()
        if not state.version(number)
    ]
    if lost:
        remedy = f"Run lifecycle rollback {lost[0].partition(':')[0]}, or release again."
        return Finding("registry", "fail", "; ".join(lost), remedy)
    shown = ", ".join(f"{name} champion {state.champion or 'nobody'}" for name, state in states.items())
    return Finding("registry", "ok", f"can be read: {shown}")


def custom_scorers(platform: Platform) -> Finding:
    """Whether MLflow takes scorers that are code."""
    here = os.environ.get(CUSTOM_SCORERS, SETTINGS[CUSTOM_SCORERS])
    remedy = f"Set {CUSTOM_SCORERS}=true, or unset it."
    if here.lower() not in ("true", "1"):
        return Finding("custom scorers", "fail", f"{CUSTOM_SCORERS} is {here} in this environment", remedy)
    if platform.store_file is None:
        remedy = f"Start the server with {CUSTOM_SCORERS}=true; registered_scorers says so when it is not."
        return Finding("custom scorers", "warn", "allowed here; the server cannot be asked", remedy)
    return Finding("custom scorers", "ok", "allowed")
