"""What is known of an agent's release, put into a graph: decisions, versions, moves, approvals, the hand-off.

Lives here: the evidence behind a version, from the gate's decision to the runtime.
Add here: a further fact that a version rests on.
Not here: traces (`lineage_traces.py`), the candidate's other records (`lineage_facts.py`).
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lifecycle_assets.cli.decisions import APPROVALS, decision, held
from lifecycle_assets.cli.history import Move, moves
from lifecycle_assets.cli.lineage_graph import COMPARED, Graph, Node
from lifecycle_assets.cli.output import iso
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.records import EvalRecord
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.release.standing import ROLLED_BACK
from lifecycle_assets.spec_file import Agent
from resources.run_marks import page

RECORDS = 100
"""Materializations of an asset that are looked at, newest first."""


def add_decisions(graph: Graph, agent: Agent, sources: Sources) -> None:
    """Evaluations with their datasets and scorers, and what the gate decided on each."""
    for found in sources.records(agent, "eval_results", EvalRecord, limit=RECORDS):
        _decision(graph, agent, sources, decision(found.record.to_json()), found.at)


def add_versions(graph: Graph, agent: Agent, sources: Sources) -> None:
    """Registered versions with what their tags name, and aliases."""
    if not sources.has_store:
        return
    for version in sources.registry.versions(agent.spec.model_name):
        tags, uri = version.tags, f"models:/{version.name}/{version.version}"
        run, dataset = tags.get("lifecycle.eval_run_id", ""), tags.get("lifecycle.dataset_digest", "")
        url = page(sources.platform, f"models/{version.name}/versions/{version.version}")
        graph.add(Node("model_version", uri, url, iso(version.created_ms / 1000), {"version": version.version}))
        if version.model_id:
            graph.add(Node("logged_model", version.model_id))
            graph.link(version.model_id, uri, "registered as")
        if run:
            graph.add(Node("evaluation_run", run, facts={"verdict": tags.get("lifecycle.verdict", "")}))
            graph.link(version.model_id, run, "evaluated in")
            graph.link(_decided(graph, run, tags.get("lifecycle.evidence_digest", "")) or run, uri, "let through")
        if run and dataset:
            graph.add(dataset_node(dataset))
            graph.link(dataset, run, "evaluated on")
    for alias, number in sources.registry.aliases(agent.spec.model_name).items():
        name = graph.add(Node("alias", f"models:/{agent.spec.model_name}@{alias}", facts={"version": number}))
        graph.link(f"models:/{agent.spec.model_name}/{number}", name, "named by")


def add_moves(graph: Graph, agent: Agent, sources: Sources) -> None:
    """Alias moves, the approvals they rest on, and the deployment the last one led to."""
    made = moves(agent, sources)
    for move in made:
        name, at = _move(move), iso(datetime.fromisoformat(move["at"]))
        of_champion = move["alias"] == CHAMPION
        facts = {key: move[key] for key in ("to", "alias", "decision", "who", "why")}
        graph.add(Node("champion_move" if of_champion else "challenger_move", name, at=at, facts=facts))
        _decision(graph, agent, sources, move["evidence"], "")
        evidence = _decided(graph, move["evidence"]["run_id"], move["evidence"]["evidence_digest"])
        graph.link(_approval(graph, agent, move, evidence) or evidence, name, "evidence of")
        back = move["decision"] == ROLLED_BACK
        if move["to"]:
            graph.link(_uri(agent, move["to"]), name, "taken up again in" if back else "promoted in")
        if move["from"] and (back or not move["to"]):
            graph.link(_uri(agent, move["from"]), name, "taken back in" if back else "waited until")
    _deployment(graph, agent, sources, made)


def dataset_node(digest: str, name: str = "", at: str = "", rows: int | None = None) -> Node:
    """An evaluation dataset by its digest."""
    facts = {key: value for key, value in {"name": name, "rows": rows}.items() if value}
    return Node("dataset", digest, at=at, facts=facts)


def _decision(graph: Graph, agent: Agent, sources: Sources, facts: Mapping[str, Any], at: str) -> None:
    """The evaluation run, its dataset and scorers, the decision on it, and the champion it was compared with."""
    run, model, digest = facts["run_id"], facts["model_id"], facts["decision_digest"]
    if not run:
        return
    if facts["dataset_digest"]:
        graph.add(dataset_node(facts["dataset_digest"], facts["dataset"], "", facts["rows"]))
        graph.link(facts["dataset_digest"], run, "evaluated on")
    shown = {"verdict": facts["verdict"], "rows": facts["rows"], "metrics": facts["metrics"]}
    graph.add(Node("evaluation_run", run, _page(agent, sources, run), facts["evaluated_at"] or at, shown))
    if model:
        graph.add(Node("logged_model", model))
        graph.link(model, run, "evaluated in")
    for scorer, source in facts["scorers"].items():
        graph.link(graph.add(Node("scorer", f"{scorer} {source}", facts={"name": scorer})), run, "judged by")
    if not digest:
        return
    said = {key: facts[key] for key in ("verdict", "comparison", "reasons", "evidence_digest")}
    lines = [held(one) for one in facts["thresholds"]]
    said["thresholds"] = [f"{one['metric']} {one['value']}, {one['required']}: {one['met']}" for one in lines]
    name = graph.add(Node("decision", _named(digest), at=at, facts={"run_id": run, **said}))
    graph.link(run, name, "decided in")
    against = facts["compared_with"]
    if against["run_id"]:
        url = _page(agent, sources, against["run_id"])
        graph.add(Node("evaluation_run", against["run_id"], url, facts={"model_id": against["model_id"]}))
        graph.link(against["run_id"], name, COMPARED)


def _decided(graph: Graph, run: str, evidence_digest: str) -> str:
    """The newest decision on that run's evidence, else the run itself when it is known."""
    found = [
        node
        for node in graph.nodes.values()
        if node.kind == "decision" and (node.facts["run_id"], node.facts["evidence_digest"]) == (run, evidence_digest)
    ]
    return max(found, key=lambda node: node.at).id if found else run


