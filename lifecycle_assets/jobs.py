"""Jobs and schedules of one agent.

Lives here: which assets run together, and when by the clock.
Add here: a job people start by name.
Not here: jobs started by what happens (`sensors/`).

Jobs run in process: the multiprocess executor imports MLflow again in every step and takes six times as long.
Parallelism comes from runs and partitions.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from lifecycle_assets.release.shadow_check import SHADOW, shadow_key
from lifecycle_assets.spec_file import Agent

RELEASE = (
    "agent_source",
    "eval_dataset",
    "logged_model",
    "eval_results",
    "uc_model_version",
    "champion_alias",
    "deployment",
)
MONITOR = ("production_traces", "registered_scorers", "trace_scores", "archived_traces", "quality_metrics")
REVIEW = ("labeling_session", "human_labels", "judge_agreement")

ROLLBACK = ("champion_alias", "deployment")

JOBS = ("release", "monitor", "scorer_backfill", "labeling", "rollback", SHADOW, "upkeep")
"""Names of the jobs, each after the agent's name."""

LATE_HOUR = 3
"""UTC hour at which the days of `late_days` are looked at again for late assessments."""

NOTHING_USD = 1e-9
"""A cap that only scorers without a price keep: 0 would be no cap."""


def agent_jobs(agent: Agent) -> list[Any]:
    """The agent's jobs."""
    running = dg.AssetCheckKey(dg.AssetKey([agent.name, "deployment"]), "running_version_matches_champion")
    return [
        _job(agent, "release", RELEASE, "From the agent's source to the champion and its deployment."),
        dg.define_asset_job(
            f"{agent.name}_monitor",
            selection=_selection(agent, MONITOR) | dg.AssetSelection.checks(running),
            executor_def=dg.in_process_executor,
            description="Score and archive one day of production traces, and compute its numbers.",
        ),
        _job(
            agent,
            "scorer_backfill",
            MONITOR[1:],
            "Score a day again with the scorers' present versions: only what is missing is scored. In the launchpad, "
            "trace_scores takes names of scorers, and caps on traces and USD.",
        ),
        _job(agent, "upkeep", ("archive_upkeep",), "Keep the tables quick and small, and remove what is too old."),
        _job(agent, "labeling", REVIEW, "Open a labeling session, or sync what reviewers said."),
        _job(
            agent,
            "rollback",
            ROLLBACK,
            "Take the champion back: to the version before it, or to the one named as `to`, and hand that to the "
            "runtime. Open the launchpad (arrow beside Materialize all) and fill in the reason. The version taken back "
            "is not promoted again until its evidence changes.",
            config=rollback_config(agent.name),
        ),
        dg.define_asset_job(
            f"{agent.name}_{SHADOW}",
            selection=dg.AssetSelection.checks(shadow_key(agent.name)),
            executor_def=dg.in_process_executor,
            description="Have the version that waits as challenger, or the one named in the launchpad, answer the "
            "champion's own recorded requests, and compare the two request by request. Moves nothing.",
        ),
    ]


def rollback_config(agent: str, *, to: str = "", reason: str = "", taken_back: str = "") -> dict[str, Any]:
    """Run config of the job `rollback`; what is empty is decided by the run, but for the reason, which it requires."""
    config = {"rollback": True, "to": to, "reason": reason, "taken_back": taken_back}
    return {"ops": {f"{agent}__champion_alias": {"config": config}}}


def scores_config(agent: str, *, max_cost_usd: float) -> dict[str, Any]:
    """Run config of a job with `trace_scores`: what its scorers may cost."""
    return {"ops": {f"{agent}__trace_scores": {"config": {"max_cost_usd": max_cost_usd}}}}


def is_run_of(agent: str, run: dg.DagsterRun) -> bool:
    """Whether a run is of one of the agent's jobs, or materializes its assets."""
    return run.job_name in {f"{agent}_{job}" for job in JOBS} or any(
        key.path[0] == agent for key in run.asset_selection or ()
    )


