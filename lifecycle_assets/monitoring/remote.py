"""The other side of a step that runs as a job of a workspace: the entry point `lifecycle-step`.

Lives here: opening Dagster Pipes, running the step with the workspace's gateways, saying what came of it.
Add here: nothing; a step goes into `steps.py`.
Not here: who starts this (`resources/databricks/compute/compute.py`).

Everything is said in one custom message, because a check reported by Pipes has no description, and an outcome that
travels whole becomes the same materialization here and there.
"""

import sys
from datetime import date
from typing import Any

from dagster_pipes import (
    PipesCliArgsParamsLoader,
    PipesContext,
    PipesUnityCatalogVolumesContextLoader,
    PipesUnityCatalogVolumesMessageWriter,
    open_dagster_pipes,
)

from lifecycle_assets.monitoring.steps import GATEWAYS_OF, STEPS, DayStep
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import DEFS_FOLDER, read_agent
from resources.databricks.compute.runtime import enter_job
from resources.explain import explained
from resources.gateways import open_gateway

WRITE_SECONDS = 5
"""Seconds between two files of messages."""


def main() -> None:
    """Run the step named by Pipes. Ends with code 1 and one sentence when the step refused."""
    loader = PipesCliArgsParamsLoader()
    if not loader.is_dagster_pipes_process():
        sys.exit("lifecycle-step is started by Dagster: materialize the asset there.")
    with open_dagster_pipes(
        params_loader=loader,
        context_loader=PipesUnityCatalogVolumesContextLoader(),
        message_writer=PipesUnityCatalogVolumesMessageWriter(interval=WRITE_SECONDS),
    ) as pipes:
        said = _said(pipes)
        pipes.report_custom_message(said)
    if "refused" in said:
        sys.exit(said["refused"])


def _said(pipes: PipesContext) -> dict[str, Any]:
    """The outcome, or the refusal; any other error passes, and Pipes reports it."""
    try:
        with explained("databricks"):
            enter_job(pipes.get_extra("env"))
            name = pipes.get_extra("step")
            agent = read_agent(DEFS_FOLDER / pipes.get_extra("agent") / "defs.yaml")
            gateways = {key: open_gateway(key) for key in GATEWAYS_OF[name]}
            day = date.fromisoformat(pipes.get_extra("day"))
            step = DayStep(agent, day, pipes.get_extra("inputs"), gateways, pipes.log.info)
            return {"outcome": STEPS[name](step).to_json()}
    except Refused as refusal:
        return {"refused": str(refusal), "check": refusal.check}
