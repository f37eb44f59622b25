"""The hand-off to the local runtime: written once, whole, and without secrets."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from lifecycle_assets.records import DeploymentRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.deployer import LocalDeployer
from resources.platform import Platform
from tests.building import make_agent


@pytest.fixture
def place(tmp_path: Path) -> Platform:
    """A platform of which only the folder matters."""
    return Platform.from_env({"LIFECYCLE_HOME": str(tmp_path / "home"), "LIFECYCLE_ENVIRONMENT": "prod"})


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return make_agent(tmp_path)


def test_the_file_says_what_to_load_and_what_to_set(place: Platform, agent: Agent):
    record = LocalDeployer(place).hand_off(agent, version="3", model_id="m-1")
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
    first = deployer.hand_off(agent, version="3", model_id="m-1")
    file = Path(first.location)
    file.write_text(file.read_text().replace(first.handed_at, "2026-01-01T00:00:00+00:00"))
    before = file.stat()
    again = deployer.hand_off(agent, version="3", model_id="m-1")
    assert again.handed_at == "2026-01-01T00:00:00+00:00"
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert deployer.hand_off(agent, version="4", model_id="m-2").handed_at > again.handed_at
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
    record = deployer.hand_off(agent, version="3", model_id="m-1")
    assert "s3cret" not in Path(record.location).read_text()
    assert "MLFLOW_TRACKING_URI" not in deployer.environment(agent)


def test_before_the_first_hand_off(place: Platform, agent: Agent):
    assert LocalDeployer(place).current(agent) is None
    with pytest.raises(Refused, match="no version was handed to the runtime; materialize tiny/deployment first"):
        LocalDeployer(place).environment(agent)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"target": "local"}', "\x00\xff", '{"version": 3}'])
def test_a_corrupt_file_is_refused_and_kept(place: Platform, agent: Agent, text: str):
    deployer = LocalDeployer(place)
    file = Path(deployer.hand_off(agent, version="3", model_id="m-1").location)
    file.write_bytes(text.encode("latin-1"))
    for use in (deployer.current, deployer.environment):
        with pytest.raises(
            Refused, match=r"tiny\.json: is not a hand-off; delete it, then materialize tiny/deployment"
        ):
            use(agent)
    with pytest.raises(Refused):
        deployer.hand_off(agent, version="4", model_id="m-2")
    assert file.read_bytes() == text.encode("latin-1")


def test_target_none_hands_nothing_over_and_takes_a_former_hand_off_back(place: Platform, agent: Agent, tmp_path: Path):
    deployer = LocalDeployer(place)
    file = Path(deployer.hand_off(agent, version="3", model_id="m-1").location)
    nowhere = make_agent(tmp_path / "b", attributes={"deployment": {"target": "none"}})
    assert deployer.hand_off(nowhere, version="4", model_id="m-2") == DeploymentRecord("none", "", "4", "m-2", "")
    assert not file.exists()
    assert deployer.current(nowhere) is None
    assert deployer.environment(nowhere) == {}


def _hand_off_often(home: str, folder: str, version: str) -> None:
    from lifecycle_assets.spec_file import read_agent

    deployer = LocalDeployer(Platform.from_env({"LIFECYCLE_HOME": home}))
    for number in range(40):
        deployer.hand_off(read_agent(Path(folder) / "defs.yaml"), version=version, model_id=f"m-{number}")


def test_readers_see_whole_files_while_two_processes_write(place: Platform, agent: Agent):
    deployer = LocalDeployer(place)
    deployer.hand_off(agent, version="0", model_id="m-0")
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_hand_off_often, args=(str(place.home), str(agent.folder), version))
        for version in ("1", "2")
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert deployer.current(agent) is not None
    assert [writer.exitcode for writer in writers] == [0, 0]
