"""Running the real jobs on the real instance in this process, with progress shown.

Lives here: running one job, asking a sensor what it would start, and settling runs whose process is gone.
Add here: another way a command or the demo starts runs.
Not here: which jobs in which order (`demo/main.py`, `cli/`).

Runs execute here and not through a code server, so that MLflow is imported once for all of them. They are ordinary
runs of the jobs of the code location: the UI shows them, and the daemon goes on from their state.
"""

import getpass
import os
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import dagster as dg

from lifecycle_assets.monitoring.listening import heard
from lifecycle_assets.refused import Refused

PROCESS = "lifecycle/process"
"""Run tag with machine and id of the process that executes the run: a run whose process is gone was interrupted."""

INTERRUPTED = dg.DagsterExecutionInterruptedError.__name__
"""What Dagster calls a step that Ctrl-C or SIGTERM ended."""

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Run config that keeps Dagster's event lines off the terminal; they are in the run's log."""


class Runner:
    """Executes jobs of `definitions` on `instance` and says what happens."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance, say: Callable[[str], None]) -> None:
        self.definitions, self.instance, self.say = definitions, instance, say

    def job(
        self,
        name: str,
        *,
        partition_key: str | None = None,
        run_config: Mapping[str, object] | None = None,
        assets: Sequence[dg.AssetKey] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Run a job to its end. Raises `Refused` with the sentence of the step that refused or failed."""
        outcome = self.ended(name, partition_key=partition_key, run_config=run_config, assets=assets, tags=tags)
        if not outcome.success:
            raise Refused(why_failed(outcome))

    def ended(
        self,
        name: str,
        *,
        partition_key: str | None = None,
        run_config: Mapping[str, object] | None = None,
        assets: Sequence[dg.AssetKey] | None = None,
        tags: Mapping[str, str] | None = None,
        listener: Callable[[str], None] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run a job to its end, well or not; `listener` hears what steps of a day tell meanwhile."""
        self.say(f"running {name}" + (f" for {partition_key}" if partition_key else ""))
        run_id = str(uuid.uuid4())
        with heard(run_id, listener) if listener else nullcontext():
            outcome = self.definitions.resolve_job_def(name).execute_in_process(
                instance=self.instance,
                run_id=run_id,
                partition_key=partition_key,
                run_config={**(run_config or {}), **QUIET},
                asset_selection=list(assets) if assets else None,
                tags={**(tags or {}), PROCESS: f"{socket.gethostname()}:{os.getpid()}", "user": user()},
                raise_on_error=False,
            )
        for event in outcome.all_events:
            if event.is_step_success and event.step_key:
                self.say(f"  {event.step_key.replace('__', '/')} done")
        return outcome

    def tick(self, sensor: str) -> int:
        """Evaluate a sensor as the daemon does, run what it asks for, and return how many runs that were."""
        definition = self.definitions.resolve_sensor_def(sensor)
        context = dg.build_sensor_context(instance=self.instance, definitions=self.definitions, sensor_name=sensor)
        with context:
            data = definition.evaluate_tick(context)
        if data.skip_message:
            self.say(f"{sensor}: {data.skip_message}")
        for request in data.run_requests or []:
            self.job(
                request.job_name or str(definition.job_name),
                partition_key=request.partition_key,
                run_config=request.run_config,
                assets=request.asset_selection,
                tags={**request.tags, "dagster/run_key": request.run_key or ""},
            )
        return len(data.run_requests or [])

    def settle_interrupted(self) -> int:
        """Mark runs whose process on this machine was killed as failed and free what they held; returns how many."""
        unfinished = self.instance.get_runs(
            dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
        )
        dead = [run for run in unfinished if _is_gone(run.tags.get(PROCESS, ""))]
        for run in dead:
            self.instance.report_run_failed(run, "The process that executed this run was interrupted.")
            self.instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        return len(dead)


def why_failed(outcome: dg.ExecuteInProcessResult) -> str:
    """The sentence of the step that refused or failed."""
    for event in outcome.all_events:
        if event.is_step_failure and event.step_key:
            failure = event.step_failure_data
            refusal = failure.user_failure_data
            error = failure.error
            sentence = refusal.description if refusal else (error.message if error else "")
            return f"{event.step_key.replace('__', '/')}: {(sentence or 'failed').strip()}"
    return "The run failed: see it in the UI (make ui)."


def was_interrupted(outcome: dg.ExecuteInProcessResult) -> bool:
    """Whether Ctrl-C or SIGTERM ended a step of the run."""
    failures = [event.step_failure_data.error for event in outcome.all_events if event.is_step_failure]
    return any(error is not None and error.cls_name == INTERRUPTED for error in failures)


def user() -> str:
    """Who runs this process, as its runs are tagged."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user without a name.
        return "somebody"


def _is_gone(process: str) -> bool:
    """Whether it was a process of this machine that is no more."""
    machine, _, pid = process.rpartition(":")
    if machine != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
