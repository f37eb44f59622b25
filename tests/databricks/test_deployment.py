"""Handing the champion over to an endpoint, an app and a job of the workspace: once, waited for, and taken back."""

from collections.abc import Callable
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
from resources.databricks.workspace import open_workspace
from resources.deployer import LocalDeployer
from resources.platform import Platform
from tests.building import World, make_agent
from tests.workspace.app import Workspace
from tests.workspace.apps import Apps
from tests.workspace.files import Files
from tests.workspace.jobs import Jobs
from tests.workspace.serving import Serving
from tests.workspace.tracking import Tracking
from tests.workspace.workspace_files import WorkspaceFiles

ENDPOINT = {"target": "databricks_serving", "endpoint": "tiny", "wait_minutes": 1}
APP = {"target": "databricks_app", "app": "tiny-app", "source_path": "/Workspace/Shared/tiny", "wait_minutes": 1}
JOB = {"target": "databricks_job", "job": "deploy tiny", "wait_minutes": 1}
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
    first = deployer.hand_off(agent, version="1", model_id="m-1")
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
    assert deployer.hand_off(agent, version="1", model_id="m-1") == first == deployer.current(agent)
    assert not workspace.calls(PUT)
    second = deployer.hand_off(agent, version="2", model_id="m-2")
    assert serving.served("tiny") == {"2": 100}
    assert deployer.hand_off(agent, version="2", model_id="m-2") == second == deployer.current(agent)
    assert len(workspace.calls(PUT)) == 1


def test_a_share_of_the_requests_leaves_the_rest_to_who_answered_before(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare
) -> None:
    serving, part = workspace[Serving], declare(ENDPOINT, traffic=20)
    deployer.hand_off(part, version="1", model_id="m-1")
    assert serving.served("tiny") == {"1": 100}
    record = deployer.hand_off(part, version="2", model_id="m-2")
    assert serving.served("tiny") == {"2": 20, "1": 80}
    assert deployer.hand_off(part, version="2", model_id="m-2") == record == deployer.current(part)
    deployer.hand_off(part, version="3", model_id="m-3")
    assert serving.served("tiny") == {"3": 20, "1": 80}
    deployer.hand_off(declare(ENDPOINT), version="3", model_id="m-3")
    assert serving.served("tiny") == {"3": 100}
    assert len(workspace.calls(PUT)) == 3


