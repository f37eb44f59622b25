"""Moves of aliases: one winner, carried out whole, whoever races and wherever somebody dies.

Lives here: promises of `lifecycle_assets/release/moves.py` on real MLflow and Delta.
Add here: another moment at which a move must not be lost.
Not here: which move to make (`test_decision.py`), how the ledger is kept (`resources/test_alias_ledger.py`).
"""

import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.records import REASON_CHARACTERS, AliasMove, EvalRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.moves import State, new_move
from lifecycle_assets.release.standing import standing
from lifecycle_assets.spec_file import Agent
from resources.alias_ledger import MlflowAliasLedger
from resources.mlflow_store import open_client
from resources.model_registry import MlflowModelRegistry
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from tests.building import evaluation_of, make_agent
from tests.moving import logged, mover, processes, promotion

ROUNDS = 200


@dataclass(frozen=True)
class Scene:
    """An agent with three registered versions, `evaluations[n]` being that of version n + 1."""

    agent: Agent
    platform: Platform
    evaluations: list[EvalRecord]

    @property
    def name(self) -> str:
        """The registered model."""
        return self.agent.spec.model_name

    @property
    def aliases(self) -> dict[str, str]:
        """Aliases as MLflow has them."""
        return MlflowModelRegistry(self.platform).aliases(self.name)

    @property
    def moves(self) -> list[AliasMove]:
        """The ledger."""
        return [entry.move for entry in MlflowAliasLedger(self.platform).entries(self.agent)]

    def rows(self) -> list[tuple[Any, ...]]:
        """`promotions`, oldest first."""
        query = 'SELECT epoch_us("at"), alias, from_version, to_version, evidence FROM promotions ORDER BY "at", alias'
        return list(DuckDbEngine(self.platform).query(self.agent.spec.table_prefix, query, limit=10_000).rows)

    def promote(self, number: int) -> AliasMove | None:
        """Make the version of that evaluation champion."""
        return mover(self.agent, self.platform).move(lambda state: promotion(state, self.evaluations[number])).move

    def require_whole(self) -> None:
        """Every move follows from the one before it, has its row and is done; the aliases are what they add up to."""
        entries = MlflowAliasLedger(self.platform).entries(self.agent)
        assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
        assert all(entry.done for entry in entries)
        moves = [entry.move for entry in entries]
        for before, move in zip([None, *moves], moves, strict=False):
            assert move.before["champion"] == (before.after["champion"] if before else "")
        expected = [
            (_epoch(move.at), "champion", move.before["champion"], move.after["champion"], move.decision_digest)
            for move in moves
        ]
        rows = [(*row[:4], EvalRecord.from_json(json.loads(row[4])).decision_digest) for row in self.rows()]
        assert rows == expected
        assert self.aliases == standing(moves)


def _epoch(at: str) -> int:
    moment = datetime.fromisoformat(at)
    return int(moment.timestamp()) * 10**6 + moment.microsecond


@pytest.fixture
def scene(platform: Platform, tmp_path: Path) -> Scene:
    agent = make_agent(tmp_path / "agents")
    evaluations = logged(agent, platform, 3)
    for evaluation in evaluations:
        MlflowModelRegistry(platform).register(agent.spec.model_name, evaluation.model_id, {})
    return Scene(agent, platform, evaluations)


DEATHS = [
    "mlflow:MlflowClient.create_experiment return 1",
    "mlflow:MlflowClient.log_param call 1",
    "resources.alias_ledger:MlflowAliasLedger.claim return 1",
    "resources.model_registry:MlflowModelRegistry.set_alias return 1",
    "resources.model_registry:MlflowModelRegistry.set_alias return 2",
    "resources.archive.delta_archive:DeltaArchive.append_once return 1",
]
REGISTRATION_DEATHS = [
    "mlflow:MlflowClient.create_model_version call 1",
    "mlflow:MlflowClient.create_model_version return 1",
]


@pytest.mark.timeout(1800)
def test_raced_and_killed_no_move_and_no_version_is_lost_or_doubled(scene: Scene, tmp_path: Path) -> None:
    registry = MlflowModelRegistry(scene.platform)
    with processes(scene.agent, scene.platform) as others:
        # Killed at every step, and finished by the next process from the ledger alone.
        for count, death in enumerate(DEATHS):
            others.run("promote", scene.evaluations, record=count % 3, die=death)
            mover(scene.agent, scene.platform).settle()
            scene.require_whole()
            if len(scene.moves) == count:  # It died before the move counted: nothing had been moved.
                scene.promote(count % 3)
            scene.require_whole()
            assert (len(scene.moves), scene.aliases["champion"]) == (count + 1, str(count % 3 + 1))

        candidates = logged(scene.agent, scene.platform, 12, decided=False)
        for number, death in enumerate(REGISTRATION_DEATHS):
            others.run("register", candidates, records=[number], die=death)
            registry.register(scene.name, candidates[number].model_id, {"eval": "run-1"})
        others.run("register", candidates, processes=2, records=list(range(12)))
        found = [version.model_id for version in registry.versions(scene.name)]
        assert sorted(found[3:]) == sorted(one.model_id for one in candidates)

        others.run("promote_often", scene.evaluations, processes=2, rounds=ROUNDS, out=str(tmp_path / "wishes"))
    scene.require_whole()
    assert len(scene.moves) == ROUNDS
    wishes = [int(file.read_text()) for file in tmp_path.glob("wishes.*")]
    assert len(wishes) == 2
    assert sum(wishes) > ROUNDS - len(DEATHS), "no move was ever wanted by both: that proves nothing"


