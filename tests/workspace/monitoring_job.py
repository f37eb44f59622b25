"""The job that runs scheduled scorers: production monitoring at every tick, and backfills.

Lives here: choosing traces by filter and rate, running the stored scorers for real, writing their assessments.
Add here: how a job of the monitoring can end. Not here: the scorers' list (`scorers.py`).

A backfill is a run of a job of the Jobs API, which says how long it takes. Switches for what the real server alone
knows: `says_version` (assessments name scorer and version), `job_error` (the next backfill fails with this text).
"""

import hashlib
import json
import os
import time
from typing import Any
from unittest.mock import patch

from tests.workspace.app import Call, Failure, Route, Workspace
from tests.workspace.jobs import Jobs
from tests.workspace.scorers import BASE, Scorers
from tests.workspace.trace_search import matching
from tests.workspace.traces import Traces, started_ms
from tests.workspace.tracking import Tracking

SESSION = "mlflow.trace.session"
IDLE_SECONDS = 5 * 60
"""A session nobody wrote to for so long is complete."""

_OF_A_JOB = {"MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "true", "_MLFLOW_IN_JOB_EXECUTOR": "true"}
"""Environment in which MLflow rebuilds a scorer's code: as in the process of a job, whoever serves the workspace."""


class MonitoringJob:
    """Backfills as they were asked for: `requests` by job id."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.requests: dict[str, dict[str, Any]] = {}
        self.seen: set[tuple[str, str]] = set()
        self.says_version = True
        self.job_error = ""
        workspace.every_tick(self.tick)

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [Route("POST", f"{BASE}/scheduled-scorers/{{experiment}}/backfill", self.backfill)]

    def backfill(self, call: Call) -> dict[str, Any]:
        """POST scheduled-scorers/{experiment}/backfill: one at a time in an experiment."""
        experiment, scorers, jobs = call.parts["experiment"], self.workspace[Scorers], self.workspace[Jobs]
        self.workspace[Tracking].experiment(experiment)
        if experiment in scorers.backfill_jobs:
            raise Failure(409, "ALREADY_EXISTS", f"A backfill of experiment {experiment} is already running.")
        if not call.json.get("endpoint_name"):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "endpoint_name is required.")
        job = jobs.add_job({"name": f"Backfill of experiment {experiment}"})
        jobs.start_external_run(job, lambda: self._run(call.json))
        scorers.backfill_jobs[experiment] = str(job)
        self.requests[str(job)] = call.json
        return {"job_id": str(job)}

    def tick(self) -> None:
        """Score the traces that came since the last tick."""
        for experiment in list(self.workspace[Scorers].lists):
            new = [trace for trace in self._traces(experiment) if (experiment, trace_id(trace)) not in self.seen]
            rates = {one["name"]: float(one.get("sample_rate") or 0) for one in self._scheduled(experiment)}
            self._score(experiment, new, rates)
            self.seen |= {(experiment, trace_id(trace)) for trace in new}

    def _run(self, request: dict[str, Any]) -> None:
        self.workspace[Scorers].backfill_jobs.pop(request["experiment_id"], None)
        if self.job_error:
            error, self.job_error = self.job_error, ""
            raise Failure(500, "INTERNAL_ERROR", error)
        start, end = request["start_timestamp_ms"] or 0, request["end_timestamp_ms"] or 2**62
        traces = [trace for trace in self._traces(request["experiment_id"]) if start <= started_ms(trace["info"]) < end]
        rates = {one["name"]: one["sample_rate"] for one in request["scorer_sample_rates"]}
        self._score(request["experiment_id"], traces, rates)

    def _traces(self, experiment: str) -> list[dict[str, Any]]:
        traces = self.workspace[Traces].all(experiment)
        return [trace for trace in traces if "mlflow.sourceRun" not in trace["info"].get("trace_metadata", {})]

    def _scheduled(self, experiment: str) -> list[dict[str, Any]]:
        return self.workspace[Scorers].scheduled(experiment)

    def _score(self, experiment: str, traces: list[dict[str, Any]], rates: dict[str, float]) -> None:
        from mlflow.entities import Trace
        from mlflow.genai.scorers import Scorer

        for entry in self._scheduled(experiment):
            rate = rates.get(entry["name"], 0.0)
            if rate <= 0 or not traces:
                continue
            chosen = matching(traces, entry.get("filter_string") or "", [], linked={}, documented_only=False)
            with patch.dict(os.environ, _OF_A_JOB):
                try:
                    scorer = Scorer.model_validate(json.loads(entry["serialized_scorer"]))
                except Exception:  # noqa: BLE001 - what cannot be rebuilt is not run, the others are
                    continue
            for group in _groups(chosen, scorer.is_session_level_scorer):
                first = group[0]
                key = first["info"]["trace_metadata"][SESSION] if scorer.is_session_level_scorer else trace_id(first)
                if not _sampled(key, entry["name"], rate):
                    continue
                whole = [
                    Trace.from_dict({"info": _read(one["info"]), "data": {"spans": one["spans"]}}) for one in group
                ]
                for said in _answers(scorer, entry["name"], whole):
                    self._write(entry, trace_id(first), said)

    def _write(self, entry: dict[str, Any], written_to: str, said: dict[str, Any]) -> None:
        metadata = {}
        if self.says_version:
            metadata = {
                "mlflow.assessment.scorerName": entry["name"],
                "mlflow.assessment.scorerVersion": str(entry["scorer_version"]),
            }
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{int(time.time() * 1000) % 1000:03d}Z"
        self.workspace[Traces].add_assessment(
            written_to,
            {
                "trace_id": written_to,
                "source": {"source_type": "CODE", "source_id": entry["name"]},
                "create_time": now,
                "last_update_time": now,
                "valid": True,
                **said,
                "metadata": {**said.get("metadata", {}), **metadata},
            },
        )


def trace_id(trace: dict[str, Any]) -> str:
    """The id of a trace."""
    return trace["info"]["trace_id"]


def _read(info: dict[str, Any]) -> dict[str, Any]:
    """A trace's info as MLflow's client has it once it was read: its duration is a number of milliseconds."""
    took = str(info.get("execution_duration") or "0s").rstrip("s")
    rest = {name: value for name, value in info.items() if name != "execution_duration"}
    return {**rest, "execution_duration_ms": round(float(took) * 1000)}


def _groups(traces: list[dict[str, Any]], sessions: bool) -> list[list[dict[str, Any]]]:
    """What one call of a scorer sees: a trace, or a complete session by time."""
    ordered = sorted(traces, key=lambda trace: started_ms(trace["info"]))
    if not sessions:
        return [[trace] for trace in ordered]
    found: dict[str, list[dict[str, Any]]] = {}
    for trace in ordered:
        session = trace["info"].get("trace_metadata", {}).get(SESSION)
        if session:
            found.setdefault(session, []).append(trace)
    idle = (time.time() - IDLE_SECONDS) * 1000
    return [group for group in found.values() if started_ms(group[-1]["info"]) <= idle]


def _sampled(key: str, scorer: str, rate: float) -> bool:
    value = int(hashlib.sha256(f"monitoring:{key}:{scorer}".encode()).hexdigest(), 16) / 2**256
    return value < rate


def _answers(scorer: Any, name: str, traces: list[Any]) -> list[dict[str, Any]]:
    """The assessments one call of a scorer gives, without source and time; none when it answers None."""
    from mlflow.entities import Feedback

    root = next((span for span in traces[0].data.spans if span.parent_id is None), None)
    given = {"trace": traces[0], "inputs": root.inputs if root else None, "outputs": root.outputs if root else None}
    try:
        answer = scorer.run(session=traces) if scorer.is_session_level_scorer else scorer.run(**given)
    except Exception as error:  # noqa: BLE001 - what a scorer raises is its assessment
        failed = {"error_code": "SCORER_ERROR", "error_message": f"{type(error).__name__}: {error}"}
        return [{"assessment_name": name, "feedback": {"value": None, "error": failed}}]
    said = []
    for one in answer if isinstance(answer, list) else [answer]:
        if one is None:
            continue
        value = one.value if isinstance(one, Feedback) else one
        label = one.name if isinstance(one, Feedback) and one.name != "feedback" else name
        said.append({"assessment_name": label, "feedback": {"value": getattr(value, "value", value)}})
    return said
