"""The champion of a real release, handed over outside a workspace: to `lifecycle serve`, as files, to a receiver."""

import json

import dagster as dg
import pytest
import yaml

from lifecycle_assets.cli.output import SaysNo
from lifecycle_assets.cli.serve import serving
from lifecycle_assets.cli.sources import Sources
from tests.building import COMMIT, World
from tests.resources.test_webhook import SECRET, documented_check, listening


def test_a_version_says_where_it_went_and_three_runtimes_and_a_receiver_can_run_it(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    tags, said = dict(world.versions()[0].tags), world.metadata("deployment")
    handed = said["lifecycle/record"]
    assert (tags["lifecycle.deployed_to"], tags["lifecycle.deployed_at"]) == ("local", handed["handed_at"])
    assert tags["lifecycle.git_commit"] == COMMIT
    folder = world.platform.home / "deployments" / "tiny"
    named = {"MLFLOW_ACTIVE_MODEL_ID": world.champion_model_id, "LIFECYCLE_MODEL_URI": "models:/main.agents.tiny/1"}
    assert (
        named.items() <= json.loads((folder / "job_cluster.json").read_text())["new_cluster"]["spark_env_vars"].items()
    )
    items = yaml.safe_load((folder / "app.yaml").read_text())["env"]
    assert named.items() <= {item["name"]: item["value"] for item in items}.items()
    assert {f"{name}={value}" for name, value in named.items()} <= set((folder / "docker.env").read_text().splitlines())
    assert "MLFLOW_EXPERIMENT_NAME=/agents/tiny\n" in said["docker.env"]

    with listening() as receiver:
        monkeypatch.setenv("LIFECYCLE_DEPLOY_WEBHOOK", receiver.url)
        monkeypatch.setenv("LIFECYCLE_DEPLOY_WEBHOOK_SECRET", SECRET)
        told = world.declared(deployment={"target": "webhook"})
        for _ in range(2):
            assert told.run("release", asset_selection=[dg.AssetKey(["tiny", "deployment"])]).success
        ((_, headers, body),) = receiver.received
    assert documented_check()(SECRET, headers, receiver.bodies[0])
    champion = world.metadata("champion_alias")["lifecycle/record"]
    assert body["timestamp"] == champion["promoted_at"]
    data = body["data"]
    assert (data["version"], data["model_id"], data["git_commit"]) == ("1", world.champion_model_id, COMMIT)
    assert data["evidence_digest"] == champion["evidence_digest"] == tags["lifecycle.evidence_digest"]
    assert world.versions()[0].tags["lifecycle.deployed_to"] == "webhook"
    with pytest.raises(SaysNo, match=r"it runs as webhook .*, not here; set target: local"):
        serving(told.agent, Sources(world.platform), 0)
