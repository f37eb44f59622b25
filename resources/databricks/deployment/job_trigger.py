"""Handing over to a job that deploys.

Lives here: running the job once for a hand-off, waiting for its end, and reading its runs back.
Add here: a further parameter every deploying job is given.
Not here: what the job does; jobs that run our own steps (`compute.py`).
"""

from itertools import islice
from typing import TYPE_CHECKING

from lifecycle_assets.records import DeploymentRecord, digest
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.deployment.handing import HANDED_AT, asked, at, patient, said
from resources.databricks.workspace import open_workspace, wait_for
from resources.deployer import Deployer, Move, nothing_handed_over, silent, variables
from resources.platform import Platform
from resources.worker import Progress

if TYPE_CHECKING:
    from databricks.sdk.service.jobs import BaseRun, Run, RunTask

RUNS = 24
"""Newest runs of the job that are looked at for those of this model."""

OVER = ("TERMINATED", "SKIPPED", "INTERNAL_ERROR")


class JobDeployer(Deployer):
    """Runs a job of the workspace once for each hand-off.

    Why a rerun is safe: the job's newest run for this model says what was handed over. One that still runs is waited
    for, one that succeeded with these parameters is the hand-off, one that failed is tried again. The request carries a
    token made of the hand-off, the move it follows and the run it comes after, so that asking twice makes one run, and
    going back to a version makes another.
    """

    def __init__(self, platform: Platform, *, every: float = 2.0) -> None:
        self._platform = platform
        self._every = every
        self._handed: dict[str, DeploymentRecord] = {}

    def hand_off(self, agent: Agent, move: Move, *, progress: Progress = silent) -> DeploymentRecord:
        """Run the job and wait for its end.

        Raises `Refused` when there is no such job, when its run fails (with its message and page), and when it is not
        over in time (it goes on).
        """
        with asked(f"job {agent.spec.deployment.job}"):
            job_id = self._job(agent)
            given = _parameters(agent, move)
            last = self._newest(agent, job_id)
            if last is not None and not _over(last):
                progress(f"job {agent.spec.deployment.job}: run {last.run_id} is in progress")
                last = self._ended(agent, last.run_id or 0, progress)
                if _is_of(last, given) and not _succeeded(last):
                    raise self._failure(agent, last)
            if last is None or not _is_of(last, given) or not _succeeded(last):
                after = last.run_id if last else 0
                token = digest([agent.name, move.version, move.at, digest(given), after], length=64)
                jobs = open_workspace(self._platform).jobs
                started = jobs.run_now(job_id, job_parameters=given, idempotency_token=token)
                progress(f"job {agent.spec.deployment.job}: run {started.run_id} started")
                last = self._ended(agent, started.run_id, progress)
                if not _succeeded(last):
                    raise self._failure(agent, last)
        self._handed[agent.name] = _record(last, given)
        return self._handed[agent.name]

    def current(self, agent: Agent) -> DeploymentRecord | None:
        """The newest run of the job for this model that succeeded."""
        with asked(f"job {agent.spec.deployment.job}"):
            for run in self._of_model(agent, self._job(agent)):
                if _succeeded(run):
                    return _record(run, _given(run))
        return None

    def environment(self, agent: Agent) -> dict[str, str]:
        """What the job must have its runtime set: the job itself is told only its parameters."""
        # A repeat may find its run by the token alone, far behind the newest.
        found = self._handed.get(agent.name) or self.current(agent)
        if found is None:
            raise nothing_handed_over(agent)
        with asked(f"job {agent.spec.deployment.job}"):
            env = variables(agent, self._platform, model_id=found.model_id, runtime="workspace")
        return {**env, HANDED_AT: found.handed_at}

    def _job(self, agent: Agent) -> int:
        declared = agent.spec.deployment.job
        if declared.isdecimal():
            return int(declared)
        found = list(islice(open_workspace(self._platform).jobs.list(name=declared), 2))
        if len(found) != 1 or found[0].job_id is None:
            how_many = "two or more jobs are" if found else "no job is"
            raise Refused(f"{how_many} named '{said(declared, 100)}': write the job's id as deployment.job.")
        return found[0].job_id

    def _of_model(self, agent: Agent, job_id: int) -> "list[Run | BaseRun]":
        """Runs of the job for this model, newest first."""
        jobs = open_workspace(self._platform).jobs
        newest = sorted(islice(jobs.list_runs(job_id=job_id, limit=RUNS), RUNS), key=lambda run: -(run.start_time or 0))
        runs = [run if run.job_parameters is not None else jobs.get_run(run.run_id or 0) for run in newest]
        return [run for run in runs if _given(run).get("model_name") == agent.spec.model_name]

    def _newest(self, agent: Agent, job_id: int) -> "Run | BaseRun | None":
        return next(iter(self._of_model(agent, job_id)), None)

    def _ended(self, agent: Agent, run_id: int, progress: Progress) -> "Run":
        def look() -> "Run | None":
            run = open_workspace(self._platform).jobs.get_run(run_id)
            return run if _over(run) else None

        declared = agent.spec.deployment
        return wait_for(
            f"run {run_id} of job {declared.job}",
            patient(look, progress),
            seconds=60 * declared.wait_minutes,
            progress=progress,
            every=self._every,
        )

    def _failure(self, agent: Agent, run: "Run | BaseRun") -> Refused:
        """The refusal of a failed run, with the error of its first failed task where it gives one."""
        ended = run.status.termination_details if run.status else None
        why = (run.state.state_message if run.state else "") or (ended.message if ended else "") or _result(run)
        for task in run.tasks or []:
            if _result(task) not in ("SUCCESS", "") and task.run_id:
                try:
                    why = open_workspace(self._platform).jobs.get_run_output(task.run_id).error or why
                except OSError as error:
                    why = f"{why} (its output could not be read: {said(str(error), 100)})"
                break
        return Refused(
            f"job {agent.spec.deployment.job} failed: {said(why)}; see {run.run_page_url or self._page(run)}. "
            "Mend the cause, then run this step again."
        )

    def _page(self, run: "Run | BaseRun") -> str:
        return f"{open_workspace(self._platform).config.host}/jobs/{run.job_id}/runs/{run.run_id}"


