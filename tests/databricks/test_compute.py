"""Steps as jobs of the workspace: the wheel, the messages, failures, cancellation, lost answers."""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from lifecycle_assets.bundle import bundle_files
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.edges import RECORD_KEY
from lifecycle_assets.periodic import here, run_job
from lifecycle_assets.records import ScorersRecord, SessionRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.compute.compute import _outcome
from resources.databricks.compute.step_job import StepJob, cancelling, failure, follow, run_of_name, submit
from resources.databricks.compute.volume import ensure_volume, upload_once
from resources.databricks.workspace import open_workspace
from resources.mlflow_store import experiment_id, open_client
from resources.platform import Platform
from resources.wheel import build_wheel, requirements
from tests.building import day_of, make_agent, noon, refusal
from tests.databricks.seeding import link, put_trace
from tests.workspace.app import Workspace
from tests.workspace.files import Files
from tests.workspace.jobs import Jobs
from tests.workspace.otel_tables import store_trace
from tests.workspace.traces import Traces
from tests.workspace.unity_models import UnityModels

WHEELS = r"PUT /api/2.0/fs/files/Volumes/.*\.whl"
SUBMIT = "POST .*/runs/submit"


def run_day(agent: Agent, asset: str) -> dg.ExecuteInProcessResult:
    """Yesterday's partition of one asset, after its scorers were registered."""
    record = ScorersRecord("d", "m", [])
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                dg.AssetKey([agent.name, "registered_scorers"]),
                metadata={RECORD_KEY: dg.MetadataValue.json(record.to_json())},
            )
        )
        job = agent_definitions(agent).resolve_job_def(f"{agent.name}_monitor")
        return job.execute_in_process(
            instance=instance,
            partition_key=day_of(1),
            asset_selection=[dg.AssetKey([agent.name, asset])],
            raise_on_error=False,
        )


def materialized(result: dg.ExecuteInProcessResult) -> tuple[dict[str, Any], dict[str, Any], list[tuple[Any, ...]]]:
    """Metadata, data version and checks of the one asset a run materialized."""
    (event,) = result.get_asset_materialization_events()
    checks = [
        (one.check_name, one.passed, one.severity, one.description) for one in result.get_asset_check_evaluations()
    ]
    made = event.materialization
    versions = {name: tag for name, tag in made.tags.items() if name == "dagster/data_version"} if made.tags else {}
    return dict(made.metadata), versions, sorted(checks)


def test_a_day_on_serverless_is_the_same_materialization_as_here(
    workspace: Workspace, databricks: Platform, tmp_path: Path
) -> None:
    agent = make_agent(tmp_path, attributes={"compute": "serverless"})
    experiment = experiment_id(databricks, agent.spec.experiment)
    link(workspace, experiment)
    for number in (1, 2, 3):
        trace_id = put_trace(workspace, experiment, number, int(noon(1).timestamp() * 1000) + number)
        store_trace(workspace, "main.agents", "tiny", workspace[Traces].get(trace_id))
    workspace.fail(SUBMIT, kind="lost")
    there = run_day(agent, "archived_traces")
    assert there.success, refusal(there)
    here = run_day(make_agent(tmp_path), "archived_traces")
    ours, theirs = materialized(here), materialized(there)
    assert "| traces | 3 | 0 |" in theirs[0].pop("written").value, "the job wrote the rows"
    assert "| traces | 0 | 0 |" in ours[0].pop("written").value, "and the step here found them"
    assert abs(theirs[0].pop("lag_minutes").value - ours[0].pop("lag_minutes").value) < 10, "the clock went on"
    assert theirs == ours
    assert theirs[0][RECORD_KEY].value["traces"] == 3
    assert [name for name, *_ in theirs[2]] == ["complete", "no_duplicates"]
    assert len(workspace.calls(SUBMIT)) == 2, "the lost answer was asked for again"
    (run,) = workspace[Jobs].runs.values()
    assert run["state"]["result_state"] == "SUCCESS"
    assert "environment_key" in run["tasks"][0]
    upload_once(open_workspace(databricks), agent.spec.volume, build_wheel(agent))
    assert len(workspace.calls(WHEELS)) == 1, "uploaded again though it was there"


