"""What the moves of a ledger add up to.

Lives here: pure folds over moves, oldest first: who stands where, who was champion, who was taken back.
Add here: another question that the moves alone answer.
Not here: the moves' keeping (`resources/alias_ledger.py`), what MLflow says right now (`moves.py`).
"""

from collections.abc import Iterable

from lifecycle_assets.records import AliasMove
from lifecycle_assets.release.aliases import CHAMPION, PREVIOUS

ROLLED_BACK = "rolled_back"
"""The decision of a move that takes a champion back."""


def standing(moves: Iterable[AliasMove]) -> dict[str, str]:
    """Alias to version after all `moves`. An alias that was removed, or that no move is about, is not in it."""
    stands: dict[str, str] = {}
    for move in moves:
        stands |= move.after
    return {alias: version for alias, version in stands.items() if version}


def champion_moves(moves: Iterable[AliasMove]) -> list[AliasMove]:
    """The moves that changed who is champion, oldest first; one to nobody is among them.

    So is one that found the alias set by hand already, where the moves before it name somebody else, or nobody.
    """
    found, stands = [], ""
    for move in moves:
        if CHAMPION in move.after:
            if {move.before.get(CHAMPION, ""), stands} != {move.after[CHAMPION]}:
                found.append(move)
            stands = move.after[CHAMPION]
    return found


def once_champion(moves: Iterable[AliasMove]) -> list[str]:
    """Versions in the order in which moves made them champion, repeats kept; who was set by hand is not in it."""
    return [move.after[CHAMPION] for move in champion_moves(moves) if move.after[CHAMPION]]


def taken_by(move: AliasMove) -> str:
    """The version that a rollback took back, also where a hand had removed the alias before."""
    return move.before.get(CHAMPION, "") or move.after.get(PREVIOUS, "")


def barred(moves: Iterable[AliasMove]) -> dict[str, str]:
    """Versions that a rollback took back, and the digest of the evidence each had been promoted on.

    The digest is empty for a version that no move had made champion. A version that became champion again later is
    not in it.
    """
    promoted_on: dict[str, str] = {}
    taken_back: dict[str, str] = {}
    for move in champion_moves(moves):
        former, champion = taken_by(move), move.after[CHAMPION]
        if move.decision == ROLLED_BACK:
            if former:
                taken_back[former] = promoted_on.get(former, "")
        else:
            promoted_on[champion] = move.evidence_digest
        taken_back.pop(champion, None)
    return taken_back
