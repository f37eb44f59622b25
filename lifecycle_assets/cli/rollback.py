"""`lifecycle rollback`: the champion is taken back, by the same job as in the UI.

Lives here: the command: it runs the job in this process and says which move was made.
Add here: a fact of the move that people or scripts need.
Not here: which version it goes to (`lifecycle_assets/release/rollback.py`).
"""

from typing import Any

import click

from lifecycle_assets.cli.agents import one_agent
from lifecycle_assets.cli.output import Misuse, SaysNo, clean, json_option, print_json, print_line
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.home import open_instance
from lifecycle_assets.jobs import rollback_config
from lifecycle_assets.records import AliasMove
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.release.rollback import bounded_reason
from lifecycle_assets.release.standing import ROLLED_BACK, champion_moves, taken_by
from lifecycle_assets.runner import Runner, why_failed
from lifecycle_assets.spec_file import Agent
from resources.platform import Platform


def take_back(agent: Agent, sources: Sources, *, to: str, reason: str) -> tuple[AliasMove, bool]:
    """Run the agent's job `rollback`; returns its move, and whether an earlier run had made that move already.

    Raises `Refused` with the sentence of the step that refused. Safe to repeat after being killed: see `roll_back`.
    """
    with open_instance(sources.platform) as instance:
        runner = Runner(agent_definitions(agent), instance, lambda line: click.echo(clean(line), err=True))
        runner.settle_interrupted()
        done = runner.ended(f"{agent.name}_rollback", run_config=rollback_config(agent.name, to=to, reason=reason))
    if not done.success:
        moved = any(
            event.is_step_success and event.step_key == f"{agent.name}__champion_alias" for event in done.all_events
        )
        more = " Champion was taken back; run the same command again to hand it to the runtime." if moved else ""
        raise Refused(why_failed(done) + more)
    moves = champion_moves(entry.move for entry in sources.ledger.entries(agent))
    made = [move for move in moves if move.dagster_run_id == done.run_id]
    move = (made or [move for move in moves if move.decision == ROLLED_BACK])[-1]
    return move, not made


def shown(agent: Agent, move: AliasMove, *, repeated: bool) -> dict[str, Any]:
    """The move as scripts read it."""
    return {
        "agent": agent.name,
        "at": move.at,
        "from": taken_by(move),
        "to": move.after[CHAMPION],
        "model_id": move.model_id,
        "who": move.actor,
        "why": move.reason,
        "decision": move.decision,
        "evidence_digest": move.evidence_digest,
        "dagster_run_id": move.dagster_run_id,
        "repeated": repeated,
    }


@click.command()
@click.argument("agent")
@click.option("--to", default="", metavar="VERSION", help="Version to go back to; default the one before, if it may.")
@click.option("--reason", required=True, help="One sentence: why the champion is taken back.")
@json_option
def rollback(agent: str, to: str, reason: str, as_json: bool) -> None:
    """Take the champion back to the version before it, and hand that to the runtime.

    The version taken back is not promoted again until its evidence changes. Calling it again after it ended well goes
    a further step back; calling it again after it was interrupted, or failed, completes that rollback.
    """
    chosen, target = one_agent(agent), to.strip()
    try:
        reason = bounded_reason(reason)
    except Refused as refusal:
        raise Misuse(str(refusal)) from None
    if target and not (target.isascii() and target.isdigit() and len(target) <= 18):
        raise Misuse(f"'{target[:40]}' is no version: --to takes a number, such as --to 1; see lifecycle history.")
    target = str(int(target)) if target else ""
    try:
        move, repeated = take_back(chosen, Sources(Platform.from_env()), to=target, reason=reason)
    except Refused as refusal:
        raise SaysNo(str(refusal)) from None
    said = shown(chosen, move, repeated=repeated)
    if as_json:
        print_json(said)
        return
    if repeated:
        print_line(f"{agent}: the rollback of {move.at} had been interrupted; it is carried out, and none was added.")
    if not said["from"]:
        print_line(
            f"{agent}: champion is version {said['to']}; nobody was before, its version was deleted. Why: {move.reason}"
        )
        return
    print_line(f"{agent}: champion is version {said['to']}, version {said['from']} was taken back.")
    print_line(f"Version {said['from']} is not promoted again until its evidence changes. Why: {move.reason}")
