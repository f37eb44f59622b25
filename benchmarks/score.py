"""Scoring a day of production traces: our step against `mlflow.genai.evaluate` with the same three functions.

Lives here: the script a user writes for it today, our step, and the scorers alone.
Add here: another way production is scored.
Not here: scoring (`resources/scoring/local_scoring.py`), running (`run.py`).

The script is what MLflow documents: `mlflow.genai.evaluate(data=traces, scorers=[...])`, with its defaults, on `SAMPLE`
traces in memory: its token bucket makes every trace take as long as any other. It leaves a run, and is done when MLflow
shows the assessments. Ours calls the registered copies on all traces, which it reads itself; it is measured until the
table has all scores (`score_table`), and until MLflow shows them too (`score`). The limit calls `Scorer.run` of the
three on traces in memory, in one process, and keeps nothing. Opening the store, the libraries, and registering are
outside of the clock.
"""

import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from benchmarks.job import Job, Measured, Turn

MOST = 5_100
"""Traces, three days of the corpus of 50,000: each is a run of its own."""

SAMPLE = 200
"""Traces the script is given, which takes it 15 s."""

NAMES = ("long_enough", "span_count", "no_echo")

SCORERS_PY = '''"""Three functions such as teams write: one looks at the answer, one at the trace, one at both ends."""

from mlflow.genai.scorers import scorer


@scorer
def long_enough(outputs):
    return len(str(outputs)) > 200


@scorer
def span_count(trace):
    return float(len(trace.data.spans))


@scorer
def no_echo(inputs, outputs):
    return str(inputs)[:80] not in str(outputs)
'''


def users_script(turn: Turn) -> None:
    """`mlflow.genai.evaluate` on some of the traces, with its defaults."""
    mlflow, scorers, where = _opened(turn)
    since = f"timestamp_ms >= {turn.since_ms}"
    traces = mlflow.search_traces(locations=[where], filter_string=since, max_results=SAMPLE, return_type="list")
    mlflow.set_experiment(experiment_id=where)  # In another one it would copy every trace first.
    with turn.timed(len(traces)):
        mlflow.genai.evaluate(data=traces, scorers=scorers)


def scorers_alone(turn: Turn) -> None:
    """`Scorer.run` of the three on traces in memory."""
    from resources.scorer_outcome import arguments

    mlflow, scorers, where = _opened(turn)
    traces = mlflow.search_traces(
        locations=[where], filter_string=f"timestamp_ms >= {turn.since_ms}", return_type="list"
    )
    with turn.timed():
        for trace in traces:
            for scorer in scorers:
                scorer.run(trace=trace, **arguments(trace))


def until_mlflow(turn: Turn) -> None:
    """Our step, to its end: MLflow shows what the table holds."""
    turn.found.append(_scored(turn)[1])


def until_table(turn: Turn) -> None:
    """Our step, as far as the table has all scores."""
    turn.found.append(_scored(turn)[0])


def _opened(turn: Turn) -> tuple[Any, list[Any], str]:
    import mlflow
    import mlflow.genai

    mlflow.set_tracking_uri(turn.uri)
    found = mlflow.get_experiment_by_name(turn.experiment)
    assert found is not None, turn.experiment
    mlflow.search_traces(locations=[found.experiment_id], max_results=1)
    (turn.folder / "scorers.py").write_text(SCORERS_PY, encoding="utf-8")
    namespace: dict[str, Any] = {}
    exec(compile(SCORERS_PY, str(turn.folder / "scorers.py"), "exec"), namespace)
    return mlflow, [namespace[name] for name in NAMES], found.experiment_id


def _scored(turn: Turn) -> tuple[Measured, Measured]:
    """Every day once: until its scores are in the table, and until they are in MLflow."""
    from resources.scorer_registry import MlflowScorerRegistry
    from resources.scoring.local_scoring import LocalScoring

    agent = _agent(turn)
    registered = MlflowScorerRegistry(turn.platform).register(agent)
    scoring, table_s, whole_s, traces = LocalScoring(turn.platform), 0.0, 0.0, 0
    empty = date(2020, 1, 1)  # Opens the libraries, and scores nothing.
    scoring.score_day(agent, empty, registered, settled_before_ms=2**53, progress=print)
    with turn.timed():
        for day in _days(turn):
            began, landed = time.perf_counter(), []

            def heard(line: str, landed: list[float] = landed) -> None:
                landed.extend([time.perf_counter()] if line.endswith(" landed") else [])

            found = scoring.score_day(agent, day, registered, settled_before_ms=2**53, progress=heard)
            whole_s += time.perf_counter() - began
            table_s += (landed[0] if landed else time.perf_counter()) - began
            traces += found.traces
            assert found.written == 3 * found.traces, found
            assert not found.pending, found
    _require_shown(turn, agent.spec.experiment)
    memory = turn.found.pop().rss_mb
    return Measured(table_s, traces, memory), Measured(whole_s, traces, memory)


def _require_shown(turn: Turn, experiment: str) -> None:
    """MLflow's client sees the scores of the newest trace, and no evaluation run."""
    from resources.mlflow_store import experiment_id, open_client

    client, where = open_client(turn.platform), experiment_id(turn.platform, experiment)
    (newest,) = client.search_traces(locations=[where], max_results=1, include_spans=False)
    shown = {one.name.rpartition("docs_agent_")[2] for one in newest.info.assessments}
    assert shown >= set(NAMES), shown
    assert not client.search_runs([where]), "a run was left behind"


def _days(turn: Turn) -> list[date]:
    return [turn.first_day + timedelta(days=n) for n in range((turn.last_day - turn.first_day).days + 1)]


def _agent(turn: Turn) -> Any:
    import yaml

    from lifecycle_assets.spec_file import read_agent

    schema = {"name": "correct", "type": "feedback", "input": "pass_fail", "instruction": "Is the answer correct?"}
    threshold = {"metric": f"{NAMES[1]}/mean", "at_least": 0}
    declared = {
        "name": "docs_agent",
        "model_name": "main.agents.docs_agent",
        "experiment": turn.experiment,
        "agent": {"path": "agent.py", "pip_requirements": ["mlflow==3.17.2"], "input_example": {"input": []}},
        "eval": {"dataset": "eval_dataset.jsonl", "gate": {"thresholds": [threshold]}},
        "scorers": [{"name": name, "source": f"scorers.py:{name}"} for name in NAMES],
        "labeling": {"schemas": [schema]},
    }
    folder: Path = turn.folder / "docs_agent"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"agent.py": "", "eval_dataset.jsonl": "", "scorers.py": SCORERS_PY}.items():
        (folder / name).write_text(text, encoding="utf-8")
    file = folder / "defs.yaml"
    document = {"type": "lifecycle_assets.component.AgentLifecycle", "attributes": declared}
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return read_agent(file)


JOBS = (
    Job(
        name="score_table",
        meaning="Three functions on production traces until the scores are in the table, against "
        "mlflow.genai.evaluate; the limit is the functions alone, by Scorer.run in one process.",
        goal="at least 100 times, and 80 % of the scorers alone",
        baseline=users_script,
        ours=until_table,
        limit=scorers_alone,
        most=MOST,
        writes=True,
    ),
    Job(
        name="score",
        meaning="The same until MLflow shows the scores, leaving no evaluation run.",
        goal="at least 20 times",
        baseline=users_script,
        ours=until_mlflow,
        limit=scorers_alone,
        most=MOST,
        writes=True,
    ),
)
