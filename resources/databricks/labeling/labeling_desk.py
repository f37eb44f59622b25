"""Labeling sessions of Databricks' review app.

Lives here: asking a worker to open a session, items, labels, answering as a reviewer's client does.
Add here: what a caller asks of sessions. Not here: making and filling them (`labeling_steps.py`), the service's items
and whose copies they show (`labeling_items.py`).

Reading needs no library of Databricks' agents, which has no time limit and changes process-global state: the few
requests are made by databricks-sdk, bounded one by one and together (`managed_evals.py`), in this process. A process of
its own would cost a sensor 6 s of CPU a session at every tick.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import LabelSchema
from lifecycle_assets.spec_file import Agent
from resources.databricks.labeling.labeling_items import LabelingItems, in_catalog
from resources.databricks.workspace import require_agents
from resources.explain import explained
from resources.label_answers import pass_fail_options, refuse_unfit, write_answer
from resources.labeling_desk import ADDING, QUEUED_TAG, Item, Label, MlflowLabelingDesk, Session, newest_labels
from resources.mlflow_store import experiment_id, open_mlflow
from resources.platform import Platform
from resources.worker import run_worker

OPEN_SECONDS = 120.0
"""How long opening may take, besides `TRACE_SECONDS` a trace; killed then, it goes on when it is repeated."""

TRACE_SECONDS = 5.0
"""How long copying and adding one trace may take."""

_STATES = {"COMPLETED": "complete", "SKIPPED": "declined"}


class DatabricksLabelingDesk(MlflowLabelingDesk):
    """Labeling sessions of the workspace. One writer at a time (a Dagster pool)."""

    def __init__(self, platform: Platform) -> None:
        """Opens nothing yet."""
        super().__init__(platform)
        self._items = LabelingItems(platform)

    def open(self, agent: Agent, name: str, trace_ids: Sequence[str]) -> Session:
        """See `LabelingDesk.open`. In a worker; claims and settles tags as the local desk does, so it may be killed."""
        require_agents()
        made = run_worker(
            "open_labeling",
            self.request(agent, name, trace_ids),
            platform=self._platform,
            progress=lambda _: None,
            timeout_seconds=OPEN_SECONDS + TRACE_SECONDS * len(trace_ids),
        )
        return Session(**made)

    def request(self, agent: Agent, name: str, trace_ids: Sequence[str]) -> dict[str, Any]:
        """What the worker is asked to open a session."""
        with explained(self._platform.tracking_uri):
            experiment = experiment_id(self._platform, agent.spec.experiment)
        return {
            "agent": agent.name,
            "file": f"{agent.folder.name}/defs.yaml",
            "experiment_id": experiment,
            "name": name,
            "reviewers": sorted({reviewer.strip() for reviewer in agent.spec.labeling.reviewers}),
            "schemas": [schema.model_dump() for schema in agent.spec.labeling.schemas],
            "trace_ids": list(trace_ids),
        }

    def interrupted(self, agent: Agent, tags: Iterable[str]) -> str:
        """See `LabelingDesk.interrupted`; empty also when that session was deleted."""
        ids = sorted({tag.removeprefix(ADDING) for tag in tags if tag})
        app, _, wanted = ids[-1].partition("/") if ids else ("", "", "")
        if not wanted:
            return ""
        with explained(self._platform.tracking_uri):
            sessions = self._items.sessions(app)
        return next((one.get("name", "") for one in sessions if one.get("labeling_session_id") == wanted), "")

    def items(self, session_id: str) -> list[Item]:
        """See `LabelingDesk.items`. Ends within 40 s, also when the workspace hangs or says that it is busy."""
        found: dict[str, Item] = {}
        with explained(self._platform.tracking_uri):
            for entry in self._items.entries(session_id):
                status = _STATES.get(entry.item.get("state") or "", "pending")
                by = (entry.item.get("last_updated_by") or "") if status == "complete" else ""
                item = Item(entry.original, status, by, _ms(entry.item.get("last_update_time")))
                # Two items of one trace, as a lost answer leaves them: the one somebody answered counts.
                if entry.original not in found or found[entry.original].status == "pending":
                    found[entry.original] = item
        return list(found.values())

    def labels(self, agent: Agent, trace_ids: Sequence[str]) -> list[Label]:
        """See `LabelingDesk.labels`. Answers on the traces themselves count as those on their copies do."""
        with explained(self._platform.tracking_uri):
            infos = self._items.infos(trace_ids)
            copied = [info.tags.get(QUEUED_TAG, "") for trace_id, info in infos.items() if in_catalog(trace_id)]
            sessions = {tag.removeprefix(ADDING) for tag in copied if tag}
            copies = {
                shown: entry.original
                for session in sorted(sessions)
                for entry in self._items.entries(session)
                for shown in entry.shown
                if shown != entry.original and entry.original in infos
            }
            answered = [(copies[trace_id], info) for trace_id, info in self._items.infos(list(copies)).items()]
        return newest_labels(agent, [*infos.items(), *answered], trace_ids, _meant)

    def bring_home(self, agent: Agent, labels: Sequence[Label]) -> int:
        """See `LabelingDesk.bring_home`: people answer on copies of traces that are in Unity Catalog.

        An answer is written unless the reviewer's newest one on the trace says the same.
        """
        schemas = {schema.name: schema for schema in agent.spec.labeling.schemas}
        copied = [label for label in labels if in_catalog(label.trace_id)]
        with explained(self._platform.tracking_uri):
            infos = self._items.infos(list(dict.fromkeys(label.trace_id for label in copied)))
            mlflow = open_mlflow(self._platform)
            return sum(
                write_answer(mlflow, agent, infos[label.trace_id], schemas[label.schema], label.value, label.reviewer)
                for label in copied
                if label.trace_id in infos
            )

    def review(
        self, agent: Agent, session_id: str, trace_id: str, answers: Mapping[str, Any], *, reviewer: str
    ) -> None:
        """See `LabelingDesk.review`. The answers are assessments on the shown trace, then the item is completed."""
        refuse_unfit(agent, answers)
        reviewer, schemas = reviewer.strip().lower(), {schema.name: schema for schema in agent.spec.labeling.schemas}
        with explained(self._platform.tracking_uri):
            entry = next((one for one in self._items.entries(session_id) if one.original == trace_id), None)
            if entry is None:
                raise Refused(f"{agent.name}: trace {trace_id} is no item of session {session_id}; review one that is.")
            mlflow, written = open_mlflow(self._platform), False
            for info in self._items.infos(entry.shown[:1]).values():
                for name, value in answers.items():
                    said = stored(schemas[name], value)
                    written |= write_answer(mlflow, agent, info, schemas[name], said, reviewer)
            if written or entry.item.get("state") != "COMPLETED":
                self._items.complete(session_id, entry)


def stored(schema: LabelSchema, value: Any) -> Any:
    """An answer as the review app stores it: it has no pass-or-fail question, only a choice of two words."""
    if schema.input != "pass_fail":
        return value
    positive, negative = pass_fail_options(schema)
    return positive if value else negative


def _meant(schema: LabelSchema, value: Any) -> Any:
    """What a stored answer means."""
    words = dict(zip(pass_fail_options(schema), (True, False), strict=True))
    return words.get(value, value) if schema.input == "pass_fail" and isinstance(value, str) else value


def _ms(text: str | None) -> int:
    """Epoch milliseconds of a time as the service writes it; 0 without one."""
    return int(datetime.fromisoformat(text).timestamp() * 1000) if text else 0