def _parameters(agent: Agent, move: Move) -> dict[str, str]:
    """What the job is told; the names Databricks' own deployment jobs use where they have one."""
    name = agent.spec.model_name
    ours = {"model_uri": f"models:/{name}/{move.version}", "model_name": name, "model_version": move.version}
    return {**agent.spec.deployment.parameters, **ours, "model_id": move.model_id}


def _given(run: "Run | BaseRun") -> dict[str, str]:
    """The parameters of a run, those of the job with their default among them."""
    return {p.name: p.value for p in run.job_parameters or [] if p.name is not None and p.value is not None}


def _is_of(run: "Run | BaseRun", given: dict[str, str]) -> bool:
    """Whether a run was given these parameters, besides those of the job itself."""
    return given.items() <= _given(run).items()


def _over(run: "Run | BaseRun") -> bool:
    """Whether it has ended; the newer `status` counts where `state` is not told any more."""
    state = run.state.life_cycle_state if run.state else run.status.state if run.status else None
    return state is not None and state.value in OVER


def _succeeded(run: "Run | BaseRun") -> bool:
    return _over(run) and _result(run) in ("SUCCESS", "SUCCESS_WITH_FAILURES")


def _result(run: "Run | BaseRun | RunTask") -> str:
    state, ended = run.state, run.status.termination_details if run.status else None
    result = (state.result_state or state.life_cycle_state) if state else ended.code if ended else None
    return result.value if result else ""


def _record(run: "Run | BaseRun", given: dict[str, str]) -> DeploymentRecord:
    return DeploymentRecord(
        "databricks_job",
        run.run_page_url or "",
        given["model_version"],
        given.get("model_id", ""),
        at(run.end_time or run.start_time),
    )
