"""`lifecycle history`: every move of an alias, and who was champion at a moment, with the evidence.

Lives here: reading the table `promotions` for people and scripts.
Add here: a fact of a move.
Not here: moving (`lifecycle_assets/release/moves.py`), the facts of a decision (`decisions.py`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from lifecycle_assets.cli.agents import one_agent
from lifecycle_assets.cli.decisions import APPROVALS, compared, decision_in, held, in_a_cell
from lifecycle_assets.cli.output import Misuse, clean, json_option, print_json, print_line, print_table
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform

MOVES_SQL = 'SELECT * FROM promotions ORDER BY "at", alias'

Move = dict[str, Any]


def moves(agent: Agent, sources: Sources) -> list[Move]:
    """The moves, oldest first."""
    return [move(row) for row in sources.rows(agent, MOVES_SQL)]


def move(row: dict[str, Any]) -> Move:
    """One row of `promotions` as a command says it; `approver` is empty where nobody had to approve.

    `at` is exact, as it names the move.
    """
    at, decision, who = row["at"], row["decision"] or "", row["actor"] or ""
    return {
        "at": (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="microseconds"),
        "alias": row["alias"],
        "from": row["from_version"] or "",
        "to": row["to_version"] or "",
        "model_id": row["model_id"] or "",
        "who": who,
        "why": row["reason"] or "",
        "decision": decision,
        "approver": who if decision in APPROVALS else "",
        "evidence": decision_in(row["evidence"]),
        "dagster_run_id": row["dagster_run_id"] or "",
    }


def champion_then(found: Sequence[Move], at: datetime) -> tuple[Move | None, Move | None]:
    """The move that had made the champion of `at` (None: nobody had been champion yet), and the one that ended it."""
    of_champion = [one for one in found if one["alias"] == CHAMPION]
    before = [one for one in of_champion if datetime.fromisoformat(one["at"]) <= at]
    return (before[-1] if before else None, of_champion[len(before)] if len(before) < len(of_champion) else None)


def moment(text: str) -> datetime:
    """A date, or a date and time, in ISO 8601; UTC when it names no zone. Raises `Misuse` for anything else."""
    try:
        found = datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Misuse(
            f"--at '{text:.40}' is no date or time; write 2026-11-01, 2026-11-01T12:00Z or 2026-11-01T12:00+01:00."
        ) from None


@click.command()
@click.argument("agent")
@click.option("--at", metavar="TIME", help="Only who was champion then, and why: 2026-11-01T12:00Z, UTC without zone.")
@json_option
def history(agent: str, at: str | None, as_json: bool) -> None:
    """Every move of an alias: from, to, when, who, why, on which evidence.

    With --at: who was champion at that moment and why. What was changed outside the graph is in neither.
    """
    then, declared = moment(at) if at is not None else None, one_agent(agent)
    found = moves(declared, Sources(Platform.from_env()))
    if then is not None:
        _answer(agent, then, found, as_json=as_json)
    elif as_json:
        print_json({"agent": agent, "moves": found})
    elif not found:
        print_line(f"{agent}: no alias was ever moved; materialize {agent}/champion_alias (job {agent}_release).")
    else:
        print_table(
            ["at (UTC)", "alias", "move", "decision", "evidence"],
            [
                (
                    one["at"].partition(".")[0],
                    one["alias"],
                    f"{one['from'] or 'nobody'} → {one['to'] or 'nobody'}",
                    [f"{one['decision']}, by {one['who']}", one["why"]],
                    in_a_cell(one["evidence"]),
                )
                for one in found
            ],
        )


def _answer(agent: str, then: datetime, found: Sequence[Move], *, as_json: bool) -> None:
    made, ended = champion_then(found, then)
    champion, until = made["to"] if made else "", ended["at"] if ended else ""
    if as_json:
        print_json({"agent": agent, "at": then.isoformat(), "champion": champion, "until": until, "move": made})
        return
    if made is None:
        first = f"; the first became champion at {until}" if until else ""
        print_line(f"{agent} at {then.isoformat()}: nobody was champion{first}.")
        return
    facts, lasted = made["evidence"], f"until {until}" if until else "and still is by the ledger"
    print_line(
        f"{agent} at {then.isoformat()}: {f'version {champion}' if champion else 'nobody'} was champion, "
        f"since {made['at']} {lasted}."
    )
    by = f" by {made['approver']}" if made["approver"] else f", by {made['who']}"
    for name, said in (
        ("why", f"{made['decision']}{by}: {made['why']}"),
        ("before", f"version {made['from']}" if made["from"] else "nobody"),
        ("model", made["model_id"]),
        ("evaluation", f"run {facts['run_id']}, {facts['rows']} rows, {facts['errors']} errors"),
        ("dataset", f"{facts['dataset']} {facts['dataset_digest']}"),
        ("comparison", compared(facts)),
        ("metrics", ", ".join(f"{name} {clean(value)}" for name, value in sorted(facts["metrics"].items()))),
        ("evidence", f"{facts['evidence_digest']}, decision {facts['decision_digest']}"),
        ("dagster run", made["dagster_run_id"]),
    ):
        print_line(f"  {name:<12}{said}")
    rows = [held(one) for one in facts["thresholds"]]
    if rows:
        print_table([*rows[0]], [[*row.values()] for row in rows])