def test_a_refusal_on_a_cluster_is_the_same_sentence_as_here(
    workspace: Workspace, databricks: Platform, tmp_path: Path
) -> None:
    there = run_day(make_agent(tmp_path, attributes={"compute": "job"}), "archived_traces")
    here = run_day(make_agent(tmp_path), "archived_traces")
    assert refusal(there) == refusal(here)
    assert "does not keep its traces in Unity Catalog yet" in refusal(there)
    (run,) = workspace[Jobs].runs.values()
    assert run["state"]["result_state"] == "FAILED", "a refusal must not look well in the workspace"
    assert run["tasks"][0]["new_cluster"]["data_security_mode"] == "SINGLE_USER"


def test_an_interruption_cancels_the_job_and_fails_the_step(
    workspace: Workspace, databricks: Platform, tmp_path: Path
) -> None:
    workspace.slow_states = 1000

    def interrupt() -> None:
        until = time.monotonic() + 30
        while not workspace.calls("GET .*/runs/get") and time.monotonic() < until:
            time.sleep(0.05)
        if workspace.calls("GET .*/runs/get"):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    result = run_day(make_agent(tmp_path, attributes={"compute": "serverless"}), "archived_traces")
    thread.join()
    (failed,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failed.error is not None
    assert failed.error.cls_name == "DagsterExecutionInterruptedError", "an interruption went on as if all were well"
    assert len(workspace.calls("POST .*/runs/cancel")) == 1
    (run,) = workspace[Jobs].runs.values()
    assert run["state"]["result_state"] == "CANCELED"
    left = [name for name in workspace.calls("PUT .*/fs/directories/.*/tmp/") if name.status == 204]
    assert len(workspace.calls("DELETE .*/fs/directories/.*/tmp/")) == len(left), "messages were left behind"


@pytest.fixture
def job(workspace: Workspace, databricks: Platform, tmp_path: Path) -> Iterator[StepJob]:
    agent = make_agent(tmp_path, attributes={"compute": {"mode": "serverless", "timeout_minutes": 1}})
    wheel = upload_once(open_workspace(databricks), agent.spec.volume, build_wheel(agent))
    return StepJob("lifecycle dev tiny archived_traces 2026-01-01", agent, wheel, [])


def test_a_failed_job_says_why_and_where(workspace: Workspace, databricks: Platform, job: StepJob) -> None:
    client = open_workspace(databricks)
    workspace[Jobs].uninstallable.add("scipy")
    run = cancelling(client, lambda: submit(client, job, "t"), seconds=60, progress=print)
    with pytest.raises(Refused, match=r"failed in the workspace: Library installation failed.*scipy") as refused:
        _outcome(client, run, job.name, [])
    assert str(run.run_page_url) in str(refused.value)
    assert not workspace.calls("POST .*/runs/cancel")


def test_a_wheel_that_is_not_whole_is_written_again_and_a_closed_volume_is_named(
    workspace: Workspace, databricks: Platform, job: StepJob
) -> None:
    client, wheel, held = open_workspace(databricks), build_wheel(job.agent), workspace[Files].path(job.wheel)
    held.write_bytes(wheel.data[:1000])
    assert upload_once(client, job.agent.spec.volume, wheel) == job.wheel
    assert held.read_bytes() == wheel.data
    held.unlink()
    workspace.fail(WHEELS, status=403, error_code="PERMISSION_DENIED", message="no WRITE VOLUME")
    with pytest.raises(Refused, match=r"GRANT READ VOLUME, WRITE VOLUME ON VOLUME main\.agents\.lifecycle"):
        upload_once(client, job.agent.spec.volume, wheel)


def test_without_the_extra_the_step_says_how_to_install_it(
    workspace: Workspace, databricks: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dagster_databricks", None)
    said = refusal(run_day(make_agent(tmp_path, attributes={"compute": "serverless"}), "archived_traces"))
    assert "pip install 'lifecycle-assets[databricks]'" in said
    assert not workspace.calls(SUBMIT)


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        ("cluster", 'attributes.compute.mode is "cluster"'),
        ({"mode": "serverless", "existing_cluster_id": "a-1"}, "belong to mode job"),
        ({"mode": "job", "existing_cluster_id": "a-1", "cluster": {"num_workers": 1}}, "not both"),
        ({"mode": "job", "volume": "main.agents"}, "attributes.compute.volume"),
        ({"mode": "job", "assets": ["champion_alias"]}, "attributes.compute.assets"),
    ],
)
def test_a_wrong_declaration_is_one_sentence(tmp_path: Path, declared: Any, sentence: str) -> None:
    with pytest.raises(Refused, match=re.escape(sentence)):
        make_agent(tmp_path, attributes={"compute": declared})


