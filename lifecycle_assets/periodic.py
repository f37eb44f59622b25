"""The periodic jobs where a workspace schedules them: the entry point `lifecycle-periodic` of the bundle.

Lives here: running the agent's own Dagster jobs in this process, once, and saying how it went by the exit code.
Add here: a job the bundle schedules.
Not here: the jobs (`jobs.py`), the bundle (`bundle.py`), single steps for Dagster elsewhere (`monitoring/remote.py`).

There is no Dagster instance that lasts: an empty one is given the records the jobs build on. Champion and scorers are
what the workspace says; labeling sessions are kept as JSON in the volume, because only their records tell a session
that is done from one that was interrupted. A run that was killed before it kept them resumes its session.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg

from lifecycle_assets.component import agent_definitions
from lifecycle_assets.edges import RECORD_KEY
from lifecycle_assets.jobs import MONITOR, days_due
from lifecycle_assets.monitoring.backfill_plan import MAX_DAYS
from lifecycle_assets.records import ChampionRecord, Record, ScorersRecord, SessionRecord, digest
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.review.assets import sessions_of
from lifecycle_assets.spec_file import DEFS_FOLDER, Agent, read_agent
from lifecycle_assets.spec_runtime import Compute
from resources.databricks.compute.runtime import enter_job
from resources.databricks.compute.volume import read_json, volume_path, write_json
from resources.databricks.workspace import open_workspace
from resources.explain import explained
from resources.gateways import open_gateway
from resources.platform import Platform

LOGS = {"loggers": {"console": {"config": {"log_level": "INFO"}}}}


def main() -> None:
    """Run one periodic job. Ends with code 1 and the sentences of what failed, so that the job's notifications tell."""
    parser = argparse.ArgumentParser(prog="lifecycle-periodic")
    for option in ("--agent", "--job", "--environment", "--warehouse"):
        parser.add_argument(option, required=True)
    parser.add_argument("--first-day", default="")
    parser.add_argument("--last-day", default="")
    given = parser.parse_args()
    try:
        with explained("databricks"):
            platform = enter_job(
                {
                    "LIFECYCLE_PLATFORM": "databricks",
                    "LIFECYCLE_ENVIRONMENT": given.environment,
                    "DATABRICKS_WAREHOUSE_ID": given.warehouse,
                }
            )
            agent = here(read_agent(DEFS_FOLDER / given.agent / "defs.yaml"))
            faults = run_job(agent, platform, given.job, first_day=given.first_day, last_day=given.last_day)
    except Refused as refusal:
        sys.exit(str(refusal))
    if faults:
        sys.exit("\n".join(faults))


def here(agent: Agent) -> Agent:
    """The agent with its steps in this process, which is the job already."""
    return Agent(agent.spec.model_copy(update={"compute": Compute()}), agent.folder)


def run_job(agent: Agent, platform: Platform, job: str, *, first_day: str = "", last_day: str = "") -> list[str]:
    """Run `monitor` for the days that are due, `scorer_backfill` for the days given, or `labeling`.

    Returns a sentence for every step and every check of severity error that failed. Safe to repeat, as the jobs are.
    """
    if job not in ("monitor", "scorer_backfill", "labeling"):
        raise Refused(f"There is no periodic job '{job[:40]}'; known are monitor, scorer_backfill, labeling.")
    archive = agent.spec.archive
    due = days_due(datetime.now(UTC), archive.late_days, timedelta(minutes=archive.settle_minutes))
    days = _days(first_day, last_day) if job == "scorer_backfill" else due
    with dg.DagsterInstance.ephemeral() as instance:
        _give(instance, agent, _state(agent))
        if job == "labeling":
            return _label(instance, agent, platform)
        faults = []
        for number, day in enumerate(days):
            assets = MONITOR[1 if number == 0 else 2 :]  # The scorers are the same for every day.
            faults += [f"{day}: {fault}" for fault in _run(instance, agent, "monitor", {}, day, assets)]
        return faults


def _label(instance: dg.DagsterInstance, agent: Agent, platform: Platform) -> list[str]:
    """Open this week's session or sync its labels, with the sessions of earlier weeks known."""
    workspace = open_workspace(platform)
    kept = f"{volume_path(agent.spec.volume)}/records/{platform.environment}/{agent.name}.json"
    sessions = [SessionRecord.from_json(one) for one in read_json(workspace, kept) or []]
    _give(instance, agent, (("labeling_session", session) for session in sessions))
    week = f"{datetime.now(UTC):%G-W%V}"
    config = {"name": f"{agent.name}-{week}", "reason": f"regular session of week {week}"}
    faults = _run(instance, agent, "labeling", {"ops": {f"{agent.name}__labeling_session": {"config": config}}})
    write_json(workspace, kept, [one.to_json() for one in reversed(sessions_of(instance, agent.name))])
    return faults


def _days(first: str, last: str) -> list[str]:
    try:
        start, end = date.fromisoformat(first), date.fromisoformat(last)
    except ValueError:
        raise Refused(
            "first_day and last_day must be dates such as 2026-01-31; run the job with both parameters."
        ) from None
    count = (end - start).days + 1
    if not 0 < count <= MAX_DAYS:
        raise Refused(f"{first} to {last} are not 1 to {MAX_DAYS} days; correct first_day and last_day.")
    return [(start + timedelta(days=number)).isoformat() for number in range(count)]


def _state(agent: Agent) -> Iterator[tuple[str, Record]]:
    """The records of champion and scorers, from the workspace. Raises `Refused` when nobody is champion."""
    registry = open_gateway("registry")
    name = agent.spec.model_name
    version = registry.aliases(name).get(CHAMPION)
    if not version:
        raise Refused(f"Nobody is champion of {name} yet: release {agent.name} first.")
    model = next((one.model_id for one in registry.versions(name) if one.version == version), "")
    yield "champion_alias", ChampionRecord(name, version, model, "", "", "", "")
    held = [one.to_json() for one in open_gateway("scorers").registered(agent)]
    yield "registered_scorers", ScorersRecord(digest(held), model, held)


def _give(instance: dg.DagsterInstance, agent: Agent, records: Iterable[tuple[str, Record]]) -> None:
    for asset, record in records:
        metadata = {RECORD_KEY: dg.MetadataValue.json(record.to_json())}
        instance.report_runless_asset_event(
            dg.AssetMaterialization(dg.AssetKey([agent.name, asset]), metadata=metadata)
        )


def _run(
    instance: dg.DagsterInstance,
    agent: Agent,
    job: str,
    config: Mapping[str, Any],
    day: str | None = None,
    assets: Sequence[str] = (),
) -> list[str]:
    """Run a job of the agent to its end and return what failed, in sentences."""
    done = (
        agent_definitions(agent)
        .resolve_job_def(f"{agent.name}_{job}")
        .execute_in_process(
            instance=instance,
            partition_key=day,
            asset_selection=[dg.AssetKey([agent.name, asset]) for asset in assets] or None,
            run_config={**config, **LOGS},
            raise_on_error=False,
        )
    )
    failed = [event.step_failure_data for event in done.all_events if event.is_step_failure]
    faults = [
        (data.user_failure_data.description if data.user_failure_data else "")
        or (data.error.message if data.error else "a step failed")
        for data in failed
    ]
    faults += [
        f"{check.asset_key.path[-1]}: {check.description}"
        for check in done.get_asset_check_evaluations()
        if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR
    ]
    return faults or ([] if done.success else ["the run failed before its first step"])
