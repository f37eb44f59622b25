"""Labeling sessions for people.

Lives here: opening a session with the declared questions, its items, the answers people gave.
Add here: what a client of reviewers needs of a session.
Not here: which traces to review (`lifecycle_assets/choosing.py`), what labels are used for (`labels.py`), what an
answer is (`label_answers.py`).

A session is an MLflow review queue. MLflow neither knows of a trace in two queues nor of one a reviewer removed, so
each trace carries the tag `QUEUED_TAG`: `adding <session>` from before it is added until it is known to be an item,
then the session's id, for ever.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import LabelSchema
from lifecycle_assets.spec_file import Agent
from resources.explain import explained
from resources.label_answers import answers_of, fits, pass_fail_options, refuse_unfit, reviewer_of, write_answer
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.platform import Platform
from resources.run_marks import page

QUEUED_TAG = "lifecycle.labeling_session"
"""Trace tag with the session a trace was put into; it stays when the reviewer removes the item."""

ADDING = "adding "
"""What the tag says before the session's id while the trace is being added."""
_PAGE = 100  # Traces named in one filter.


@dataclass(frozen=True)
class Session:
    """A labeling session: a review queue of MLflow, or a labeling session of Databricks' review app."""

    session_id: str
    name: str
    created: bool
    url: str = ""


@dataclass(frozen=True)
class Item:
    """One trace of a session: `pending`, `complete` or `declined` (as MLflow names it), and who completed it."""

    trace_id: str
    status: str
    completed_by: str
    updated_ms: int


@dataclass(frozen=True)
class Label:
    """One answer of one reviewer (lower-case, as MLflow compares them)."""

    trace_id: str
    schema: str
    value: Any
    reviewer: str
    at_ms: int


class LabelingDesk(ABC):
    """Opens labeling sessions and reads what people said."""

    @abstractmethod
    def open(self, agent: Agent, name: str, trace_ids: Sequence[str]) -> Session:
        """The session of that name with these traces: made when absent, completed when a former run died.

        Left out are traces that are in another session or were ever, that a reviewer removed from this one, and that
        are not there any more. Raises `Refused` when MLflow does not take a declared question.
        """

    @abstractmethod
    def interrupted(self, agent: Agent, tags: Iterable[str]) -> str:
        """Name of the session a run which died was filling, given tags of its traces; empty when there is none."""

    @abstractmethod
    def items(self, session_id: str) -> list[Item]:
        """The session's items, as they were added; none when the session was deleted."""

    @abstractmethod
    def labels(self, agent: Agent, trace_ids: Sequence[str]) -> list[Label]:
        """Valid answers of people on these traces, for the declared label schemas.

        The newest of each reviewer, question and trace; by trace as given, then question, then reviewer. An answer
        that is none of its question (a word for a number, an option that is not declared) is left out.
        """

    @abstractmethod
    def bring_home(self, agent: Agent, labels: Sequence[Label]) -> int:
        """Make sure that each answer is an assessment of the trace itself, so that the archive holds it.

        Returns how many were written; repeating writes nothing.
        """

    @abstractmethod
    def review(
        self, agent: Agent, session_id: str, trace_id: str, answers: Mapping[str, Any], *, reviewer: str
    ) -> None:
        """Answer and complete an item as a reviewer's client does.

        Repeating changes nothing; another answer of the same reviewer replaces the former one. Raises `Refused` for
        a trace that is no item, an undeclared question, and an answer the question does not allow.
        """


