"""`lifecycle doctor` on Databricks: what is missing, by name, in at most 20 requests that change nothing.

Lives here: what doctor says of a workspace. Not here: how a grant is told missing (`test_grants.py`).
"""

from pathlib import Path

import pytest

from lifecycle_assets.finding import Finding
from resources.databricks.inspection import REQUESTS, Inspection
from resources.databricks.tracing.tracing import DatabricksTracing
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from tests.building import make_agent
from tests.databricks.conftest import forget_clients, settle
from tests.workspace.app import Workspace
from tests.workspace.lake import Lake
from tests.workspace.scorers import Scorers

pytestmark = pytest.mark.usefixtures("as_before")
READS = ("GET", "HEAD")


def said(platform: Platform, *agents: object) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in Inspection(platform).findings(agents):  # type: ignore[arg-type]
        found.setdefault(finding.name, []).append(finding)
    return found


def test_an_empty_workspace_and_one_that_is_set_up(databricks: Platform, workspace: Workspace, tmp_path: Path) -> None:
    agent = make_agent(tmp_path, attributes={"experiment": "/Shared/tiny"})
    found = said(databricks, agent)
    assert "signed in as" in found["workspace"][0].text
    assert found["warehouse"][0].state == "ok"
    assert "is made by the first run" in found["tiny experiment"][0].text
    assert {one.method for one in workspace.log} <= set(READS), "doctor changes nothing"

    settle(databricks, agent)
    before = len(workspace.log)
    found = said(databricks, agent)
    assert found["tiny traces"] == [Finding("tiny traces", "ok", "kept in main.agents.tiny")]
    assert found["tiny monitoring"][0].state == "ok"
    assert found["tiny scorers"][0].text.startswith("0 of 20")
    assert found["tiny grants"][0].state == "ok", found["tiny grants"]
    asked = workspace.log[before:]
    assert len(asked) <= REQUESTS
    assert {one.method for one in asked} <= set(READS)


def test_a_missing_grant_is_named_with_its_statement(
    databricks: Platform, workspace: Workspace, tmp_path: Path
) -> None:
    held = workspace[Lake].privileges
    held.unrestricted = False
    workspace[Lake].catalogs["main"]["owner"] = "somebody else"
    agent = make_agent(tmp_path, attributes={"experiment": "/Shared/tiny"})
    found = said(databricks, agent)
    statements = DatabricksTracing(databricks).missing_grants(agent)
    assert statements is not None
    assert statements[0].startswith("GRANT USE CATALOG ON CATALOG `main` TO"), "plan shows the same"
    missing = [one for one in found["tiny grants"] if one.state == "fail"]
    assert any("GRANT USE CATALOG ON CATALOG `main` TO" in one.remedy for one in missing), found["tiny grants"]


def test_faults_are_findings(
    databricks: Platform, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(tmp_path, attributes={"experiment": "tiny"})
    workspace.fail("GET .*/sql/warehouses/", status=404, error_code="RESOURCE_DOES_NOT_EXIST", message="no warehouse")
    found = said(databricks, agent)
    assert "absolute path" in found["tiny experiment"][0].text
    assert found["warehouse"][0] == Finding(
        "warehouse", "fail", "wh-1 does not exist", "Correct DATABRICKS_WAREHOUSE_ID: databricks warehouses list."
    )
    monkeypatch.delenv("DATABRICKS_WAREHOUSE_ID")
    assert "DATABRICKS_WAREHOUSE_ID is not set" in said(Platform.from_env(), agent)["warehouse"][0].text
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-expired")
    forget_clients()
    found = said(Platform.from_env(), agent)
    assert [*found] == ["databricks-sdk", "databricks-agents", "dagster-databricks", "sqlglot", "workspace"]
    assert "does not accept the sign-in" in found["workspace"][0].text


def test_many_agents_cost_no_more_requests(databricks: Platform, workspace: Workspace, tmp_path: Path) -> None:
    agents = [make_agent(tmp_path, f"agent_{n}", attributes={"experiment": f"/Shared/{n}"}) for n in range(8)]
    found = said(databricks, *agents)
    assert len(workspace.log) <= REQUESTS
    assert "agent_7" in found["agents"][0].text
    assert "at most 20 requests" in found["agents"][0].text


def test_a_scorer_that_cannot_be_rebuilt_is_named(databricks: Platform, workspace: Workspace, tmp_path: Path) -> None:
    agent = make_agent(tmp_path, attributes={"experiment": "/Shared/tiny"})
    settle(databricks, agent)
    experiment = experiment_id(databricks, "/Shared/tiny")
    entry = {"name": "of_others", "serialized_scorer": "{}", "custom": {}, "sample_rate": 1.0}
    workspace[Scorers].put(experiment, [entry])
    counted, named = said(databricks, agent)["tiny scorers"]
    assert counted.text == "1 of 20 are active"
    assert "'of_others'" in named.text
    assert "cannot be rebuilt" in named.text
    assert "delete_scorer(name='of_others'" in named.remedy


def test_a_feature_that_is_not_enabled_is_said(databricks: Platform, workspace: Workspace, tmp_path: Path) -> None:
    agent = make_agent(tmp_path, attributes={"experiment": "/Shared/tiny"})
    settle(databricks, agent)
    why = {"status": 403, "error_code": "FEATURE_DISABLED", "message": "Production monitoring is not enabled"}
    workspace.fail("GET .*/scheduled-scorers/", **why)
    workspace.fail("GET .*/review-apps", **why)
    found = said(databricks, agent)
    for name in ("tiny scorers", "tiny labeling"):
        assert (found[name][0].state, "not enabled" in found[name][0].text) == ("fail", True)
