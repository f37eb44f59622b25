"""What moves add up to.

Lives here: the folds of `lifecycle_assets/release/standing.py`.
Add here: another question that the moves alone answer.
Not here: claiming and carrying out moves (`test_moves.py`).
"""

from datetime import UTC, datetime, timedelta

from lifecycle_assets.records import AliasMove
from lifecycle_assets.release.standing import barred, champion_at, once_champion, standing

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


def test_the_moves_say_who_stands_where() -> None:
    assert standing([]) == {}
    assert standing(LIFE[:2]) == {"champion": "1", "challenger": "2"}
    assert standing(LIFE) == {"champion": "1", "previous": "2"}


def test_the_moves_say_who_was_champion_when() -> None:
    assert once_champion(LIFE) == ["1", "2", "1"]
    assert champion_at(LIFE, START - timedelta(seconds=1)) is None
    assert champion_at(LIFE, START + timedelta(hours=1, minutes=30)) == LIFE[0]
    assert champion_at(LIFE, START + timedelta(hours=2)) == LIFE[2]
    gone = [*LIFE, *moves(("rolled_back", {"champion": "1"}, {"champion": ""}, ""))]
    assert once_champion(gone) == ["1", "2", "1"]


def test_a_version_taken_back_is_barred_until_it_is_champion_again() -> None:
    assert barred(LIFE[:3]) == {}
    assert barred(LIFE) == {"2": "e2"}
    again = [*LIFE, *moves(("passed", {"champion": "1"}, {"champion": "2"}, "e3"))]
    assert barred(again) == {}
    assert barred([*again, *moves(("rolled_back", {"champion": "2"}, {"champion": "1"}, "e1"))]) == {"2": "e3"}
    by_hand = moves(("rolled_back", {"champion": "7"}, {"champion": "1"}, "e1"))
    assert barred(by_hand) == {"7": ""}
