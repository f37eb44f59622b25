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
from typing import TYPE_CHECKING, Self, TypeVar

import dagster as dg

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

    Take it before anything else is read, so that what comes meanwhile makes a difference to the next tick.
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
        archived = [self._glance.table(agent.spec.table_prefix + table) for table in tables]
        declared = [agent.spec.model_dump(mode="json"), platform.tracking_uri, platform.environment]
        self.events = last_events(instance_of(context), agent.name, assets) if assets else []
        self._beside = "" if "" in archived else digest([declared, self.events, archived])
        self._watch(watched)

    @property
    def can_tell(self) -> bool:
        """Whether everything could be looked at: the tables in their folder, the rows in the store."""
        return bool(self._beside and (self._things or not self._watched))

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

    def _watch(self, watched: "Sequence[Watched]") -> None:
        from lifecycle_assets.records import digest

        self._watched, self._things = watched, ""
        state = self._glance.state() if watched else "none"
        self._seen = digest([self._beside, state]) if self._beside and state else ""

    def _rows(self) -> str:
        from lifecycle_assets.records import digest

        rows = self._glance.rows(self._watched) if self._beside else ""
        return digest([self._beside, rows]) if rows else ""


def last_events(instance: dg.DagsterInstance, agent: str, assets: Sequence[str]) -> list[tuple[int, float] | None]:
    """The last materialization of each asset, by its place in Dagster's storage and its time; None without one.

    One question an asset, and the cheapest Dagster answers: two statements, whatever is stored.
    """
    found = [instance.fetch_materializations(dg.AssetKey([agent, asset]), limit=1).records for asset in assets]
    return [(events[0].storage_id, events[0].timestamp) if events else None for events in found]


def under_way(instance: dg.DagsterInstance, agent: str) -> bool:
    """Whether a run of the agent is at work: what it changes is looked at when it has ended."""
    running = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    return any(is_run_of(agent, run) for run in instance.get_runs(dg.RunsFilter(statuses=running), limit=100))
