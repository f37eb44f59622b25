"""What is known of an agent's traces, put into a graph: who answered them, and what was said of them.

Lives here: traces of the tables and live ones, assessments, the sessions a trace is in.
Add here: a further fact of a trace.
Not here: versions, decisions and moves (`lineage_release.py`), the other records (`lineage_facts.py`).
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from lifecycle_assets.cli.lineage_graph import Graph, Node
from lifecycle_assets.cli.output import iso
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.explain import explain
from resources.labeling_desk import QUEUED_TAG
from resources.run_marks import page

COUNTS_SQL = "SELECT model_id, count(*) AS n, max(request_time) AS newest FROM traces GROUP BY model_id"
NEWEST_SQL = """
SELECT trace_id, model_id, request_time, state, session_id, tags[?] AS queue FROM traces
WHERE list_contains(?, trace_id) OR ? QUALIFY list_contains(?, trace_id)
    OR row_number() OVER (PARTITION BY model_id ORDER BY request_time DESC, trace_id) <= ?
ORDER BY request_time DESC, trace_id
"""
SAID_SQL = "SELECT * FROM assessments WHERE valid AND list_contains(?, trace_id) ORDER BY created_at, assessment_id"


def add_archived(graph: Graph, agent: Agent, sources: Sources, wanted: Sequence[str], newest: int) -> None:
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


def add_live(graph: Graph, agent: Agent, sources: Sources, wanted: Sequence[str]) -> None:
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
