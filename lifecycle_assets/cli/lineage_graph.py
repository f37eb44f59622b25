"""A graph of what came from what, and the part of it that hangs together with one node.

Lives here: nodes, edges, the way up and down, finding a node by what a person typed; pure.
Add here: a form of reference.
Not here: reading facts (`lineage_facts.py`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

FORMS = (
    "a trace id (tr-…, or trace:/… in Unity Catalog), a model id (m-…), a run id (32 hex digits), "
    "models:/name/version, models:/name@alias, "
    "an alias with --agent, a labeling session's id or name"
)
"""What a reference may be, for the sentence that refuses another."""

KINDS = (
    "agent_source",
    "logged_model",
    "dataset",
    "evaluation_run",
    "decision",
    "model_version",
    "approval",
    "challenger_move",
    "champion_move",
    "alias",
    "deployment",
    "traces",
    "trace",
    "scorer",
    "assessment",
    "labeling_session",
    "label",
    "human_labels",
)
"""Kinds of nodes in the order of the lifecycle."""


COMPARED = "compared with"
"""Kind of edge from the champion's evaluation to a decision: it is shown and not followed, else every version would
come from all before it."""


@dataclass(frozen=True)
class Node:
    """One thing: its kind, id, page (empty when there is none), moment (ISO 8601 UTC or empty), further facts."""

    kind: str
    id: str
    url: str = ""
    at: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The node as plain data."""
        return {"kind": self.kind, "id": self.id, "url": self.url, "at": self.at, **self.facts}


class Graph:
    """Nodes by id, and edges from cause to effect."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.edges: dict[tuple[str, str, str], None] = {}

    def add(self, node: Node) -> str:
        """Add a node, or complete the one of that id; returns its id."""
        held = self.nodes.get(node.id)
        if held is not None:
            node = Node(held.kind, held.id, held.url or node.url, held.at or node.at, {**node.facts, **held.facts})
        self.nodes[node.id] = node
        return node.id

    def link(self, source: str, target: str, kind: str) -> None:
        """Say that `target` came from `source`; an end that is unknown makes no edge."""
        if source and target:
            self.edges[source, target, kind] = None

    def around(self, start: str) -> tuple[list[Node], list[tuple[str, str, str]]]:
        """The nodes `start` came from, those that came from it, and the edges on those ways.

        Their scorers, and the evaluations they were compared with, stand beside them.
        """
        known = [edge for edge in self.edges if edge[0] in self.nodes and edge[1] in self.nodes]
        edges = [edge for edge in known if edge[2] != COMPARED]
        up = _reach(start, [(target, source) for source, target, _ in edges])
        down = _reach(start, [(source, target) for source, target, _ in edges])
        kept = [e for e in edges if (e[0] in up and e[1] in up) or (e[0] in down and e[1] in down)]
        chain = up | down
        beside = [e for e in known if (self.nodes[e[0]].kind == "scorer" or e[2] == COMPARED) and e[1] in chain]
        chain |= {source for source, _, _ in beside}
        kept += [edge for edge in beside if edge not in kept]
        nodes = [node for node in self.nodes.values() if node.id in chain]
        return sorted(nodes, key=lambda node: (KINDS.index(node.kind), node.at, node.id)), kept

    def find(self, ref: str, model_name: str) -> str | None:
        """The id of the node `ref` names; `model_name` is the agent's, for a bare alias."""
        for candidate in (ref, ref.removeprefix("models:/"), f"models:/{model_name}@{ref}"):
            if candidate in self.nodes:
                return candidate
        named = {"labeling_session": "name", "logged_model": "run_id"}
        found = [
            node.id for node in self.nodes.values() if node.kind in named and node.facts.get(named[node.kind]) == ref
        ]
        return found[0] if found else None


def is_trace(ref: str) -> bool:
    """Whether `ref` has the form of a trace id."""
    in_catalog = r"trace:/[0-9A-Za-z_-]{1,255}(\.[0-9A-Za-z_-]{1,255}){1,2}/[0-9a-f]{32}"
    return bool(re.fullmatch(rf"tr-[0-9A-Za-z_-]{{1,100}}|{in_catalog}", ref))


def _reach(start: str, edges: Iterable[tuple[str, str]]) -> set[str]:
    ways: dict[str, list[str]] = {}
    for source, target in edges:
        ways.setdefault(source, []).append(target)
    seen, rest = {start}, [start]
    while rest:
        for target in ways.get(rest.pop(), []):
            if target not in seen:
                seen.add(target)
                rest.append(target)
    return seen
