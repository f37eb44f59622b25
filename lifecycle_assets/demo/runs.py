"""Materializing the real jobs on the real instance, with progress shown.

Lives here: running one job in this process, and asking a sensor what it would start.
Add here: another way the demo starts runs.
Not here: the order of the stages (`main.py`).

Runs execute here and not through a code server, so that MLflow is imported once for all of them. They are ordinary
runs of the jobs of the code location: the UI shows them, and the daemon goes on from their state.
"""

import os
from collections.abc import Callable, Mapping, Sequence

import dagster as dg

from lifecycle_assets.refused import Refused
from resources.gateways import GATEWAYS

DEMO_PID = "lifecycle/demo_pid"
"""Run tag with the process that executes the run: a run whose process is gone was interrupted."""

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
        self.say(f"running {name}" + (f" for {partition_key}" if partition_key else ""))
        outcome = self.definitions.resolve_job_def(name).execute_in_process(
            instance=self.instance,
            partition_key=partition_key,
            run_config={**(run_config or {}), **QUIET},
            asset_selection=list(assets) if assets else None,
            tags={**(tags or {}), DEMO_PID: str(os.getpid()), "user": os.environ.get("USER", "demo")},
            raise_on_error=False,
        )
        for event in outcome.all_events:
            if event.is_step_success and event.step_key:
                self.say(f"  {event.step_key.replace('__', '/')} done")
        if not outcome.success:
            raise Refused(self._why(outcome))

    def tick(self, sensor: str) -> int:
        """Evaluate a sensor as the daemon does, run what it asks for, and return how many runs that were."""
        definition = self.definitions.resolve_sensor_def(sensor)
        context = dg.build_sensor_context(
            instance=self.instance, definitions=self.definitions, resources=dict(GATEWAYS), sensor_name=sensor
        )
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
                tags={"dagster/run_key": request.run_key or ""},
            )
        return len(data.run_requests or [])

    def settle_interrupted(self) -> int:
        """Mark runs of demos that were killed as failed and free what they held; returns how many."""
        unfinished = self.instance.get_runs(
            dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
        )
        dead = [run for run in unfinished if DEMO_PID in run.tags and not _alive(int(run.tags[DEMO_PID]))]
        for run in dead:
            self.instance.report_run_failed(run, "The demo that executed this run was interrupted.")
            self.instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        return len(dead)

    def _why(self, outcome: dg.ExecuteInProcessResult) -> str:
        for event in outcome.all_events:
            if event.is_step_failure and event.step_key:
                failure = event.step_failure_data
                refusal = failure.user_failure_data
                error = failure.error
                sentence = refusal.description if refusal else (error.message if error else "")
                return f"{event.step_key.replace('__', '/')}: {(sentence or 'failed').strip()}"
        return "The run failed: see it in the UI (make ui)."


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
