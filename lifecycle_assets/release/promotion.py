"""From a decision to a move of aliases, and whether what stands rests on what was decided.

Lives here: re-reading evidence, the move a decision calls for, the check on the champion; no Dagster context.
Add here: a further thing that is re-read before or after a move.
Not here: the conditions (`decision.py`), carrying a move out (`moves.py`), the assets (`assets.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from lifecycle_assets.gate import rows_digest
from lifecycle_assets.records import AliasMove, ChampionRecord, EvalRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHALLENGER, CHAMPION, PREVIOUS
from lifecycle_assets.release.approval import (
    EVIDENCE_DIGEST,
    NOT_STATED,
    Approval,
    dated_approval,
    read_approval,
    reset_approval,
)
from lifecycle_assets.release.decision import Decision, decide, evidence_fault, evidence_taken_back
from lifecycle_assets.release.moves import AliasMover, Moved, State, new_move
from lifecycle_assets.release.standing import champion_moves, once_champion, standing
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_release import Gate
from resources.needs import AliasLedger, Evaluator, ModelRegistry, RegisteredVersion


@dataclass(frozen=True)
class Released:
    """What was decided on a version, what a person had said of it, and the move that came of it."""

    decision: Decision
    approval: Approval
    moved: Moved


def require_evidence(evaluation: EvalRecord, model_id: str, gate: Gate, *, now: datetime) -> None:
    """Raise `Refused` unless `evaluation` is about `model_id`, lets it through and is young enough."""
    fault = evidence_fault(evaluation, model_id, gate, now=now)
    if fault:
        raise Refused(fault)


def verify_evidence(evaluation: EvalRecord, evaluator: Evaluator) -> None:
    """Raise `Refused` unless MLflow still holds the rows `evaluation` was decided on, the champion's included."""
    rests_on = [(evaluation.run_id, evaluation.model_id, evaluation.rows_digest)]
    if evaluation.incumbent_run_id:
        champion = evaluation.incumbent_run_id, evaluation.incumbent_model_id, evaluation.incumbent_rows_digest
        rests_on.append(champion)
    for run_id, model_id, decided_on in rests_on:
        found = evaluator.reread(run_id)
        if (found.model_id, rows_digest(found)) != (model_id, decided_on):
            raise Refused(
                f"The rows of MLflow run {run_id} are not those the gate decided on for {evaluation.model_id}: they "
                "were changed since. Delete that run, then materialize eval_results again."
            )


def require_named(version: RegisteredVersion, evaluation: EvalRecord) -> None:
    """Raise `Refused` unless the version says that it is this model's, registered on this evidence."""
    fault = _not_named(version, evaluation.model_id, evaluation.evidence_digest)
    if fault:
        raise Refused(f"{fault}: materialize uc_model_version first.")


def release(
    agent: Agent,
    version: str,
    evaluation: EvalRecord,
    *,
    mover: AliasMover,
    registry: ModelRegistry,
    evaluator: Evaluator,
    actor: str,
    dagster_run_id: str,
) -> Released:
    """Promote the version, let it wait or reject it, as `decide` says. Raises `Refused` when it says refuse.

    Everything a decision rests on is read anew: rows, version tags, what a person said, aliases and past moves; when
    another process moves first, all but the rows once more. Why a rerun is safe: see `AliasMover`; a decision that was
    carried out calls for no further move.
    """
    gate, name = agent.spec.eval.gate, agent.spec.model_name
    verify_evidence(evaluation, evaluator)
    decided: list[tuple[Decision, Approval]] = []

    def next_move(state: State) -> AliasMove | None:
        now = datetime.now(UTC)
        found = registry.version(name, version)
        require_named(found, evaluation)
        asked = gate.approval == "required"
        approval = dated_approval(registry, found, gate, now=now) if asked else Approval()
        champion = present_champion(version, state, agent.name)
        decision = decide(
            evaluation,
            version=version,
            model_id=found.model_id,
            gate=gate,
            approval=approval,
            champion=champion,
            champion_model_id=state.versions[champion].model_id if champion in state.versions else "",
            taken_back=evidence_taken_back(state.moves),
            now=now,
            waited_on=decision_waited_on(version, state.moves),
        )
        if decision.action == "refuse":
            raise Refused(decision.sentence)
        decided.append((decision, approval))
        return wanted_move(
            decision,
            version,
            state,
            evaluation=evaluation,
            approval=approval,
            actor=actor,
            dagster_run_id=dagster_run_id,
        )

    moved = mover.move(next_move)
    decision, approval = decided[-1]
    if decision.action == "wait" and approval.decision:
        # It does not count. Taken back, a new one is seen to be new, in a registry's UI too.
        found = registry.version(name, version)
        if read_approval(found, gate, registry) == approval:
            reset_approval(registry, found, gate)
    return Released(decision, approval, moved)


