"""An agent's traces get one place in Unity Catalog, proven by a trace that comes back."""

import os
from pathlib import Path

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.tracing import tracing_steps
from resources.databricks.tracing.trace_place import VERIFIED
from resources.databricks.tracing.tracing import DatabricksTracing
from resources.databricks.tracing.tracing_steps import PROBE
from resources.mlflow_store import experiment_id, open_client
from resources.platform import Platform
from tests.building import make_agent
from tests.databricks.conftest import settle
from tests.databricks.seeding import PLACE, put_trace
from tests.workspace.app import Workspace
from tests.workspace.lake import Lake
from tests.workspace.otlp import UcTraces
from tests.workspace.trace_locations import TraceLocations
from tests.workspace.traces import Traces
from tests.workspace.tracking import Tracking

ME, APP = "someone@example.com", "app's own `principal`"
TABLES = tuple(f"{PLACE}_otel_{kind}" for kind in ("spans", "logs", "annotations", "metrics"))


@pytest.fixture
def agent(tmp_path: Path, as_before: None) -> Agent:
    """The small agent, whose application writes traces too."""
    return make_agent(tmp_path, attributes={"tracing": {"principals": [APP]}})


def test_linked_once(databricks: Platform, workspace: Workspace, agent: Agent) -> None:
    """The first time links, binds, grants and probes in a process of its own; a second time asks two questions."""
    lines: list[str] = []
    made = DatabricksTracing(databricks).ensure(agent, progress=lines.append)
    assert (made.kind, made.destination, made.linked) == ("unity_catalog", "", True)
    assert sorted(made.tables) == sorted(TABLES)
    assert any("linking experiment /agents/tiny to main.agents.tiny" in line for line in lines)
    assert len(workspace.calls("POST .*/trace-location:link")) == 1
    (experiment,) = workspace[Tracking].experiments.values()
    assert experiment["tags"]["mlflow.monitoring.sqlWarehouseId"] == "wh-1"
    held = workspace[Lake].privileges
    for principal in (ME, APP):
        assert "USE_CATALOG" in held.explicit("CATALOG", "main")[principal]
        assert "USE_SCHEMA" in held.explicit("SCHEMA", "main.agents")[principal]
        for table in TABLES:
            assert held.explicit("TABLE", table)[principal] == {"MODIFY", "SELECT"}
    assert any("MODIFY" in grant and "`app's own ``principal```" in grant for grant in made.granted), made.granted
    (probe,) = workspace[Traces].all(experiment["experiment_id"])
    assert probe["info"]["trace_metadata"]["mlflow.sourceRun"] == PROBE
    assert len(workspace[Lake].rows(f"{PLACE}_otel_spans")) == 1

    workspace.log.clear()
    again = DatabricksTracing(databricks).ensure(agent, progress=lines.append)
    assert (again.kind, again.granted, again.linked) == ("unity_catalog", (), False)
    assert sorted(again.tables) == sorted(TABLES)
    assert len(workspace.log) == 1, [one.path for one in workspace.log]
    assert DatabricksTracing(databricks).destination(agent) == "", "mlflow follows the experiment's link by itself"


