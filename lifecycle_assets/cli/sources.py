"""What commands read from: the platform's gateways and Dagster's instance, opened only where something is.

Lives here: opening without making: MLflow creates a database and an experiment for whoever asks, so it is not asked
before they are there.
Add here: a further place commands read.
Not here: what is read.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import dagster as dg

from lifecycle_assets.cli.output import iso
from lifecycle_assets.edges import RECORD_KEY
from lifecycle_assets.home import open_instance
from lifecycle_assets.records import Record
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.alias_ledger import AliasLedger
from resources.archive.archive import Archive
from resources.deployer import Deployer
from resources.evaluator import Evaluator
from resources.explain import explained, without_password
from resources.gateways import open_gateway
from resources.labeling_desk import LabelingDesk
from resources.mlflow_store import open_client
from resources.model_registry import ModelRegistry
from resources.platform import Platform
from resources.scorer_registry import ScorerRegistry
from resources.sql.engine import SqlEngine
from resources.trace_store import TraceStore
from resources.tracing import Tracing

RecordT = TypeVar("RecordT", bound=Record)

LOCK_SECONDS = 2.0
"""How long a command waits for a SQLite file another process holds; MLflow would wait for minutes."""


@dataclass(frozen=True)
class Recorded(Generic[RecordT]):
    """A record, the moment Dagster got it (ISO 8601 UTC), and the numbers told beside it."""

    at: str
    record: RecordT
    numbers: Mapping[str, float] = field(default_factory=dict)


class Sources:
    """The gateways of this process's platform, each opened at its first use."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._experiments: dict[str, str] = {}
        self._opened: dict[str, Any] = {}
        self._locked = ""
        self.silent = ""
        """Why nothing more is asked: a platform that did not answer once would be waited for by every reader."""

    @cached_property
    def instance(self) -> dg.DagsterInstance | None:
        """Dagster's instance; None when nothing has run here."""
        if not (self.platform.dagster_home / "dagster.yaml").exists():
            return None
        with explained(str(self.platform.dagster_home)):
            return open_instance(self.platform)

    @cached_property
    def has_store(self) -> bool:
        """Whether MLflow can be asked without making a database.

        Raises `Refused` for one that is locked, which is waited for once.
        """
        if self._locked:
            raise Refused(self._locked)
        file = self.platform.store_file
        if file is None:
            return True
        if not file.exists() or file.stat().st_size == 0:
            return False
        try:
            with explained(self.platform.tracking_uri):
                probe_sqlite(file)
        except Refused as refusal:
            self._locked = str(refusal)
            raise
        return True

    def experiment(self, agent: Agent) -> str:
        """The id of the agent's experiment; empty when it is not there yet."""
        if not self.has_store:
            return ""
        if not self._experiments.get(agent.name):
            self._heard()
            with explained(self.platform.tracking_uri):
                found = open_client(self.platform).get_experiment_by_name(agent.spec.experiment)
            self._experiments[agent.name] = found.experiment_id if found else ""
        return self._experiments[agent.name]

    @property
    def registry(self) -> ModelRegistry:
        """Models, versions, aliases."""
        return self._gateway("registry")

    @property
    def ledger(self) -> AliasLedger:
        """Moves of aliases."""
        return self._gateway("ledger")

    @property
    def evaluator(self) -> Evaluator:
        """Evaluations and the decisions on them."""
        return self._gateway("evaluator")

    @property
    def scorers(self) -> ScorerRegistry:
        """Registered scorers."""
        return self._gateway("scorers")

    @property
    def traces(self) -> TraceStore:
        """Live traces."""
        return self._gateway("traces")

    @property
    def tracing(self) -> Tracing:
        """Where traces are kept, and the grants."""
        return self._gateway("tracing")

    @property
    def desk(self) -> LabelingDesk:
        """Labeling sessions."""
        return self._gateway("desk")

    @property
    def deployer(self) -> Deployer:
        """Hand-offs."""
        return self._gateway("deployer")

    @property
    def archive(self) -> Archive:
        """Tables, to ask whether they are there."""
        return self._gateway("archive")

    @property
    def sql(self) -> SqlEngine:
        """Tables and views."""
        return self._gateway("sql")

    def _gateway(self, name: str) -> Any:
        """The gateway of that name. Raises `Refused` when its platform did not answer before."""
        self._heard()
        if name not in self._opened:
            self._opened[name] = open_gateway(name)
        return self._opened[name]

    def _heard(self) -> None:
        if self.silent:
            raise Refused(self.silent)

    def rows(self, agent: Agent, query: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows of a query over the agent's tables."""
        return self.sql.query(agent.spec.table_prefix, query, params).dicts()

    def records(self, agent: Agent, asset: str, kind: type[RecordT], *, limit: int) -> list[Recorded[RecordT]]:
        """The asset's last records with their moments, newest first; those of other releases are left out."""
        if self.instance is None:
            return []
        key = dg.AssetKey([agent.name, asset])
        with explained(str(self.platform.dagster_home)):
            events = list(self.instance.fetch_materializations(key, limit=limit).records)
            events += self.instance.fetch_observations(key, limit=limit).records
        found = []
        for event in sorted(events, key=lambda event: event.timestamp, reverse=True)[:limit]:
            entry = event.event_log_entry
            said = entry.asset_materialization or entry.asset_observation
            told = said.metadata if said else {}
            value = told.get(RECORD_KEY)
            if value is not None and isinstance(value.value, Mapping) and _fits(kind, value.value):
                numbers = {name: one.value for name, one in told.items() if isinstance(one.value, int | float)}
                found.append(Recorded(iso(event.timestamp), kind.from_json(value.value), numbers))
        return found

    def latest(self, agent: Agent, asset: str, kind: type[RecordT]) -> Recorded[RecordT] | None:
        """The asset's newest record with its moment."""
        found = self.records(agent, asset, kind, limit=5)
        return found[0] if found else None


def probe_sqlite(file: Path, *, write: bool = False) -> None:
    """Read one page of the file, or take its write lock and give it back. Raises `sqlite3.OperationalError`."""
    mode = "rw" if write else "ro"
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=LOCK_SECONDS)) as con:
        con.execute("BEGIN IMMEDIATE" if write else "SELECT count(*) FROM sqlite_master").fetchall()
        con.rollback()


def guarded(sources: Sources, read: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """What `read` finds, with `state`: ok, not yet (it found nothing), or could not read and `why`."""
    try:
        with explained(shown_uri(sources.platform)):
            found = read()
    except Refused as refusal:
        if waited_in_vain(refusal):
            sources.silent = str(refusal)
        return {"state": "could not read", "why": str(refusal)}
    return {"state": "ok", **found} if found else {"state": "not yet"}


def waited_in_vain(refusal: Refused) -> bool:
    """Whether the refusal comes from retries or a request that took all the time they had, or from nobody there."""
    link: BaseException | None = refusal
    while link is not None and not isinstance(link, TimeoutError | ConnectionRefusedError):
        link = link.__cause__ or link.__context__
    return link is not None


def shown_uri(platform: Platform) -> str:
    """The tracking URI without its password."""
    return without_password(platform.tracking_uri)


def _fits(kind: type[Record], value: Mapping[str, Any]) -> bool:
    try:
        kind.from_json(value)
    except ValueError:
        return False
    return True
