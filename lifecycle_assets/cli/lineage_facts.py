"""What is known of an agent's lineage, put into a graph.

Lives here: one function a place facts are kept in: Dagster's records, the registry, the tables, live traces.
Add here: a further fact that says what came from what.
Not here: the graph and references (`lineage_graph.py`), printing (`lineage.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from lifecycle_assets.cli.history import moves
from lifecycle_assets.cli.lineage_graph import Graph, Node
from lifecycle_assets.cli.output import iso
from lifecycle_assets.cli.sources import Sources, guarded
from lifecycle_assets.records import DatasetRecord, EvalRecord, LabelsRecord, ModelRecord, SessionRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.explain import explain
from resources.labeling_desk import QUEUED_TAG
from resources.run_marks import page

RECORDS = 100
"""Materializations of an asset that are looked at, newest first."""

COUNTS_SQL = "SELECT model_id, count(*) AS n, max(request_time) AS newest FROM traces GROUP BY model_id"
NEWEST_SQL = """
SELECT trace_id, model_id, request_time, state, session_id, tags[?] AS queue FROM traces
WHERE list_contains(?, trace_id) OR ? QUALIFY list_contains(?, trace_id)
    OR row_number() OVER (PARTITION BY model_id ORDER BY request_time DESC, trace_id) <= ?
ORDER BY request_time DESC, trace_id
"""
SAID_SQL = "SELECT * FROM assessments WHERE valid AND list_contains(?, trace_id) ORDER BY created_at, assessment_id"


def agent_graph(agent: Agent, sources: Sources, *, traces: Sequence[str], newest: int) -> tuple[Graph, list[str]]:
    """Everything known, and a sentence for each place that could not be read.

    `traces` are ids that must be in it; without any, the `newest` of each model are.
    """
    graph, unread = Graph(), []
    parts: list[Callable[[], Any]] = [
        lambda: _records(graph, agent, sources),
        lambda: _versions(graph, agent, sources),
        lambda: _moves(graph, agent, sources),
        lambda: _sessions(graph, agent, sources),
        lambda: _archived(graph, agent, sources, traces, newest),
        lambda: _live(graph, agent, sources, traces),
    ]
    for part in parts:
        outcome = guarded(sources, part)
        if outcome["state"] == "could not read" and outcome["why"] not in unread:
            unread.append(outcome["why"])
    return graph, unread


def _records(graph: Graph, agent: Agent, sources: Sources) -> None:
    """Source, logged model, dataset, evaluation: the candidate group's records."""
    for one in sources.records(agent, "logged_model", ModelRecord, limit=RECORDS):
        model, experiment = one.record, one.record.experiment_id
        commit = {"git_commit": model.git_commit} if model.git_commit else {}
        graph.add(Node("agent_source", model.source_digest, facts=commit))
        url = page(sources.platform, f"experiments/{experiment}/models/{model.model_id}")
        graph.add(Node("logged_model", model.model_id, url, one.at, {"run_id": model.run_id}))
        graph.link(model.source_digest, model.model_id, "logged as")
    for found in sources.records(agent, "eval_dataset", DatasetRecord, limit=RECORDS):
        graph.add(_dataset(found.record.digest, found.record.name, found.at, found.record.rows))
    for result in sources.records(agent, "eval_results", EvalRecord, limit=RECORDS):
        record = result.record
        graph.add(_dataset(record.dataset_digest, record.dataset_name, "", record.rows))
        run = page(sources.platform, f"experiments/{sources.experiment(agent)}/runs/{record.run_id}")
        facts = {"verdict": record.verdict, "metrics": record.metrics}
        graph.add(Node("evaluation_run", record.run_id, run, record.at or result.at, facts))
        graph.add(Node("logged_model", record.model_id))
        graph.link(record.model_id, record.run_id, "evaluated in")
        graph.link(record.dataset_digest, record.run_id, "evaluated on")


