"""The places this product depends on, each looked at without touching it.

Lives here: one function a place, giving findings; nothing is created and no secret is shown.
Add here: a place users have to set up.
Not here: the order and the output (`doctor.py`).
"""

import importlib.metadata
import os
import shutil
import sqlite3
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lifecycle_assets.cli.release_state import read_state
from lifecycle_assets.cli.sources import Sources, probe_sqlite, shown_uri, sqlite_file
from lifecycle_assets.finding import Finding
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.explain import explain, explained, without_password
from resources.mlflow_store import SETTINGS
from resources.platform import Platform
from resources.scorer_source import JUDGE_MODEL
from resources.webhook import Webhook, configured

PROJECT = "lifecycle-assets"
PACKAGES = ("dagster", "mlflow", "deltalake", "duckdb")
CUSTOM_SCORERS = "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS"
SERVER_SECONDS = 3
LITTLE_MB, TOO_LITTLE_MB = 2_000, 200
"""Free disk below which there is a warning, and below which a demo does not fit."""


def platform_found(platform: Platform) -> Finding:
    """Which platform the environment names."""
    tables = "Unity Catalog" if platform.is_databricks else without_password(platform.warehouse)
    where = f"tracking {shown_uri(platform)}, tables {tables}"
    return Finding("platform", "ok", f"{platform.name}, environment {platform.environment}, {where}")


def versions() -> Iterator[Finding]:
    """Python and the libraries against the pins of this project."""
    wanted, python = _pins()
    now = ".".join(map(str, sys.version_info[:3]))
    well = python.contains(now)
    yield Finding(
        "python", "ok" if well else "fail", f"{now}, pinned {python}", "" if well else f"Use a Python {python}."
    )
    for name in PACKAGES:
        pin = wanted.get(name)
        specifier = pin.specifier if pin else SpecifierSet()
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", f"Run: pip install '{name}{specifier}'")
            continue
        well = specifier.contains(have)
        remedy = "" if well else f"Behaviour was tried with the pin; run: pip install '{name}{specifier}'"
        yield Finding(name, "ok" if well else "warn", f"{have}, pinned {specifier or 'nowhere'}", remedy)


def _pins() -> tuple[dict[str, Requirement], SpecifierSet]:
    """Requirements of this project by name, and its Python: from the installed package, else from the checkout."""
    try:
        lines = importlib.metadata.requires(PROJECT) or []
        python = importlib.metadata.metadata(PROJECT)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        file = Path(__file__).parents[2] / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"] if file.exists() else {}
        lines, python = project.get("dependencies", []), project.get("requires-python")
    found = [Requirement(line) for line in lines]
    return {one.name: one for one in found if "extra" not in str(one.marker or "")}, SpecifierSet(python or "")


def home(platform: Platform) -> Finding:
    """Whether local state can be written."""
    return _written("home", platform.home, "LIFECYCLE_HOME")


def tables(platform: Platform) -> Finding:
    """Whether the tables' folder can be written; an object store is not looked at."""
    scheme, separator, path = platform.warehouse.rpartition("://")
    if separator and scheme != "file":
        return Finding("tables", "ok", f"{without_password(platform.warehouse)} is an object store, not looked at")
    return _written("tables", Path(path), "LIFECYCLE_WAREHOUSE_URI")


def _written(name: str, wanted: Path, variable: str) -> Finding:
    """Whether a folder can be written, by a file that never has a name."""
    folder = _existing(wanted)
    remedy = f"Give this user permission or free space, or set {variable} to a folder you can write."
    if not folder.is_dir():
        return Finding(name, "fail", f"{wanted}: {folder} is not a folder", remedy)
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, "fail", f"{wanted}: {folder} cannot be written", remedy)
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x" * 65536)
    except OSError as error:
        return Finding(name, "fail", f"{wanted}: {folder} cannot be written ({error.strerror})", remedy)
    return Finding(name, "ok", f"{wanted} {'can be written' if folder == wanted else 'can be made'}")


def disk(platform: Platform) -> Finding:
    """Free space where local state is."""
    free = shutil.disk_usage(_existing(platform.home)).free // 1_000_000
    state = "fail" if free < TOO_LITTLE_MB else "warn" if free < LITTLE_MB else "ok"
    remedy = "" if state == "ok" else "Free space, or set LIFECYCLE_HOME to another disk."
    return Finding("disk", state, f"{free:,} MB free", remedy)


def tracking_store(platform: Platform) -> Iterator[Finding]:
    """Whether MLflow's store answers, and whether somebody holds it."""
    file = sqlite_file(platform)
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
    if sqlite_file(platform) is None:
        remedy = f"Start the server with {CUSTOM_SCORERS}=true; registered_scorers says so when it is not."
        return Finding("custom scorers", "warn", "allowed here; the server cannot be asked", remedy)
    return Finding("custom scorers", "ok", "allowed")


