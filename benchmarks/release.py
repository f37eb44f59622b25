"""A release of docs_agent against the plain script that makes the same calls; and what our assets add to Dagster's.

Lives here: that script, our job on a real instance, no-op assets beside ours.
Add here: a step both sides have. Not here: what a release is (`lifecycle_assets/release/`), running (`run.py`).

The script logs the model, asks it in a process of its own, keeps the dataset, evaluates with the same scorers and the
same settings of MLflow, reads every row back for the thresholds, registers, loads the version back in a process of its
own, moves the alias and writes the hand-off. It claims nothing, compares nothing and survives no crash. Both sides
start with an empty, migrated store, and all is timed from the first import on.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.job import Job, Turn

STEPS = 8
"""Assets of the job that has nothing to do."""

SETTINGS = {
    "MLFLOW_GENAI_EVAL_PREDICT_RATE_LIMIT": "0",
    "MLFLOW_GENAI_EVAL_MAX_WORKERS": "4",
    "MLFLOW_GENAI_EVAL_MAX_SCORER_WORKERS": "1",
    "MLFLOW_GENAI_EVAL_SKIP_TRACE_VALIDATION": "true",
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
    "TQDM_DISABLE": "1",
}
"""What ours sets as well, for the fastest evaluation that loses nothing (`resources/evaluation_steps.py`)."""

_ASK = """
import json, sys
import mlflow
mlflow.tracing.disable()
print(mlflow.pyfunc.load_model(sys.argv[1]).predict(json.loads(sys.argv[2])))
"""


def migrated(turn: Turn) -> None:
    """Preparation: an empty store with its schema in place."""
    from resources.mlflow_store import open_client
    from resources.platform import Platform

    platform = Platform.from_env({"LIFECYCLE_HOME": str(turn.folder)})
    open_client(platform).search_experiments()


def plain_script(turn: Turn) -> None:
    """A release as a user writes it down."""
    _start(turn)
    os.environ.update(SETTINGS)
    with turn.timed():
        _release(turn.folder)


def _release(home: Path) -> None:
    import mlflow
    import yaml

    folder = Path(__file__).resolve().parents[1] / "lifecycle_assets" / "defs" / "docs_agent"
    declared = yaml.safe_load((folder / "defs.yaml").read_text(encoding="utf-8"))["attributes"]
    agent = declared["agent"]
    mlflow.set_experiment(declared["experiment"])
    sys.path.append(str(folder))
    with mlflow.start_run(run_name="logged model"):
        model = mlflow.pyfunc.log_model(
            name=declared["name"],
            python_model=str(folder / agent["path"]),
            code_paths=[str(folder / path) for path in agent["code_paths"]],
            model_config=agent["config"],
            input_example=agent["input_example"],
            pip_requirements=agent["pip_requirements"],
        )
    _ask(f"models:/{model.model_id}", agent["input_example"])
    dataset = mlflow.genai.datasets.create_dataset(name="docs_agent_eval", experiment_id=_experiment(mlflow, declared))
    lines = (folder / declared["eval"]["dataset"]).read_text(encoding="utf-8").splitlines()
    dataset.merge_records([json.loads(line) for line in lines if line.strip()])
    run_id = _evaluate(mlflow, model.model_id, dataset, declared)
    verdict = _gate(mlflow, run_id, declared)
    version = mlflow.register_model(f"models:/{model.model_id}", declared["model_name"], tags={"verdict": verdict})
    _ask(f"models:/{declared['model_name']}/{version.version}", agent["input_example"])
    if verdict == "passed":
        mlflow.MlflowClient().set_registered_model_alias(declared["model_name"], "champion", version.version)
        (home / "hand-off.json").write_text(json.dumps({"version": version.version, "model_id": model.model_id}))


def _experiment(mlflow: Any, declared: Any) -> str:
    return mlflow.get_experiment_by_name(declared["experiment"]).experiment_id


def _ask(uri: str, question: Any) -> None:
    subprocess.run([sys.executable, "-c", _ASK, uri, json.dumps(question)], check=True, capture_output=True)


def _evaluate(mlflow: Any, model_id: str, dataset: Any, declared: Any) -> str:
    import scorers as catalogue

    named = [one["source"] for one in declared["scorers"] if isinstance(one["source"], str)]
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    result = mlflow.genai.evaluate(
        data=dataset,
        predict_fn=lambda **inputs: loaded.predict(inputs),
        scorers=[getattr(catalogue, name.partition(":")[2]) for name in named],
        model_id=model_id,
    )
    return result.run_id


def _gate(mlflow: Any, run_id: str, declared: Any) -> str:
    rows = mlflow.search_traces(
        locations=[_experiment(mlflow, declared)], run_id=run_id, include_spans=False, return_type="list"
    )
    values: dict[str, list[float]] = {}
    for row in rows:
        for said in row.info.assessments:
            if said.feedback and isinstance(said.feedback.value, bool | int | float):
                values.setdefault(said.name, []).append(float(said.feedback.value))
    passed = []
    for line in declared["eval"]["gate"]["thresholds"]:
        name, _, kind = line["metric"].partition("/")
        found = values[name]
        value = statistics.fmean(found) if kind == "mean" else statistics.quantiles(found, n=20)[18]
        passed.append(value >= line["at_least"] if "at_least" in line else value <= line["at_most"])
    return "passed" if all(passed) else "failed"


def our_release(turn: Turn) -> None:
    """The job docs_agent_release on a new instance."""
    _start(turn)
    _instance(turn)
    with turn.timed():
        from lifecycle_assets.definitions import defs
        from lifecycle_assets.home import open_instance
        from lifecycle_assets.runner import Runner
        from resources.platform import Platform

        with open_instance(Platform.from_env()) as instance:
            Runner(defs(), instance, print).job("docs_agent_release")


def _start(turn: Turn) -> None:
    assert turn.shared is not None
    shutil.copyfile(turn.shared / "mlflow.db", turn.folder / "mlflow.db")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{turn.folder / 'mlflow.db'}"


def _instance(turn: Turn) -> None:
    """An instance whose storage is migrated, as `make demo` leaves it; in a process of its own, which is not timed."""
    code = (
        "from lifecycle_assets.home import open_instance, prepare_home; from resources.platform import Platform; "
        "prepare_home(Platform.from_env()); open_instance(Platform.from_env()).get_runs_count()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def no_op_assets(turn: Turn) -> None:
    """Assets that return a value's metadata, each depending on the one before."""
    import dagster as dg

    def step(number: int) -> dg.AssetsDefinition:
        @dg.asset(key=["plain", f"step_{number}"], deps=[dg.AssetKey(["plain", f"step_{number - 1}"])] * bool(number))
        def body() -> dg.MaterializeResult:
            return dg.MaterializeResult(metadata={"number": number}, data_version=dg.DataVersion("1"))

        return body

    _materialize(turn, [step(number) for number in range(STEPS)])


