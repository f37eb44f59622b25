"""What is known of an agent's lineage, put into a graph.

Lives here: the parts in their order, and the records of the candidate and review groups.
Add here: a further record that says what came from what.
Not here: decisions, versions, moves (`lineage_release.py`), traces (`lineage_traces.py`), the graph and references
(`lineage_graph.py`), printing (`lineage.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any

from lifecycle_assets.cli.lineage_graph import Graph, Node
from lifecycle_assets.cli.lineage_release import RECORDS, add_decisions, add_moves, add_versions, dataset_node
from lifecycle_assets.cli.lineage_traces import add_archived, add_live
from lifecycle_assets.cli.sources import Sources, guarded
from lifecycle_assets.records import DatasetRecord, LabelsRecord, ModelRecord, SessionRecord
from lifecycle_assets.spec_file import Agent
from resources.run_marks import page


def agent_graph(agent: Agent, sources: Sources, *, traces: Sequence[str], newest: int) -> tuple[Graph, list[str]]:
    """Everything known, and a sentence for each place that could not be read.

    `traces` are ids that must be in it; without any, the `newest` of each model are.
    """
    graph, unread = Graph(), []
    parts: list[Callable[[], Any]] = [
        lambda: _records(graph, agent, sources),
        lambda: add_decisions(graph, agent, sources),
        lambda: add_moves(graph, agent, sources),
        lambda: add_versions(graph, agent, sources),
        lambda: _sessions(graph, agent, sources),
        lambda: add_archived(graph, agent, sources, traces, newest),
        lambda: add_live(graph, agent, sources, traces),
    ]
    for part in parts:
        outcome = guarded(sources, part)
        if outcome["state"] == "could not read" and outcome["why"] not in unread:
            unread.append(outcome["why"])
    return graph, unread


def _records(graph: Graph, agent: Agent, sources: Sources) -> None:
    """Source, logged model, dataset: the candidate group's records."""
    for one in sources.records(agent, "logged_model", ModelRecord, limit=RECORDS):
        model, experiment = one.record, one.record.experiment_id
        commit = {"git_commit": model.git_commit} if model.git_commit else {}
        graph.add(Node("agent_source", model.source_digest, facts=commit))
        url = page(sources.platform, f"experiments/{experiment}/models/{model.model_id}")
        graph.add(Node("logged_model", model.model_id, url, one.at, {"run_id": model.run_id}))
        graph.link(model.source_digest, model.model_id, "logged as")
    for found in sources.records(agent, "eval_dataset", DatasetRecord, limit=RECORDS):
        graph.add(dataset_node(found.record.digest, found.record.name, found.at, found.record.rows))


def _sessions(graph: Graph, agent: Agent, sources: Sources) -> None:
    """Labeling sessions and the labels synced from them into the dataset."""
    url = page(sources.platform, f"experiments/{sources.experiment(agent)}/review-queue")
    for one in sources.records(agent, "labeling_session", SessionRecord, limit=RECORDS):
        session = one.record
        if session.session_id:
            facts = {
                "name": session.name,
                "items": len(session.trace_ids),
                "reason": session.reason,
                "trace_ids": session.trace_ids,
            }
            graph.add(Node("labeling_session", session.session_id, url, session.opened_at, facts))
    for synced in sources.records(agent, "human_labels", LabelsRecord, limit=RECORDS):
        labels = synced.record
        if labels.session_id and labels.labels:
            facts = {"completed": labels.completed, "labels": labels.labels, "merged": labels.merged}
            name = graph.add(
                Node("human_labels", f"labels of {labels.session_id} at {synced.at}", at=synced.at, facts=facts)
            )
            graph.link(labels.session_id, name, "answered in")
            if labels.merged:
                graph.add(dataset_node(labels.dataset_digest, at=synced.at))
                graph.link(name, labels.dataset_digest, "merged into")
