"""What moves add up to.

Lives here: the folds of `lifecycle_assets/release/standing.py`.
Add here: another question that the moves alone answer.
Not here: claiming and carrying out moves (`test_moves.py`).
"""

from datetime import UTC, datetime, timedelta

from lifecycle_assets.records import AliasMove
from lifecycle_assets.release.standing import barred, champion_moves, once_champion, standing

START = datetime(2026, 11, 20, tzinfo=UTC)


def moves(*steps: tuple[str, dict[str, str], dict[str, str], str]) -> list[AliasMove]:
    """Moves an hour apart, each (decision, before, after, evidence digest)."""
    return [
        AliasMove(
            at=(START + timedelta(hours=number)).isoformat(timespec="microseconds"),
            decision=decision,
            before=before,
            after=after,
            model_id="m",
            eval_run_id="r",
            evidence_digest=evidence,
            decision_digest="d",
            actor="me",
            reason="because",
            dagster_run_id="",
        )
        for number, (decision, before, after, evidence) in enumerate(steps)
    ]


LIFE = moves(
    ("passed", {"champion": ""}, {"champion": "1", "previous": ""}, "e1"),
    ("waiting", {"challenger": ""}, {"challenger": "2"}, "e2"),
    ("approved", {"champion": "1", "challenger": "2"}, {"champion": "2", "challenger": "", "previous": "1"}, "e2"),
    ("rolled_back", {"champion": "2", "previous": "1"}, {"champion": "1", "previous": "2"}, "e1"),
)


TO_2 = ("passed", {"champion": "1"}, {"champion": "2", "previous": "1"}, "e2")
AGAIN = ("passed", {"champion": "2"}, {"champion": "2"}, "e3")  # On new evidence.


def test_the_moves_say_who_stands_where() -> None:
    assert standing([]) == {}
    assert standing(LIFE[:2]) == {"champion": "1", "challenger": "2"}
    assert standing(LIFE) == {"champion": "1", "previous": "2"}


def test_the_moves_say_who_was_champion() -> None:
    assert once_champion(LIFE) == ["1", "2", "1"]
    assert champion_moves(LIFE) == [LIFE[0], LIFE[2], LIFE[3]]
    gone = [*LIFE, *moves(("rolled_back", {"champion": "1"}, {"champion": ""}, ""))]
    assert once_champion(gone) == ["1", "2", "1"]


def test_who_was_set_by_hand_before_the_first_move_becomes_champion_by_it() -> None:
    """It was in no history, and a runtime told by webhook was never told of it."""
    by_hand = moves(("passed", {"champion": "1"}, {"champion": "1"}, "e1"), TO_2, AGAIN)
    assert once_champion(by_hand) == ["1", "2"]
    assert champion_moves(by_hand) == by_hand[:2]


def test_a_version_taken_back_is_barred_until_it_is_champion_again() -> None:
    assert barred(LIFE[:3]) == {}
    assert barred(LIFE) == {"2": "e2"}
    again = [*LIFE, *moves(("passed", {"champion": "1"}, {"champion": "2"}, "e3"))]
    assert barred(again) == {}
    assert barred([*again, *moves(("rolled_back", {"champion": "2"}, {"champion": "1"}, "e1"))]) == {"2": "e3"}
    by_hand = moves(("rolled_back", {"champion": "7"}, {"champion": "1"}, "e1"))
    assert barred(by_hand) == {"7": ""}