def test_who_loses_decides_anew_on_what_the_winner_left(scene: Scene) -> None:
    seen: list[State] = []

    def decide(state: State) -> AliasMove | None:
        seen.append(state)
        if len(seen) == 1:
            scene.promote(1)
        return promotion(state, scene.evaluations[0])

    moved = mover(scene.agent, scene.platform).move(decide)
    assert [dict(state.aliases) for state in seen] == [{}, {"champion": "2"}]
    assert moved.state.aliases == {"champion": "1", "previous": "2"}
    scene.require_whole()


def test_a_change_by_hand_before_the_claim_stops_the_move(scene: Scene) -> None:
    scene.promote(0)

    def decide(state: State) -> AliasMove:
        open_client(scene.platform).set_registered_model_alias(scene.name, "champion", "3")
        return promotion(state, scene.evaluations[1])

    with pytest.raises(Refused, match="champion named version 1 when this move was decided and names version 3 now"):
        mover(scene.agent, scene.platform).move(decide)
    assert (len(scene.moves), scene.aliases["champion"], len(scene.rows())) == (1, "3", 1)


def test_a_first_champion_that_a_hand_had_set_has_its_row(scene: Scene) -> None:
    open_client(scene.platform).set_registered_model_alias(scene.name, "champion", "1")

    def decide(state: State) -> AliasMove:
        return replace(promotion(state, scene.evaluations[0]), after={"champion": "1"})

    mover(scene.agent, scene.platform).move(decide)
    assert [row[1:4] for row in scene.rows()] == [("champion", "1", "1")]


def test_what_cannot_be_moved_claims_nothing(scene: Scene) -> None:
    absent = evaluation_of(scene.evaluations[0].model_id, run_id=scene.evaluations[1].run_id)
    with pytest.raises(Refused, match="does not hold"):
        mover(scene.agent, scene.platform).move(lambda state: promotion(state, absent))

    def to_a_deleted_version(state: State) -> AliasMove:
        move = promotion(state, scene.evaluations[0])
        return replace(move, after={"champion": "9", "previous": ""})

    with pytest.raises(Refused, match=r"Version 9 of .* does not exist, so champion cannot name it"):
        mover(scene.agent, scene.platform).move(to_a_deleted_version)
    assert (scene.moves, scene.aliases, scene.rows()) == ([], {}, [])
    assert open_client(scene.platform).get_experiment_by_name("/agents/main.agents.tiny.ledger") is None


def test_a_version_deleted_after_its_claim_is_taken_back(scene: Scene) -> None:
    scene.promote(0)
    ledger = MlflowAliasLedger(scene.platform)
    claimed = promotion(mover(scene.agent, scene.platform).settle(), scene.evaluations[1])
    assert ledger.claim(scene.agent, 2, claimed)
    open_client(scene.platform).delete_model_version(scene.name, "2")
    state = mover(scene.agent, scene.platform).settle()
    assert [move.decision for move in state.moves] == ["passed", "passed", "rolled_back"]
    assert state.aliases == {"champion": "1"}
    assert "Version 2 was deleted" in state.moves[-1].reason
    scene.require_whole()


def test_a_move_keeps_what_people_write_within_bounds(scene: Scene) -> None:
    state = mover(scene.agent, scene.platform).settle()
    words = "new\nline \x00 \U0001f980 ' \" \\ " + "\U0001f980" * 3000
    move = new_move(
        decision="passed",
        before={"champion": ""},
        after={"champion": "1"},
        evaluation=scene.evaluations[0],
        actor=words,
        reason=words,
        dagster_run_id="d",
    )
    mover(scene.agent, scene.platform).move(lambda _: move)
    [kept] = scene.moves
    assert kept.reason == move.reason
    assert len(kept.reason) == REASON_CHARACTERS
    assert "\n" not in kept.reason
    assert "\x00" not in kept.reason
    later = promotion(state, scene.evaluations[1])
    later = replace(later, at="2020-01-01T00:00:00.000000+00:00", before={"champion": "1"})
    assert mover(scene.agent, scene.platform).move(lambda _: later).move is not None
    assert scene.moves[1].at > kept.at