def _versions(graph: Graph, agent: Agent, sources: Sources) -> None:
    """Registered versions with what their tags name, aliases, the hand-off."""
    if not sources.has_store:
        return
    for version in sources.registry.versions(agent.spec.model_name):
        tags, uri = version.tags, f"models:/{version.name}/{version.version}"
        run, digest = tags.get("lifecycle.eval_run_id", ""), tags.get("lifecycle.dataset_digest", "")
        url = page(sources.platform, f"models/{version.name}/versions/{version.version}")
        graph.add(Node("model_version", uri, url, iso(version.created_ms / 1000), {"version": version.version}))
        if version.model_id:
            graph.add(Node("logged_model", version.model_id))
            graph.link(version.model_id, uri, "registered as")
        if run:
            graph.add(Node("evaluation_run", run, facts={"verdict": tags.get("lifecycle.verdict", "")}))
            graph.link(version.model_id, run, "evaluated in")
            graph.link(run, uri, "let through")
        if run and digest:
            graph.add(_dataset(digest))
            graph.link(digest, run, "evaluated on")
    for alias, number in sources.registry.aliases(agent.spec.model_name).items():
        name = graph.add(Node("alias", f"models:/{agent.spec.model_name}@{alias}", facts={"version": number}))
        graph.link(f"models:/{agent.spec.model_name}/{number}", name, "named by")


def _moves(graph: Graph, agent: Agent, sources: Sources) -> None:
    """Alias moves from the ledger, and the deployment the last one led to."""
    last = ""
    for move in moves(agent, sources):
        last = f"{move['alias']} {move['from'] or 'nobody'} -> {move['to']} at {move['at']}"
        facts = {"to": move["to"], "alias": move["alias"], "who": move["who"], "why": move["why"]}
        graph.add(Node("champion_move", last, at=move["at"], facts=facts))
        graph.link(f"models:/{agent.spec.model_name}/{move['to']}", last, "promoted in")
        graph.link(move["evidence"]["run_id"], last, "evidence of")
    handed = sources.deployer.current(agent)
    if handed is not None:
        url = f"deployment of {agent.name}: version {handed.version}"
        graph.add(
            Node("deployment", url, at=handed.handed_at, facts={"version": handed.version, "model_id": handed.model_id})
        )
        moved = last if last and graph.nodes[last].facts["to"] == handed.version else ""
        graph.link(moved or f"models:/{agent.spec.model_name}/{handed.version}", url, "handed over in")


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
                graph.add(_dataset(labels.dataset_digest, at=synced.at))
                graph.link(name, labels.dataset_digest, "merged into")


def _archived(graph: Graph, agent: Agent, sources: Sources, wanted: Sequence[str], newest: int) -> None:
    """Traces of the tables: a count for each model, the wanted or newest ones, what was said of them."""
    for row in sources.rows(agent, COUNTS_SQL):
        model = row["model_id"] or ""
        name = f"traces of {model or 'no model'}"
        graph.add(Node("traces", name, at=iso(row["newest"]), facts={"count": row["n"], "model_id": model}))
        graph.link(_answered_by(graph, agent, model, iso(row["newest"])), name, "answered")
    ids = list(wanted)
    rows = sources.rows(agent, NEWEST_SQL, [QUEUED_TAG, ids, not ids, ids, 0 if ids else newest])
    for row in rows:
        _trace(graph, agent, sources, row)
    for row in sources.rows(agent, SAID_SQL, [[row["trace_id"] for row in rows]]):
        _assessment(graph, agent, sources, row)


