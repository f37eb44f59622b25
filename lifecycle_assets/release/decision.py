"""What happens to a version that was evaluated: promoted, made to wait, rejected, or refused. Pure.

Lives here: every condition of a move to `champion`, in the order in which they are held, each with its sentence.
Add here: a further condition; `docs/decisions.md` is made by running this.
Not here: the numbers (`gate.py`), the tags of an approval (`approval.py`), the move (`promotion.py`, `moves.py`).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from lifecycle_assets.records import AliasMove, EvalRecord
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.release.approval import APPROVED, NOT_STATED, Approval
from lifecycle_assets.release.standing import barred
from lifecycle_assets.spec_release import Gate

AHEAD = timedelta(hours=1)
"""How far in the future a time may lie, for clocks that differ; anything later would never grow old."""

Action = Literal["promote", "wait", "stay", "reject", "refuse"]


@dataclass(frozen=True)
class Decision:
    """What to do with a version, and why.

    `promote`: it becomes champion. `wait`: it becomes challenger until a person approves it. `stay`: it is champion
    already. `reject`: a person said no. `refuse`: its evidence lets nothing through; the step fails with `sentence`.
    """

    action: Action
    sentence: str


def evidence_fault(evaluation: EvalRecord, model_id: str, gate: Gate, *, now: datetime) -> str:
    """Why `evaluation` lets nothing through for `model_id`, in one sentence; empty when it does."""
    if evaluation.model_id != model_id:
        return (
            f"The evaluation {evaluation.run_id} is about {evaluation.model_id}, not about {model_id}: "
            "materialize eval_results for this model."
        )
    if evaluation.gate_digest != gate.digest:
        return (
            f"The evaluation {evaluation.run_id} was held against another gate than defs.yaml declares now: "
            "materialize eval_results again."
        )
    if evaluation.verdict not in _let_through(gate):
        why = " ".join(evaluation.reasons) or "The gate did not pass."
        return f"The verdict on {model_id} is '{evaluation.verdict}': {why}"
    age = _age(evaluation.at, now)
    if age is None:
        return (
            f"The evaluation {evaluation.run_id} is dated {evaluation.at[:40]}, which is no time in the past: "
            "materialize eval_results again."
        )
    if age > gate.longest_age:
        return (
            f"The evaluation {evaluation.run_id} is {age.days} days old, {gate.max_age} is allowed: "
            "materialize eval_results again."
        )
    return ""


def approval_fault(approval: Approval, evidence_digest: str, gate: Gate, *, now: datetime) -> str:
    """Why a person's decision does not count for this evidence, in one sentence; empty when it does.

    A rejection never expires.
    """
    who = f"What was {approval.decision} by {approval.by}"
    if approval.evidence != evidence_digest:
        return (
            f"{who} is evidence {approval.evidence or 'nobody named'}, the version now rests on {evidence_digest}: "
            "it does not count."
        )
    age = _age(approval.at, now) if approval.at else timedelta(0)
    if age is None:
        return f"{who} is dated {approval.at[:40]}, which is no time in the past: it does not count."
    if approval.decision == APPROVED and age > gate.longest_approval:
        return f"{who} was so at {approval.at}, longer ago than {gate.approval_max_age}: it does not count any more."
    return ""


def decide(
    evaluation: EvalRecord,
    *,
    version: str,
    model_id: str,
    gate: Gate,
    approval: Approval,
    champion: str,
    champion_model_id: str,
    taken_back: Collection[str],
    now: datetime,
    waited_on: str = "",
) -> Decision:
    """What happens to `version` of `model_id` on `evaluation`.

    `champion` is who is champion now and `champion_model_id` that version's logged model, both empty for nobody;
    `taken_back` are digests of evidence on which a champion was taken back by a rollback.

    `waited_on` is the digest of the decision on which it last became challenger: an approval is of what was seen then,
    the comparison with the champion of that time included. Empty when it never waited.

    Approval is asked for in every mode of the gate: `dry_run` and `disabled` say what numbers may stop, not who
    decides. Who is champion already is not asked to be approved again.
    """
    fault = evidence_fault(evaluation, model_id, gate, now=now)
    if fault:
        return Decision("refuse", fault)
    if champion == version:
        return Decision("stay", f"Version {version} is champion already.")
    if evaluation.evidence_digest in taken_back:
        return Decision(
            "refuse",
            f"Version {version} rests on evidence {evaluation.evidence_digest}, on which a champion was taken back by "
            "a rollback: change the agent, the dataset or the gate, and release again.",
        )
    compared_with = evaluation.incumbent_model_id
    if champion and _compares(gate) and (not compared_with or compared_with != champion_model_id):
        return Decision(
            "refuse",
            f"Version {version} was not compared with the champion, version {champion}: "
            "materialize eval_results again.",
        )
    if gate.approval == "none":
        return Decision("promote", f"Version {version} is let through: {_through(evaluation)}")
    if not approval.decision:
        return Decision("wait", f"Version {version} waits for a person's approval: {_through(evaluation)}")
    uncounted = approval_fault(approval, evaluation.evidence_digest, gate, now=now)
    if uncounted:
        return Decision("wait", f"Version {version} waits for a person's approval: {uncounted}")
    if approval.decision == APPROVED and waited_on not in ("", evaluation.decision_digest):
        unseen = f"what {approval.by} approved was decided against another champion, or in another run."
        return Decision("wait", f"Version {version} waits for a person's approval: {unseen}")
    by = "by somebody who set its tag" if approval.by == NOT_STATED else f"by {approval.by}"
    why = ", without a reason." if approval.reason == NOT_STATED else f": {approval.reason}"
    said = f"Version {version} was {approval.decision} {by}{why}"
    return Decision("promote" if approval.decision == APPROVED else "reject", said)


def evidence_taken_back(moves: Iterable[AliasMove]) -> frozenset[str]:
    """Digests of the evidence on which versions were champion that a rollback took back.

    All of a version's: a champion that was evaluated again held more than the evidence it had been promoted on. And
    those of every version, as the same model has another number when its version is deleted and registered again.
    """
    known = list(moves)
    taken = barred(known)
    held = {move.evidence_digest for move in known if move.after.get(CHAMPION) in taken}
    return frozenset({*held, *taken.values()} - {""})


def _let_through(gate: Gate) -> set[str]:
    """Verdicts on which a version goes on in the gate's mode."""
    return {"passed", *({"enforce": [], "dry_run": ["dry_run"], "disabled": ["ungated"]}[gate.mode])}


def _compares(gate: Gate) -> bool:
    """Whether the gate holds a candidate against the champion: one that is disabled holds it against nothing."""
    return gate.incumbent is not None and gate.mode != "disabled"


def _through(evaluation: EvalRecord) -> str:
    """On what a version got through."""
    if evaluation.verdict == "ungated":
        return "its gate is disabled, nothing was held against a threshold."
    if evaluation.verdict == "dry_run":
        return f"its gate is in dry_run, which only records: {' '.join(evaluation.reasons)}"
    against = {"better": ", better than the champion", "not_worse": ", not worse than the champion"}
    unsure = ", with too few rows to tell it from the champion"
    compared = against.get(evaluation.comparison, unsure if evaluation.comparison == "unsure" else "")
    return f"it reached every threshold{compared}."


def _age(at: str, now: datetime) -> timedelta | None:
    """How long ago `at` (ISO 8601; UTC without a zone) was; None for what is no time, or lies in the future."""
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        return None
    age = now - (moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return None if age < -AHEAD else max(age, timedelta(0))
