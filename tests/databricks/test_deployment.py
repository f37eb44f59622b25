"""Handing the champion over in a workspace, to an endpoint, an app, a job and a receiver: once, and taken back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from lifecycle_assets.edges import RECORD_KEY
from lifecycle_assets.records import ChampionRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.deployment.app_yaml import items_of, render
from resources.databricks.deployment.deployer import DatabricksDeployer
from resources.databricks.deployment.job_trigger import RUNS
from resources.databricks.registry import model_registry
from resources.databricks.workspace import open_workspace
from resources.deployer import Move
from resources.local_deployer import LocalDeployer
from resources.platform import Platform
from tests.building import World, make_agent, refusal
from tests.databricks.conftest import forget_clients
from tests.resources.test_webhook import SECRET, Receiver, documented_check, listening
from tests.workspace.app import Workspace
from tests.workspace.apps import Apps
from tests.workspace.files import Files
from tests.workspace.jobs import Jobs
from tests.workspace.serving import Serving
from tests.workspace.tracking import Tracking
from tests.workspace.unity_models import UnityModels
from tests.workspace.workspace_files import WorkspaceFiles

ENDPOINT = {"target": "databricks_serving", "endpoint": "tiny", "wait_minutes": 1}
APP = {"target": "databricks_app", "app": "tiny-app", "source_path": "/Workspace/Shared/tiny", "wait_minutes": 1}
JOB = {"target": "databricks_job", "job": "deploy tiny", "wait_minutes": 1}
WEBHOOK = {"target": "webhook", "environment": {"OPENAI_API_KEY": "{{secrets/llm/key}}"}}
PUT = "PUT .*/serving-endpoints/tiny/config"
DEPLOY = "POST .*/apps/tiny-app/deployments"
APP_YAML = """# our app
command: ['gunicorn', 'app:app']  # two workers do
env:
  # the warehouse
  - name: DATABRICKS_WAREHOUSE_ID
    valueFrom: warehouse
  - name: MLFLOW_ACTIVE_MODEL_ID
    value: typed by hand
# the end
"""

Declare = Callable[..., Agent]


class Killed(BaseException):
    """The process ends here."""


def dying(word: str) -> Callable[[str], None]:
    """Progress under which the process dies when a line holds `word`."""

    def progress(line: str) -> None:
        if word in line:
            raise Killed(line)

    return progress


@pytest.fixture
def declare(tmp_path: Path) -> Declare:
    """Declares the small agent's deployment."""
    return lambda base, **more: make_agent(tmp_path, attributes={"deployment": {**base, **more}})


@pytest.fixture
def deployer(databricks: Platform) -> DatabricksDeployer:
    """Looks often."""
    return DatabricksDeployer(databricks, every=0.02)


def test_an_endpoint_is_made_updated_once_and_left_alone(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare
) -> None:
    serving = workspace[Serving]
    agent = declare(ENDPOINT, environment={"OPENAI_API_KEY": "{{secrets/llm/key}}", "LOG_LEVEL": "debug"})
    assert deployer.current(agent) is None
    with pytest.raises(Refused, match="no version was handed to the runtime"):
        deployer.environment(agent)
    first = deployer.hand_off(agent, Move("1", "m-1"))
    (entity,) = serving.endpoints["tiny"]["config"]["served_entities"]
    assert (entity["entity_name"], entity["entity_version"]) == ("main.agents.tiny", "1")
    env = dict(entity["environment_vars"])
    assert env.pop("LIFECYCLE_HANDED_AT") == first.handed_at
    (experiment,) = workspace[Tracking].experiments
    assert env == {
        "OPENAI_API_KEY": "{{secrets/llm/key}}",
        "LOG_LEVEL": "debug",
        "ENABLE_MLFLOW_TRACING": "true",
        "MLFLOW_ACTIVE_MODEL_ID": "m-1",
        "MLFLOW_EXPERIMENT_ID": experiment,
        "LIFECYCLE_ENVIRONMENT": "dev",
    }
    assert deployer.environment(agent) == entity["environment_vars"]
    assert (first.target, first.version, first.model_id) == ("databricks_serving", "1", "m-1")
    assert first.location == f"{workspace.url}/ml/endpoints/tiny"
    assert deployer.hand_off(agent, Move("1", "m-1")) == first == deployer.current(agent)
    assert not workspace.calls(PUT)
    second = deployer.hand_off(agent, Move("2", "m-2"))
    assert serving.served("tiny") == {"2": 100}
    assert deployer.hand_off(agent, Move("2", "m-2")) == second == deployer.current(agent)
    assert len(workspace.calls(PUT)) == 1