def test_a_run_left_by_a_killed_process_is_found(workspace: Workspace, databricks: Platform, job: StepJob) -> None:
    client, workspace.slow_states = open_workspace(databricks), 5
    run_id = submit(client, job, "t")
    assert submit(client, job, "t") == run_id, "one token, one run"
    assert run_of_name(client, job.name) == run_id
    assert run_of_name(client, job.name + "9") is None
    with pytest.raises(Refused, match="has not ended after 0"):
        follow(client, run_id, seconds=0, progress=print)


def test_a_job_of_the_bundle_runs_with_its_parameters(
    workspace: Workspace, databricks: Platform, tmp_path: Path
) -> None:
    agent, client = make_agent(tmp_path), open_workspace(databricks)
    wheel = build_wheel(agent)
    path = upload_once(client, agent.spec.volume, wheel)
    text = bundle_files(agent, wheel.name, requirements())["resources/tiny_scorer_backfill.yml"]
    for name, value in {
        "${bundle.target}": "dev",
        "${var.warehouse_id}": "wh-1",
        f"../dist/{wheel.name}": path,
    }.items():
        text = text.replace(name, value)
    settings = yaml.safe_load(text)["resources"]["jobs"]["tiny_scorer_backfill"]
    created: Any = client.api_client.do("POST", "/api/2.2/jobs/create", body=settings)
    days = {"first_day": day_of(2), "last_day": day_of(1)}
    run_ids = {
        client.jobs.run_now(created["job_id"], job_parameters=days, idempotency_token="t").bind()["run_id"]
        for _ in range(2)
    }
    (run_id,) = run_ids
    run = follow(client, run_id, seconds=60, progress=print)
    assert failure(client, run) == "Nobody is champion of main.agents.tiny yet: release tiny first."


def test_periodic_labeling_remembers_its_sessions_and_a_backfill_wants_days(
    workspace: Workspace, databricks: Platform, tmp_path: Path
) -> None:
    agent = here(make_agent(tmp_path, attributes={"compute": "serverless"}))
    assert agent.spec.compute.mode == "local", "a job must not start jobs"
    ensure_volume(open_workspace(databricks), agent.spec.volume)
    open_client(databricks).create_registered_model(agent.spec.model_name)
    model = workspace[UnityModels].models[agent.spec.model_name]
    model["aliases"]["champion"] = "1"
    info = {"name": agent.spec.model_name, "version": "1", "status": "READY", "model_id": "m-1"}
    model["versions"]["1"] = {"info": info, "tags": {"lifecycle.model_id": "m-1"}, "polls": 0}
    link(workspace, experiment_id(databricks, agent.spec.experiment))
    records = workspace[Files].path("/Volumes/main/agents/lifecycle/records/dev/tiny.json")
    records.parent.mkdir(parents=True)
    session = SessionRecord("s-1", "tiny-2026-W01", ["tr-1"], "1", "regular session", "2026-01-01T00:00:00+00:00")
    records.write_text(json.dumps([session.to_json()]))
    assert run_job(agent, databricks, "labeling") == []
    assert json.loads(records.read_text()) == [session.to_json()]
    for first, last in (("", ""), ("2026-01-02", "2026-01-01"), ("2020-01-01", "2026-01-01")):
        with pytest.raises(Refused, match="first_day"):
            run_job(agent, databricks, "scorer_backfill", first_day=first, last_day=last)
