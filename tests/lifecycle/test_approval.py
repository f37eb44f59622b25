"""Approval, from a version that waits to the one that is champion: real MLflow, real runs, real ticks."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from lifecycle_assets.cli.main import main
from lifecycle_assets.release.approval import Approval, approval_state, decided_tags, read_approval
from lifecycle_assets.release.registration import LOADED_BACK
from lifecycle_assets.spec_file import read_agent
from lifecycle_assets.spec_release import Gate
from resources.model_registry import MlflowModelRegistry, RegisteredVersion
from resources.platform import Platform
from tests.building import ATTRIBUTES, Released, World, refusal, world_at

NAME = "main.agents.asked"
"""Another registered model of the same agent: nothing was registered under it, and nobody is its champion."""

GATE: dict[str, Any] = {**ATTRIBUTES["eval"]["gate"], "approval": "required"}


def asking(world: World, **gate: Any) -> World:
    """The world with approval required."""
    return world.declared(model_name=NAME, eval={**ATTRIBUTES["eval"], "gate": {**GATE, **gate}})


@pytest.fixture(scope="module")
def asked(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released world whose model is registered once more, where approval is required: version 1 waits."""
    folder = tmp_path_factory.mktemp("asked")
    with released.copy(folder) as world:
        (version,) = world.versions()
        model_id = version.tags["lifecycle.model_id"]
        world.client.create_registered_model(NAME)
        tags = {name: version.tags[name] for name in ("lifecycle.model_id", LOADED_BACK)}
        world.client.create_model_version(NAME, source=f"models:/{model_id}", model_id=model_id, tags=tags)
        assert asking(world).run("release").success
    return folder