def test_a_share_of_the_requests_leaves_the_rest_to_who_answered_before(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare
) -> None:
    serving, part = workspace[Serving], declare(ENDPOINT, traffic=20)
    deployer.hand_off(part, Move("1", "m-1"))
    assert serving.served("tiny") == {"1": 100}
    record = deployer.hand_off(part, Move("2", "m-2"))
    assert serving.served("tiny") == {"2": 20, "1": 80}
    assert deployer.hand_off(part, Move("2", "m-2")) == record == deployer.current(part)
    deployer.hand_off(part, Move("3", "m-3"))
    assert serving.served("tiny") == {"3": 20, "1": 80}
    deployer.hand_off(declare(ENDPOINT), Move("3", "m-3"))
    assert serving.served("tiny") == {"3": 100}
    assert len(workspace.calls(PUT)) == 3


def test_a_failed_update_is_taken_back(workspace: Workspace, deployer: DatabricksDeployer, declare: Declare) -> None:
    serving, agent = workspace[Serving], declare(ENDPOINT)
    serving.fail_next_update("no image")
    with pytest.raises(Refused, match=r"could not be updated: no image; see http.*/ml/endpoints/tiny\. It served noth"):
        deployer.hand_off(agent, Move("1", "m-1"))
    assert deployer.current(agent) is None
    first = deployer.hand_off(agent, Move("1", "m-1"))
    workspace.slow_states = 3
    serving.fail_next_update("the container\nfailed: no module named 'x'")
    with pytest.raises(Refused, match=r"the container failed: no module named 'x'; see .* serves again; mend"):
        deployer.hand_off(agent, Move("2", "m-2"))
    endpoint = serving.endpoints["tiny"]
    assert endpoint["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert "pending_config" not in endpoint
    assert deployer.current(agent) == first
    # Killed before and while it is taken back: the next run tries again, and takes back again.
    for word in ("is restored", "waiting for"):
        serving.fail_next_update("no luck")
        with pytest.raises(Killed):
            deployer.hand_off(agent, Move("2", "m-2"), progress=dying(word))
    serving.fail_next_update("still no luck")
    with pytest.raises(Refused, match="still no luck"):
        deployer.hand_off(agent, Move("2", "m-2"))
    assert deployer.current(agent) == first
    deployer.hand_off(agent, Move("2", "m-2"))
    assert serving.served("tiny") == {"2": 100}


def test_an_endpoint_is_updated_once_whatever_is_lost(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare, databricks: Platform
) -> None:
    serving, agent = workspace[Serving], declare(ENDPOINT)
    workspace.slow_states = 2
    workspace.fail("POST .*/serving-endpoints$", kind="lost")
    deployer.hand_off(agent, Move("1", "m-1"))
    workspace.fail(PUT, kind="lost")
    workspace.fail("GET .*/serving-endpoints/tiny", status=500, times=1)
    with pytest.raises(Refused, match="injected"):
        deployer.hand_off(agent, Move("2", "m-2"))
    deployer.hand_off(agent, Move("2", "m-2"))
    assert serving.endpoints["tiny"]["config"]["config_version"] == 2
    # Killed while it waits: the next run waits for the same update, through a moment without answers.
    workspace.slow_states = 6
    with pytest.raises(Killed):
        deployer.hand_off(agent, Move("3", "m-3"), progress=dying("waiting for"))
    lines: list[str] = []

    def deaf(line: str) -> None:
        lines.append(line)
        if "waiting for" in line and len(lines) < 4:
            workspace.fail("GET .*/serving-endpoints/tiny", status=500)

    deployer.hand_off(agent, Move("3", "m-3"), progress=deaf)
    assert serving.endpoints["tiny"]["config"]["config_version"] == 3
    assert lines[0] == "endpoint tiny: the update is in progress"
    assert "the workspace did not answer (injected); looking again" in lines
    # Somebody else updates: that is waited for, then ours is the only further one.
    kept = serving.endpoints["tiny"]["config"]["served_entities"][0]["environment_vars"]
    from databricks.sdk.service.serving import ServedEntityInput

    theirs = ServedEntityInput(
        entity_name="main.agents.tiny", entity_version="1", workload_size="Small", environment_vars=kept
    )
    open_workspace(databricks).serving_endpoints.update_config("tiny", served_entities=[theirs])
    deployer.hand_off(agent, Move("4", "m-4"), progress=lines.append)
    assert "endpoint tiny: an update of somebody else is in progress" in lines
    assert serving.served("tiny") == {"4": 100}
    assert serving.endpoints["tiny"]["config"]["config_version"] == 5
    workspace.fail(PUT, status=403, error_code="PERMISSION_DENIED", message="you may not manage tiny")
    with pytest.raises(Refused, match="denies permission"):
        deployer.hand_off(agent, Move("5", "m-5"))


@pytest.fixture
def app(workspace: Workspace) -> Apps:
    """An app with a secret, a source and nothing deployed."""
    apps, files = workspace[Apps], workspace[WorkspaceFiles]
    apps.add("tiny-app", resources=[{"name": "llm", "secret": {"scope": "s", "key": "k", "permission": "READ"}}])
    files.write("/Workspace/Shared/tiny/app.py", "print()")
    files.write("/Workspace/Shared/tiny/app.yaml", APP_YAML)
    return apps


def test_an_app_is_told_by_its_app_yaml_and_deployed_once(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare, app: Apps
) -> None:
    agent = declare(APP, environment={"OPENAI_API_KEY": "{{secrets/s/k}}"})
    app.apps["tiny-app"]["compute_status"]["state"] = "STOPPED"
    workspace.slow_states = 2
    assert deployer.current(agent) is None
    record = deployer.hand_off(agent, Move("1", "m-1"))
    text = app.snapshot("tiny-app")["/Shared/tiny/app.yaml"]
    head, _, rest = APP_YAML.partition("  - name: MLFLOW_ACTIVE_MODEL_ID\n    value: typed by hand\n")
    assert text.startswith(head)
    assert text.endswith(rest)
    env = {item["name"]: item.get("value", item.get("valueFrom")) for item in yaml.safe_load(text)["env"]}
    assert env["DATABRICKS_WAREHOUSE_ID"] == "warehouse"
    assert env["MLFLOW_ACTIVE_MODEL_ID"] == record.model_id == "m-1"
    assert env["LIFECYCLE_MODEL_URI"] == "models:/main.agents.tiny/1"
    assert (env["MLFLOW_TRACKING_URI"], env["MLFLOW_EXPERIMENT_NAME"]) == ("databricks", "/agents/tiny")
    assert env["MLFLOW_EXPERIMENT_ID"] in workspace[Tracking].experiments
    assert {"name": "OPENAI_API_KEY", "valueFrom": "llm"} in yaml.safe_load(text)["env"]
    assert (record.target, record.location) == ("databricks_app", f"{workspace.url}/apps/tiny-app")
    assert deployer.environment(agent)["OPENAI_API_KEY"] == "valueFrom llm"
    writes = len(workspace.calls("POST .*/workspace/import"))
    assert deployer.hand_off(agent, Move("1", "m-1")) == record == deployer.current(agent)
    assert len(workspace.calls(DEPLOY)) == 1
    assert len(workspace.calls("POST .*/workspace/import")) == writes
    with pytest.raises(Refused, match=r"no resource for the secret s/other that OPENAI_API_KEY names: add it"):
        deployer.hand_off(declare(APP, environment={"OPENAI_API_KEY": "{{secrets/s/other}}"}), Move("1", "m-1"))
    with pytest.raises(Refused, match="app other does not exist: create it"):
        deployer.hand_off(declare(APP, app="other"), Move("1", "m-1"))


def test_a_failed_deployment_goes_back_to_the_former_app_yaml(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare, app: Apps
) -> None:
    agent, files = declare(APP), workspace[WorkspaceFiles]
    first = deployer.hand_off(agent, Move("1", "m-1"))
    former = files.text("/Workspace/Shared/tiny/app.yaml")
    # Killed after the file was written: the next run deploys it, fails, and still knows what was there before.
    with pytest.raises(Killed):
        deployer.hand_off(agent, Move("2", "m-2"), progress=dying("deploying version 2"))
    assert files.text("/Workspace/Shared/tiny/app.yaml") != former
    assert deployer.current(agent) is None  # What runs is not what the file says.
    app.fail_next_deployment("port 8000 is not open")
    with pytest.raises(Refused, match=r"could not be deployed: port 8000 is not open; see .*/apps/tiny-app\. The form"):
        deployer.hand_off(agent, Move("2", "m-2"))
    assert files.text("/Workspace/Shared/tiny/app.yaml") == former
    assert app.snapshot("tiny-app")["/Shared/tiny/app.yaml"] == former
    assert deployer.current(agent) == first
    assert sorted(files.files) == ["/Shared/tiny/app.py", "/Shared/tiny/app.yaml"]
    # A lost answer, and a run killed while it waits: one deployment.
    before = len(app.deployments["tiny-app"])
    workspace.slow_states = 100
    workspace.fail(DEPLOY, kind="lost")
    with pytest.raises(Killed):
        deployer.hand_off(agent, Move("2", "m-2"), progress=dying("waiting for the deployment"))
    for number in app._polls:
        app._polls[number] = 2
    assert deployer.hand_off(agent, Move("2", "m-2")).version == "2"
    assert len(app.deployments["tiny-app"]) == before + 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "command: ['x']",
        "env:\n- name: A\n  value: 1\n- name: Z\n  value: |\n    two\n    lines\ncommand: [x]\n",
        "env: [{name: A, value: q}, {name: Z, value: w}]\ncommand: [x]\n",
        "{command: [x], env: [{name: Z, value: w}]}",
        "command: [x]\r\nenv:\r\n  - name: Z\r\n    value: w\r\n# end\r\n",
        "env:\n  -\n    name: A\n    value: x\n  - {name: Z, value: w} # kept\n",
        "x: &e\n  - name: Z\n    value: w\nenv: *e\n",
        "command: [x]\nenv:\n",
    ],
)
def test_app_yaml_says_ours_and_everything_else_it_said(text: str) -> None:
    first = [{"name": "A", "value": 'a: "b" #c 😀\u2028é'}, {"name": "S", "valueFrom": "res"}]
    second = [{"name": "A", "value": ""}, {"name": "B", "value": "yes"}]
    document = yaml.safe_load(text) or {}
    others = [item for item in document.get("env") or [] if item["name"] not in ("A", "B")]
    twice = render(render(text, first), second)
    assert items_of(render(text, first)) == first
    assert yaml.safe_load(twice) == {**document, "env": [*others, *second]}
    assert render(twice, second) == twice


