from tests.databricks.test_compute import experiment_id, link, make_agent, noon, open_workspace, put_trace, run_day, store_trace, Traces
from lifecycle_assets.periodic import here, run_job
from resources.databricks.volume import ensure_volume
from tests.workspace.unity_models import UnityModels
import time
from tests.building import LABELING, day_of
def test_zz(workspace, databricks, tmp_path):
    agent = here(make_agent(tmp_path, attributes={"compute": "serverless", "labeling": {**LABELING, "reviewers": ["ann@example.com"], "rules": {"negative_feedback": 0, "low_scores": {"shouted": 2}} if False else LABELING["rules"]}}))
    experiment = experiment_id(databricks, agent.spec.experiment)
    link(workspace, experiment)
    for number in (1, 2, 3):
        trace_id = put_trace(workspace, experiment, number, int(noon(1).timestamp() * 1000) + number)
        store_trace(workspace, "main.agents", "tiny", workspace[Traces].get(trace_id))
    c = open_workspace(databricks)
    ensure_volume(c, agent.spec.volume)
    from resources.mlflow_store import open_client
    cl = open_client(databricks)
    now = int(time.time()*1000)
    n = agent.spec.model_name
    cl.create_registered_model(n)
    workspace[UnityModels].models[n]["versions"]["1"] = {"info": {"name": n, "version": "1", "creation_timestamp": now, "last_updated_timestamp": now, "status": "READY", "model_id": "m-1", "source":"x"}, "tags": {"lifecycle.model_id": "m-1"}, "polls": 0}
    workspace[UnityModels].models[n]["aliases"]["champion"] = "1"
    for job, kw in (("monitor", {}), ("scorer_backfill", dict(first_day=day_of(1), last_day=day_of(1))), ("labeling", {}), ("labeling", {})):
        t = time.time()
        print("####", job, run_job(agent, databricks, job, **kw), time.time() - t)
    print(workspace.unknown)
    print([(e.method, e.path, e.status) for e in workspace.log if "records/" in e.path])
    assert 0