def present_champion(version: str, state: State, agent: str) -> str:
    """Who is champion now, empty for nobody.

    An alias that names `version` itself counts when the ledger says so. Where the ledger names nobody, as before its
    first move, nobody is champion yet; where it names another version, a hand moved the alias: raises `Refused`. So
    it does when a hand removed the alias from a version that is still there: nothing was compared with that version.
    """
    champion, left_at = state.aliases.get(CHAMPION, ""), standing(state.moves).get(CHAMPION, "")
    if not champion and left_at != version and left_at in state.versions:
        raise Refused(
            f"champion names nobody, but the graph left it at version {left_at}: somebody removed it by hand. Set the "
            "alias back to that version, or delete the version, then release again."
        )
    if champion != version:
        return champion
    if left_at and left_at != version:
        raise Refused(
            f"champion names version {version} already, but the graph left it at version {left_at}: somebody moved it "
            f'by hand. Run lifecycle rollback {agent} --to {left_at} --reason "...", then release again.'
        )
    return left_at


def wanted_move(
    decision: Decision,
    version: str,
    state: State,
    *,
    evaluation: EvalRecord,
    approval: Approval,
    actor: str,
    dagster_run_id: str,
) -> AliasMove | None:
    """The move `decision` calls for; None when everything stands as it should already.

    A champion, or a version that waits, on evidence other than the ledger has of it gets a move too, which changes no
    alias: what it rests on now is what a rollback bars, and what an approval is about.
    """
    champion, challenger = state.aliases.get(CHAMPION, ""), state.aliases.get(CHALLENGER, "")
    by_person = bool(approval.decision) and decision.action in ("promote", "reject")
    if decision.action == "promote":
        after = {CHAMPION: version}
        if champion not in ("", version):
            after[PREVIOUS] = champion
        if challenger:
            after[CHALLENGER] = ""  # Approved now, or superseded: it was compared with the champion before.
    elif decision.action == "wait":
        last = last_move_to(CHALLENGER, version, state.moves)
        if challenger == version and last and last.decision_digest == evaluation.decision_digest:
            return None
        after = {CHALLENGER: version}
    elif decision.action == "reject":
        if challenger != version:
            return None
        after = {CHALLENGER: ""}
    else:
        last = last_move_to(CHAMPION, version, state.moves)
        rests_on = evaluation.run_id, evaluation.evidence_digest
        if last and (last.eval_run_id, last.evidence_digest) == rests_on:
            return None
        after = {CHAMPION: version}
    named = {"wait": "waiting", "reject": "rejected", "promote": "approved" if by_person else evaluation.verdict}
    return new_move(
        decision=named.get(decision.action, evaluation.verdict),
        before={alias: state.aliases.get(alias, "") for alias in after},
        after=after,
        evaluation=evaluation,
        actor=approval.by if by_person else actor,
        reason=approval.reason if by_person and approval.reason != NOT_STATED else decision.sentence,
        dagster_run_id=dagster_run_id,
    )


def last_move_to(alias: str, version: str, moves: Sequence[AliasMove]) -> AliasMove | None:
    """The newest move that left `alias` at `version`; None when there is none."""
    return next((move for move in reversed(moves) if move.after.get(alias) == version), None)


