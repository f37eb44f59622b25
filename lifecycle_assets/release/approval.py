"""A person's decision on a waiting version: tags of that version.

Lives here: which tags they are, reading them, and writing them so that half a decision never counts.
Add here: a further thing to keep of a decision.
Not here: whether a decision counts (`decision.py`), the command that takes it (`cli/approve.py`).

One tag decides: `gate.approval_tag`, set by `lifecycle approve`, in a registry's UI, or by the approval task of a
Databricks deployment job. Who, why, when and on which evidence are companion tags, written before it: the last of them
names decision and evidence together, and companions of any other decision count for nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from lifecycle_assets.records import REASON_CHARACTERS
from lifecycle_assets.spec_release import Gate
from resources import run_marks as marks
from resources.needs import ModelRegistry, RegisteredVersion

STATE = "lifecycle.approval"
"""`not_required`, `required`, `approved` or `rejected`, for people to read; decides only as the default tag."""

BY, REASON, AT, EVIDENCE = f"{STATE}_by", f"{STATE}_reason", f"{STATE}_at", f"{STATE}_evidence"

EVIDENCE_DIGEST = "lifecycle.evidence_digest"
"""Tag that names the evidence a version was registered on."""

APPROVED, REJECTED = "approved", "rejected"
REQUIRED, NOT_REQUIRED = "required", "not_required"

NOT_STATED = "not stated"
"""What stands for an approver or a reason nobody gave: a tag set by hand says neither."""

ACTOR_CHARACTERS = 100
"""Characters of an approver that are kept."""


@dataclass(frozen=True)
class Approval:
    """What a person said of a version: `approved`, `rejected`, or empty for nothing yet.

    `evidence` is the digest of the evidence it was given for; `at` is UTC ISO 8601, empty for a tag nobody dated yet.
    """

    decision: str = ""
    by: str = NOT_STATED
    reason: str = NOT_STATED
    at: str = ""
    evidence: str = ""


def read_approval(version: RegisteredVersion, gate: Gate, registry: ModelRegistry) -> Approval:
    """What the tags of `version` say, in any case of letters.

    A deciding tag without companions of its own was set by hand: it is taken for the evidence the version carries.
    """
    tags = version.tags
    said = tags.get(registry.shown_tag(gate.approval_tag), "").strip().lower()
    if said not in (APPROVED, REJECTED):
        return Approval()
    kept, _, evidence = tags.get(EVIDENCE, "").partition(" ")
    if kept != said:
        return Approval(said, evidence=tags.get(EVIDENCE_DIGEST, ""))
    return Approval(
        said,
        by=marks.shortened(tags.get(BY, "") or NOT_STATED, ACTOR_CHARACTERS),
        reason=marks.shortened(tags.get(REASON, "") or NOT_STATED, REASON_CHARACTERS),
        at=tags.get(AT, ""),
        evidence=evidence,
    )


def write_approval(registry: ModelRegistry, version: RegisteredVersion, gate: Gate, approval: Approval) -> None:
    """Keep a person's decision on `version`.

    Killed at any instruction, the version is left undecided or decided whole: what was said before is taken back
    first, and the deciding tag is the last one written.
    """
    reset_approval(registry, version, gate)
    registry.tag_version(version.name, version.version, decided_tags(approval, gate))


def dated_approval(registry: ModelRegistry, version: RegisteredVersion, gate: Gate, *, now: datetime) -> Approval:
    """What the tags say; a decision set by hand is dated `now` when nobody has dated it, and the version keeps that.

    Its companions never touch the deciding tag, so that repeating, or doing it twice at once, decides nothing.
    """
    found = read_approval(version, gate, registry)
    if not found.decision or found.at or not found.evidence:
        return found
    dated = replace(found, at=now.astimezone(UTC).isoformat(timespec="seconds"))
    shown = {STATE: dated.decision} if gate.approval_tag != STATE else {}
    registry.tag_version(version.name, version.version, {**_companions(dated), **shown})
    return dated


def reset_approval(registry: ModelRegistry, version: RegisteredVersion, gate: Gate) -> None:
    """Take back what was said of `version`: a decision from now on is a new one. Repeating changes nothing."""
    undecided = {gate.approval_tag: REQUIRED, STATE: REQUIRED}
    companions = {EVIDENCE: REQUIRED} if EVIDENCE in version.tags else {}
    registry.tag_version(version.name, version.version, undecided | companions)


def approval_state(version: RegisteredVersion | None, evidence_digest: str, gate: Gate, registry: ModelRegistry) -> str:
    """What `STATE` is to say of a version registered on this evidence; `version` is None for a new one.

    A decision on other evidence is taken back here, so that it is gone before the version names the new evidence.
    """
    declared = REQUIRED if gate.approval == "required" else NOT_REQUIRED
    if version is None:
        return declared
    said = read_approval(version, gate, registry).decision
    if version.tags.get(EVIDENCE_DIGEST) == evidence_digest:
        return said or declared
    if said or EVIDENCE in version.tags:
        reset_approval(registry, version, gate)
    return declared


def decided_tags(approval: Approval, gate: Gate) -> dict[str, str]:
    """The tags of a decision in the order in which they are written: the deciding one comes last."""
    others = {name: value for name, value in _companions(approval).items() if name != gate.approval_tag}
    if gate.approval_tag != STATE:
        others[STATE] = approval.decision
    return {**others, gate.approval_tag: approval.decision}


def _companions(approval: Approval) -> Mapping[str, str]:
    """The last one ties them to the decision and its evidence: until it is written, they count for nothing."""
    return {
        BY: marks.shortened(approval.by, ACTOR_CHARACTERS),
        REASON: marks.shortened(approval.reason, REASON_CHARACTERS),
        AT: approval.at,
        EVIDENCE: f"{approval.decision} {approval.evidence}",
    }
