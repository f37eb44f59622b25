"""A Databricks Asset Bundle for one agent: its periodic jobs for teams that schedule in the workspace.

Lives here: the files of the bundle as text.
Add here: a job, a variable, a target.
Not here: writing them (`cli/bundle.py`), what the jobs run (`periodic.py`), the wheel (`resources/wheel.py`).

The same agent and the same installation give the same bytes. Nobody is granted anything: permissions are added where
the bundle is deployed. Tests hold every job against the job classes of databricks-sdk, so a field the Jobs API does not
know fails there; `databricks.yml` itself is first checked by `databricks bundle validate`.
"""

from collections.abc import Sequence
from typing import Any

import yaml

from lifecycle_assets.quartz import quartz
from lifecycle_assets.spec_file import Agent

MARK = "# Written by lifecycle bundle, and written anew by it: keep changes of your own in another file.\n"
"""First line of every file; a file without it is not overwritten."""

KEY = "lifecycle"
TARGETS = {"dev": "development", "prod": "production"}
"""Targets of the bundle with their mode; a target's name is also the environment of scorers and traces."""


def bundle_files(agent: Agent, wheel: str, requirements: Sequence[str]) -> dict[str, str]:
    """File name to text; `wheel` is the name of the wheel in `dist/`. Raises `Refused` for a cadence without Quartz."""
    jobs = {
        "monitor": _job(agent, "monitor", wheel, requirements, "Score and archive production traces, hourly.")
        | _scheduled("5 * * * *"),
        "labeling": _job(agent, "labeling", wheel, requirements, "Open the regular labeling session, sync labels.")
        | _scheduled(agent.spec.labeling.cadence),
        "scorer_backfill": _job(
            agent,
            "scorer_backfill",
            wheel,
            requirements,
            "Score days again with the scorers' current versions, on demand.",
            ["--first-day", "{{job.parameters.first_day}}", "--last-day", "{{job.parameters.last_day}}"],
        )
        | {"parameters": [{"name": "first_day", "default": ""}, {"name": "last_day", "default": ""}]},
    }
    files = {"databricks.yml": _text(_bundle(agent))}
    for name, job in jobs.items():
        document = {"resources": {"jobs": {f"{agent.name}_{name}": job}}}
        files[f"resources/{agent.name}_{name}.yml"] = _text(document)
    return files


def _bundle(agent: Agent) -> dict[str, Any]:
    root = "/Workspace/Users/${workspace.current_user.userName}/.bundle/${bundle.name}/${bundle.target}"
    return {
        "bundle": {"name": f"lifecycle_{agent.name}"},
        "include": ["resources/*.yml"],
        "variables": {
            "warehouse_id": {"description": "SQL warehouse that reads and writes the tables."},
            "volume": {
                "description": "Volume, which must exist, for the code of the jobs.",
                "default": "/Volumes/" + agent.spec.volume.replace(".", "/"),
            },
        },
        "workspace": {"artifact_path": "${var.volume}/bundle/${workspace.current_user.short_name}/${bundle.target}"},
        "targets": {
            name: {"mode": mode, "workspace": {"root_path": root}, **({"default": True} if name == "dev" else {})}
            for name, mode in TARGETS.items()
        },
    }


def _job(
    agent: Agent, name: str, wheel: str, requirements: Sequence[str], description: str, more: Sequence[str] = ()
) -> dict[str, Any]:
    parameters = ["--agent", agent.name, "--job", name, "--environment", "${bundle.target}"]
    return {
        "name": f"{agent.name}_{name}",
        "description": description,
        "max_concurrent_runs": 1,
        "queue": {"enabled": True},
        "timeout_seconds": agent.spec.compute.timeout_minutes * 60 * (24 if name == "scorer_backfill" else 1),
        "tags": {"agent": agent.name},
        "tasks": [
            {
                "task_key": name,
                "environment_key": KEY,
                "max_retries": 0,
                "disable_auto_optimization": True,  # Serverless compute would try a refusal again, and again.
                "python_wheel_task": {
                    "package_name": "lifecycle_assets",
                    "entry_point": "lifecycle-periodic",
                    "parameters": [*parameters, "--warehouse", "${var.warehouse_id}", *more],
                },
            }
        ],
        "environments": [
            {
                "environment_key": KEY,
                "spec": {
                    "environment_version": agent.spec.compute.environment_version,
                    "dependencies": [f"../dist/{wheel}", *requirements],
                },
            }
        ],
    }


def _scheduled(cron: str) -> dict[str, Any]:
    return {"schedule": {"quartz_cron_expression": quartz(cron), "timezone_id": "UTC", "pause_status": "UNPAUSED"}}


def _text(document: dict[str, Any]) -> str:
    return MARK + yaml.safe_dump(document, sort_keys=False, width=120)