@pytest.fixture
def waiting(asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A copy of that world."""
    shutil.copytree(asked / "copy", tmp_path / "copy")
    with world_at(tmp_path / "copy" / "home", read_agent(tmp_path / "copy" / "agents" / "tiny" / "defs.yaml")) as world:
        monkeypatch.setenv("LIFECYCLE_DEFS", str(tmp_path / "copy" / "agents"))
        yield world


def command(*arguments: str) -> Result:
    """`lifecycle ...` in this process."""
    return CliRunner().invoke(main, [*arguments])


def said(world: World, **tags: str) -> None:
    """Set tags of version 1 as somebody does in a registry's UI."""
    for name, value in tags.items():
        world.client.set_model_version_tag(NAME, "1", f"lifecycle.{name}", value)


def tags(world: World) -> dict[str, str]:
    """Tags of version 1."""
    found = world.client.get_model_version(NAME, "1").tags
    return {name.removeprefix("lifecycle."): value for name, value in found.items()}


def decide_again(world: World) -> dict[str, Any]:
    """Materialize champion_alias, and what it says then."""
    assert world.run("release", asset_selection=[dg.AssetKey(["tiny", "champion_alias"])]).success
    return dict(world.metadata("champion_alias"))


def moves(world: World) -> list[tuple[str, ...]]:
    """Rows of `promotions` since version 1 began to wait, oldest first."""
    rows = world.rows('SELECT * FROM promotions ORDER BY "at", alias DESC')
    waits = next(n for n, row in enumerate(rows) if row["decision"] == "waiting")
    columns = ("alias", "from_version", "to_version", "decision", "actor", "reason")
    return [tuple(row[column] for column in columns) for row in rows[waits:]]


def own_artifacts(world: World, run_id: str) -> Path:
    """The files of a run, moved out of those all copies of the world share."""
    shared = Path(world.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    own = Path(shutil.copytree(shared, world.platform.home / "own"))
    with closing(sqlite3.connect(world.platform.home / "mlflow.db")) as store, store:
        store.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (str(own), run_id))
    return own


WAITS = ("challenger", "", "1", "waiting", "dagster")


class TestApproved:
    def test_a_version_waits_until_a_person_approves_it_and_the_sensor_goes_on_once(self, waiting: World):
        assert waiting.aliases() == {"challenger": "1"}
        metadata = waiting.metadata("champion_alias")
        assert (metadata["challenger"], metadata["mlflow/champion"]) == ("1", "nobody")
        assert metadata["next"].startswith("lifecycle approve tiny 1 --reason")
        idle = waiting.tick("approval_sensor")
        assert not idle.run_requests
        assert "lifecycle approve tiny 1" in idle.skip_message

        done = command("approve", "tiny", "1", "--reason", "read 20 answers", "--by", "ann", "--json")
        assert done.exit_code == 0, done.output
        answer = json.loads(done.output)
        evidence = tags(waiting)["evidence_digest"]
        assert (answer["decision"], answer["by"], answer["repeated"]) == ("approved", "ann", False)
        assert answer["evidence"]["evidence_digest"] == evidence
        assert answer["evidence"]["metrics"]["shouted/mean"] == 1.0
        assert answer["evidence"]["thresholds"][0]["metric"] == "shouted/mean"

        (request,) = waiting.tick("approval_sensor").run_requests
        again = command("approve", "tiny", "1", "--reason", "read 20 answers", "--by", "ann")
        assert "was already approved by ann" in again.output
        (repeated,) = waiting.tick("approval_sensor").run_requests
        assert repeated.run_key == request.run_key, "a repeated approval asks for nothing new"
        assert waiting.do(request, "release").success

        assert waiting.aliases() == {"champion": "1"}
        first, champion, challenger = moves(waiting)
        assert first[:5] == WAITS
        assert champion == ("champion", "", "1", "approved", "ann", "read 20 answers")
        assert challenger == ("challenger", "1", "", "approved", "ann", "read 20 answers")
        (row,) = waiting.rows("SELECT evidence FROM promotions WHERE alias = 'champion' AND decision = 'approved'")
        assert json.loads(row["evidence"])["run_id"] == answer["evidence"]["run_id"]
        assert waiting.tick("approval_sensor").skip_message == "No version waits for approval."
        assert command("approve", "tiny", "1", "--reason", "once more", "--by", "bob").exit_code == 0
        assert tags(waiting)["approval_by"] == "ann", "who is champion already is not approved once more"

    def test_a_tag_set_by_hand_counts_for_what_the_version_carries_whatever_was_evaluated_since(self, waiting: World):
        """A later candidate was refused while this one waits: the one that waits keeps its own evaluation."""
        record = {**waiting.metadata("eval_results")["lifecycle/record"], "model_id": "m-later", "verdict": "failed"}
        metadata = {"lifecycle/record": dg.MetadataValue.json(record)}
        waiting.instance.report_runless_asset_event(
            dg.AssetMaterialization(dg.AssetKey(["tiny", "eval_results"]), metadata=metadata)
        )
        said(waiting, approval="Approved")
        (request,) = waiting.tick("approval_sensor").run_requests
        dated = tags(waiting)
        assert datetime.fromisoformat(dated["approval_at"]) > datetime.now(UTC) - timedelta(minutes=5)
        assert dated["approval_evidence"] == f"approved {dated['evidence_digest']}"
        (again,) = waiting.tick("approval_sensor").run_requests
        assert again.run_key == request.run_key
        assert waiting.do(request, "release").success
        assert waiting.aliases() == {"champion": "1"}
        assert moves(waiting)[1][3:5] == ("approved", "not stated")


class TestNotApproved:
    def test_a_rejected_version_waits_no_more_and_can_be_made_to_wait_again(self, waiting: World):
        done = command("reject", "tiny", "1", "--reason", "rude", "--by", "ann")
        assert done.exit_code == 0, done.output
        (request,) = waiting.tick("approval_sensor").run_requests
        assert waiting.do(request, "release").success
        assert waiting.aliases() == {}
        assert moves(waiting)[1:] == [("challenger", "1", "", "rejected", "ann", "rude")]
        assert "was rejected by ann: rude" in decide_again(waiting)["decision"]
        assert len(moves(waiting)) == 2
        refused = command("approve", "tiny", "1", "--reason", "after all")
        assert refused.exit_code == 1
        assert "it was rejected by ann before. To have it wait again, set its tag" in refused.output
        said(waiting, approval="required")
        decide_again(waiting)
        assert waiting.aliases() == {"challenger": "1"}

    def test_an_approval_of_evidence_that_was_replaced_does_not_count(self, waiting: World):
        """Another threshold is other evidence: the version waits on it anew, and the old approval is gone first."""
        assert command("approve", "tiny", "1", "--reason", "good").exit_code == 0
        (request,) = waiting.tick("approval_sensor").run_requests
        before = tags(waiting)["evidence_digest"]
        stricter = [{**GATE["thresholds"][0], "at_least": 0.9}]
        changed = asking(waiting, thresholds=stricter)
        late = command("approve", "tiny", "1", "--reason", "once more")
        assert late.exit_code == 1
        assert "another gate than defs.yaml declares now" in late.output
        assert changed.run("release").success
        now = tags(waiting)
        assert now["evidence_digest"] != before
        assert now["approval"] == "required"
        assert changed.do(request, "release").success, "asked for before, and about evidence that is no more"
        assert waiting.aliases() == {"challenger": "1"}
        assert not changed.tick("approval_sensor").run_requests

    def test_an_approval_that_expired_is_taken_back_so_that_a_new_one_is_seen(self, waiting: World):
        assert command("approve", "tiny", "1", "--reason", "good").exit_code == 0
        (first,) = waiting.tick("approval_sensor").run_requests
        said(waiting, approval_at=(datetime.now(UTC) - timedelta(days=8)).isoformat(timespec="seconds"))
        metadata = decide_again(waiting)
        assert "longer ago than 7d: it does not count any more" in metadata["decision"]
        assert waiting.aliases() == {"challenger": "1"}
        assert tags(waiting)["approval"] == "required"
        said(waiting, approval="approved")
        (second,) = waiting.tick("approval_sensor").run_requests
        assert second.run_key != first.run_key
        assert waiting.do(second, "release").success
        assert waiting.aliases() == {"champion": "1"}

    def test_what_cannot_be_is_said_in_one_line(self, waiting: World):
        for arguments, code, sentence in (
            (["1", "--reason", "  "], 2, "--reason takes a sentence of 1 to 500 characters, not 0."),
            (["1", "--reason", "x" * 501], 2, "not 501."),
            (["1"], 2, "Missing option '--reason'"),
            (["one", "--reason", "good"], 2, "'one' is no version"),
            (["9", "--reason", "good"], 1, f"Version 9 of {NAME} is not there"),
        ):
            done = command("approve", "tiny", *arguments)
            assert done.exit_code == code, done.output
            assert sentence in done.output
            assert len(done.output.strip().splitlines()) == 1
        assert tags(waiting)["approval"] == "required"

    def test_rows_changed_after_the_verdict_stop_approver_version_and_champion(self, waiting: World):
        evaluation = own_artifacts(waiting, tags(waiting)["eval_run_id"]) / "evaluation.json"
        held = json.loads(evaluation.read_text())
        held["rows"][0]["scores"]["shouted"]["value"] = 0.25
        evaluation.write_text(json.dumps(held))
        done = command("approve", "tiny", "1", "--reason", "good")
        assert done.exit_code == 1
        assert "they were changed since" in done.output
        for asset in ("uc_model_version", "champion_alias"):
            step = waiting.run("release", asset_selection=[dg.AssetKey(["tiny", asset])])
            assert not step.success
            assert "they were changed since" in refusal(step)


VERSION = RegisteredVersion(NAME, "1", "m-1", {"lifecycle.evidence_digest": "e-1"}, 0)


class TestKilled:
    """What is written one after the other may end anywhere: the states in between, each read as it is."""

    registry, gate = MlflowModelRegistry(Platform.from_env({})), Gate.model_validate(GATE)

    def test_half_an_approval_is_none(self):
        written = [
            *decided_tags(Approval("approved", "ann", "good", "2026-11-20T00:00:00+00:00", "e-1"), self.gate).items()
        ]
        for length in range(len(written)):
            half = RegisteredVersion(NAME, "1", "m-1", {**VERSION.tags, **dict(written[:length])}, 0)
            assert read_approval(half, self.gate, self.registry) == Approval(), written[:length]
        whole = RegisteredVersion(NAME, "1", "m-1", {**VERSION.tags, **dict(written)}, 0)
        assert read_approval(whole, self.gate, self.registry).by == "ann"

    def test_companions_of_another_decision_count_for_nothing(self):
        kept = decided_tags(Approval("approved", "ann", "good", "2026-11-20T00:00:00+00:00", "e-0"), self.gate)
        by_hand = RegisteredVersion(NAME, "1", "m-1", {**VERSION.tags, **kept, "lifecycle.approval": "REJECTED"}, 0)
        assert read_approval(by_hand, self.gate, self.registry) == Approval("rejected", evidence="e-1")

    def test_between_taking_an_approval_back_and_naming_new_evidence_nothing_is_approved(self, waiting: World):
        said(waiting, approval="Approved")
        registry, gate = MlflowModelRegistry(waiting.platform), waiting.agent.spec.eval.gate
        version = registry.version(NAME, "1")
        assert approval_state(version, version.tags["lifecycle.evidence_digest"], gate, registry) == "approved"
        assert approval_state(version, "other", gate, registry) == "required"  # And killed here.
        assert tags(waiting)["evidence_digest"] == version.tags["lifecycle.evidence_digest"]
        assert read_approval(registry.version(NAME, "1"), gate, registry) == Approval()
        assert not waiting.tick("approval_sensor").run_requests