def _selection(agent: Agent, names: Sequence[str]) -> dg.AssetSelection:
    assets = dg.AssetSelection.assets(*(dg.AssetKey([agent.name, name]) for name in names))
    return assets - dg.AssetSelection.checks(shadow_key(agent.name))  # It costs money: only its own job runs it.


def _job(
    agent: Agent, name: str, assets: Sequence[str], description: str, *, config: dict[str, Any] | None = None
) -> Any:
    return dg.define_asset_job(
        f"{agent.name}_{name}",
        selection=_selection(agent, assets),
        executor_def=dg.in_process_executor,
        description=description,
        config=config,
    )


def agent_schedules(agent: Agent) -> list[dg.ScheduleDefinition]:
    """The agent's schedules."""

    @dg.schedule(
        name=f"{agent.name}_monitor_hourly",
        job_name=f"{agent.name}_monitor",
        cron_schedule="5 * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Today's partition every hour, yesterday's until it has settled, late days once a day: what "
        "scorers with a price owe there is left to the backfill and its budget.",
    )
    def monitor_hourly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        if context.instance.get_latest_materialization_event(dg.AssetKey([agent.name, "champion_alias"])) is None:
            yield dg.SkipReason(f"Nobody is champion yet: run {agent.name}_release first.")
            return
        yield from monitor_runs(agent, context.scheduled_execution_time)

    @dg.schedule(
        name=f"{agent.name}_labeling_weekly",
        job_name=f"{agent.name}_labeling",
        cron_schedule=agent.spec.labeling.cadence,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="A labeling session with the traces the declared rules select.",
    )
    def labeling_weekly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        week = f"{context.scheduled_execution_time:%G-W%V}"
        config = {"name": f"{agent.name}-{week}", "reason": f"regular session of week {week}"}
        return dg.RunRequest(
            run_key=f"labeling:{week}",
            run_config=dg.RunConfig(ops={f"{agent.name}__labeling_session": {"config": config}}),
        )

    @dg.schedule(
        name=f"{agent.name}_upkeep_daily",
        job_name=f"{agent.name}_upkeep",
        cron_schedule="20 4 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Upkeep of the tables, once the late days of the night are archived.",
    )
    def upkeep_daily(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        archived = dg.AssetKey([agent.name, "archived_traces"])
        if context.instance.get_latest_materialization_event(archived) is None:
            return dg.SkipReason(f"Nothing is archived yet: run {agent.name}_monitor first.")
        return dg.RunRequest(run_key=f"upkeep:{context.scheduled_execution_time:%Y-%m-%d}")

    return [monitor_hourly, labeling_weekly, upkeep_daily]


def monitor_runs(agent: Agent, now: datetime) -> Iterator[dg.RunRequest]:
    """The runs of `monitor` that are due at `now`."""
    archive = agent.spec.archive
    settle = timedelta(minutes=archive.settle_minutes)
    young = days_due(now, 0, settle)
    for day in days_due(now, archive.late_days, settle):
        # What a new scorer owes on late days is a backfill: its sensor pays for it, within the day's budget.
        config = None if day in young else scores_config(agent.name, max_cost_usd=NOTHING_USD)
        yield dg.RunRequest(run_key=f"monitor:{day}:{now:%Y-%m-%dT%H}", partition_key=day, run_config=config)


def days_due(now: datetime, late_days: int, settle: timedelta) -> list[str]:
    """UTC days to monitor at `now`, oldest first: an asset's page shows the checks and the picture of the last run.

    Yesterday is due until its last trace has settled; at `LATE_HOUR` every day of the late window is due.
    """
    utc = now.astimezone(UTC)
    midnight = utc.replace(hour=0, minute=0, second=0, microsecond=0)
    back = 1 if utc - midnight <= settle + timedelta(hours=1) else 0
    if utc.hour == LATE_HOUR:
        back = max(back, late_days)
    return [(midnight - timedelta(days=n)).strftime("%Y-%m-%d") for n in range(back, -1, -1)]