def declarations(agents: Sequence[Agent], broken: Sequence[str]) -> Iterator[Finding]:
    """The agents, and those that cannot be read."""
    if agents or not broken:
        state = "ok" if agents else "warn"
        names = ", ".join(agent.name for agent in agents) or "none"
        yield Finding("agents", state, names, "" if agents else "Add a folder with a defs.yaml, or set LIFECYCLE_DEFS.")
    for sentence in broken:
        yield Finding("agents", "fail", sentence, "Other agents are not affected.")


def webhooks(agents: Sequence[Agent]) -> Iterator[Finding]:
    """Whether alerts and hand-offs have somewhere to go; neither address nor secret is shown."""
    for variable in sorted({agent.spec.alerts.webhook_env for agent in agents}):
        well = configured(variable)
        text = "configured" if well else f"{variable} is not set: no message is sent"
        yield Finding(
            "alert webhook",
            "ok" if well else "warn",
            text,
            "" if well else f"Set {variable} to your webhook's address.",
        )
    for agent in agents:
        declared = agent.spec.deployment
        if declared.target == "webhook":
            try:
                Webhook(declared.url_env, secret_env=declared.secret_env).require()
            except Refused as refusal:
                yield Finding("deployment webhook", "fail", str(refusal), f"Then materialize {agent.name}/deployment.")
            else:
                yield Finding("deployment webhook", "ok", f"{agent.name}: configured, signed")


def models(agents: Sequence[Agent]) -> Iterator[Finding]:
    """Whether judges and agents have a model to ask; without one, agents answer by their own means."""
    judge = os.environ.get(JUDGE_MODEL, "")
    if judge:
        yield Finding("judge model", "ok", judge)
    else:
        without = sorted({s.name for agent in agents for s in agent.spec.scorers if s.requires == JUDGE_MODEL})
        text = f"{JUDGE_MODEL} is not set" + (f": {', '.join(without)} left out" if without else "")
        remedy = f"Set {JUDGE_MODEL}, such as openai:/gpt-5-mini, and its key, to run judges." if without else ""
        yield Finding("judge model", "warn" if without else "ok", text, remedy)
    for agent in agents:
        variable = f"{agent.name.upper()}_MODEL"  # The shipped agent reads this name; others may not.
        text = os.environ.get(variable) or f"{variable} is not set: the agent answers by its own means"
        yield Finding("agent model", "ok", text)


def dagster_instance(sources: Sources) -> Iterator[Finding]:
    """Dagster's instance, and whether its daemon beats."""
    folder = sources.platform.dagster_home
    try:
        instance = sources.instance
        if instance is None:
            yield Finding("dagster instance", "warn", f"{folder} is not there yet", "Run make demo or make ui.")
            return
        with explained(str(folder)):
            statuses = instance.get_daemon_statuses()
    except Refused as refusal:
        yield Finding("dagster instance", "fail", str(refusal), "Then run lifecycle doctor again.")
        return
    yield Finding("dagster instance", "ok", str(folder))
    silent = sorted(name.lower() for name, status in statuses.items() if status.required and not status.healthy)
    text = f"no heartbeat of {', '.join(silent)}: sensors and schedules rest" if silent else "every daemon beats"
    yield Finding(
        "dagster daemon", "warn" if silent else "ok", text, "Run make ui: it starts the daemon." if silent else ""
    )


_CAN = {
    "local": (
        "log, evaluate, gate, register, promote, serve on loopback, score, archive to Delta, label in review queues",
        "grants, SQL warehouses, model serving endpoints, labeling sessions in a review app, native trace archival: "
        "those are Databricks'",
    ),
    "databricks": (
        "log, evaluate, gate, register in Unity Catalog, promote, deploy, monitor with registered scorers, archive by "
        "SQL, label in a review app, run partitions by Dagster Pipes",
        "score traces in this process: the workspace's monitoring job does, and backfills are asked of it",
    ),
}
"""Platform to what it can do and what it cannot."""


def capabilities(platform: Platform) -> Iterator[Finding]:
    """What this platform can do and cannot."""
    can, cannot = _CAN[platform.name]
    yield Finding(f"{platform.name} can", "ok", can)
    yield Finding(f"{platform.name} cannot", "ok", cannot)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    for one in (folder, *folder.parents):
        try:
            if one.exists():
                return one
        except OSError:
            continue  # A folder above may not be entered: that one is looked at next.
    return Path(folder.anchor)