class MlflowLabelingDesk(LabelingDesk):
    """MLflow's review queues and label schemas, on SQLite or a server. One writer at a time (a Dagster pool)."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def open(self, agent: Agent, name: str, trace_ids: Sequence[str]) -> Session:
        """Claim each trace by its tag, add the claimed ones, then settle the tags; see the module's docstring."""
        with self._mlflow() as mlflow:
            experiment = experiment_id(self._platform, agent.spec.experiment)
            schema_ids = [self._schema_id(mlflow, agent, experiment, schema) for schema in agent.spec.labeling.schemas]
            queue, created = self._queue(mlflow, agent, experiment, name, schema_ids)
            client, claim = open_client(self._platform), ADDING + queue.queue_id
            tags = {info.trace_id: info.tags.get(QUEUED_TAG, "") for info in self._infos(experiment, trace_ids)}
            adding = [trace_id for trace_id in trace_ids if tags.get(trace_id, queue.queue_id) in ("", claim)]
            for trace_id in adding:
                if not tags[trace_id]:
                    client.set_trace_tag(trace_id, QUEUED_TAG, claim)
            if adding:
                mlflow.genai.review_queues.add_items_to_review_queue(queue.queue_id, item_ids=adding)
            for trace_id in adding:
                client.set_trace_tag(trace_id, QUEUED_TAG, queue.queue_id)
        return Session(
            queue.queue_id, queue.name, created, page(self._platform, f"experiments/{experiment}/review-queue")
        )

    def interrupted(self, agent: Agent, tags: Iterable[str]) -> str:
        """Look the queue up that the newest claim names."""
        ids = sorted({tag.removeprefix(ADDING) for tag in tags if tag})
        if not ids:
            return ""
        with self._mlflow() as mlflow:
            return mlflow.genai.review_queues.get_review_queue(queue_id=ids[-1]).name

    def items(self, session_id: str) -> list[Item]:
        """Read every page of the queue."""
        with self._mlflow() as mlflow:
            from mlflow.exceptions import MlflowException

            found, token = [], None
            while True:
                try:
                    some = mlflow.genai.review_queues.list_review_queue_items(
                        session_id, max_results=500, page_token=token
                    )
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
                    return []
                found.extend(some)
                token = some.token
                if not token:
                    break
        found.sort(key=lambda item: (item.creation_time_ms, item.item_id))
        return [
            Item(item.item_id, str(item.status), item.completed_by or "", item.last_update_time_ms) for item in found
        ]

    def labels(self, agent: Agent, trace_ids: Sequence[str]) -> list[Label]:
        """Read the traces' assessments, without their spans."""
        with self._mlflow():
            infos = self._infos(experiment_id(self._platform, agent.spec.experiment), trace_ids)
        return newest_labels(agent, [(info.trace_id, info) for info in infos], trace_ids)

    def bring_home(self, agent: Agent, labels: Sequence[Label]) -> int:
        """People answer on the traces themselves: there is nothing to bring."""
        return 0

    def review(
        self, agent: Agent, session_id: str, trace_id: str, answers: Mapping[str, Any], *, reviewer: str
    ) -> None:
        """Write the answers as assessments of that person, then set the item's status."""
        reviewer = reviewer.strip().lower()
        schemas = {schema.name: schema for schema in agent.spec.labeling.schemas}
        refuse_unfit(agent, answers)
        if trace_id not in {item.trace_id for item in self.items(session_id)}:
            raise Refused(f"{agent.name}: trace {trace_id} is no item of session {session_id}; review one that is.")
        with self._mlflow() as mlflow:
            for info in self._infos(experiment_id(self._platform, agent.spec.experiment), [trace_id]):
                for name, value in answers.items():
                    write_answer(mlflow, agent, info, schemas[name], value, reviewer)
            mlflow.genai.review_queues.set_review_queue_item_status(
                session_id, item_id=trace_id, status="complete", completed_by=reviewer
            )

    def _schema_id(self, mlflow: Any, agent: Agent, experiment: str, schema: LabelSchema) -> str:
        """The id of the question in the experiment: made when absent, its words and options updated."""
        from mlflow.exceptions import MlflowException

        wanted, api = _input(mlflow, schema), mlflow.genai.label_schemas
        where = f"{agent.folder.name}/defs.yaml: attributes.labeling.schemas '{schema.name}'"
        try:
            try:
                found = api.get_label_schema(schema.name, experiment_id=experiment)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                found = api.create_label_schema(
                    schema.name,
                    type=schema.type,
                    input=wanted,
                    instruction=schema.instruction,
                    enable_comment=True,
                    experiment_id=experiment,
                )
            if str(found.type) != schema.type:
                raise Refused(f"{where}: the experiment has it as {found.type}; give the {schema.type} another name.")
            if (found.input, found.instruction) != (wanted, schema.instruction):
                api.update_label_schema(found.schema_id, instruction=schema.instruction, input=wanted)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise Refused(f"{where}: MLflow refuses it ({error!s:.300}); correct it, or rename it.") from error
        return found.schema_id

    def _queue(self, mlflow: Any, agent: Agent, experiment: str, name: str, schema_ids: list[str]) -> tuple[Any, bool]:
        """The queue of that name and whether it was made now; two processes at once get the same one."""
        from mlflow.exceptions import MlflowException

        users = sorted({reviewer.strip().lower() for reviewer in agent.spec.labeling.reviewers})
        try:
            made = mlflow.genai.review_queues.create_review_queue(
                name, queue_type="custom", users=users, schema_ids=schema_ids, experiment_id=experiment
            )
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise Refused(f"{agent.name}: MLflow refuses the labeling session ({error!s:.300}).") from error
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return mlflow.genai.review_queues.get_review_queue(name=name, experiment_id=experiment), False
        return made, True

    def _infos(self, experiment: str, trace_ids: Sequence[str]) -> list[Any]:
        """Trace infos with tags and assessments; traces that are not in the experiment are left out."""
        client, found = open_client(self._platform), []
        for start in range(0, len(trace_ids), _PAGE):
            names = ", ".join(f"'{trace_id}'" for trace_id in trace_ids[start : start + _PAGE])
            traces = client.search_traces(
                locations=[experiment],
                filter_string=f"trace.request_id IN ({names})",
                max_results=_PAGE,
                include_spans=False,
            )
            found += [trace.info for trace in traces]
        return found

    @contextmanager
    def _mlflow(self) -> Generator[Any]:
        with explained(self._platform.tracking_uri):
            mlflow = open_mlflow(self._platform)
            import_module("mlflow.genai.label_schemas")
            import_module("mlflow.genai.review_queues")
            yield mlflow