@pytest.mark.parametrize("text", ["- a\n", "env: {A: b}\n", "env: [\n", "just text"])
def test_another_file_than_an_app_yaml_is_refused(text: str) -> None:
    with pytest.raises(Refused, match=r"app\.yaml.* correct the file"):
        render(text, [{"name": "A", "value": "b"}])


@pytest.mark.parametrize("older", [True, False])
def test_a_job_is_run_once_for_a_hand_off(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare, older: bool
) -> None:
    jobs, agent = workspace[Jobs], declare(JOB, parameters={"region": "eu"})
    jobs.tells_state = older
    with pytest.raises(Refused, match="no job is named 'deploy tiny': write the job's id"):
        deployer.hand_off(agent, Move("1", "m-1"))
    job_id = jobs.add_job({"name": "deploy tiny", "parameters": [{"name": "dry", "default": "no"}]})
    workspace.slow_states = 1
    workspace.fail("POST .*/jobs/run-now", kind="lost")
    first = deployer.hand_off(agent, Move("1", "m-1"))
    (run,) = jobs.runs.values()
    assert {one["name"]: one["value"] for one in run["job_parameters"]} == {
        "dry": "no",
        "region": "eu",
        "model_uri": "models:/main.agents.tiny/1",
        "model_name": "main.agents.tiny",
        "model_version": "1",
        "model_id": "m-1",
    }
    assert (first.target, first.location, first.version) == ("databricks_job", run["run_page_url"], "1")
    assert deployer.environment(agent)["MLFLOW_ACTIVE_MODEL_ID"] == "m-1"
    # Killed while it waits, run again: the same run.
    with pytest.raises(Killed):
        deployer.hand_off(agent, Move("2", "m-2"), progress=dying("waiting for run"))
    assert deployer.current(agent) == first
    second = deployer.hand_off(agent, Move("2", "m-2"))
    assert deployer.hand_off(agent, Move("2", "m-2")) == second == deployer.current(agent)
    assert len(jobs.runs) == 2
    # Back to a version that was there before: that is a hand-off of its own.
    by_id = declare(JOB, job=job_id, parameters={"region": "eu"})
    assert deployer.hand_off(by_id, Move("1", "m-1")).handed_at
    assert len(jobs.runs) == 3


