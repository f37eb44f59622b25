"""A registry at fault: one sentence, nothing half-moved, and a run after mending heals.

Lives here: moves of aliases while the registry refuses, loses answers, is away, or lost versions under an alias.
Add here: another thing that goes wrong with a registry.
Not here: races and kills (`tests/test_moves.py`), what registering a version promises (`test_model_registry.py`).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.candidate.judging import eval_checks, eval_record
from lifecycle_assets.gate import Evidence, Outcome, judge
from lifecycle_assets.records import AliasMove, DatasetRecord, EvalRecord, ModelRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.moves import AliasMover
from lifecycle_assets.release.promotion import champion_fault
from lifecycle_assets.release.standing import standing
from lifecycle_assets.spec_file import Agent
from resources.alias_ledger import MlflowAliasLedger
from resources.archive.archive import Archive
from resources.archive.delta_archive import DeltaArchive
from resources.databricks.archive.archive import WarehouseArchive
from resources.databricks.evaluation.evaluator import DatabricksEvaluator
from resources.databricks.registry.model_registry import UnityModelRegistry
from resources.evaluator import Evaluated, Evaluator, MlflowEvaluator
from resources.mlflow_store import open_client
from resources.model_registry import MlflowModelRegistry, ModelRegistry
from resources.platform import Platform
from resources.sql.engine import DuckDbEngine
from tests.building import make_agent
from tests.databricks.conftest import databricks, workspace
from tests.moving import logged, promotion
from tests.workspace.app import Workspace
from tests.workspace.lake import Lake
from tests.workspace.unity_models import UnityModels

__all__ = ["databricks", "workspace"]  # Fixtures.

NAME = "main.agents.tiny"
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Scene:
    """An agent with three registered versions, `evaluations[n]` being that of version n + 1."""

    agent: Agent
    platform: Platform
    evaluations: list[EvalRecord]
    registry: ModelRegistry
    archive: Archive
    evaluator: Evaluator
    workspace: Workspace | None = None

    @property
    def mover(self) -> AliasMover:
        """What moves the aliases."""
        return AliasMover(
            self.agent,
            registry=self.registry,
            ledger=MlflowAliasLedger(self.platform),
            archive=self.archive,
            evaluator=self.evaluator,
            progress=print,
        )

    @property
    def moves(self) -> list[AliasMove]:
        """The ledger."""
        return [entry.move for entry in MlflowAliasLedger(self.platform).entries(self.agent)]

    def promote(self, version: int) -> None:
        """Make it champion."""
        self.mover.move(lambda state: promotion(state, self.evaluations[version - 1]))

    def rows(self) -> list[Mapping[str, Any]]:
        """`promotions`, oldest first."""
        if self.workspace is not None:
            lake = self.workspace[Lake]
            rows = lake.rows(f"{NAME}_promotions") if self.archive.version(f"{NAME}_", "promotions") >= 0 else []
        else:
            found = DuckDbEngine(self.platform).query(self.agent.spec.table_prefix, "SELECT * FROM promotions")
            rows = [dict(row) for row in found.dicts()]
        return sorted(rows, key=lambda row: row["at"])

    def fault(self) -> str:
        """What the check on the champion says."""
        ledger = MlflowAliasLedger(self.platform)
        return champion_fault(self.agent, registry=self.registry, ledger=ledger, evaluator=self.evaluator)

    def require_whole(self) -> None:
        """Aliases, ledger and rows agree, and nothing is unfinished."""
        assert all(entry.done for entry in MlflowAliasLedger(self.platform).entries(self.agent))
        moves = self.moves
        assert self.registry.aliases(NAME) == standing(moves)
        moved = [(move.before.get("champion", ""), move.after["champion"]) for move in moves]
        assert [(row["from_version"], row["to_version"]) for row in self.rows()] == moved


@pytest.fixture
def in_workspace(workspace: Workspace, databricks: Platform, tmp_path: Path) -> Scene:
    agent = make_agent(tmp_path, attributes={"experiment": "/Shared/tiny"})
    evaluations = logged(agent, databricks, 3)
    open_client(databricks).create_registered_model(NAME)
    held = workspace[UnityModels].models[NAME]
    for number, evaluation in enumerate(evaluations, 1):
        model_id = evaluation.model_id
        info = {"name": NAME, "version": str(number), "status": "READY", "model_id": model_id}
        info |= {"source": f"models:/{model_id}", "creation_timestamp": number}
        held["versions"][str(number)] = {"info": info, "tags": {"lifecycle_model_id": model_id}, "polls": 0}
    held["made"] = 3
    gateways = UnityModelRegistry(databricks), WarehouseArchive(databricks), DatabricksEvaluator(databricks)
    return Scene(agent, databricks, evaluations, *gateways, workspace)


@pytest.fixture
def on_sqlite(platform: Platform, tmp_path: Path) -> Scene:
    agent = make_agent(tmp_path / "agents")
    evaluations, registry = logged(agent, platform, 3), MlflowModelRegistry(platform)
    for evaluation in evaluations:
        registry.register(NAME, evaluation.model_id, {})
    return Scene(agent, platform, evaluations, registry, DeltaArchive(platform), MlflowEvaluator(platform))


@pytest.fixture(params=["sqlite", "workspace"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return request.getfixturevalue("on_sqlite" if request.param == "sqlite" else "in_workspace")


def one_sentence(refusal: Refused) -> str:
    said = str(refusal)
    assert "\n" not in said
    assert "Traceback" not in said
    assert "token" not in said
    return said


DENIED = {"status": 403, "error_code": "PERMISSION_DENIED", "message": "no MANAGE on it"}


@pytest.mark.parametrize(
    ("fault", "writes_only"), [(DENIED, False), ({"kind": "lost"}, True), ({"kind": "truncated"}, True)]
)
def test_a_fault_at_any_request_of_a_move_leaves_nothing_half(
    in_workspace: Scene, workspace: Workspace, fault: dict[str, Any], writes_only: bool
) -> None:
    """The ledger decides: before the claim nothing happened, after it the next run completes the move."""
    scene = in_workspace
    scene.promote(1)
    workspace.log.clear()
    scene.promote(2)
    made = [(f"{one.method} {one.path}", one.method) for one in workspace.log]
    first = {request: n for n, (request, _) in reversed([*enumerate(made)])}
    reads = [] if writes_only else [n for n in first.values() if made[n][1] not in WRITES]
    places = sorted([*reads, *(n for n, (_, method) in enumerate(made) if method in WRITES)])
    refused: list[str] = []
    for count, place in enumerate(places):
        before = scene.registry.aliases(NAME), len(scene.rows()), len(scene.moves)
        wanted = 1 + count % 2
        if place:
            workspace.fail(".*", kind="hang", seconds=0, times=place)
        workspace.fail(".*", **fault)
        try:
            scene.promote(wanted)
        except Refused as refusal:
            refused.append(one_sentence(refusal))
        workspace.faults.clear()
        if len(scene.moves) == before[2]:
            assert (scene.registry.aliases(NAME), len(scene.rows())) == before[:2], made[place]
            scene.promote(wanted)
        assert scene.mover.settle().aliases["champion"] == str(wanted), made[place]
        scene.require_whole()
        assert len(scene.moves) == before[2] + 1, made[place]
    assert bool(refused) == (fault.get("kind") != "lost"), "what was done and not answered is read back"


def test_a_denied_alias_is_a_decided_move_that_waits(in_workspace: Scene, workspace: Workspace) -> None:
    scene = in_workspace
    scene.promote(1)
    workspace.fail("POST .*/registered-models/alias$", **DENIED, times=9)
    said = (
        r"Move 2 of the aliases of main\.agents\.tiny is decided and not yet carried out: .*denies permission.*no MAN"
    )
    for _ in range(2):
        with pytest.raises(Refused, match=said) as refusal:
            scene.promote(2)
        assert one_sentence(refusal.value).endswith("The next run carries it out.")
    assert (scene.registry.aliases(NAME), len(scene.rows()), len(scene.moves)) == ({"champion": "1"}, 1, 2)
    assert "champion is version 1, the graph left it at version 2" in scene.fault()
    workspace.faults.clear()
    assert scene.mover.settle().aliases == {"champion": "2", "previous": "1"}
    scene.require_whole()


def test_a_workspace_that_is_away_moves_nothing(
    in_workspace: Scene, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = in_workspace
    scene.promote(1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT", "1")
    workspace.fail("GET|POST", kind="reset", times=1000)
    with pytest.raises(Refused) as refusal:
        scene.promote(2)
    one_sentence(refusal.value)
    workspace.faults.clear()
    assert (scene.registry.aliases(NAME), len(scene.moves)) == ({"champion": "1"}, 1)
    scene.promote(2)
    scene.require_whole()


def test_a_champion_whose_version_was_deleted_is_seen_and_replaced(scene: Scene) -> None:
    scene.promote(1)
    scene.promote(2)
    open_client(scene.platform).delete_model_version(NAME, "2")
    assert scene.registry.aliases(NAME) == {"previous": "1"}
    assert scene.fault().startswith("champion is nobody, the graph left it at version 2")
    state = scene.mover.settle()
    assert (state.aliases, sorted(state.versions)) == ({"previous": "1"}, ["1", "3"])
    scene.promote(3)
    assert scene.registry.aliases(NAME) == {"champion": "3"}
    assert [row["to_version"] for row in scene.rows()] == ["1", "2", "3"]


def test_an_alias_at_a_version_that_is_not_there_is_moved_off(in_workspace: Scene, workspace: Workspace) -> None:
    scene, held = in_workspace, workspace[UnityModels].models[NAME]
    scene.promote(1)
    held["aliases"]["champion"] = "9"
    assert (
        "champion is version 9, the graph left it at version 1: somebody else moved it. Version 9 was never gated"
        in (scene.fault())
    )
    scene.promote(2)
    assert scene.registry.aliases(NAME) == {"champion": "2"}, "previous names nobody: version 9 is gone"
    scene.require_whole()


def test_tags_no_registry_holds_are_shortened_or_named(scene: Scene) -> None:
    evaluation = scene.evaluations[0]
    registered = scene.registry.register(NAME, evaluation.model_id, {"lifecycle.note": "é" * 200_000})
    assert registered.version == "1"
    held = scene.registry.version(NAME, "1").tags["lifecycle.note"]
    assert 0 < len(held) <= 1000
    with pytest.raises(Refused) as refusal:
        scene.registry.tag_version(NAME, "1", {"fine": "yes", "k" * 300: "v"})
    one_sentence(refusal.value)
    assert "fine" not in scene.registry.version(NAME, "1").tags, "nothing of it was written"


def test_numbers_that_are_none_block_and_leave_evidence_that_can_be_read(on_sqlite: Scene) -> None:
    """JSON knows neither NaN nor infinity, and SQL reads the evidence as JSON. In a dry run the move is made."""
    scene, made = on_sqlite, on_sqlite.evaluations[0]
    said = [Outcome(math.nan), Outcome(math.inf), Outcome(-math.inf), Outcome(1.0)]
    evidence = Evidence(made.model_id, "d", {"shouted": "1"}, 4, {"shouted": said}, ["a", "b", "c", "d"])
    gate = scene.agent.spec.eval.gate
    assert judge(evidence, gate).verdict == "failed"
    dry = gate.model_copy(update={"mode": "dry_run"})
    evaluated = Evaluated(made.run_id, evidence, 0, reused=False, at=made.at)
    blocks = [[check.severity.value for check in eval_checks(judge(evidence, g), evaluated, g)] for g in (gate, dry)]
    assert blocks == [["ERROR", "ERROR"], ["WARN", "WARN"]]
    decision = eval_record(
        ModelRecord(made.model_id, made.run_id, "e", "s", ""),
        DatasetRecord("1", "eval", "d", 4),
        evaluated,
        None,
        judge(evidence, dry),
        dry,
        actor="",
        dagster_run_id="",
    )
    scene.evaluator.keep_decision(decision)
    scene.mover.move(lambda state: promotion(state, decision))
    (row,) = scene.rows()

    def never(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    kept = json.loads(row["evidence"], parse_constant=never)
    assert (kept["verdict"], kept["errors"], kept["metrics"]["shouted/mean"]) == ("dry_run", 3, 1.0)
    scene.require_whole()
