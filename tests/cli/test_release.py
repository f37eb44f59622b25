"""What the commands say of a release: who was champion and why, who waits, who is barred, what was changed by hand.

A second version of the small agent waits, is approved, and is taken back, by the ledger and the tables themselves.
"""

import json
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from lifecycle_assets.cli.differences import Difference
from lifecycle_assets.cli.places_store import registry
from lifecycle_assets.cli.plan_release import alias_differences, version_differences
from lifecycle_assets.cli.sources import Sources, guarded
from lifecycle_assets.cli.stages_release import champion_stage
from lifecycle_assets.edges import latest
from lifecycle_assets.records import AliasMove, EvalRecord
from lifecycle_assets.release.aliases import CHALLENGER, CHAMPION, PREVIOUS
from lifecycle_assets.release.moves import AliasMover, new_move
from lifecycle_assets.spec_file import Agent
from resources.gateways import open_gateway
from resources.platform import Platform
from tests.building import Released, World, released_once
from tests.cli.conftest import HOSTILE, Run

pytestmark = pytest.mark.timeout(900)

NAME = "main.agents.tiny"


@pytest.fixture(scope="session")
def released(migrated_store: Path) -> Released:
    return released_once(migrated_store)


@contextmanager
def copied(released: Released, folder: Path) -> Generator[World]:
    """A copy of the released world that the commands find."""
    with released.copy(folder) as world, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIFECYCLE_DEFS", str(world.agent.folder.parent))
        patch.setenv("COLUMNS", "120")
        yield world


@pytest.fixture
def world(released: Released, tmp_path: Path) -> Iterator[World]:
    with copied(released, tmp_path) as world:
        yield world


