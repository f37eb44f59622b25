"""The cheap look with which a tick begins: whether anything has changed that the last decision rested on.

Lives here: comparing what a sensor watches with what its cursor holds, the cheapest question first.
Add here: a further place a decision may rest on.
Not here: the questions themselves (`resources/store_glance.py`), decisions (each sensor's module).

Two steps. The first asks Dagster for the last materialization of each asset, and looks at the facts of files, without
SQL to MLflow's store. When something was written there, be it a trace, or the store is a server, which has no such
facts, the second asks one query per watched thing.
Only when that differs too does the sensor ask what costs. Where nothing can be told, it does so at every tick. A look
is a shortcut, never a decision: with a lost cursor, or one of an earlier release, the sensor decides anew, and its run
keys keep it from asking twice.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Self, TypeVar

import dagster as dg

from lifecycle_assets.edges import RecordT, latest, record_in
from lifecycle_assets.jobs import is_run_of
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform
from sensors.opened import instance_of
from sensors.watermark import Looked

if TYPE_CHECKING:
    from resources.store_glance import Watched

LookedT = TypeVar("LookedT", bound=Looked)


class Look:
    """What one tick sees of the agent's sibling `assets`, of `tables` of its archive and of rows of MLflow's store.

    Take it before anything else is read, so that what comes meanwhile makes a difference to the next tick. `events` are
    the last materializations, by their place in Dagster's storage and their time; `commits` the tables' newest ones.
    """

    def __init__(
        self,
        agent: Agent,
        context: dg.SensorEvaluationContext,
        *,
        assets: Sequence[str] = (),
        tables: Sequence[str] = (),
        watched: "Sequence[Watched]" = (),
    ) -> None:
        from lifecycle_assets.records import digest
        from resources.store_glance import StoreGlance

        platform = Platform.from_env()
        self._glance = StoreGlance(platform)
        self._tables = [agent.spec.table_prefix + table for table in tables]
        self.commits = [self._glance.table(table) for table in self._tables]
        declared = [agent.spec.model_dump(mode="json"), platform.tracking_uri, platform.environment]
        self._agent, self._instance = agent.name, instance_of(context) if assets else None
        self._found = last_events(self._instance, agent.name, assets) if self._instance else {}
        self.events = [(one.storage_id, one.timestamp) if one else None for one in self._found.values()]
        self._beside = "" if "" in self.commits else digest([declared, self.events, self.commits])
        self._watch(watched)

    @property
    def can_tell(self) -> bool:
        """Whether everything could be looked at: the tables in their folder, the rows in the store."""
        return bool(self._beside and (self._things or not self._watched))

    def latest(self, asset: str, kind: type[RecordT]) -> RecordT | None:
        """The record of one of the assets, as this look found it; None when it has none.

        Raises `Refused` for one of another release.
        """
        event, key = self._found[asset], dg.AssetKey([self._agent, asset])
        if event is not None:
            return record_in(event.event_log_entry, key, kind)
        assert self._instance is not None  # It was asked for this asset.
        return latest(self._instance, key, kind)

    def unchanged(self, cursor: LookedT) -> LookedT | None:
        """The cursor to go on with when nothing has changed since it was noted; None when the sensor has to decide."""
        if self._seen and self._seen == cursor.seen:
            return cursor
        if self._watched:
            self._things = self._rows()
            if self._things and self._things == cursor.things:
                return replace(cursor, seen=self._seen)
        return None

    def watching(self, watched: "Sequence[Watched]") -> Self:
        """The same look at other rows of the store, which are read now."""
        self._watch(watched)
        self._things = self._rows()
        return self

    def noted(self, cursor: LookedT) -> LookedT:
        """The cursor after a decision: with what was seen before it, provided that it still is so."""
        if self._watched and (not self._things or self._rows() != self._things):
            return replace(cursor, seen="", things="")
        return replace(cursor, seen=self._seen, things=self._things)

    def days_changed(self, since: Sequence[str]) -> frozenset[date] | None:
        """The days with rows written to the tables since an earlier look, whose `commits` are given; None: any."""
        if len(since) != len(self._tables):
            return None
        looks = zip(self._tables, since, self.commits, strict=True)
        days = [self._glance.days_changed(table, before, now) for table, before, now in looks]
        known = [each for each in days if each is not None]
        return frozenset().union(*known) if len(known) == len(days) else None

    def _watch(self, watched: "Sequence[Watched]") -> None:
        from lifecycle_assets.records import digest

        self._watched, self._things = watched, ""
        state = self._glance.state() if watched else "none"
        self._seen = digest([self._beside, state]) if self._beside and state else ""

    def _rows(self) -> str:
        from lifecycle_assets.records import digest

        rows = self._glance.rows(self._watched) if self._beside else ""
        return digest([self._beside, rows]) if rows else ""


def last_events(instance: dg.DagsterInstance, agent: str, assets: Sequence[str]) -> dict[str, dg.EventLogRecord | None]:
    """The last materialization of each asset; None without one.

    One question an asset, and the cheapest Dagster answers: two statements, whatever is stored.
    """
    keys = {asset: dg.AssetKey([agent, asset]) for asset in assets}
    found = {asset: instance.fetch_materializations(key, limit=1).records for asset, key in keys.items()}
    return {asset: events[0] if events else None for asset, events in found.items()}


def under_way(instance: dg.DagsterInstance, agent: str) -> bool:
    """Whether a run of the agent is at work: what it changes is looked at when it has ended."""
    running = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    return any(is_run_of(agent, run) for run in instance.get_runs(dg.RunsFilter(statuses=running), limit=100))