@pytest.mark.parametrize("older", [True, False])
def test_a_failed_run_is_told_and_tried_again(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare, older: bool
) -> None:
    jobs, agent = workspace[Jobs], declare(JOB)
    jobs.tells_state = older
    script = workspace[Files].root / "Volumes" / "main" / "agents" / "code" / "deploy.py"
    script.parent.mkdir(parents=True)
    script.write_text("raise SystemExit('quota exceeded')")
    task = {"task_key": "t", "spark_python_task": {"python_file": "/Volumes/main/agents/code/deploy.py"}}
    task |= {"existing_cluster_id": next(iter(jobs.clusters))}
    jobs.add_job({"name": "deploy tiny", "tasks": [task]})
    with pytest.raises(Refused, match=r"job deploy tiny failed: quota exceeded; see http.*/run/"):
        deployer.hand_off(agent, Move("1", "m-1"))
    assert deployer.current(agent) is None
    script.write_text("print('deployed')")
    assert deployer.hand_off(agent, Move("1", "m-1")).version == "1"
    assert len(jobs.runs) == 2


def put_versions(workspace: Workspace, champion: str = "") -> dict[str, Any]:
    """Versions 1 to 3 of the small agent in the registry, as they are once registered; returns the model."""
    name = "main.agents.tiny"
    versions = {
        number: {
            "info": {
                "name": name,
                "version": number,
                "creation_timestamp": int(number),
                "last_updated_timestamp": int(number),
                "user_id": "me@example.com",
                "status": "READY",
                "source": f"models:/m-{number}",
            },
            "tags": {
                "lifecycle_model_id": f"m-{number}",
                "lifecycle_eval_run_id": "r",
                "lifecycle_git_commit": "c0ffee",
            },
            "polls": None,
        }
        for number in ("1", "2", "3")
    }
    info = {"name": name, "creation_timestamp": 1, "last_updated_timestamp": 1, "user_id": "me@example.com"}
    aliases = {"champion": champion} if champion else {}
    model = {"info": info, "tags": {}, "aliases": aliases, "versions": versions, "made": 3}
    workspace[UnityModels].models[name] = model
    return model