@pytest.mark.parametrize("code", ["ENDPOINT_NOT_FOUND", ""])
def test_an_older_workspace(
    databricks: Platform, workspace: Workspace, agent: Agent, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Without locations by table prefix the schema is taken, and applications are told of it.

    The probe comes back also where traces are logged in the background.
    """
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "true")
    workspace[TraceLocations].by_prefix = False
    workspace.fail("POST /api/5.0/", status=404, error_code=code, message="Not Found", times=5)
    answer = settle(databricks, agent)
    assert (answer["path"], answer["linked"]) == ("main.agents", True)
    assert answer["tables"][0] == "main.agents.mlflow_experiment_trace_otel_spans"
    assert [trace["info"]["trace_id"].split("/")[1] for trace in workspace[Traces].traces.values()] == ["main.agents"]
    tracing = DatabricksTracing(databricks)
    again = tracing.ensure(agent, progress=print)
    assert (again.kind, again.destination) == ("unity_schema", "main.agents")
    assert tracing.destination(agent) == "main.agents"
    assert len(workspace.calls("POST .*/link-location")) == 1


@pytest.mark.parametrize("fault", ["lost", "truncated"])
def test_a_lost_answer_while_linking(databricks: Platform, workspace: Workspace, agent: Agent, fault: str) -> None:
    """The link is there: it is seen, by this run or the next, and never made twice."""
    workspace.fail("POST .*/trace-location:link", kind=fault)
    try:
        settle(databricks, agent)
    except Exception:  # noqa: BLE001 - whatever the client makes of half an answer, the next run goes on.
        settle(databricks, agent)
    assert len([call for call in workspace.calls("POST .*/trace-location:link") if call.status in (0, 200)]) == 1
    assert DatabricksTracing(databricks).ensure(agent, progress=print).kind == "unity_catalog"


def test_killed_between_linking_and_granting(databricks: Platform, workspace: Workspace, agent: Agent) -> None:
    workspace.fail("PATCH .*/permissions/.*", status=500, times=9)
    with pytest.raises(Exception, match="injected"):
        settle(databricks, agent)
    workspace.faults.clear()
    answer = settle(databricks, agent)
    assert (answer["path"], answer["linked"]) == (PLACE, False)
    assert len(workspace.calls("POST .*/trace-location:link")) == 1


def test_linked_elsewhere(databricks: Platform, workspace: Workspace, agent: Agent, tmp_path: Path) -> None:
    """The sentence says what to declare, and that another experiment will do; nothing is changed."""
    tracing = DatabricksTracing(databricks)
    made = experiment_id(databricks, agent.spec.experiment)
    tags = workspace[Tracking].experiment(made)["tags"]
    tags["mlflow.experiment.databricksTraceDestinationPath"] = "main.traces.old"
    with pytest.raises(Refused, match=r"keeps its traces in main\.traces\.old, not in main\.agents\.tiny") as refused:
        tracing.ensure(agent, progress=print)
    assert "declare tracing.schema_path: main.traces and tracing.table_prefix: old, or name another" in str(
        refused.value
    )
    beside = make_agent(tmp_path / "beside", attributes={"tracing": {"location": "experiment"}})
    with pytest.raises(Refused, match=r"declare tracing\.location: unity_catalog with tracing\.schema_path"):
        tracing.ensure(beside, progress=print)
    relative = make_agent(tmp_path / "relative", attributes={"experiment": "tiny"})
    with pytest.raises(Refused, match="experiment 'tiny' is not an absolute path"):
        tracing.ensure(relative, progress=print)
    assert not workspace.calls("POST .*(link|locations|tag)")


def test_what_databricks_refuses(databricks: Platform, workspace: Workspace, agent: Agent) -> None:
    """Each refusal is a sentence with its remedy, and a later run goes on."""
    made, held = experiment_id(databricks, agent.spec.experiment), workspace[Lake].privileges
    workspace[TraceLocations].ingestion = False
    with pytest.raises(Refused, match=r"not available in this region\).*Previews.*tracing\.location: experiment"):
        settle(databricks, agent)
    workspace[TraceLocations].ingestion = True
    held.unrestricted = False
    with pytest.raises(Refused, match=r"GRANT USE SCHEMA, CREATE TABLE ON SCHEMA `main`\.`agents` TO `someone@exam"):
        settle(databricks, agent)
    put_trace(workspace, made, 1, 10**12)
    held.unrestricted = True
    with pytest.raises(Refused, match=r"already contains traces.*name a new experiment"):
        settle(databricks, agent)
    workspace[Traces].traces.clear()
    workspace.fail("POST /api/2.0/otel", status=403, error_code="PERMISSION_DENIED", message="no MODIFY", times=9)
    with pytest.raises(Refused, match=r"probe trace sent to main\.agents\.tiny could not be read back \(.*no MODIFY"):
        settle(databricks, agent)
    workspace.faults.clear()
    assert settle(databricks, agent)["path"] == PLACE


def test_a_probe_that_comes_late_or_never(
    databricks: Platform, workspace: Workspace, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for; an experiment whose probe did not come back is not marked as verified."""
    monkeypatch.setenv("MLFLOW_GET_TRACE_OTEL_RETRY_TIMEOUT_SECONDS", "0")
    monkeypatch.setattr(tracing_steps, "_PROBE_SECONDS", 1.0)
    workspace[UcTraces].late = 100
    with pytest.raises(
        Refused, match=r"probe trace sent to main\.agents\.tiny could not be read back: lifecycle doctor"
    ):
        settle(databricks, agent)
    (experiment,) = workspace[Tracking].experiments.values()
    assert VERIFIED not in experiment["tags"]
    workspace[UcTraces].late = 1
    settle(databricks, agent)
    assert VERIFIED in experiment["tags"]


def test_a_grant_we_may_not_give(databricks: Platform, workspace: Workspace, agent: Agent) -> None:
    settle(databricks, agent)
    held = workspace[Lake].privileges
    held.remove("TABLE", TABLES[0], APP, ["MODIFY"])
    held.add("TABLE", TABLES[0], APP, ["ALL_PRIVILEGES"])
    held.unrestricted = False
    held.remove("SCHEMA", "main.agents", ME, ["USE_SCHEMA"])
    held.groups = ("readers",)
    held.add("SCHEMA", "main.agents", "readers", ["USE_SCHEMA"])
    with pytest.raises(Refused) as refused:
        settle(databricks, agent)
    assert "GRANT USE SCHEMA" not in str(refused.value), "what we have by a group is proven by the probe"
    assert "GRANT MODIFY ON TABLE `main`.`agents`.`tiny_otel_spans` TO `app's own ``principal```" in str(refused.value)


def test_a_principal_nobody_knows(databricks: Platform, workspace: Workspace, agent: Agent) -> None:
    said = {"status": 400, "error_code": "INVALID_PARAMETER_VALUE", "message": "Could not find principal with name app"}
    workspace.fail("PATCH .*/permissions/TABLE/.*", **said, times=9)
    workspace.fail("GET .*/permissions/TABLE/.*", status=403, error_code="PERMISSION_DENIED", times=99)
    with pytest.raises(
        Refused, match=r"\(Could not find principal with name app\); have an owner run: GRANT MODIFY ON"
    ):
        settle(databricks, agent)
    workspace.faults.clear()
    settle(databricks, agent)


def test_traces_kept_by_the_experiment(databricks: Platform, workspace: Workspace, tmp_path: Path) -> None:
    """Only the experiment, and the warehouse bound once."""
    agent = make_agent(tmp_path, attributes={"tracing": {"location": "experiment"}})
    for _ in range(2):
        made = DatabricksTracing(databricks).ensure(agent, progress=print)
        assert (made.kind, made.tables, made.linked) == ("experiment", (), False)
    assert len(workspace.calls("POST .*/set-experiment-tag")) == 1
    assert DatabricksTracing(databricks).destination(agent) == ""
    assert DatabricksTracing(databricks).otlp_environment(agent) == {}, "only tables take OpenTelemetry spans in"


def test_spans_from_outside(
    databricks: Platform, workspace: Workspace, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OpenTelemetry exporter, configured by the variables alone, writes where the agent's traces are read."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    settle(databricks, agent)
    told = DatabricksTracing(databricks).otlp_environment(agent)
    assert workspace.token not in str(told)
    for name, value in told.items():
        monkeypatch.setenv(name, os.path.expandvars(value))
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    with provider.get_tracer("outside").start_as_current_span("predict") as root:
        root.set_attribute("gen_ai.request.model", "</script>")
        with provider.get_tracer("outside").start_as_current_span("call"):
            pass
    provider.shutdown()
    trace_id = f"trace:/{PLACE}/{root.get_span_context().trace_id:032x}"
    trace = open_client(databricks).get_trace(trace_id)
    assert {span.name for span in trace.data.spans} == {"predict", "call"}
    assert trace.info.state == "OK"
    rows = workspace[Lake].rows(f"{PLACE}_otel_spans")
    assert len([row for row in rows if trace_id.endswith(row["trace_id"])]) == 2
