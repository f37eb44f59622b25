"""From a source to a champion on real MLflow: gated, repeatable, and whole after every kill."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.release.promotion import champion_fault, require_evidence
from lifecycle_assets.spec_release import Gate
from resources.alias_ledger import MlflowAliasLedger
from resources.evaluator import MlflowEvaluator
from resources.model_registry import MlflowModelRegistry
from tests.building import ATTRIBUTES, COMMIT, Released, World, checks_of, evaluation_of, refusal
from tests.lifecycle.dying import killer

MADE = ("logged_models", "versions", "promotions", "traces", "runs")


def made(world: World) -> dict[str, int]:
    """What there is of the agent, counted in MLflow and in the ledger."""
    client, where = world.client, [world.experiment]
    models = client.search_logged_models(where, filter_string="tags.`lifecycle.complete` = 'true'")
    return {
        "logged_models": len(models),
        "versions": len(world.versions()),
        "promotions": len(world.rows("SELECT * FROM promotions")),
        "traces": len(client.search_traces(locations=where, max_results=500, include_spans=False)),
        "runs": len(client.search_runs(where, "attributes.status = 'FINISHED'")),
    }


def test_the_first_champion_is_gated_like_any_other(released: Released):
    """A gate that refused only later versions let the very first one through to users."""
    assert released.refused == "shouted/mean is 1, at least 1.5 is required."
    assert [name for name, passed in released.refused_checks.items() if not passed] == ["eval_results:gate"]
    assert released.refused_aliases == {}
    assert released.refused_assets == {"uc_model_version": 0, "champion_alias": 0}
    assert released.refused_promotions == 0


def test_a_version_names_all_it_comes_from(world: World):
    (version,) = world.versions()
    (run,) = world.instance.get_runs(dg.RunsFilter(job_name="tiny_release", statuses=[dg.DagsterRunStatus.SUCCESS]))
    metadata = {name: world.metadata(name) for name in ("logged_model", "eval_results", "eval_dataset")}
    model_id = metadata["logged_model"]["mlflow/model_id"]
    tags = {name.removeprefix("lifecycle."): value for name, value in version.tags.items()}
    assert tags["model_id"] == model_id
    assert tags["eval_run_id"] == metadata["eval_results"]["mlflow/run_id"]
    assert tags["dataset_digest"] == metadata["eval_dataset"]["digest"]
    assert (tags["git_commit"], tags["dagster_run_id"], tags["verdict"]) == (COMMIT, run.run_id, "passed")

    model, evaluation = world.client.get_logged_model(model_id), world.client.get_run(tags["eval_run_id"])
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": version.name, "version": 1}] or json.loads(
        model.tags["mlflow.modelVersions"]
    ) == [{"name": version.name, "version": "1"}]
    assert evaluation.data.tags["lifecycle.model_id"] == model_id
    assert evaluation.data.tags["lifecycle.verdict"] == "passed"
    (promotion,) = world.rows("SELECT * FROM promotions")
    assert (promotion["from_version"], promotion["to_version"]) == ("", "1")
    assert (promotion["model_id"], promotion["dagster_run_id"]) == (model_id, run.run_id)
    assert json.loads(promotion["evidence"])["run_id"] == tags["eval_run_id"]
    assert world.aliases() == {"champion": "1"}


def test_a_second_release_changes_nothing(world: World):
    before, champion = made(world), world.metadata("champion_alias")
    assert world.run("release").success
    assert made(world) == before
    after = world.metadata("champion_alias")
    assert after["moved"] is False
    assert after["lifecycle/record"] == champion["lifecycle/record"]


REGISTRY, ARCHIVE = "resources.model_registry:MlflowModelRegistry", "resources.archive.delta_archive:DeltaArchive"
DEATHS = [
    # function, event: the instant, in the order of the release
    ("resources.evaluator:MlflowEvaluator._evaluated", "return"),  # evaluated, without a verdict
    (f"{REGISTRY}._created", "return"),  # a version that is not linked back
    (f"{REGISTRY}.set_alias", "return"),  # previous is set, champion is not
    (f"{ARCHIVE}.append_once", "call"),  # champion is set, the table does not know
]


@pytest.mark.timeout(420)
def test_a_changed_source_becomes_the_champion_once_however_often_its_release_is_killed(world: World):
    """kill -9 at four instants, among them the one between the alias and its row in the table."""
    first, before = world.champion_model_id, made(world)
    world.edit("agent.py", ".upper()", ".upper() + '!'")
    with killer(world) as killing:
        for function, event in DEATHS:
            killing.kill("release", function, event)
        assert world.aliases()["champion"] == "2"
        assert made(world)["promotions"] == 1, "killed between the alias and the row"
        assert killing.settle() == 1, "each run settles the one before"
    assert world.run("release").success

    second = world.champion_model_id
    assert second != first
    assert world.aliases() == {"champion": "2", "previous": "1"}
    after = made(world)
    assert {name: after[name] - before[name] for name in ("logged_models", "versions", "promotions")} == {
        "logged_models": 1,
        "versions": 1,
        "promotions": 1,
    }
    moves = world.rows('SELECT from_version, to_version, model_id FROM promotions ORDER BY "at"')
    assert [tuple(move.values()) for move in moves] == [("", "1", first), ("1", "2", second)]
    one, two = world.versions()
    assert two.tags["lifecycle.model_id"] == second
    assert one.tags["lifecycle.model_id"] == first
    assert world.client.search_runs([world.experiment], "attributes.status = 'RUNNING'") == []
    evaluations = world.client.search_runs(
        [world.experiment], f"tags.`lifecycle.step` = 'evaluation' AND tags.`lifecycle.model_id` = '{second}'"
    )
    assert len(evaluations) == 1


BROKEN = '''
"""One scorer raises, one has nothing to say."""

from mlflow.genai.scorers import scorer


@scorer
def shouted(trace):
    raise RuntimeError("the judge is down")


@scorer
def length(trace):
    return None
'''


def test_a_scorer_that_raises_and_one_that_is_silent_let_nothing_through(world: World):
    """Neither an error nor a missing number is a pass: both stop the release with their own sentence."""
    world.agent.path("scorers.py").write_text(BROKEN)
    thresholds = [{"metric": name, "at_least": 0.0} for name in ("shouted/mean", "length/mean")]
    world = world.declared(eval={**ATTRIBUTES["eval"], "gate": {"thresholds": thresholds}})
    registered = world.materialized("uc_model_version")
    done = world.run("release")
    assert not done.success
    checks = checks_of(done)
    gate, ran = checks["eval_results:gate"], checks["eval_results:scorers_ran"]
    assert not gate.passed
    assert not ran.passed
    assert "shouted failed on every row" in (gate.description or "")
    assert "length/mean has no value" in (gate.description or "")
    assert "shouted failed on 3 of 3 rows" in (ran.description or "")
    assert "the judge is down" in (ran.description or "")
    assert world.materialized("uc_model_version") == registered


def materialize(world: World, *assets: str) -> dg.ExecuteInProcessResult:
    return world.run("release", asset_selection=[dg.AssetKey(["tiny", asset]) for asset in assets])


def rewritten(world: World, asset: str, **changes: Any) -> None:
    """A materialization of `asset` whose record says something else: what a stale page or another hand left."""
    record = {**world.metadata(asset)["lifecycle/record"], **changes}
    metadata = {"lifecycle/record": dg.MetadataValue.json(record)}
    world.instance.report_runless_asset_event(dg.AssetMaterialization(dg.AssetKey(["tiny", asset]), metadata=metadata))


class TestEvidence:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"model_id": "m-other"}, "is about m-other, not about"),
            ({"verdict": "failed", "reasons": ["shouted/mean is low."]}, "is 'failed': shouted/mean is low."),
            ({"verdict": "dry_run"}, "is 'dry_run'"),
            ({"at": "2020-01-01T00:00:00+00:00"}, "days old, 30d is allowed"),
        ],
    )
    def test_evidence_that_proves_nothing_is_refused_by_both_steps(
        self, world: World, changes: dict[str, Any], sentence: str
    ):
        rewritten(world, "eval_results", **changes)
        for asset in ("uc_model_version", "champion_alias"):
            done = materialize(world, asset)
            assert not done.success
            assert sentence in refusal(done)
        assert len(world.rows("SELECT * FROM promotions")) == 1

    def test_a_version_registered_on_other_evidence_is_not_promoted(self, world: World):
        rewritten(world, "uc_model_version", evidence_digest="other")
        done = materialize(world, "champion_alias")
        assert "registered on evidence other" in refusal(done)
        assert refusal(done).endswith("materialize uc_model_version first.")

    def test_a_record_of_another_release_is_refused_and_not_completed_by_guesses(self, world: World):
        metadata = {"lifecycle/record": dg.MetadataValue.json({"model_id": "m-1"})}
        world.instance.report_runless_asset_event(
            dg.AssetMaterialization(dg.AssetKey(["tiny", "logged_model"]), metadata=metadata)
        )
        assert "was written by another release" in refusal(materialize(world, "uc_model_version"))

    @pytest.mark.parametrize(("allowed", "days", "passes"), [("30d", 29, True), ("30d", 31, False), ("12h", 1, False)])
    def test_evidence_expires_after_the_declared_time(self, allowed: str, days: int, passes: bool):
        now = datetime(2026, 11, 20, tzinfo=UTC)
        gate = Gate.model_validate({"thresholds": [{"metric": "a/mean", "at_least": 1}], "max_age": allowed})
        at = (now - timedelta(days=days)).isoformat()
        evaluation = evaluation_of(gate_digest=gate.digest, at=at)
        if passes:
            require_evidence(evaluation, "m-1", gate, now=now)
        else:
            with pytest.raises(Refused, match=f"{days} days old, {allowed} is allowed"):
                require_evidence(evaluation, "m-1", gate, now=now)


class TestPointsAtGatedVersion:
    """The check reads everything anew: what was changed since the promotion is found, whoever changed it."""

    def fault(self, world: World) -> str:
        platform = world.platform
        return champion_fault(
            world.agent,
            registry=MlflowModelRegistry(platform),
            ledger=MlflowAliasLedger(platform),
            evaluator=MlflowEvaluator(platform),
        )

    def test_the_champion_of_a_release_is_what_was_gated(self, world: World):
        done = materialize(world, "champion_alias")
        assert done.success
        assert checks_of(done)["champion_alias:points_at_gated_version"].passed
        assert self.fault(world) == ""

    def test_an_alias_moved_to_a_version_that_was_never_gated_is_found(self, world: World):
        name = world.agent.spec.model_name
        world.client.create_model_version(name, source=f"models:/{world.champion_model_id}")
        world.client.set_registered_model_alias(name, "champion", "2")
        assert self.fault(world).startswith("champion is version 2, the graph left it at version 1")
        assert "Version 2 was never gated" in self.fault(world)
        world.client.delete_registered_model_alias(name, "champion")
        assert "champion is nobody, the graph left it at version 1" in self.fault(world)

    def test_tags_and_model_of_another_evidence_are_found(self, world: World):
        name = world.agent.spec.model_name
        digest = world.versions()[0].tags["lifecycle.evidence_digest"]
        world.client.set_model_version_tag(name, "1", "lifecycle.evidence_digest", "forged")
        assert "was registered on evidence forged" in self.fault(world)
        assert "registered on evidence forged" in refusal(materialize(world, "champion_alias"))
        world.client.set_model_version_tag(name, "1", "lifecycle.evidence_digest", digest)
        world.client.set_model_version_tag(name, "1", "lifecycle.model_id", "m-forged")
        assert "Version 1 names no logged model, or another than its files are of" in self.fault(world)

    def test_a_decision_that_is_gone_is_found(self, world: World):
        world.client.delete_run(world.versions()[0].tags["lifecycle.eval_run_id"])
        assert self.fault(world).startswith("Version 1 is champion. MLflow run ")
        assert world.aliases() == {"champion": "1"}
