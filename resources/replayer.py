"""Recorded requests answered by another version, and held beside what the champion answered then.

Lives here: the gateway to such replays: what it takes, what it returns, and MLflow's implementation.
Add here: a fact about a replay that a reader needs.
Not here: which requests are replayed (`lifecycle_assets/release/sample.py`), what runs in the worker
(`shadow_steps.py`), what the numbers mean (`lifecycle_assets/comparison.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lifecycle_assets.gate import Outcome
from lifecycle_assets.records import digest
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources import run_marks as marks
from resources.dataset_rows import canonical
from resources.evaluation_rows import content_digest
from resources.evaluation_steps import EVALUATION_FILE
from resources.explain import explained
from resources.mlflow_store import experiment_id, open_client, open_mlflow
from resources.model_steps import agent_request
from resources.platform import Platform
from resources.worker import Progress, run_worker

STEP = "shadow"
"""What the run of a replay says it is: never an evaluation."""


@dataclass(frozen=True)
class RecordedRequest:
    """A request users made of the champion: its trace, and the inputs as the agent takes them.

    `scores` are those the archive holds of the champion's answer, by scorer: a number, or None for 'not applicable'.
    `failed` says that the champion itself failed on it.
    """

    trace_id: str
    inputs: Mapping[str, Any]
    scores: Mapping[str, float | None]
    failed: bool = False


@dataclass(frozen=True)
class Pair:
    """One request, answered by both: the champion's trace and the other version's, and what each scorer said of them.

    `failure` is how the version itself failed on the request, empty when it answered.
    """

    trace_id: str
    answered_by: str
    champion_failed: bool
    failure: str
    champion: Mapping[str, Outcome]
    version: Mapping[str, Outcome]


@dataclass(frozen=True)
class Replay:
    """A finished replay. `gone` are recorded traces that MLflow no longer has and nobody had scored.

    `calls` counts the calls of each scorer that this replay made: none when a finished one was `reused`.
    """

    run_id: str
    pairs: tuple[Pair, ...]
    gone: tuple[str, ...]
    calls: Mapping[str, int]
    reused: bool
    url: str = ""


class Replayer(ABC):
    """Has a version answer recorded requests, and scores both answers with the same scorers."""

    @abstractmethod
    def replay(
        self,
        agent: Agent,
        model_id: str,
        champion_model_id: str,
        requests: Sequence[RecordedRequest],
        scorers: Mapping[str, str],
        *,
        progress: Progress,
        dagster_run_id: str = "",
    ) -> Replay:
        """Replay `requests` (no two with the same inputs) to the logged model.

        `scorers` maps the declared scorers that run to the digests of their sources. Raises `Refused` when a scorer
        is another by now, or when none of the requests can be compared.
        """


class MlflowReplayer(Replayer):
    """Replays by `mlflow.genai.evaluate`, in a process of their own.

    Their traces name the run as their source, as those of evaluations do, and never count as production.
    """

    def __init__(self, platform: Platform) -> None:
        """Opens nothing yet."""
        self._platform = platform

    def replay(
        self,
        agent: Agent,
        model_id: str,
        champion_model_id: str,
        requests: Sequence[RecordedRequest],
        scorers: Mapping[str, str],
        *,
        progress: Progress,
        dagster_run_id: str = "",
    ) -> Replay:
        """See `Replayer.replay`.

        Why a rerun is safe: a run counts when it is marked complete, which is the last thing written; a complete one
        of the same models, requests and scorers is read back unless it holds errors, which an outage may have made.
        """
        sample = digest([[one.trace_id, canonical(one.inputs)] for one in requests])
        key = {
            marks.AGENT: agent.name,
            marks.STEP: STEP,
            marks.MODEL_ID: model_id,
            marks.SHADOWED: champion_model_id,
            marks.DATASET_DIGEST: sample,
            marks.SCORERS_DIGEST: digest(dict(scorers)),
        }
        with explained(self._platform.tracking_uri):
            experiment = experiment_id(self._platform, agent.spec.experiment)
            finished = self._finished(experiment, key)
        if finished is not None:
            return self._replay(experiment, finished, {}, reused=True)
        request = {
            **agent_request(agent),
            "model_id": model_id,
            "experiment_id": experiment,
            "scorers": dict(scorers),
            "requests": [asdict(one) for one in requests],
            "sample": sample,
            "run_tags": {**key, marks.DAGSTER_RUN: dagster_run_id},
        }
        answer = run_worker("shadow", request, platform=self._platform, progress=progress)
        with explained(self._platform.tracking_uri):
            found = self._read(answer["run_id"])
        if found is None:
            raise Refused(
                f"MLflow run {answer['run_id']} does not give {EVALUATION_FILE} back; check the artifact store."
            )
        return self._replay(experiment, found, answer["calls"], reused=False)

    def _finished(self, experiment: str, key: Mapping[str, str]) -> dict[str, Any] | None:
        """The newest complete replay of this key, unchanged and without errors; runs without a worker are closed."""
        client = open_client(self._platform)
        for run in marks.abandoned_runs(client, experiment, {name: key[name] for name in (marks.AGENT, marks.STEP)}):
            complete = run.data.tags.get(marks.COMPLETE) == "true"
            client.set_terminated(run.info.run_id, "FINISHED" if complete else "KILLED")
        runs = client.search_runs(
            [experiment],
            filter_string=marks.where_filter({**key, marks.COMPLETE: "true"}),
            order_by=["attributes.start_time DESC"],
            max_results=5,
        )
        for run in runs:
            found = self._read(run.info.run_id)
            is_ours = found is not None and content_digest(found) == run.data.params.get(marks.CONTENT)
            if found is not None and is_ours and not _has_errors(found):
                return found
        return None

    def _read(self, run_id: str) -> dict[str, Any] | None:
        if EVALUATION_FILE not in {file.path for file in open_client(self._platform).list_artifacts(run_id)}:
            return None
        return open_mlflow(self._platform).artifacts.load_dict(f"runs:/{run_id}/{EVALUATION_FILE}")

    def _replay(self, experiment: str, found: Mapping[str, Any], calls: Mapping[str, int], *, reused: bool) -> Replay:
        return Replay(
            run_id=found["run_id"],
            pairs=tuple(
                Pair(
                    trace_id=row["recorded_trace_id"],
                    answered_by=row["trace_id"],
                    champion_failed=row["champion_failed"],
                    failure=row["agent_error"],
                    champion=_outcomes(row["champion"]),
                    version=_outcomes(row["scores"]),
                )
                for row in found["rows"]
            ),
            gone=tuple(found["gone"]),
            calls=calls,
            reused=reused,
            url=marks.page(self._platform, f"experiments/{experiment}/runs/{found['run_id']}"),
        )


def _outcomes(said: Mapping[str, Mapping[str, Any]]) -> dict[str, Outcome]:
    return {name: Outcome(one["value"], one["error"]) for name, one in said.items()}


def _has_errors(found: Mapping[str, Any]) -> bool:
    return any(one["error"] for row in found["rows"] for side in ("scores", "champion") for one in row[side].values())
