"""Steps as jobs of the workspace, by Dagster Pipes.

Lives here: what travels to a step and what comes back.
Add here: a fact the step must be told of this process.
Not here: the run itself (`step_job.py`), the wheel (`resources/wheel.py`), the other side (`monitoring/remote.py`).

Context and messages travel as files of a Unity Catalog volume for serverless compute and for clusters alike: the DBFS
pair of `dagster_databricks` needs a Spark session and a workspace whose DBFS root is open. Its volume pair is used as
it is; the run is not left to its client, whose `run` keeps the run's id to itself, waits without end, and goes on as
if all were well after an interruption.

Why a rerun is safe: steps are. A lost answer to the submission is asked again under the same token, so one job runs.
A job whose parent was killed goes on; the next run of the same step waits for it and then finds its work done.
"""

import os
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import dagster as dg

from lifecycle_assets.outcome import Outcome
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.compute import Compute, StepRequest
from resources.databricks.compute.step_job import (
    QUEUE_SECONDS,
    StepJob,
    cancelling,
    failure,
    follow,
    result_of,
    run_of_name,
    submit,
)
from resources.databricks.compute.volume import upload_once, volume_path
from resources.databricks.workspace import open_workspace
from resources.platform import Platform
from resources.scorer_source import JUDGE_MODEL
from resources.wheel import build_wheel
from resources.worker import Progress

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.jobs import Run

READ_SECONDS = 5
"""Seconds between two looks for messages of the step."""


class DatabricksCompute(Compute):
    """A job of the workspace for what the agent declares so, this process for the rest."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def run(
        self, context: dg.AssetExecutionContext, agent: Agent, request: StepRequest, here: Callable[[], Outcome]
    ) -> Outcome:
        """See `Compute.run`. An interruption of this process cancels the job and passes on."""
        declared = agent.spec.compute
        if declared.mode == "local" or request.step not in declared.assets:
            return here()
        if find_spec("dagster_databricks") is None:
            raise Refused("dagster-databricks is not installed: run pip install 'lifecycle-assets[databricks]'.")
        # Importing it takes two seconds, most of them PySpark's: never when a code location loads.
        from dagster_databricks.pipes import (
            PipesUnityCatalogVolumesContextInjector,
            PipesUnityCatalogVolumesMessageReader,
        )

        progress, workspace = context.log.info, open_workspace(self._platform)
        wheel = upload_once(workspace, agent.spec.volume, build_wheel(agent))
        name = f"lifecycle {self._platform.environment} {agent.name} {request.step} {request.day}"
        _wait_for_earlier(workspace, name, agent, progress)
        where = {"client": workspace, "volume_path": volume_path(agent.spec.volume)}
        with ExitStack() as stack:
            with warnings.catch_warnings():
                # Dagster asks every reader for a count of writers, which is a preview of its own.
                warnings.simplefilter("ignore", dg.PreviewWarning)
                session = stack.enter_context(
                    dg.open_pipes_session(
                        context=context,
                        extras=self._told(agent, request),
                        context_injector=PipesUnityCatalogVolumesContextInjector(**where),
                        message_reader=PipesUnityCatalogVolumesMessageReader(
                            **where, interval=READ_SECONDS, include_stdio_in_messages=False
                        ),
                    )
                )
            arguments = [part for pair in session.get_bootstrap_cli_arguments().items() for part in pair]
            job, token = StepJob(name, agent, wheel, arguments), uuid.uuid4().hex
            # Five minutes more than the workspace itself allows it: its own word on why it ended is the better one.
            limit = job.seconds_in_all + 300
            run = cancelling(workspace, lambda: submit(workspace, job, token), seconds=limit, progress=progress)
        return _outcome(workspace, run, name, session.get_custom_messages())

    def _told(self, agent: Agent, request: StepRequest) -> dict[str, Any]:
        """What the step is told beyond Dagster's own context; no secret, because it is a file in a volume."""
        env = {
            "LIFECYCLE_PLATFORM": "databricks",
            "LIFECYCLE_ENVIRONMENT": self._platform.environment,
            "DATABRICKS_WAREHOUSE_ID": self._platform.warehouse_id,
            JUDGE_MODEL: os.environ.get(JUDGE_MODEL, ""),
        }
        return {
            "agent": agent.name,
            "step": request.step,
            "day": request.day.isoformat(),
            "inputs": dict(request.inputs),
            "env": {variable: value for variable, value in env.items() if value},
        }


def _wait_for_earlier(workspace: "WorkspaceClient", name: str, agent: Agent, progress: Progress) -> None:
    earlier = run_of_name(workspace, name)
    if earlier is not None:
        progress(f"run {earlier} of the same step is still going on: waiting for it")
        follow(workspace, earlier, seconds=agent.spec.compute.timeout_minutes * 60 + QUEUE_SECONDS, progress=progress)


def _outcome(workspace: "WorkspaceClient", run: "Run", name: str, messages: Sequence[Mapping[str, Any]]) -> Outcome:
    """What the step said. Raises `Refused` with its own sentence, or with the run's error and page."""
    for message in messages:
        if "refused" in message:
            raise Refused(message["refused"], check=message.get("check"))
    result, page = result_of(run), run.run_page_url or f"run {run.run_id}"
    if "CANCEL" in result:
        raise Refused(f"{name} was cancelled in the workspace ({page}): run the step again, it goes on where it was.")
    if result != "SUCCESS":
        raise Refused(
            f"{name} failed in the workspace: {failure(workspace, run)} See {page}, mend it there, then run the step "
            "again: it goes on where it stopped."
        )
    for message in messages:
        if "outcome" in message:
            return Outcome.from_json(message["outcome"])
    raise Refused(
        f"{name} ended well, but what it said could not be read from its volume ({page}): run the step again, it "
        "finds its work done."
    )
