"""`lifecycle lineage`: the chain both ways from anything that has an id.

Lives here: finding the agent a reference belongs to, printing the chain.
Add here: another form of output.
Not here: the facts (`lineage_facts.py`), forms of references (`lineage_graph.py`).
"""

from collections.abc import Sequence
from typing import Any

import click

from lifecycle_assets.cli.agents import chosen_agents
from lifecycle_assets.cli.lineage_facts import agent_graph
from lifecycle_assets.cli.lineage_graph import FORMS, Graph, is_trace
from lifecycle_assets.cli.output import Misuse, SaysNo, clean, json_option, print_json, print_line, print_table
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform

NEWEST = 5
"""Traces shown for each model when the reference is no trace."""


def chain(ref: str, agents: Sequence[Agent], sources: Sources, *, newest: int) -> dict[str, Any]:
    """The agent, the node `ref` names, and nodes and edges both ways.

    Raises `Misuse` when nothing has that name, `SaysNo` when that cannot be said because a place could not be read.
    """
    unread: list[str] = []
    found: list[tuple[Agent, Graph, str, list[str]]] = []
    for agent in _owners(ref, agents):
        graph, faults = agent_graph(agent, sources, traces=[ref] if is_trace(ref) else [], newest=newest)
        start = graph.find(ref, agent.spec.model_name)
        unread += [fault for fault in faults if fault not in unread]
        if start is not None:
            found.append((agent, graph, start, faults))
    if not found and unread:
        raise SaysNo(f"Could not read: {' '.join(unread)}")
    if not found:
        known = ", ".join(agent.name for agent in agents) or "none"
        raise Misuse(f"Nothing known is named '{ref:.120}' (agents: {known}). A reference is {FORMS}.")
    if len(found) > 1:
        names = ", ".join(agent.name for agent, *_ in found)
        raise Misuse(f"'{ref}' is known of {names}; say which with --agent.")
    agent, graph, start, faults = found[0]
    if graph.nodes[start].kind == "labeling_session":
        items = graph.nodes[start].facts["trace_ids"][:newest]
        graph, faults = agent_graph(agent, sources, traces=items, newest=newest)
    is_alias = graph.nodes[start].kind == "alias"
    version = f"models:/{agent.spec.model_name}/{graph.nodes[start].facts['version']}" if is_alias else ""
    nodes, edges = graph.around(version if version in graph.nodes else start)
    return {
        "agent": agent.name,
        "ref": ref,
        "node": start,
        "nodes": [{key: value for key, value in node.to_json().items() if key != "trace_ids"} for node in nodes],
        "edges": [{"from": source, "to": target, "kind": kind} for source, target, kind in edges],
        "unread": faults,
    }


def _owners(ref: str, agents: Sequence[Agent]) -> list[Agent]:
    """The agents `ref` can belong to: those of the registered model it names, or all."""
    name = ref.removeprefix("models:/").partition("/")[0].partition("@")[0]
    return [agent for agent in agents if agent.spec.model_name == name] or list(agents)


@click.command()
@click.argument("ref")
@click.option("--agent", help="Agent the reference belongs to; needed for an alias when there are several.")
@click.option(
    "--newest", type=click.IntRange(min=0, max=100), default=NEWEST, show_default=True, help="Traces a model."
)
@json_option
def lineage(ref: str, agent: str | None, newest: int, as_json: bool) -> int:
    """The chain both ways from a trace, model, run, version, alias or session.

    REF is a trace id (tr-…), a model id (m-…), a run id (32 hex digits), models:/name/version, models:/name@alias,
    an alias with --agent, or a labeling session's id or name.
    """
    agents, _ = chosen_agents(agent)
    found = chain(ref, agents, Sources(Platform.from_env()), newest=newest)
    if as_json:
        print_json(found)
    else:
        _print(found)
    for sentence in found["unread"]:
        click.echo(clean(f"could not read: {sentence}"), err=True)
    return 1 if found["unread"] else 0


def _print(found: dict[str, Any]) -> None:
    causes: dict[str, list[str]] = {}
    for edge in found["edges"]:
        causes.setdefault(edge["to"], []).append(f"{edge['kind']}: {edge['from']}")
    rows = []
    for node in found["nodes"]:
        facts = [
            f"{key} {clean('; '.join(map(str, value)) if isinstance(value, list) else value)}"
            for key, value in node.items()
            if key not in _SHOWN and value not in ("", None, {}, [])
        ]
        here = "*" if node["id"] == found["node"] else ""
        rows.append((here, node["kind"], node["id"], node["at"], ", ".join(facts), causes.get(node["id"], [])))
    print_line(f"{found['agent']}: {len(rows)} nodes, {len(found['edges'])} edges around {found['node']}")
    print_table(["", "kind", "id", "at", "facts", "from"], rows)


_SHOWN = {"kind", "id", "url", "at", "metrics"}
