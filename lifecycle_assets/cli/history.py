"""`lifecycle history`: every move of an alias and the evidence it was made on.

Lives here: reading the table `promotions` for people and scripts.
Add here: a fact of a move.
Not here: moving (`lifecycle_assets/promotion.py`).
"""

import json
from typing import Any

import click

from lifecycle_assets.cli.agents import one_agent
from lifecycle_assets.cli.output import clean, iso, json_option, print_json, print_line, print_table
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform

MOVES_SQL = 'SELECT * FROM promotions ORDER BY "at", alias'


def moves(agent: Agent, sources: Sources) -> list[dict[str, Any]]:
    """The moves, oldest first."""
    return [move(row) for row in sources.rows(agent, MOVES_SQL)]


def move(row: dict[str, Any]) -> dict[str, Any]:
    """One row of `promotions` as a command says it."""
    evidence = _evidence(row["evidence"])
    return {
        "at": iso(row["at"]),
        "alias": row["alias"],
        "from": row["from_version"] or "",
        "to": row["to_version"] or "",
        "model_id": row["model_id"] or "",
        "who": row["actor"] or "",
        "why": row["reason"] or "",
        "decision": row["decision"] or "",
        "evidence": {
            "run_id": evidence.get("run_id", ""),
            "dataset": evidence.get("dataset_name", ""),
            "dataset_digest": evidence.get("dataset_digest", ""),
            "rows": evidence.get("rows"),
            "metrics": evidence.get("metrics", {}),
            "scorers": evidence.get("scorers", {}),
        },
        "dagster_run_id": row["dagster_run_id"] or "",
    }


def _evidence(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


@click.command()
@click.argument("agent")
@json_option
def history(agent: str, as_json: bool) -> None:
    """Every move of an alias: from, to, when, who, why, on which evidence."""
    found = moves(one_agent(agent), Sources(Platform.from_env()))
    if as_json:
        print_json({"agent": agent, "moves": found})
        return
    if not found:
        print_line(f"{agent}: no alias was ever moved; materialize {agent}/champion_alias (job {agent}_release).")
        return
    print_table(
        ["at", "alias", "from", "to", "who", "decision", "why", "evaluation run", "dataset", "metrics"],
        [
            (
                one["at"],
                one["alias"],
                one["from"] or "nobody",
                one["to"],
                one["who"],
                one["decision"],
                one["why"],
                one["evidence"]["run_id"],
                one["evidence"]["dataset_digest"],
                ", ".join(
                    f"{name} {clean(value)}"
                    for name, value in sorted(one["evidence"]["metrics"].items())
                    if name.endswith("/mean")
                ),
            )
            for one in found
        ],
    )