def _live(graph: Graph, agent: Agent, sources: Sources, wanted: Sequence[str]) -> None:
    """Traces that are wanted, as MLflow has them now; of traces nobody wants only the newest."""
    experiment = sources.experiment(agent)
    if not experiment:
        return
    newest = None if wanted else sources.traces.newest(agent.spec.experiment)
    for trace_id in [*wanted, *([newest.trace_id] if newest else [])]:
        try:
            trace = next(iter(sources.traces.read([trace_id])))
        except Refused as refusal:
            if explain(refusal, ""):
                raise
            continue  # It is gone from MLflow, or was never there; the tables may know it.
        # A trace in Unity Catalog names its place, not its experiment.
        if trace.info.experiment_id not in (experiment, None):
            continue
        rows = sources.traces.rows(trace)
        run = (trace.info.trace_metadata or {}).get("mlflow.sourceRun", "")
        row = {**rows.trace, "queue": (trace.info.tags or {}).get(QUEUED_TAG), "evaluated_in": run}
        _trace(graph, agent, sources, row)
        for said in rows.assessments:
            if said["valid"]:
                _assessment(graph, agent, sources, said)


def _trace(graph: Graph, agent: Agent, sources: Sources, row: Mapping[str, Any]) -> None:
    trace_id, at = row["trace_id"], iso(row["request_time"])
    path = f"experiments/{sources.experiment(agent)}/traces?selectedEvaluationId={quote(trace_id, safe='')}"
    url = page(sources.platform, path)
    graph.add(Node("trace", trace_id, url, at, {"state": row["state"], "model_id": row["model_id"] or ""}))
    if row["model_id"]:
        graph.add(Node("logged_model", row["model_id"]))
        graph.link(row["model_id"], trace_id, "answered")
    if row.get("evaluated_in"):
        graph.add(Node("evaluation_run", row["evaluated_in"]))
        graph.link(row["evaluated_in"], trace_id, "asked")
    else:
        graph.link(_answered_by(graph, agent, row["model_id"] or "", at), trace_id, "answered")
    queued = {n.id for n in graph.nodes.values() if n.kind == "labeling_session" and trace_id in n.facts["trace_ids"]}
    for session in {row.get("queue") or "", *queued} & set(graph.nodes):
        graph.link(trace_id, session, "queued in")


def _assessment(graph: Graph, agent: Agent, sources: Sources, row: Mapping[str, Any]) -> None:
    """A person's is a label, given in a session when the trace is in one; anything else came from a scorer."""
    by_person = row["source_type"] == "HUMAN"
    value = row["value_number"] if row["value_number"] is not None else row["value_text"]
    facts = {"name": row["name"], "value": value, "by": row["source_id"] or ""}
    said = graph.add(
        Node("label" if by_person else "assessment", row["assessment_id"], at=iso(row["created_at"]), facts=facts)
    )
    graph.link(row["trace_id"], said, "assessed in")
    if by_person:
        questions = {schema.name for schema in agent.spec.labeling.schemas}
        sessions = [target for source, target, kind in graph.edges if source == row["trace_id"] and kind == "queued in"]
        for session in sessions if row["name"] in questions else []:
            graph.link(session, said, "answered in")
    elif row["scorer_version"]:
        scorer = graph.add(
            Node("scorer", f"{row['name']} version {row['scorer_version']}", facts={"name": row["name"]})
        )
        graph.link(scorer, said, "gave")


def _answered_by(graph: Graph, agent: Agent, model_id: str, at: str) -> str:
    """The move that made the model's version champion before `at`, its newest version, or the model itself."""
    versions = {
        v.removeprefix(f"models:/{agent.spec.model_name}/")
        for m, v, kind in graph.edges
        if m == model_id and kind == "registered as"
    }
    before = [
        node
        for node in graph.nodes.values()
        if node.kind == "champion_move"
        and node.facts["alias"] == "champion"
        and node.facts["to"] in versions
        and _is_before(node.at, at)
    ]
    return max(before, key=lambda node: node.at).id if before else model_id


def _is_before(moved: str, at: str) -> bool:
    latest = datetime.max.replace(tzinfo=UTC)
    return datetime.fromisoformat(moved) <= (datetime.fromisoformat(at) if at else latest)


def _dataset(digest: str, name: str = "", at: str = "", rows: int | None = None) -> Node:
    facts = {key: value for key, value in {"name": name, "rows": rows}.items() if value}
    return Node("dataset", digest, at=at, facts=facts)