def lifecycle_assets_alike(turn: Turn) -> None:
    """The same by `lifecycle_asset`: a gateway, a record handed on, a record read from the one before."""
    import dagster as dg

    from lifecycle_assets.edges import lifecycle_asset, result, upstream
    from lifecycle_assets.records import SourceRecord
    from resources.model_registry import ModelRegistry

    def step(number: int) -> dg.AssetsDefinition:
        def body(context: dg.AssetExecutionContext, registry: dg.ResourceParam[ModelRegistry]) -> dg.MaterializeResult:
            if number:
                upstream(context, f"step_{number - 1}", SourceRecord)
            return result(SourceRecord("digest", "commit"), data_version="1", metadata={"number": number})

        body.__name__ = f"step_{number}"
        return lifecycle_asset("ours", group="g", kinds=set(), deps=[f"step_{number - 1}"] * bool(number))(body)

    _materialize(turn, [step(number) for number in range(STEPS)])


def _materialize(turn: Turn, assets: list[Any]) -> None:
    import dagster as dg

    from resources.gateways import GATEWAYS

    (turn.folder / "dagster").mkdir()
    (turn.folder / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    jobs = [dg.define_asset_job("all_steps", executor_def=dg.in_process_executor)]
    job = dg.Definitions(assets=assets, jobs=jobs, resources=dict(GATEWAYS)).resolve_job_def("all_steps")
    with dg.DagsterInstance.from_config(str(turn.folder / "dagster")) as instance:
        assert job.execute_in_process(instance=instance).success
        for _ in range(5):
            with turn.timed():
                job.execute_in_process(instance=instance)


JOBS = (
    Job(
        name="release",
        meaning="A whole release of docs_agent (82 records, 5 scorers) against a plain script with the same calls.",
        goal="at most 1.25 times the script",
        baseline=plain_script,
        ours=our_release,
        prepare=migrated,
        corpus=False,
    ),
    Job(
        name="overhead",
        meaning=f"{STEPS} of our assets with nothing to do against {STEPS} no-op assets of Dagster, in one run.",
        goal=f"at most 20 ms an asset ({STEPS * 20} ms in all) more",
        baseline=no_op_assets,
        ours=lifecycle_assets_alike,
        corpus=False,
    ),
)