def deployed(world: World, version: str, *, at: str = "", challenger: str = "") -> dg.ExecuteInProcessResult:
    """A run of the asset after `champion_alias` said that `version` is champion."""
    champion = ChampionRecord("main.agents.tiny", version, f"m-{version}", "", challenger, "e", at)
    metadata = {RECORD_KEY: dg.MetadataValue.json(champion.to_json())}
    world.instance.report_runless_asset_event(dg.AssetMaterialization(["tiny", "champion_alias"], metadata=metadata))
    return world.run("release", asset_selection=[dg.AssetKey(["tiny", "deployment"])])


def test_the_asset_names_runtime_page_environment_and_files_and_the_version_says_it_too(
    workspace: Workspace, databricks: Platform, declare: Declare
) -> None:
    agent = declare(ENDPOINT, environment={"OPENAI_API_KEY": "{{secrets/llm/key}}"})
    model = put_versions(workspace, champion="2")
    with dg.DagsterInstance.ephemeral() as instance:
        world = World(agent, databricks, instance)
        assert deployed(world, "2", at="2026-01-01T00:00:00+00:00").success
        said = world.metadata("deployment")
        tags = dict(model["versions"]["2"]["tags"])
        writes = len(workspace.calls("POST .*/model-versions/set-tag"))
        assert deployed(world, "2", at="2026-01-01T00:00:00+00:00").success
        assert len(workspace.calls("POST .*/model-versions/set-tag")) == writes, "a repeat writes nothing"
        # The champion moved on while this run was held up: the older one is not handed over.
        late = deployed(world, "1", at="2025-12-31T00:00:00+00:00")
        assert "champion is version 2 in MLflow and version 1 in the record of champion_alias" in refusal(late)
    assert workspace[Serving].served("tiny") == {"2": 100}
    assert (said["target"], said["location"]) == ("databricks_serving", f"{workspace.url}/ml/endpoints/tiny")
    assert r"| MLFLOW\_ACTIVE\_MODEL\_ID | m-2 |" in said["environment"]
    assert "running_version_matches_champion" in said["next"]
    assert (tags["lifecycle_deployed_to"], tags["lifecycle_endpoint"]) == ("databricks_serving", "tiny")
    assert tags["lifecycle_git_commit"] == "c0ffee"
    assert tags["lifecycle_deployed_at"]
    assert not {"lifecycle_app", "lifecycle_job"} & set(tags)
    assert 'valueFrom: "openai-api-key"' in said["app.yaml"]
    assert "LIFECYCLE_MODEL_URI=models:/main.agents.tiny/2\n" in said["docker.env"]
    assert '"OPENAI_API_KEY": "{{secrets/llm/key}}"' in said["job_cluster.json"]
    assert not (databricks.home / "deployments").exists()


