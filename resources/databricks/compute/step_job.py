"""One step as a one-time run of a job.

Lives here: what is submitted, following a run to its end, ending it early, and what a failed one says.
Add here: a state of a run.
Not here: the cluster (`job_cluster.py`), what travels to the step and back (`compute.py`), `resources/wheel.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.compute.job_cluster import new_cluster
from resources.wheel import requirements
from resources.worker import Progress

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.jobs import Run

QUEUE_SECONDS = 900
"""Seconds a run may wait for its compute, beyond the time the step itself may take."""

CANCEL_SECONDS = 60
"""Seconds a cancelled run is waited for."""

FAULTS_BORNE = 5
"""Failed looks at a run in a row that do not end the step."""

LOOKED_THROUGH = 100
"""Active runs, newest first, among which an earlier run of the same step is looked for."""


@dataclass(frozen=True)
class StepJob:
    """What is run: the run's name, the agent, the wheel's path, parameters of the entry point."""

    name: str
    agent: Agent
    wheel: str
    parameters: list[str]

    @property
    def seconds(self) -> int:
        """How long the step may take."""
        return self.agent.spec.compute.timeout_minutes * 60

    @property
    def seconds_in_all(self) -> int:
        """How long the run may take, waiting for its compute included; then the workspace stops it."""
        return self.seconds + QUEUE_SECONDS


def submit(workspace: "WorkspaceClient", job: StepJob, token: str) -> int:
    """Submit the run and return its id; the same `token` gives the same run, so a lost answer makes no second one.

    Raises `Refused` when the declared cluster is not one.
    """
    from databricks.sdk.service.compute import Environment, Library, PythonPyPiLibrary
    from databricks.sdk.service.jobs import JobEnvironment, PythonWheelTask, SubmitTask

    declared = job.agent.spec.compute
    pins = requirements()
    entry = PythonWheelTask(package_name="lifecycle_assets", entry_point="lifecycle-step", parameters=job.parameters)
    task = SubmitTask(task_key="step", python_wheel_task=entry, timeout_seconds=job.seconds)
    environments = None
    if declared.mode == "serverless":
        task.environment_key = "step"
        spec = Environment(environment_version=declared.environment_version, dependencies=[job.wheel, *pins])
        environments = [JobEnvironment("step", spec)]
    else:
        task.libraries = [Library(whl=job.wheel), *(Library(pypi=PythonPyPiLibrary(pin)) for pin in pins)]
        if declared.existing_cluster_id:
            task.existing_cluster_id = declared.existing_cluster_id
        else:
            task.new_cluster = new_cluster(workspace, declared.cluster)
    return workspace.jobs.submit(
        run_name=job.name,
        tasks=[task],
        environments=environments,
        idempotency_token=token,
        timeout_seconds=job.seconds_in_all,
    ).bind()["run_id"]


def run_of_name(workspace: "WorkspaceClient", name: str) -> int | None:
    """An active run of this name, left by a process that was killed; None when there is none."""
    from databricks.sdk.service.jobs import RunType

    found = workspace.jobs.list_runs(active_only=True, run_type=RunType.SUBMIT_RUN, limit=25)
    return next((run.run_id for run in islice(found, LOOKED_THROUGH) if run.run_name == name), None)


def follow(workspace: "WorkspaceClient", run_id: int, *, seconds: float, progress: Progress) -> "Run":
    """The run once it has ended, well or not; its page and every change of its state are progress.

    Raises `Refused` when it has not ended within `seconds`; the run goes on.
    """
    from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied, Unauthenticated

    until, pause, last, faults = time.monotonic() + seconds, 1.0, "", 0
    while True:
        try:
            run, faults = workspace.jobs.get_run(run_id), 0
        except (BadRequest, NotFound, PermissionDenied, Unauthenticated):
            raise
        except OSError:  # DatabricksError and time-outs are OSErrors. The job goes on meanwhile, so a few are borne.
            faults += 1
            if faults > FAULTS_BORNE:
                raise
            time.sleep(pause)
            continue
        if result_of(run):
            return run
        state = _state(run)
        if state != last:
            progress(f"run {run_id} is {state.lower() or 'waiting'}: {run.run_page_url or 'no page'}")
            last = state
        if time.monotonic() + pause > until:
            raise Refused(
                f"Run {run_id} has not ended after {seconds:g} s ({run.run_page_url}): look there what holds it, or "
                "raise attributes.compute.timeout_minutes, then run the step again."
            )
        time.sleep(pause)
        pause = min(pause * 1.3, 10.0)


def cancel(workspace: "WorkspaceClient", run_id: int, *, progress: Progress) -> None:
    """End the run and wait until it has; when that fails the reason is progress, so that the caller's error stands."""
    try:
        workspace.jobs.cancel_run(run_id)
        run = follow(workspace, run_id, seconds=CANCEL_SECONDS, progress=lambda line: None)
        progress(f"run {run_id} was cancelled: {run.run_page_url}")
    except (OSError, Refused) as error:
        progress(f"run {run_id} could not be cancelled, it ends by its own time-out: {str(error)[:200]}")


def cancelling(workspace: "WorkspaceClient", start: Callable[[], int], *, seconds: float, progress: Progress) -> "Run":
    """The run that `start` submits, once it has ended. Whatever stops this process from waiting ends the run too.

    `start` may be called twice and must give the same run: an interruption can fall between request and answer.
    """
    run_id: int | None = None
    try:
        run_id = start()
        return follow(workspace, run_id, seconds=seconds, progress=progress)
    except BaseException as stopped:
        if run_id is None and not isinstance(stopped, Exception):
            run_id = start()
        if run_id is not None:
            progress("stopped: the job is cancelled")
            cancel(workspace, run_id, progress=progress)
        raise


def result_of(run: "Run") -> str:
    """How a run ended, such as SUCCESS, USER_CANCELED, RUN_EXECUTION_ERROR; empty while it goes on."""
    status, state = run.status, run.state
    if status and status.state:
        if status.state.value != "TERMINATED":
            return ""
        if status.termination_details and status.termination_details.code:
            return status.termination_details.code.value
    if state and state.life_cycle_state and state.life_cycle_state.value in ("TERMINATED", "SKIPPED", "INTERNAL_ERROR"):
        return state.result_state.value if state.result_state else state.life_cycle_state.value
    return ""


def _state(run: "Run") -> str:
    if run.status and run.status.state:
        return run.status.state.value
    return run.state.life_cycle_state.value if run.state and run.state.life_cycle_state else ""


def failure(workspace: "WorkspaceClient", run: "Run") -> str:
    """Why a run failed, in one line: the error of its task, else what the run says of itself."""
    from databricks.sdk.errors import DatabricksError

    details = run.status.termination_details if run.status else None
    said = (details.message if details else "") or (run.state.state_message if run.state else "") or result_of(run)
    task = next((task.run_id for task in run.tasks or [] if task.run_id), None)
    if task is not None:
        try:
            said = workspace.jobs.get_run_output(task).error or said
        except DatabricksError as error:
            said = f"{said} (its output could not be read: {str(error)[:100]})"
    return " ".join(said.split())[:400]
