"""Taking the champion back.

Lives here: to which version a rollback goes (pure), and the rollback itself; no Dagster context.
Add here: a further condition of a rollback.
Not here: when one happens by itself (`sensors/rollback.py`), carrying a move out (`moves.py`), the asset (`assets.py`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from lifecycle_assets.records import REASON_CHARACTERS, AliasMove
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHALLENGER, CHAMPION, PREVIOUS
from lifecycle_assets.release.moves import AliasMover, State, new_move
from lifecycle_assets.release.standing import ROLLED_BACK, barred, champion_moves, once_champion, standing
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_release import Gate
from resources.needs import Evaluator, RegisteredVersion


@dataclass(frozen=True)
class RolledBack:
    """A rollback: its move and what stands now. `repeated`: an earlier run had made this very move already."""

    move: AliasMove
    state: State
    repeated: bool


def gated_verdicts(gate: Gate) -> frozenset[str]:
    """Verdicts with which a version counts as gated, as the gate is declared now."""
    by_mode = {"dry_run": {"dry_run"}, "disabled": {"dry_run", "ungated"}}
    return frozenset({"passed", *by_mode.get(gate.mode, set())})


def verdicts_of(evaluator: Evaluator) -> Callable[[AliasMove], str]:
    """Reads the gate's verdict under a move: a person may have approved what no gate let through."""

    def verdict(move: AliasMove) -> str:
        if move.decision != "approved":
            return move.decision
        return evaluator.decision(move.eval_run_id, move.decision_digest).verdict

    return verdict


def present_champion(state: State) -> str:
    """Who is champion in MLflow; when nobody is, as after a version was deleted, who was made it. Empty for nobody."""
    return state.aliases.get(CHAMPION, "") or standing(state.moves).get(CHAMPION, "")


def promotion_of(version: str, moves: Sequence[AliasMove]) -> AliasMove | None:
    """The newest move that left `version` champion on evidence of its own; None when it never was champion so."""
    found = [move for move in moves if move.after.get(CHAMPION) == version and move.decision != ROLLED_BACK]
    return found[-1] if found else None


def choose_target(
    *,
    champion: str,
    previous: str,
    moves: Sequence[AliasMove],
    versions: Mapping[str, RegisteredVersion],
    accepted: Collection[str],
    verdict: Callable[[AliasMove], str],
    to: str = "",
) -> AliasMove:
    """The promotion of the version to go back to: `to`, else `previous`, else the newest former champion that may be.

    `moves` are all of the ledger, `accepted` the verdicts that count as gated, `verdict` reads that of a move. Raises
    `Refused` with one sentence when nobody is champion, when `to` may not be champion, and when no version may.
    """
    if not champion:
        raise Refused("Nobody is champion: there is nothing to take back; materialize champion_alias first.")
    if to:
        why = why_not(to, champion=champion, moves=moves, versions=versions, accepted=accepted, verdict=verdict)
        promotion = promotion_of(to, moves)
        if why or promotion is None:
            raise Refused(why)
        return promotion
    # After a move by hand the one the ledger names comes first: `previous` is who was before that.
    before = [previous, *reversed(once_champion(moves))]
    before = before if standing(moves).get(CHAMPION, "") == champion else before[1:]
    reasons = []
    for version in dict.fromkeys(one for one in before if one and one != champion):
        why = why_not(version, champion=champion, moves=moves, versions=versions, accepted=accepted, verdict=verdict)
        promotion = promotion_of(version, moves)
        if not why and promotion is not None:
            return promotion
        reasons.append(why)
    raise Refused(
        f"There is no version to go back to from version {champion}: "
        + (" ".join(reasons) or "nobody was champion before it.")
        + " Release a corrected version."
    )


def why_not(
    version: str,
    *,
    champion: str,
    moves: Sequence[AliasMove],
    versions: Mapping[str, RegisteredVersion],
    accepted: Collection[str],
    verdict: Callable[[AliasMove], str],
) -> str:
    """Why a rollback may not go to `version`, in one sentence; empty when it may."""
    promotion, found = promotion_of(version, moves), versions.get(version)
    if version == champion:
        return f"Version {version} is champion already: name another version, or none."
    if promotion is None:
        former = ", ".join(dict.fromkeys(once_champion(moves))) or "none"
        return f"Version {version[:40]} was never made champion by this graph; versions that were: {former}."
    if found is None:
        return f"Version {version} was deleted: name another version that was champion, see lifecycle history."
    if found.model_id != promotion.model_id:
        return (
            f"Version {version} names model {found.model_id or 'none'} now, and was champion with model "
            f"{promotion.model_id}: name another version."
        )
    if version in barred(moves):
        return f"Version {version} was taken back itself and its evidence has not changed: name another version."
    found_by_gate = verdict(promotion)
    if found_by_gate not in accepted:
        return f"Version {version} became champion as '{found_by_gate}', not by passing its gate: name another."
    return ""