@pytest.fixture(scope="module")
def life(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Version 2 waited, was approved and was taken back; tests only read it."""
    with copied(released, tmp_path_factory.mktemp("life")) as world:
        evaluation = second_version(world)
        moved(world, evaluation, "waiting", {CHALLENGER: "2"})
        approved = {CHAMPION: "2", PREVIOUS: "1", CHALLENGER: ""}
        moved(world, evaluation, "approved", approved, actor="ann", reason="It reads well.")
        moved(world, first_evaluation(world), "rolled_back", {CHAMPION: "1", PREVIOUS: "2"}, reason=f"Slow. {HOSTILE}")
        yield world


def first_evaluation(world: World) -> EvalRecord:
    found = latest(world.instance, dg.AssetKey(["tiny", "eval_results"]), EvalRecord)
    assert found is not None
    return found


def second_version(world: World) -> EvalRecord:
    """Version 2 of another logged model, registered on an evaluation of its own that beat the champion."""
    model = world.client.create_logged_model(world.experiment, name="second").model_id
    world.client.finalize_logged_model(model, "READY")
    run = world.client.create_run(world.experiment, run_name="second evaluation").info.run_id
    first = first_evaluation(world)
    evaluation = replace(
        first,
        run_id=run,
        model_id=model,
        metrics={**first.metrics, "shouted/mean": 0.75},
        comparison="better",
        incumbent_model_id=first.model_id,
        incumbent_run_id=first.run_id,
    )
    open_gateway("evaluator").keep_decision(evaluation)
    tags = {
        "lifecycle.eval_run_id": run,
        "lifecycle.dataset_digest": evaluation.dataset_digest,
        "lifecycle.evidence_digest": evaluation.evidence_digest,
        "lifecycle.verdict": "passed",
    }
    assert open_gateway("registry").register(NAME, model, tags).version == "2"
    return evaluation


def moved(
    world: World,
    evaluation: EvalRecord,
    decision: str,
    after: dict[str, str],
    *,
    actor: str = "dagster",
    reason: str = "It passed.",
) -> AliasMove:
    """Make the move as the graph does."""
    mover = AliasMover(
        world.agent,
        progress=lambda _: None,
        **{name: open_gateway(name) for name in ("registry", "ledger", "archive", "evaluator")},
    )

    def wanted(state: Any) -> AliasMove:
        before = {alias: state.aliases.get(alias, "") for alias in after}
        return new_move(
            decision=decision,
            before=before,
            after=after,
            evaluation=evaluation,
            actor=actor,
            reason=reason,
            dagster_run_id="r",
        )

    made = mover.move(wanted).move
    assert made is not None
    return made


def told(run: Run, *arguments: str, code: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def stage(world: World) -> dict[str, Any]:
    """What `lifecycle status` says of the aliases."""
    sources = Sources(Platform.from_env())
    return guarded(sources, lambda: champion_stage(world.agent, sources))


def planned(world: World, read: Callable[[Agent, Sources], list[Difference]] = alias_differences) -> dict[str, str]:
    """What `lifecycle plan` says of a thing, by kind of change."""
    return {one.change: one.text for one in read(world.agent, Sources(world.platform))}


class TestHistory:
    def test_every_move_with_who_why_and_evidence(self, life: World, run: Run):
        found = told(run, "history", "tiny")["moves"]
        assert [(one["alias"], one["from"], one["to"], one["decision"]) for one in found] == [
            ("champion", "", "1", "passed"),
            ("challenger", "", "2", "waiting"),
            ("challenger", "2", "", "approved"),
            ("champion", "1", "2", "approved"),
            ("champion", "2", "1", "rolled_back"),
        ]
        approved = found[3]
        assert (approved["who"], approved["approver"], approved["why"]) == ("ann", "ann", "It reads well.")
        assert approved["evidence"]["comparison"] == "better"
        assert approved["evidence"]["compared_with"]["model_id"] == found[0]["model_id"]
        assert found[4]["approver"] == ""

    def test_the_table_is_readable_in_120_columns_and_obeys_nothing(self, life: World, run: Run):
        shown = run("history", "tiny").stdout
        assert max(map(len, shown.splitlines())) <= 120
        for text in ("2 → 1", "rolled_back, by dagster", "Slow.", first_evaluation(life).run_id):
            assert text in shown, shown
        assert not {"\x1b", "\u202e"} & set(shown)

    @pytest.mark.parametrize(
        ("after", "champion", "decision"), [(0, "1", "passed"), (2, "2", "approved"), (4, "1", "rolled_back")]
    )
    def test_who_was_champion_at_a_moment_and_why(
        self, life: World, run: Run, after: int, champion: str, decision: str
    ):
        at = told(run, "history", "tiny")["moves"][after]["at"]
        found = told(run, "history", "tiny", "--at", at)
        assert (found["champion"], found["move"]["decision"]) == (champion, decision)
        shown = run("history", "tiny", "--at", at).stdout
        for fact in (f"version {champion} was champion", found["move"]["evidence"]["dataset_digest"], "shouted/mean"):
            assert fact in shown

    def test_before_the_first_champion_nobody_was(self, life: World, run: Run):
        first = told(run, "history", "tiny")["moves"][0]["at"]
        before = (datetime.fromisoformat(first) - timedelta(seconds=1)).replace(tzinfo=None).isoformat()
        found = told(run, "history", "tiny", "--at", before)
        assert (found["champion"], found["until"], found["move"]) == ("", first, None)
        assert (
            "nobody was champion; the first became champion at" in run("history", "tiny", "--at", "2001-01-01").stdout
        )

    @pytest.mark.parametrize("at", ["", "yesterday", "2026-13-01", "0001-01-01T00:00+14:00", HOSTILE, "9" * 5000])
    def test_a_moment_that_is_none_is_misuse_in_one_line(self, life: World, run: Run, at: str):
        result = run("history", "tiny", "--at", at)
        assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (2, 1, "")
        assert "2026-11-01T12:00Z" in result.stderr
        assert len(result.stderr) < 200


class TestLineage:
    def test_the_evidence_behind_a_version(self, life: World, run: Run):
        first, second = first_evaluation(life), life.versions()[1].tags
        found = told(run, "lineage", f"models:/{NAME}/2")
        nodes = {node["id"]: node for node in found["nodes"]}
        edges = {(edge["kind"], edge["from"], edge["to"]) for edge in found["edges"]}
        (decision,) = [node for node in nodes.values() if node["kind"] == "decision"]
        assert (decision["verdict"], decision["comparison"]) == ("passed", "better")
        assert decision["thresholds"][0].startswith("shouted/mean")
        run_id = second["lifecycle.eval_run_id"]
        assert {
            ("evaluated on", first.dataset_digest, run_id),
            ("judged by", f"shouted {first.scorers['shouted']}", run_id),
            ("decided in", run_id, decision["id"]),
            ("compared with", first.run_id, decision["id"]),
            ("let through", decision["id"], f"models:/{NAME}/2"),
        } <= edges
        (approval,) = [node for node in nodes.values() if node["kind"] == "approval"]
        assert (approval["who"], approval["why"]) == ("ann", "It reads well.")
        into = {
            (nodes[target]["kind"], nodes[target]["decision"], kind)
            for kind, source, target in edges
            if source == f"models:/{NAME}/2" and "move" in nodes[target]["kind"]
        }
        assert into == {
            ("challenger_move", "waiting", "promoted in"),
            ("challenger_move", "approved", "waited until"),
            ("champion_move", "approved", "promoted in"),
            ("champion_move", "rolled_back", "taken back in"),
        }
        assert "agent_source" not in {node["kind"] for node in found["nodes"]}, "the champion it beat is no cause of it"

    @pytest.mark.parametrize("ref", ["champion", "previous"])
    def test_an_alias_names_its_version(self, life: World, run: Run, ref: str):
        number = {"champion": "1", "previous": "2"}[ref]
        found = told(run, "lineage", ref, "--agent", "tiny")
        assert f"models:/{NAME}/{number}" in {node["id"] for node in found["nodes"]}
        assert "champion_move" in run("lineage", ref, "--agent", "tiny").stdout


class TestStatusAndPlan:
    def test_a_rollback_leaves_a_barred_version(self, life: World, run: Run):
        found = stage(life)
        assert (found["champion"], found["previous"], found["challenger"], found["ledger"]) == ("1", "2", "", "1")
        assert [(one["version"], one["why"][:5]) for one in found["barred"]] == [("2", "Slow.")]
        assert "until its evidence changes" in planned(life)["barred"]
        assert set(planned(life, version_differences)) == {"unchanged"}
        assert "barred: version 2" in run("status", "tiny").stdout

    def test_a_champion_taken_back_after_a_hand_removed_its_alias_is_barred_too(self, world: World):
        """The commands could not say anything any more."""
        second = second_version(world)
        moved(world, second, "passed", {CHAMPION: "2", PREVIOUS: "1"})
        world.client.delete_registered_model_alias(NAME, CHAMPION)
        moved(world, second, "rolled_back", {CHAMPION: "1", PREVIOUS: "2"})
        assert [one["version"] for one in stage(world)["barred"]] == ["2"]
        assert "until its evidence changes" in planned(world)["barred"]

    def test_a_version_that_waits_names_the_commands_that_decide(self, world: World, run: Run):
        since = moved(world, second_version(world), "waiting", {CHALLENGER: "2"}).at
        waits = stage(world)["waiting"]
        assert (waits["version"], waits["since"]) == ("2", since)
        shown = run("plan", "tiny").stdout
        assert f"Version 2 waits for approval since {since}: lifecycle approve tiny 2 --reason" in shown

    def test_an_interrupted_move_is_what_the_next_run_does_and_no_drift(self, world: World):
        move = new_move(
            decision="passed",
            before={CHAMPION: "1"},
            after={CHAMPION: "2", PREVIOUS: "1"},
            evaluation=second_version(world),
            actor="dagster",
            reason="It passed.",
            dagster_run_id="r",
        )
        ledger = open_gateway("ledger")
        assert ledger.claim(world.agent, len(ledger.entries(world.agent)) + 1, move)
        found = planned(world)
        assert "champion from version 1 to version 2" in found["interrupted"]
        assert "drift" not in found
        assert "begun and not finished" in stage(world)["why"]
        assert not world.tick("champion_drift_sensor").asset_events

    def test_a_refused_candidate_says_why_champion_would_not_move(self, world: World):
        gate = {"thresholds": [{"metric": "shouted/mean", "at_least": 0.9, "min_rows": 2}]}
        found = planned(world.declared(eval={"dataset": "eval_dataset.jsonl", "gate": gate}))
        assert "champion would not move" in found["refused"]
        assert "another gate" in found["refused"]


class TestChangedByHand:
    def test_plan_shows_what_the_sensor_reports(self, world: World):
        world.client.set_model_version_tag(NAME, "1", "lifecycle.verdict", "failed")
        world.client.set_registered_model_alias(NAME, PREVIOUS, "1")
        world.client.create_model_version(NAME, source=f"models:/{world.champion_model_id}")
        reported = {event.description for event in world.tick("champion_drift_sensor").asset_events}
        shown = " ".join(planned(world, read)["drift"] for read in (version_differences, alias_differences)).lower()
        assert len(reported) == 2
        for sentence in reported:
            assert sentence.lower() in shown
        assert "lifecycle.verdict is 'failed'" in shown
        assert "previous is version 1; the graph left it at nobody" in shown

    def test_a_champion_that_was_deleted_is_never_shown_as_nobody(self, world: World):
        """An embedded store drops the aliases of a version with it; others keep them."""
        world.client.delete_model_version(NAME, "1")
        assert "version 1 was deleted" in planned(world, version_differences)["drift"].lower()
        assert "the graph left it at version 1" in planned(world)["drift"]
        assert "champion is version 1, which was deleted" in stage(world)["why"]
        with closing(sqlite3.connect(world.platform.home / "mlflow.db")) as store, store:
            row = (NAME, "champion", 1)
            store.execute("INSERT INTO registered_model_aliases (name, alias, version) VALUES (?, ?, ?)", row)
        assert "champion is version 1, which was deleted" in stage(world)["why"]
        found = registry(Sources(world.platform), [world.agent])
        assert (found.state, "lifecycle rollback tiny" in found.remedy) == ("fail", True)

    def test_a_ledger_that_cannot_be_read_is_said_and_nobody_is_not(self, world: World, run: Run):
        (ledger,) = world.client.search_runs([world.experiment], "tags.`lifecycle.step` = 'ledger'")
        world.client.delete_run(ledger.info.run_id)
        for answer in (stage(world), told(run, "plan", "tiny", code=1)["things"]["aliases"]):
            assert answer["state"] == "could not read"
            assert "no alias is moved without it" in answer["why"]
        assert len(told(run, "history", "tiny")["moves"]) == 1

    def test_a_registry_that_is_unreachable_is_one_sentence(
        self, world: World, run: Run, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        found = stage(world)
        assert (found["state"], "does not answer" in found["why"]) == ("could not read", True)
        assert told(run, "history", "tiny", "--at", "2100-01-01")["champion"] == "1", "the tables are elsewhere"