def _input(mlflow: Any, schema: LabelSchema) -> Any:
    """How MLflow's UI asks the question."""
    api = mlflow.genai.label_schemas
    if schema.input == "pass_fail":
        positive, negative = pass_fail_options(schema)
        return api.InputPassFail(positive_label=positive, negative_label=negative)
    if schema.input == "categorical":
        return api.InputCategorical(options=list(schema.options))
    return api.InputNumeric() if schema.input == "numeric" else api.InputText()


def newest_labels(
    agent: Agent,
    infos: Iterable[tuple[str, Any]],
    trace_ids: Sequence[str],
    read: Callable[[LabelSchema, Any], Any] = lambda _, value: value,
) -> list[Label]:
    """See `LabelingDesk.labels`. `infos` are pairs of a trace's id and an MLflow trace info that holds its answers.

    `read` gives the meaning of a stored value.
    """
    newest: dict[tuple[str, str, str], Label] = {}
    for trace_id, info in infos:
        for schema, assessment in answers_of(agent, info):
            reviewer, at_ms = reviewer_of(assessment), assessment.last_update_time_ms or 0
            label = Label(trace_id, schema.name, read(schema, assessment.value), reviewer, at_ms)
            key = (trace_id, schema.name, reviewer)
            if fits(schema, label.value) and (key not in newest or newest[key].at_ms <= at_ms):
                newest[key] = label
    order = {trace_id: position for position, trace_id in enumerate(trace_ids)}
    return sorted(newest.values(), key=lambda label: (order[label.trace_id], label.schema, label.reviewer))