def interrupted_rollback(
    moves: Sequence[AliasMove], *, to: str, reason: str, taken_back: str, ended_well: Callable[[str], bool]
) -> AliasMove | None:
    """The newest move of champion when it is what is asked for now, made by a run that did not end well.

    The same words after a run that ended well ask for a further rollback; a version that is named as the one to take
    back is never taken back twice in a row.
    """
    last = champion_moves(moves)[-1:]
    if not last or last[0].decision != ROLLED_BACK:
        return None
    (move,) = last
    if to and move.after[CHAMPION] != to:
        return None
    if taken_back:
        return move if taken_back in (move.before.get(CHAMPION, ""), move.after.get(PREVIOUS, "")) else None
    return move if move.reason == reason and not ended_well(move.dagster_run_id) else None


def roll_back(
    agent: Agent,
    *,
    to: str,
    reason: str,
    taken_back: str = "",
    actor: str,
    dagster_run_id: str,
    mover: AliasMover,
    evaluator: Evaluator,
    ended_well: Callable[[str], bool],
) -> RolledBack:
    """Point `champion` at `to`, or at the newest former champion that may be it, and bar the version taken back.

    `previous` becomes the version taken back; `challenger` stays unless it is the target. `taken_back` names the
    version that is meant: another champion by then stays. `ended_well` says of a Dagster run whether it succeeded.
    Raises `Refused` without a reason, and as `choose_target` does.

    Why a rerun is safe: a move that was claimed is carried out before anything is decided. A run that died, or whose
    deployment failed, asks for the same thing again and finds its own move: there is one move, and not a second step
    back.
    """
    said, meant, made = bounded_reason(reason), taken_back, None

    def decide(state: State) -> AliasMove | None:
        nonlocal meant, made
        made = interrupted_rollback(state.moves, to=to, reason=said, taken_back=taken_back, ended_well=ended_well)
        if made is not None:
            return None
        champion = present_champion(state)
        if meant and champion != meant:
            now = f"version {champion}" if champion else "nobody"
            raise Refused(f"Version {meant} is not champion any more, {now} is: nothing was moved; decide anew.")
        meant = champion  # Should another process move first, it is not its version that was meant.
        promotion = choose_target(
            champion=champion,
            previous=state.aliases.get(PREVIOUS, ""),
            moves=state.moves,
            versions=state.versions,
            accepted=gated_verdicts(agent.spec.eval.gate),
            verdict=verdicts_of(evaluator),
            to=to,
        )
        after = _aliases_after(state, champion, promotion.after[CHAMPION])
        return new_move(
            decision=ROLLED_BACK,
            before={alias: state.aliases.get(alias, "") for alias in after},
            after=after,
            evaluation=evaluator.decision(promotion.eval_run_id, promotion.decision_digest),
            actor=actor,
            reason=said,
            dagster_run_id=dagster_run_id,
        )

    moved = mover.move(decide)
    move = moved.move or made
    assert move is not None  # `decide` returns a move, finds the earlier one, or raises.
    return RolledBack(move, moved.state, repeated=moved.move is None)


def _aliases_after(state: State, taken: str, target: str) -> dict[str, str]:
    """The aliases a rollback sets; one to a version that was deleted, or that is champion now, is removed."""
    after = {CHAMPION: target, PREVIOUS: taken if taken in state.versions else ""}
    return after | ({CHALLENGER: ""} if state.aliases.get(CHALLENGER) == target else {})


def bounded_reason(reason: str) -> str:
    """`reason` as one printable line. Raises `Refused` for none and for one that is too long to be kept."""
    said = " ".join("".join(letter if letter.isprintable() else " " for letter in reason).split())
    if not said:
        raise Refused("A rollback needs a reason: say in one sentence why the champion is taken back.")
    if len(said) > REASON_CHARACTERS:
        raise Refused(f"The reason has {len(said)} characters, {REASON_CHARACTERS} are kept: say it shorter.")
    return said