def test_a_failed_update_is_taken_back(workspace: Workspace, deployer: DatabricksDeployer, declare: Declare) -> None:
    serving, agent = workspace[Serving], declare(ENDPOINT)
    serving.fail_next_update("no image")
    with pytest.raises(Refused, match=r"could not be updated: no image; see http.*/ml/endpoints/tiny\. It served noth"):
        deployer.hand_off(agent, version="1", model_id="m-1")
    assert deployer.current(agent) is None
    first = deployer.hand_off(agent, version="1", model_id="m-1")
    workspace.slow_states = 3
    serving.fail_next_update("the container\nfailed: no module named 'x'")
    with pytest.raises(Refused, match=r"the container failed: no module named 'x'; see .* serves again; mend"):
        deployer.hand_off(agent, version="2", model_id="m-2")
    endpoint = serving.endpoints["tiny"]
    assert endpoint["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert "pending_config" not in endpoint
    assert deployer.current(agent) == first
    # Killed before and while it is taken back: the next run tries again, and takes back again.
    for word in ("is restored", "waiting for"):
        serving.fail_next_update("no luck")
        with pytest.raises(Killed):
            deployer.hand_off(agent, version="2", model_id="m-2", progress=dying(word))
    serving.fail_next_update("still no luck")
    with pytest.raises(Refused, match="still no luck"):
        deployer.hand_off(agent, version="2", model_id="m-2")
    assert deployer.current(agent) == first
    deployer.hand_off(agent, version="2", model_id="m-2")
    assert serving.served("tiny") == {"2": 100}


def test_an_endpoint_is_updated_once_whatever_is_lost(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare, databricks: Platform
) -> None:
    serving, agent = workspace[Serving], declare(ENDPOINT)
    workspace.slow_states = 2
    workspace.fail("POST .*/serving-endpoints$", kind="lost")
    deployer.hand_off(agent, version="1", model_id="m-1")
    workspace.fail(PUT, kind="lost")
    workspace.fail("GET .*/serving-endpoints/tiny", status=500, times=1)
    with pytest.raises(Refused, match="injected"):
        deployer.hand_off(agent, version="2", model_id="m-2")
    deployer.hand_off(agent, version="2", model_id="m-2")
    assert serving.endpoints["tiny"]["config"]["config_version"] == 2
    # Killed while it waits: the next run waits for the same update, through a moment without answers.
    workspace.slow_states = 6
    with pytest.raises(Killed):
        deployer.hand_off(agent, version="3", model_id="m-3", progress=dying("waiting for"))
    lines: list[str] = []

    def deaf(line: str) -> None:
        lines.append(line)
        if "waiting for" in line and len(lines) < 4:
            workspace.fail("GET .*/serving-endpoints/tiny", status=500)

    deployer.hand_off(agent, version="3", model_id="m-3", progress=deaf)
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
    deployer.hand_off(agent, version="4", model_id="m-4", progress=lines.append)
    assert "endpoint tiny: an update of somebody else is in progress" in lines
    assert serving.served("tiny") == {"4": 100}
    assert serving.endpoints["tiny"]["config"]["config_version"] == 5
    workspace.fail(PUT, status=403, error_code="PERMISSION_DENIED", message="you may not manage tiny")
    with pytest.raises(Refused, match="denies permission"):
        deployer.hand_off(agent, version="5", model_id="m-5")


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
    record = deployer.hand_off(agent, version="1", model_id="m-1")
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
    assert deployer.hand_off(agent, version="1", model_id="m-1") == record == deployer.current(agent)
    assert len(workspace.calls(DEPLOY)) == 1
    assert len(workspace.calls("POST .*/workspace/import")) == writes
    with pytest.raises(Refused, match=r"no resource for the secret s/other that OPENAI_API_KEY names: add it"):
        deployer.hand_off(
            declare(APP, environment={"OPENAI_API_KEY": "{{secrets/s/other}}"}), version="1", model_id="m-1"
        )
    with pytest.raises(Refused, match="app other does not exist: create it"):
        deployer.hand_off(declare(APP, app="other"), version="1", model_id="m-1")


def test_a_failed_deployment_goes_back_to_the_former_app_yaml(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare, app: Apps
) -> None:
    agent, files = declare(APP), workspace[WorkspaceFiles]
    first = deployer.hand_off(agent, version="1", model_id="m-1")
    former = files.text("/Workspace/Shared/tiny/app.yaml")
    # Killed after the file was written: the next run deploys it, fails, and still knows what was there before.
    with pytest.raises(Killed):
        deployer.hand_off(agent, version="2", model_id="m-2", progress=dying("deploying version 2"))
    assert files.text("/Workspace/Shared/tiny/app.yaml") != former
    assert deployer.current(agent) is None  # What runs is not what the file says.
    app.fail_next_deployment("port 8000 is not open")
    with pytest.raises(Refused, match=r"could not be deployed: port 8000 is not open; see .*/apps/tiny-app\. The form"):
        deployer.hand_off(agent, version="2", model_id="m-2")
    assert files.text("/Workspace/Shared/tiny/app.yaml") == former
    assert app.snapshot("tiny-app")["/Shared/tiny/app.yaml"] == former
    assert deployer.current(agent) == first
    assert sorted(files.files) == ["/Shared/tiny/app.py", "/Shared/tiny/app.yaml"]
    # A lost answer, and a run killed while it waits: one deployment.
    before = len(app.deployments["tiny-app"])
    workspace.slow_states = 100
    workspace.fail(DEPLOY, kind="lost")
    with pytest.raises(Killed):
        deployer.hand_off(agent, version="2", model_id="m-2", progress=dying("waiting for the deployment"))
    for number in app._polls:
        app._polls[number] = 2
    assert deployer.hand_off(agent, version="2", model_id="m-2").version == "2"
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
        deployer.hand_off(agent, version="1", model_id="m-1")
    job_id = jobs.add_job({"name": "deploy tiny", "parameters": [{"name": "dry", "default": "no"}]})
    workspace.slow_states = 1
    workspace.fail("POST .*/jobs/run-now", kind="lost")
    first = deployer.hand_off(agent, version="1", model_id="m-1")
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
        deployer.hand_off(agent, version="2", model_id="m-2", progress=dying("waiting for run"))
    assert deployer.current(agent) == first
    second = deployer.hand_off(agent, version="2", model_id="m-2")
    assert deployer.hand_off(agent, version="2", model_id="m-2") == second == deployer.current(agent)
    assert len(jobs.runs) == 2
    # Back to a version that was there before: that is a hand-off of its own.
    by_id = declare(JOB, job=job_id, parameters={"region": "eu"})
    assert deployer.hand_off(by_id, version="1", model_id="m-1").handed_at
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
        deployer.hand_off(agent, version="1", model_id="m-1")
    assert deployer.current(agent) is None
    script.write_text("print('deployed')")
    assert deployer.hand_off(agent, version="1", model_id="m-1").version == "1"
    assert len(jobs.runs) == 2


def test_the_asset_names_runtime_page_and_environment(
    workspace: Workspace, databricks: Platform, declare: Declare
) -> None:
    agent = declare(ENDPOINT)
    with dg.DagsterInstance.ephemeral() as instance:
        champion = ChampionRecord("main.agents.tiny", "7", "m-7", "", "", "e", "2026-01-01T00:00:00+00:00")
        metadata = {RECORD_KEY: dg.MetadataValue.json(champion.to_json())}
        instance.report_runless_asset_event(dg.AssetMaterialization(["tiny", "champion_alias"], metadata=metadata))
        world = World(agent, databricks, instance)
        assert world.run("release", asset_selection=[dg.AssetKey(["tiny", "deployment"])]).success
        said = world.metadata("deployment")
    assert workspace[Serving].served("tiny") == {"7": 100}
    assert (said["target"], said["location"]) == ("databricks_serving", f"{workspace.url}/ml/endpoints/tiny")
    assert r"| MLFLOW\_ACTIVE\_MODEL\_ID | m-7 |" in said["environment"]
    assert "running_version_matches_champion" in said["next"]


def test_the_local_target_in_a_workspace_is_a_file(
    workspace: Workspace, deployer: DatabricksDeployer, declare: Declare
) -> None:
    agent = declare({"target": "local"}, environment={"LOG_LEVEL": "debug", "API_KEY": "{{secrets/s/k}}"})
    record = deployer.hand_off(agent, version="1", model_id="m-1")
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
    record = deployer.hand_off(agent, version="1", model_id="m-1")
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
        ({**JOB, "environment": {"A": "b"}}, r"environment is a field of target local and databricks_serving and"),
    ],
)
def test_a_bad_declaration_is_one_sentence(declare: Declare, declared: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence) as refused:
        declare(declared)
    assert "abc" not in str(refused.value)
    assert "dapi0123456789" not in str(refused.value)
