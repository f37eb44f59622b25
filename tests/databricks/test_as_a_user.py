"""What a person meets who sets the environment wrongly, or whose workspace is out of order.

Lives here: commands, assets and `doctor` against wrong environments: one sentence each, in bounded time, no secret.
Add here: a mistake people make. Not here: what each client raises (`test_faults.py`).
"""

import os
import subprocess
import sys
import time
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lifecycle_assets.cli.main import main
from lifecycle_assets.home import prepare_home
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import read_agent
from resources.databricks.archive.archive import WarehouseArchive
from resources.databricks.inspection import Inspection
from resources.databricks.sql.warehouse import require_warehouse
from resources.databricks.tracing.trace_store import DatabricksTraceStore
from resources.explain import explained
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from tests.building import make_agent, noon
from tests.databricks.conftest import forget_clients, settle
from tests.databricks.seeding import link, put_trace
from tests.workspace.app import Workspace
from tests.workspace.lake import Lake
from tests.workspace.otel_tables import create_tables, store_trace
from tests.workspace.traces import Traces


@pytest.fixture
def agents(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one agent, and a Dagster instance in which nothing has run."""
    agent = make_agent(tmp_path / "agents", attributes={"experiment": "/Shared/tiny"})
    monkeypatch.setenv("LIFECYCLE_DEFS", str(agent.folder.parent))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    prepare_home(Platform.from_env())
    return agent.folder


def lifecycle(*arguments: str) -> Result:
    forget_clients()
    answer = CliRunner().invoke(main, [*arguments], catch_exceptions=True, env=dict(os.environ))
    assert isinstance(answer.exception, SystemExit | None), answer.exception
    assert "Traceback" not in answer.output
    return answer


def test_a_workspace_that_fails_inside(agents: Path, workspace: Workspace) -> None:
    workspace.fail(".*", status=500, message="boom", times=1000)
    for arguments in (["doctor"], ["query", "tiny", "SELECT 1"], ["history", "tiny"]):
        answer = lifecycle(*arguments)
        assert answer.exit_code == 1, arguments
        assert "failed inside (boom): run again later" in answer.output, arguments


def test_a_workspace_that_does_not_answer_is_waited_for_once(
    agents: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.fail(".*", status=429, retry_after=1, times=1000)
    monkeypatch.setenv("MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT", "2")
    began = time.monotonic()
    answer = lifecycle("plan", "tiny")
    assert answer.output.count("busy (429 or 503)") > 2, "every part says why it is not known"
    assert time.monotonic() - began < 15, "but only the first waits"


def test_the_environment_says_no_with_code_1(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-secret")
    answer = lifecycle("query", "tiny", "SELECT 1")
    assert answer.exit_code == 1
    assert "does not accept the sign-in" in answer.output
    assert "dapi-secret" not in answer.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks://nobody")
    answer = lifecycle("doctor")
    assert "has no nobody profile configured" in answer.output
    assert "token=" not in answer.output


def test_a_host_that_speaks_no_tls(databricks: Platform, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_HOST", workspace.url.replace("http:", "https:"))
    forget_clients()
    found = [one for one in Inspection(databricks).findings([]) if one.name == "workspace"]
    assert "cannot be reached securely" in found[0].text


def test_a_warehouse_that_is_not_there(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_WAREHOUSE_ID", "wh-nope")
    platform = Platform.from_env()
    with pytest.raises(Refused, match=r"wh-nope.*no such SQL warehouse"), explained(platform.tracking_uri):
        require_warehouse(platform)


def test_without_the_extra(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ("databricks", "dagster_databricks", "sqlglot")
    for name in [name for name in sys.modules if name.split(".")[0] in missing]:
        monkeypatch.delitem(sys.modules, name)

    class Nothing(MetaPathFinder):
        def find_spec(self, fullname: str, path: object, target: object = None) -> None:
            if fullname.split(".")[0] in missing:
                raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)

    monkeypatch.setattr(sys, "meta_path", [Nothing(), *sys.meta_path])
    for arguments in (["doctor"], ["query", "tiny", "SELECT 1"]):
        answer = CliRunner().invoke(main, arguments, catch_exceptions=True)
        assert isinstance(answer.exception, SystemExit), arguments
        assert answer.exit_code == 1
        assert "is not installed: run pip install 'lifecycle-assets[databricks]'" in answer.output
    assert "agents: tiny" in CliRunner().invoke(main, ["doctor"]).output, "the rest is still looked at"


def test_what_a_killed_evaluation_left_is_no_users_trace(
    databricks: Platform, workspace: Workspace, tmp_path: Path
) -> None:
    """Killed between the spans and what is said of the trace: only the mark on its root span tells it from others."""
    agent = make_agent(tmp_path, attributes={"experiment": "/Shared/tiny"})
    experiment, at_ms = experiment_id(databricks, agent.spec.experiment), int(noon(1).timestamp() * 1000)
    link(workspace, experiment)
    create_tables(workspace, "main.agents", "tiny")
    for number, mark in ((1, {}), (2, {"lifecycle.eval_run_id": '"r-1"'})):
        trace_id = put_trace(workspace, experiment, number, at_ms + number)
        trace = workspace[Traces].get(trace_id)
        trace["info"]["trace_metadata"] = {}
        trace["spans"][0]["attributes"] |= mark
        store_trace(workspace, "main.agents", "tiny", trace)
    newest = DatabricksTraceStore(databricks).newest(agent.spec.experiment)
    assert newest is not None
    assert newest.trace_id.endswith("1"), "one of a user that came by OTLP, without metadata"
    archive = WarehouseArchive(databricks)
    day = noon(1).date()
    archive.archive_day(agent, day, settled_before_ms=at_ms + 10**7, progress=lambda line: None)
    assert [row["trace_id"] for row in workspace[Lake].rows("main.agents.tiny_traces")] == [newest.trace_id]


@pytest.mark.usefixtures("as_before")
def test_doctor_looks_at_the_rest_before_grants_use_up_its_requests(agents: Path, workspace: Workspace) -> None:
    settle(Platform.from_env(), read_agent(agents / "defs.yaml"))
    workspace[Lake].privileges.unrestricted = False
    workspace[Lake].catalogs["main"]["owner"] = "somebody else"
    said = lifecycle("doctor").output
    assert said.index("tiny labeling: ") < said.index("tiny grants: ")


def test_the_demo_is_not_run_on_a_workspace(workspace: Workspace) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lifecycle_assets.demo.main", "--fresh"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr, workspace.log) == (1, False, [])
    assert "The demo lives on a laptop" in done.stdout
