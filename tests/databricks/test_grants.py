"""Every missing grant by name, in few requests, and nothing changed by looking."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.grants import missing_grants, needed_grants
from resources.databricks.tracing.trace_grants import Grant, ensure_grants
from resources.databricks.workspace import open_workspace
from resources.explain import explained
from resources.platform import Platform
from resources.tables import TABLES
from tests.building import make_agent
from tests.workspace.app import Workspace
from tests.workspace.lake import Lake
from tests.workspace.unity import Unity
from tests.workspace.unity_models import UnityModels

ME = "someone@example.com"
APP = "2f1c-app"
TRACES = ("main.agents.tiny_otel_spans", "main.agents.tiny_otel_logs")


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return make_agent(tmp_path, attributes={"tracing": {"principals": [APP]}})


@pytest.fixture
def lake(workspace: Workspace) -> Lake:
    """A lake with the agent's tables, all of somebody else, in which the caller has nothing."""
    lake = workspace[Lake]
    for name in (*TRACES, *(f"main.agents.tiny_{table}" for table in TABLES)):
        lake.create_table(name, {"trace_id": "STRING"})
    for securable in (*lake.catalogs.values(), *lake.schemas.values(), *lake.tables.values()):
        securable["owner"] = "somebody@example.com"
    workspace[UnityModels].models["main.agents.tiny"] = {}
    workspace[Unity].model_owners["main.agents.tiny"] = "somebody@example.com"
    lake.privileges.unrestricted = False
    return lake


def missing(platform: Platform, wanted: Sequence[Grant], requests: list[Any] | None = None) -> list[str]:
    def ask(request: Any) -> Any:
        if requests is not None:
            requests.append(request)
        with explained("databricks"):
            return request()

    me = open_workspace(platform).current_user.me()
    return [grant.statement for grant in missing_grants(platform, wanted, me=me, ask=ask)]


def test_what_is_needed_is_said_as_statements(agent: Agent) -> None:
    statements = [grant.statement for grant in needed_grants(agent, "it's `me`", trace_tables=TRACES)]

    assert statements[0] == "GRANT USE CATALOG ON CATALOG `main` TO `it's ``me```"
    assert f"GRANT SELECT ON TABLE `main`.`agents`.`tiny_otel_spans` TO `{APP}`" in statements
    assert any(one.startswith("GRANT EXECUTE ON FUNCTION `main`.`agents`.`tiny`") for one in statements)
    assert len(statements) == len(set(statements))
    before_the_link = [grant.statement for grant in needed_grants(agent, ME)]
    assert not [one for one in before_the_link if "otel" in one]
    assert f"GRANT CREATE TABLE ON SCHEMA `main`.`agents` TO `{ME}`" in before_the_link


def test_who_has_nothing_lacks_everything_and_nothing_is_changed(
    agent: Agent, lake: Lake, databricks: Platform, workspace: Workspace
) -> None:
    wanted = needed_grants(agent, ME, trace_tables=TRACES)

    assert missing(databricks, wanted) == [grant.statement for grant in wanted]
    assert {call.method for call in workspace.log} == {"GET"}


def test_grants_of_groups_parents_and_sql_count_and_take_few_requests(
    agent: Agent, lake: Lake, databricks: Platform, workspace: Workspace
) -> None:
    lake.privileges.add("CATALOG", "main", "account users", ["USE_CATALOG"])
    lake.execute("GRANT USE SCHEMA, CREATE TABLE, CREATE MODEL, EXECUTE ON SCHEMA main.agents TO `users`")
    lake.privileges.add("SCHEMA", "main.agents", ME, ["ALL PRIVILEGES"])
    for name in TRACES:
        lake.privileges.add("TABLE", name, ME, ["SELECT", "MODIFY"])
        lake.privileges.add("TABLE", name, APP, ["SELECT"])
    lake.privileges.add("SCHEMA", "main.agents", APP, ["ALL PRIVILEGES"])
    requests: list[Any] = []
    workspace.page_size = 1

    found = missing(databricks, needed_grants(agent, ME, trace_tables=TRACES), requests)

    # For trace tables neither ALL PRIVILEGES nor a grant above will do.
    assert found == [f"GRANT MODIFY ON TABLE `main`.`agents`.`{name.split('.')[2]}` TO `{APP}`" for name in TRACES]
    assert len(requests) <= 10
    assert len(requests) == len(workspace.calls("permissions"))


def test_owners_need_no_grant_on_what_is_theirs(agent: Agent, lake: Lake, databricks: Platform) -> None:
    for securable in (*lake.catalogs.values(), *lake.schemas.values(), *lake.tables.values()):
        securable["owner"] = "users"
    lake.privileges.add("CATALOG", "main", ME, ["USE_CATALOG"])
    lake.privileges.add("SCHEMA", "main.agents", ME, ["USE_SCHEMA"])

    found = missing(databricks, needed_grants(agent, ME))

    assert found == [f"GRANT EXECUTE ON FUNCTION `main`.`agents`.`tiny` TO `{ME}`"]


def test_what_is_not_there_yet_needs_no_grant_but_a_missing_schema_is_said(
    agent: Agent, databricks: Platform, workspace: Workspace, lake: Lake
) -> None:
    workspace[UnityModels].models.clear()
    for name in list(lake.tables):
        lake.drop(name)
    lake.privileges.add("CATALOG", "main", ME, ["ALL PRIVILEGES"])

    assert missing(databricks, needed_grants(agent, ME)) == []
    del lake.schemas["main.agents"]
    with pytest.raises(Refused, match="CREATE SCHEMA"):
        missing(databricks, needed_grants(agent, ME))


def test_what_may_not_be_read_is_asked_for_oneself_and_never_guessed(
    agent: Agent, lake: Lake, databricks: Platform, workspace: Workspace
) -> None:
    lake.privileges.add("CATALOG", "main", ME, ["USE_CATALOG"])
    wanted = [needed_grants(agent, ME)[0]]
    denied = {"status": 403, "error_code": "PERMISSION_DENIED", "message": "no"}

    workspace.fail("effective-permissions/CATALOG", **denied)
    assert missing(databricks, wanted) == []
    assert workspace.calls("effective-permissions")[-1].query["principal"] == ME
    workspace.fail("effective-permissions/CATALOG", times=2, **denied)
    with pytest.raises(Refused, match="denies permission"):
        missing(databricks, wanted)


def test_a_workspace_that_does_not_add_grants_up_is_asked_one_by_one(
    agent: Agent, lake: Lake, databricks: Platform, workspace: Workspace
) -> None:
    workspace.fail("effective-permissions", status=404, error_code="ENDPOINT_NOT_FOUND", message="No API", times=99)
    lake.privileges.add("CATALOG", "main", ME, ["ALL PRIVILEGES"])
    lake.drop("main.agents.tiny_spans")

    assert missing(databricks, needed_grants(agent, ME)) == []
    lake.privileges.remove("CATALOG", "main", ME, ["ALL PRIVILEGES"])
    wanted = needed_grants(agent, ME)
    expected = [grant.statement for grant in wanted if not grant.name.endswith("tiny_spans")]
    assert missing(databricks, wanted) == expected


def test_given_grants_are_read_back(agent: Agent, lake: Lake, databricks: Platform) -> None:
    wanted = [grant for grant in needed_grants(agent, ME, trace_tables=TRACES) if grant.explicit]
    lake.privileges.unrestricted = True

    assert sorted(ensure_grants(databricks, wanted)) == sorted(grant.statement for grant in wanted)
    lake.privileges.unrestricted = False
    assert missing(databricks, wanted) == []