def decision_waited_on(version: str, moves: Sequence[AliasMove]) -> str:
    """The digest of the decision on which `version` last became challenger; empty when it never did."""
    waited = last_move_to(CHALLENGER, version, moves)
    return waited.decision_digest if waited else ""


def waiting_evaluation(
    version: str, aliases: Mapping[str, str], moves: Sequence[AliasMove], evaluator: Evaluator
) -> EvalRecord:
    """The decision on which `version` waits, or became champion. Raises `Refused` when it does neither."""
    challenger, champion = aliases.get(CHALLENGER, ""), aliases.get(CHAMPION, "")
    move = last_move_to(CHAMPION if version == champion else CHALLENGER, version, moves)
    if move is None or version not in (challenger, champion):
        waits = f"version {challenger} does" if challenger else "nobody does"
        raise Refused(f"Version {version[:40]} does not wait for approval, {waits}: see lifecycle status.")
    return evaluator.decision(move.eval_run_id, move.decision_digest)


def champion_record(name: str, state: State) -> ChampionRecord:
    """Who is champion, who was and who waits, as `state` has it; the evidence is that of the champion."""
    champion = state.aliases.get(CHAMPION, "")
    version, rests_on = state.versions.get(champion), last_move_to(CHAMPION, champion, state.moves)
    became = champion_moves(state.moves)[-1:]
    return ChampionRecord(
        name=name,
        version=champion,
        model_id=version.model_id if version else "",
        previous=state.aliases.get(PREVIOUS, ""),
        challenger=state.aliases.get(CHALLENGER, ""),
        evidence_digest=rests_on.evidence_digest if champion and rests_on else "",
        promoted_at=became[0].at if champion and became and became[0].after[CHAMPION] == champion else "",
    )


def champion_fault(agent: Agent, *, registry: ModelRegistry, ledger: AliasLedger, evaluator: Evaluator) -> str:
    """Why the champion is not what a gate let through, in one sentence; empty when it is, or nobody is champion.

    Reads alias, ledger, version tags, the decision and the rows under it anew, and changes nothing.
    """
    name = agent.spec.model_name
    champion = registry.aliases(name).get(CHAMPION, "")
    moves = [entry.move for entry in ledger.entries(agent)]
    left_at = standing(moves).get(CHAMPION, "")
    if champion != left_at:
        now, was = (f"version {one}" if one else "nobody" for one in (champion, left_at))
        gated = "" if not champion or champion in once_champion(moves) else f" Version {champion} was never gated."
        return f"champion is {now}, the graph left it at {was}: somebody else moved it.{gated} See lifecycle plan."
    move = last_move_to(CHAMPION, champion, moves)
    if not champion:
        return ""
    if move is None or not move.eval_run_id:
        return f"Version {champion} is champion, and no decision of a gate made it so: release a version."
    try:
        version = registry.version(name, champion)
        fault = _not_named(version, move.model_id, move.evidence_digest)
        if fault:
            return f"{fault}: materialize uc_model_version and champion_alias, or take the champion back."
        verify_evidence(evaluator.decision(move.eval_run_id, move.decision_digest), evaluator)
    except Refused as refusal:
        return f"Version {champion} is champion. {refusal}"
    return ""


def _not_named(version: RegisteredVersion, model_id: str, evidence_digest: str) -> str:
    """Why the version is not the one that evidence is about; empty when it is."""
    if not version.model_id:
        return f"Version {version.version} names no logged model, or another than its files are of, not {model_id}"
    if version.model_id != model_id:
        return f"Version {version.version} is of model {version.model_id}, the evidence of {model_id}"
    carried = version.tags.get(EVIDENCE_DIGEST, "")
    if carried != evidence_digest:
        return (
            f"Version {version.version} was registered on evidence {carried[:40] or 'nobody named'}, the evaluation is "
            f"now {evidence_digest}"
        )
    return ""
