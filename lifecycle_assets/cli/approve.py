"""`lifecycle approve`, and what `lifecycle reject` shares with it: a person's decision on the version that waits.

Lives here: holding the decision against what stands now, keeping it on the version, printing what it was taken on.
Add here: a further reason why a version cannot be decided on.
Not here: the tags (`lifecycle_assets/release/approval.py`), the move (`champion_alias`, by the approval sensor).
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from lifecycle_assets.cli.agents import one_agent
from lifecycle_assets.cli.decisions import compared, decision, held
from lifecycle_assets.cli.output import Misuse, SaysNo, clean, json_option, print_json, print_line, print_table
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.records import REASON_CHARACTERS, AliasMove, EvalRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHALLENGER, CHAMPION
from lifecycle_assets.release.approval import (
    ACTOR_CHARACTERS,
    APPROVED,
    EVIDENCE_DIGEST,
    REQUIRED,
    Approval,
    read_approval,
    write_approval,
)
from lifecycle_assets.release.decision import approval_fault
from lifecycle_assets.release.promotion import (
    last_move_to,
    require_evidence,
    require_named,
    verify_evidence,
    waiting_evaluation,
)
from lifecycle_assets.runner import user
from lifecycle_assets.spec_file import Agent
from resources.model_registry import RegisteredVersion
from resources.platform import Platform


def decided(agent: Agent, number: str, approval: Approval, sources: Sources) -> tuple[Approval, EvalRecord, bool]:
    """Keep `approval` (its evidence is filled in here) on the waiting version, unless it is kept already.

    Returns the approval, the evaluation it is about, and whether it was there before. Raises `Refused` when that
    version does not wait, or its evidence is not what it waits on, expired or changed. Safe to repeat after being
    killed: see `write_approval`.
    """
    gate, name, now = agent.spec.eval.gate, agent.spec.model_name, datetime.now(UTC)
    if not sources.has_store:
        raise Refused(f"Version {number} of {name} is not there: nothing was released yet.")
    registry, evaluator = sources.registry, sources.evaluator
    found, aliases = registry.version(name, number), registry.aliases(name)
    moves = [entry.move for entry in sources.ledger.entries(agent)]
    waits, kept = aliases.get(CHALLENGER, "") == number, read_approval(found, gate, registry)
    same = kept.decision == approval.decision
    if waits:
        same = same and (kept.by, kept.reason) == (approval.by, approval.reason)
    elif approval.decision == APPROVED:
        same = same and aliases.get(CHAMPION, "") == number
    if same and not approval_fault(kept, found.tags.get(EVIDENCE_DIGEST, ""), gate, now=now):
        move = last_move_to(CHALLENGER, number, moves) or last_move_to(CHAMPION, number, moves)
        if move is not None:
            return kept, evaluator.decision(move.eval_run_id, move.decision_digest), True
    if not waits:
        raise Refused(_why_not_waiting(agent, found, kept, aliases, moves))
    evaluation = waiting_evaluation(number, aliases, moves, evaluator)
    require_evidence(evaluation, found.model_id, gate, now=now)
    require_named(found, evaluation)
    verify_evidence(evaluation, evaluator)
    made = Approval(approval.decision, approval.by, approval.reason, approval.at, evaluation.evidence_digest)
    write_approval(registry, found, gate, made)
    after = registry.version(name, number)
    require_named(after, evaluation)  # Replaced by a run meanwhile: then this decision does not count.
    if read_approval(after, gate, registry) != made:
        raise Refused(
            f"Somebody else decided on version {number} at the same time: look at its tags, then decide anew."
        )
    return made, evaluation, False


def _why_not_waiting(
    agent: Agent, version: RegisteredVersion, kept: Approval, aliases: dict[str, str], moves: list[AliasMove]
) -> str:
    number, waiting = version.version, aliases.get(CHALLENGER, "")
    other = f"version {waiting} does" if waiting else "nobody does"
    if aliases.get(CHAMPION) == number:
        return f"Version {number} does not wait for approval: it is champion."
    if kept.decision:
        return (
            f"Version {number} does not wait for approval: it was {kept.decision} by {clean(kept.by)} before. To have "
            f"it wait again, set its tag {agent.spec.eval.gate.approval_tag} to {REQUIRED} and materialize "
            "champion_alias."
        )
    never = "" if last_move_to(CHALLENGER, number, moves) else " It never waited."
    return f"Version {number} does not wait for approval, {other}.{never} See lifecycle status {agent.name}."


def run(agent: str, number: str, said: str, *, by: str, reason: str, as_json: bool) -> None:
    """The whole command: check what was given, decide, print."""
    chosen, words, who = one_agent(agent), " ".join(reason.split()), " ".join((by or user()).split())
    if not words or len(words) > REASON_CHARACTERS:
        raise Misuse(f"--reason takes a sentence of 1 to {REASON_CHARACTERS} characters, not {len(words)}.")
    if not who or len(who) > ACTOR_CHARACTERS:
        raise Misuse(f"--by takes a name of 1 to {ACTOR_CHARACTERS} characters.")
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        raise Misuse(f"'{number[:40]}' is no version: give its number, such as 2; see lifecycle status {agent}.")
    at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        approval, evaluation, repeated = decided(
            chosen, str(int(number)), Approval(said, clean(who), clean(words), at), Sources(Platform.from_env())
        )
    except Refused as refusal:
        raise SaysNo(str(refusal)) from None
    _say(chosen, str(int(number)), approval, evaluation, repeated=repeated, as_json=as_json)


def _say(
    agent: Agent, number: str, approval: Approval, evaluation: EvalRecord, *, repeated: bool, as_json: bool
) -> None:
    facts = decision(evaluation.to_json())
    then = "it becomes champion" if approval.decision == APPROVED else "champion stays"
    after = f"the sensor {agent.name}_approval_sensor continues: {then}; without a daemon materialize champion_alias."
    if as_json:
        print_json(
            {
                "agent": agent.name,
                "version": number,
                "decision": approval.decision,
                "by": approval.by,
                "reason": approval.reason,
                "at": approval.at,
                "repeated": repeated,
                "evidence": facts,
            }
        )
        return
    was = " already" if repeated else ""
    print_line(f"{agent.name}: version {number} was{was} {approval.decision} by {approval.by}: {approval.reason}")
    print_line(
        f"On evidence {evaluation.evidence_digest} of run {evaluation.run_id}: {evaluation.rows} rows of dataset "
        f"{evaluation.dataset_digest}, verdict {evaluation.verdict}, {compared(facts)}."
    )
    thresholds = [held(finding) for finding in facts["thresholds"]]
    if thresholds:
        print_table([*thresholds[0]], [[*one.values()] for one in thresholds])
    else:
        print_table(["metric", "value"], sorted(facts["metrics"].items()))
    if not repeated:
        print_line(f"Next: {after}")


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments and options the two commands share."""
    for add in (
        json_option,
        click.option("--by", default="", metavar="NAME", help="Who decides; default the user of this machine."),
        click.option("--reason", required=True, help="One sentence: why."),
        click.argument("version"),
        click.argument("agent"),
    ):
        command = add(command)
    return command


@click.command()
@options
def approve(agent: str, version: str, reason: str, by: str, as_json: bool) -> None:
    """Approve the version that waits as challenger, on the evidence it waits on.

    The approval sensor then makes it champion. Repeating it changes nothing; another reason is a new decision, which
    the sensor carries out anew.
    """
    run(agent, version, APPROVED, by=by, reason=reason, as_json=as_json)
