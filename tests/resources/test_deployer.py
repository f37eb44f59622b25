"""Handing over outside a workspace: to the local runtime, to a receiver, and as files, whole and without secrets."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lifecycle_assets.cli.places import webhooks
from lifecycle_assets.records import DeploymentRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.deployer import Move, variables_elsewhere
from resources.hand_off import FILES, app_yaml, deployment_tags, docker_env, job_cluster, keep_files, rendered
from resources.local_deployer import LocalDeployer
from resources.platform import Platform
from resources.webhook_deployer import LaptopDeployer, WebhookDeployer
from tests.building import make_agent
from tests.resources.test_webhook import SECRET, TOKEN, Receiver, documented_check, listening


@pytest.fixture
def place(tmp_path: Path) -> Platform:
    """A platform of which only the folder matters."""
    return Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "home"), "LIFECYCLE_ENVIRONMENT": "prod"})


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return make_agent(tmp_path)


def test_the_file_says_what_to_load_and_what_to_set(place: Platform, agent: Agent):
    record = LocalDeployer(place).hand_off(agent, Move("3", "m-1"))
    content = json.loads(Path(record.location).read_text())
    assert content.pop("handed_at") == record.handed_at
    assert content == {
        "target": "local",
        "agent": "tiny",
        "model_uri": "models:/main.agents.tiny/3",
        "model_name": "main.agents.tiny",
        "version": "3",
        "model_id": "m-1",
        "port": 5001,
        "env": {
            "MLFLOW_TRACKING_URI": place.tracking_uri,
            "MLFLOW_EXPERIMENT_NAME": "/agents/tiny",
            "MLFLOW_ACTIVE_MODEL_ID": "m-1",
            "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
            "LIFECYCLE_ENVIRONMENT": "prod",
        },
    }
    assert record == DeploymentRecord("local", str(place.home / "deployments/tiny.json"), "3", "m-1", record.handed_at)
    assert LocalDeployer(place).current(agent) == record
    assert LocalDeployer(place).environment(agent) == content["env"]


def test_the_same_hand_off_is_not_written_again(place: Platform, agent: Agent):
    deployer = LocalDeployer(place)
    first = deployer.hand_off(agent, Move("3", "m-1"))
    file = Path(first.location)
    file.write_text(file.read_text().replace(first.handed_at, "2026-01-01T00:00:00+00:00"))
    before = file.stat()
    again = deployer.hand_off(agent, Move("3", "m-1"))
    assert again.handed_at == "2026-01-01T00:00:00+00:00"
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert deployer.hand_off(agent, Move("4", "m-2")).handed_at > again.handed_at
    assert [f.name for f in file.parent.iterdir()] == ["tiny.json"]


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://mlflow:s3cret@db/mlflow",
        "http://s3cret@server:5000",
        "postgresql://db/mlflow?user=mlflow&password=s3cret",
    ],
)
def test_a_uri_that_may_hold_a_secret_is_left_out(place: Platform, agent: Agent, uri: str):
    deployer = LocalDeployer(replace(place, tracking_uri=uri))
    record = deployer.hand_off(agent, Move("3", "m-1"))
    assert "s3cret" not in Path(record.location).read_text()
    assert "MLFLOW_TRACKING_URI" not in deployer.environment(agent)


def test_before_the_first_hand_off(place: Platform, agent: Agent):
    assert LocalDeployer(place).current(agent) is None
    with pytest.raises(Refused, match="no version was handed to the runtime; materialize tiny/deployment first"):
        LocalDeployer(place).environment(agent)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"target": "local"}', "\x00\xff", '{"version": 3}'])
def test_a_corrupt_file_is_refused_and_kept(place: Platform, agent: Agent, text: str):
    deployer = LocalDeployer(place)
    file = Path(deployer.hand_off(agent, Move("3", "m-1")).location)
    file.write_bytes(text.encode("latin-1"))
    for use in (deployer.current, deployer.environment):
        with pytest.raises(
            Refused, match=r"tiny\.json: is not a hand-off; delete it, then materialize tiny/deployment"
        ):
            use(agent)
    with pytest.raises(Refused):
        deployer.hand_off(agent, Move("4", "m-2"))
    assert file.read_bytes() == text.encode("latin-1")


def test_target_none_hands_nothing_over_and_takes_a_former_hand_off_back(place: Platform, agent: Agent, tmp_path: Path):
    deployer = LocalDeployer(place)
    file = Path(deployer.hand_off(agent, Move("3", "m-1")).location)
    nowhere = make_agent(tmp_path / "b", attributes={"deployment": {"target": "none"}})
    assert deployer.hand_off(nowhere, Move("4", "m-2")) == DeploymentRecord("none", "", "4", "m-2", "")
    assert not file.exists()
    assert deployer.current(nowhere) is None
    assert deployer.environment(nowhere) == {}


def _hand_off_often(home: str, folder: str, version: str) -> None:
    from lifecycle_assets.spec_file import read_agent

    deployer = LocalDeployer(Platform.from_env({"LIFECYCLE_HOME": home}))
    for number in range(40):
        deployer.hand_off(read_agent(Path(folder) / "defs.yaml"), Move(version, f"m-{number}"))


def test_readers_see_whole_files_while_two_processes_write(place: Platform, agent: Agent):
    deployer = LocalDeployer(place)
    deployer.hand_off(agent, Move("0", "m-0"))
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_hand_off_often, args=(str(place.home), str(agent.folder), version))
        for version in ("1", "2")
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert deployer.current(agent) is not None
    assert [writer.exitcode for writer in writers] == [0, 0]


WEBHOOK = {"target": "webhook", "environment": {"OPENAI_API_KEY": "{{secrets/llm/key}}", "GREETING": 'it\'s "fine"'}}
FIRST = Move("1", "m-1", "2026-11-20T10:00:00.000001+00:00", "", "e-1", "c0ffee")
SECOND = Move("2", "m-2", "2026-11-20T11:00:00.000001+00:00", "1", "e-2", "decade")
BACK = Move("1", "m-1", "2026-11-20T12:00:00.000001+00:00", "2", "e-1", "c0ffee")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with listening() as server:
        monkeypatch.setenv("LIFECYCLE_DEPLOY_WEBHOOK", server.url)
        monkeypatch.setenv("LIFECYCLE_DEPLOY_WEBHOOK_SECRET", SECRET)
        yield server


@pytest.fixture
def told(tmp_path: Path) -> Agent:
    return make_agent(tmp_path / "told", attributes={"deployment": WEBHOOK})


def ids(receiver: Receiver) -> list[str]:
    return [headers["webhook-id"] for _, headers, _ in receiver.received]


def test_a_receiver_is_told_what_to_run_once(place: Platform, told: Agent, receiver: Receiver):
    deployer = WebhookDeployer(place)
    assert deployer.current(told) is None
    with pytest.raises(Refused, match="no version was handed to the runtime"):
        deployer.environment(told)
    record = deployer.hand_off(told, SECOND)
    assert deployer.hand_off(told, SECOND) == record == deployer.current(told)
    ((_, headers, body),) = receiver.received
    assert documented_check()(SECRET, headers, receiver.bodies[0])
    env = {
        "OPENAI_API_KEY": "{{secrets/llm/key}}",
        "GREETING": 'it\'s "fine"',
        "MLFLOW_TRACKING_URI": place.tracking_uri,
        "MLFLOW_EXPERIMENT_NAME": "/agents/tiny",
        "MLFLOW_ACTIVE_MODEL_ID": "m-2",
        "LIFECYCLE_ENVIRONMENT": "prod",
        "LIFECYCLE_MODEL_URI": "models:/main.agents.tiny/2",
    }
    assert body == {
        "type": "lifecycle.deployment",
        "timestamp": SECOND.at,
        "data": {
            "agent": "tiny",
            "model_name": "main.agents.tiny",
            "version": "2",
            "model_id": "m-2",
            "model_uri": "models:/main.agents.tiny/2",
            "environment": env,
            "previous_version": "1",
            "git_commit": "decade",
            "evidence_digest": "e-2",
        },
    }
    assert deployer.environment(told) == env
    assert (record.target, record.version, record.model_id) == ("webhook", "2", "m-2")
    kept = Path(record.location).read_text()
    assert TOKEN not in kept
    assert SECRET not in kept


def test_going_back_is_another_message_and_so_is_another_environment(place: Platform, told: Agent, receiver: Receiver):
    deployer = WebhookDeployer(place)
    for move in (FIRST, SECOND, BACK):
        assert deployer.hand_off(told, move).version == move.version
        assert deployer.current(told) == deployer.hand_off(told, move)
    assert [body["data"]["version"] for _, _, body in receiver.received] == ["1", "2", "1"]
    assert len(set(ids(receiver))) == 3
    WebhookDeployer(replace(place, environment="staging")).hand_off(told, BACK)
    assert len(set(ids(receiver))) == 4


@pytest.mark.parametrize(("statuses", "posts"), [([0, 200], 2), ([503, 200], 2), ([404], 1), ([500], 3)])
def test_only_what_was_accepted_is_kept_and_a_repeat_has_the_same_id(
    place: Platform, told: Agent, receiver: Receiver, statuses: list[int], posts: int
):
    deployer = WebhookDeployer(place, backoff_seconds=0.01)
    former = deployer.hand_off(told, FIRST)
    receiver.statuses = list(statuses)
    if statuses[-1] == 200:
        assert deployer.hand_off(told, SECOND).version == "2"
    else:
        with pytest.raises(Refused, match=f"LIFECYCLE_DEPLOY_WEBHOOK: the webhook answered with status {statuses[-1]}"):
            deployer.hand_off(told, SECOND)
        assert deployer.current(told) == former
        receiver.statuses, posts = [200], posts + 1
        deployer.hand_off(told, SECOND)
    first, *repeats = ids(receiver)
    assert len(repeats) == posts
    assert len(set(repeats)) == 1
    assert first not in repeats
    assert len(set(receiver.bodies[1:])) == 1, "a repeat says the same to the byte"


@pytest.mark.parametrize(("word", "posts"), [("is handed to the receiver", 1), ("the receiver accepted", 2)])
def test_killed_around_the_post_the_repeat_has_the_same_id(
    place: Platform, told: Agent, receiver: Receiver, word: str, posts: int
):
    def deadly(line: str) -> None:
        if word in line:
            os.kill(os.getpid(), signal.SIGKILL)

    deployer = WebhookDeployer(place)
    child = multiprocessing.get_context("fork").Process(
        target=deployer.hand_off, args=(told, FIRST), kwargs={"progress": deadly}
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert deployer.current(told) is None
    deployer.hand_off(told, FIRST)
    assert len(receiver.received) == posts
    assert len(set(ids(receiver))) == 1


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("LIFECYCLE_DEPLOY_WEBHOOK", "", "LIFECYCLE_DEPLOY_WEBHOOK is not set; set it"),
        ("LIFECYCLE_DEPLOY_WEBHOOK", "ftp://T0ken", "holds no URL that starts with http"),
        ("LIFECYCLE_DEPLOY_WEBHOOK_SECRET", "", "LIFECYCLE_DEPLOY_WEBHOOK_SECRET is not set"),
        ("LIFECYCLE_DEPLOY_WEBHOOK_SECRET", "whsec_dG9vIHNob3J0", "the base64 of 24 to 64 random bytes"),
    ],
)
def test_a_variable_that_cannot_be_used_stops_before_anything_is_posted(
    place: Platform,
    told: Agent,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    sentence: str,
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(Refused, match=sentence):
        WebhookDeployer(place).hand_off(told, FIRST)
    assert receiver.received == []
    assert WebhookDeployer(place).current(told) is None
    # `lifecycle doctor` says it before the hand-off does.
    (finding,) = [one for one in webhooks([told]) if one.name == "deployment webhook"]
    assert (finding.state, variable in finding.text) == ("fail", True)
    assert len(value) < 5 or value not in finding.text


def test_a_champion_set_by_hand_is_not_handed_to_a_receiver(place: Platform, told: Agent, receiver: Receiver):
    with pytest.raises(Refused, match="pointed at version 3 outside the graph: no move names it"):
        WebhookDeployer(place).hand_off(told, Move("3", "m-3"))
    assert receiver.received == []


def test_what_was_told_to_another_target_is_told_again(place: Platform, told: Agent, agent: Agent, receiver: Receiver):
    deployer = LaptopDeployer(place)
    deployer.hand_off(told, FIRST)
    assert deployer.current(agent) is None
    assert deployer.hand_off(agent, FIRST).target == "local"
    assert deployer.current(told) is None
    assert deployer.hand_off(told, FIRST).target == "webhook"
    assert len(set(ids(receiver))) == 1


def read_by_docker(text: str, shell: dict[str, str]) -> dict[str, str]:
    """Variables as docker's parser of --env-file takes them: no quotes, no escapes, a name alone from the shell."""
    env = {}
    for line in text.split("\n"):
        line = line.removesuffix("\r").lstrip()
        if line and not line.startswith("#"):
            name, given, value = line.partition("=")
            if given or name in shell:
                env[name] = value if given else shell[name]
    return env