def test_while_nobody_is_champion_the_run_is_green_and_nothing_is_handed_over(
    workspace: Workspace, databricks: Platform, declare: Declare
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        world = World(declare(ENDPOINT), databricks, instance)
        done = deployed(world, "", challenger="1")
        assert done.success
        assert world.materialized("deployment") == 0
        assert done.get_asset_check_evaluations() == []
        lines = [entry.user_message for entry in instance.all_logs(done.run_id)]
    assert "Nobody is champion: version 1 waits for its approval. Nothing is handed over." in lines
    assert workspace.calls(".*/serving-endpoints") == []


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> Iterator[Receiver]:
    with listening() as server:
        monkeypatch.setenv("LIFECYCLE_DEPLOY_WEBHOOK", server.url)
        monkeypatch.setenv("LIFECYCLE_DEPLOY_WEBHOOK_SECRET", SECRET)
        yield server


def moved(version: str, hour: int) -> Move:
    return Move(version, f"m-{version}", f"2026-11-20T{hour:02}:00:00+00:00")


@pytest.mark.parametrize("declared", [{"target": "local"}, ENDPOINT, APP, JOB, WEBHOOK])
def test_going_back_is_a_hand_off_like_any_other(
    workspace: Workspace,
    deployer: DatabricksDeployer,
    declare: Declare,
    app: Apps,
    receiver: Receiver,
    declared: dict[str, Any],
) -> None:
    agent = declare(declared)
    put_versions(workspace)
    workspace[Jobs].add_job({"name": "deploy tiny"})
    for move in (moved("1", 1), moved("2", 2), moved("1", 3)):
        record = deployer.hand_off(agent, move)
        assert (record.target, record.version, record.model_id) == (declared["target"], move.version, move.model_id)
        assert deployer.hand_off(agent, move) == record == deployer.current(agent)
        assert deployer.environment(agent)["MLFLOW_ACTIVE_MODEL_ID"] == move.model_id
    made = {
        "databricks_serving": len(workspace.calls(PUT)) + 1,
        "databricks_app": len(workspace.calls(DEPLOY)),
        "databricks_job": len(workspace[Jobs].runs),
        "webhook": len(receiver.received),
    }
    assert made.get(declared["target"], 3) == 3


def test_a_job_goes_back_although_its_runs_for_this_model_are_long_ago(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare, databricks: Platform
) -> None:
    """A job that serves many models: the token alone would answer with the run of the first time."""
    jobs, agent = workspace[Jobs], declare(JOB)
    job_id = jobs.add_job({"name": "deploy tiny"})
    for move in (moved("1", 1), moved("2", 2)):
        deployer.hand_off(agent, move)
    theirs = {"model_name": "main.agents.other"}
    for _ in range(RUNS):
        open_workspace(databricks).jobs.run_now(job_id, job_parameters=theirs)
    third = deployer.hand_off(agent, moved("1", 3))
    for _ in range(RUNS):
        open_workspace(databricks).jobs.run_now(job_id, job_parameters=theirs)
    assert deployer.hand_off(agent, moved("1", 3)) == third
    assert len(jobs.runs) == 2 * RUNS + 3, "the same move starts no second run"
    assert deployer.environment(agent)["MLFLOW_ACTIVE_MODEL_ID"] == "m-1"


def test_a_workspace_keeps_what_a_receiver_was_told_on_the_version(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare, receiver: Receiver
) -> None:
    agent, model = declare(WEBHOOK), put_versions(workspace)
    assert deployer.current(agent) is None
    with pytest.raises(Refused, match="no version was handed to the runtime"):
        deployer.environment(agent)
    # Killed before it was kept: the repeat has the same id.
    with pytest.raises(Killed):
        deployer.hand_off(agent, moved("1", 1), progress=dying("the receiver accepted"))
    assert deployer.current(agent) is None
    # The registry does not answer while it is kept: the same once more.
    workspace.fail("POST .*/model-versions/set-tag", status=403, error_code="PERMISSION_DENIED", message="not yours")
    with pytest.raises(Refused, match="denies permission"):
        deployer.hand_off(agent, moved("1", 1))
    record = deployer.hand_off(agent, moved("1", 1))
    assert [headers["webhook-id"] for _, headers, _ in receiver.received] == [receiver.received[0][1]["webhook-id"]] * 3
    _, headers, body = receiver.received[-1]
    assert documented_check()(SECRET, headers, receiver.bodies[-1])
    assert body["data"]["environment"]["MLFLOW_TRACKING_URI"] == "databricks"
    assert body["data"]["environment"]["MLFLOW_EXPERIMENT_ID"] in workspace[Tracking].experiments
    assert deployer.environment(agent) == body["data"]["environment"]
    tags = model["versions"]["1"]["tags"]
    assert (tags["lifecycle_deployed_to"], tags["lifecycle_deployed_at"]) == ("webhook", record.handed_at)
    assert tags["lifecycle_deployment_event"] == headers["webhook-id"]
    assert SECRET not in str(model)
    assert receiver.url not in str(model)
    # Handed to something else meanwhile, and back to the receiver.
    tags |= {"lifecycle_deployed_to": "databricks_app", "lifecycle_deployed_at": "2099-01-01T00:00:00+00:00"}
    other = DatabricksDeployer(Platform.from_env(), every=0.02)
    forget_clients()
    model_registry._seen.clear()
    assert other.current(agent) is None
    assert other.hand_off(agent, moved("1", 1)).target == "webhook"
    assert len({headers["webhook-id"] for _, headers, _ in receiver.received}) == 1


def test_the_local_target_in_a_workspace_is_a_file(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare
) -> None:
    agent = declare({"target": "local"}, environment={"LOG_LEVEL": "debug", "API_KEY": "{{secrets/s/k}}"})
    record = deployer.hand_off(agent, Move("1", "m-1"))
    assert (record.target, Path(record.location).name) == ("local", "tiny.json")
    env = deployer.environment(agent)
    assert env["MLFLOW_TRACKING_URI"] == "databricks"
    assert env["MLFLOW_EXPERIMENT_ID"] in workspace[Tracking].experiments
    assert env["LOG_LEVEL"] == "debug"
    assert "API_KEY" not in env


@pytest.mark.parametrize("declared", [ENDPOINT, APP, JOB])
def test_the_same_declaration_is_handed_to_the_local_runtime_on_a_laptop(
    declare: Declare, declared: dict[str, Any], tmp_path: Path
) -> None:
    agent, deployer = declare(declared), LocalDeployer(Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "home")}))
    record = deployer.hand_off(agent, Move("1", "m-1"))
    assert record.target == "local"
    assert deployer.current(agent) == record
    assert deployer.environment(agent)["MLFLOW_ACTIVE_MODEL_ID"] == "m-1"


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        ({"target": "local", "endpoint": "x"}, r"endpoint is a field of target databricks_serving, not of local; rem"),
        ({"target": "databricks_job"}, r"target databricks_job needs job; add it"),
        ({**APP, "traffic": 5}, r"traffic is a field of target databricks_serving, not of databricks_app"),
        ({**APP, "source_path": "/Workspace/a/../b"}, r"source_path must not hold '\.\.'"),
        ({**APP, "app": "a/b?c"}, r"deployment\.app is \"a/b\?c\""),
        ({**ENDPOINT, "endpoint": "../x"}, r"deployment\.endpoint is"),
        ({**ENDPOINT, "environment": {"A_TOKEN": "abc"}}, r"environment: A_TOKEN holds a secret in plain text; write"),
        ({**ENDPOINT, "environment": {"URL": "dapi0123456789"}}, r"environment: URL holds a secret in plain text"),
        ({**ENDPOINT, "environment": {"A": "Bearer {{secrets/s/k}}"}}, r"A must be {{secrets/scope/key}} and nothing"),
        ({**ENDPOINT, "environment": {"MLFLOW_TRACKING_URI": "x"}}, r"is set by the deployment itself; remove it"),
        ({**JOB, "parameters": {"password": "abc"}}, r"parameters: password holds a secret in plain text"),
        ({**WEBHOOK, "job": "x"}, r"job is a field of target databricks_job, not of webhook; remove it"),
        ({**WEBHOOK, "url_env": "https://example.org/T"}, r"deployment\.url_env is"),
        (
            {"target": "local", "secret_env": "MINE"},
            r"secret_env is a field of target webhook, not of local; remove it",
        ),
        ({**JOB, "environment": {"A": "b"}}, r"environment is a field of target local and databricks_serving and"),
    ],
)
def test_a_bad_declaration_is_one_sentence(declare: Declare, declared: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence) as refused:
        declare(declared)
    assert "abc" not in str(refused.value)
    assert "dapi0123456789" not in str(refused.value)