def _approval(graph: Graph, agent: Agent, move: Move, evidence: str) -> str:
    """What a person said before the move; empty where nobody was asked."""
    if move["decision"] not in APPROVALS:
        return ""
    facts, at = {"who": move["approver"], "why": move["why"]}, iso(datetime.fromisoformat(move["at"]))
    name = graph.add(Node("approval", f"{move['decision']} at {move['at']}", at=at, facts=facts))
    graph.link(evidence, name, "seen in")
    graph.link(_uri(agent, move["to"] or move["from"]), name, move["decision"])
    return name


def _deployment(graph: Graph, agent: Agent, sources: Sources, made: Sequence[Move]) -> None:
    """The hand-off, from the move that had made its version champion by then, or from the version."""
    handed = sources.deployer.current(agent)
    if handed is None:
        return
    facts = {"version": handed.version, "model_id": handed.model_id}
    name = graph.add(
        Node("deployment", f"deployment of {agent.name}: version {handed.version}", at=handed.handed_at, facts=facts)
    )
    led = [
        _move(move)
        for move in made
        if (move["alias"], move["to"]) == (CHAMPION, handed.version) and _made_by(move, handed.handed_at)
    ]
    graph.link(led[-1] if led else _uri(agent, handed.version), name, "handed over in")


def _move(move: Move) -> str:
    return f"{move['alias']} {move['from'] or 'nobody'} -> {move['to'] or 'nobody'} at {move['at']}"


def _made_by(move: Move, handed_at: str) -> bool:
    """Whether the move was made by then, in whole seconds as hand-offs are dated; one that is not dated counts."""
    try:
        then = datetime.fromisoformat(handed_at)
    except ValueError:
        return True
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return datetime.fromisoformat(move["at"]).replace(microsecond=0) <= then


def _named(digest: str) -> str:
    return f"decision {digest}"


def _uri(agent: Agent, version: str) -> str:
    return f"models:/{agent.spec.model_name}/{version}"


def _page(agent: Agent, sources: Sources, run: str) -> str:
    return page(sources.platform, f"experiments/{sources.experiment(agent)}/runs/{run}")