def test_three_runtimes_read_what_was_handed_over(place: Platform, told: Agent):
    env = variables_elsewhere(told, place, version="2", model_id="m-2")
    plain = {name: value for name, value in env.items() if name != "OPENAI_API_KEY"}
    items = yaml.safe_load(app_yaml(env))["env"]
    assert {item["name"]: item["value"] for item in items if "value" in item} == plain
    assert {"name": "OPENAI_API_KEY", "valueFrom": "openai-api-key"} in items
    assert "# resource openai-api-key of the app: the secret llm/key" in app_yaml(env)
    assert read_by_docker(docker_env(env), {"OPENAI_API_KEY": "from the shell"}) == {
        **plain,
        "OPENAI_API_KEY": "from the shell",
    }
    assert read_by_docker(docker_env(env), {}) == plain
    with pytest.raises(Refused, match=r"GREETING holds a quote, .* which job_cluster\.json cannot say"):
        job_cluster(env)
    greeted = {**env, "GREETING": "fine"}
    assert json.loads(job_cluster(greeted)) == {"new_cluster": {"spark_env_vars": greeted}}


@pytest.mark.parametrize("value", ["two\nlines", "A=1\rB=2", "nul\0", "\ud800"])
def test_a_file_that_cannot_say_a_value_is_left_out_and_the_rest_is_there(tmp_path: Path, value: str):
    keep_files(tmp_path, dict.fromkeys(FILES, "former"))
    texts, faults = rendered({"A": value, "MLFLOW_ACTIVE_MODEL_ID": "m-1"})
    assert faults["docker.env"] == "A is no single line of text, which docker.env cannot say: write it in one line."
    assert set(faults) == {"docker.env", "job_cluster.json"}
    keep_files(tmp_path, texts)
    assert [file.name for file in tmp_path.iterdir()] == ["app.yaml"], "a file of a former version would mislead"
    assert {item["name"]: item["value"] for item in yaml.safe_load((tmp_path / "app.yaml").read_text())["env"]} == {
        "A": value,
        "MLFLOW_ACTIVE_MODEL_ID": "m-1",
    }


def test_files_are_written_once_and_go_with_their_folder(tmp_path: Path):
    folder = tmp_path / "tiny"
    texts, _ = rendered({"A": "1"})
    keep_files(folder, texts)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    keep_files(folder, texts)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert set(before) == set(FILES)
    keep_files(folder, {})
    assert not folder.exists()


def test_a_version_says_where_it_was_handed_to_and_nothing_of_former_targets(agent: Agent):
    handed = DeploymentRecord("databricks_serving", "https://w/ml/endpoints/tiny-prod", "3", "m-3", "2026-11-20T00:00")
    assert deployment_tags(agent, handed) == {
        "lifecycle.deployed_to": "databricks_serving",
        "lifecycle.endpoint": "tiny-prod",
        "lifecycle.app": "",
        "lifecycle.job": "",
        "lifecycle.deployed_at": "2026-11-20T00:00",
    }
    assert deployment_tags(agent, DeploymentRecord("none", "", "3", "m-3", "")) == {}
