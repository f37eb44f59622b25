"""What agents declare and runs need beside the machine and MLflow, looked at without touching it.

Lives here: declarations, webhooks, models, Dagster's instance, what a platform can do; one function a place, giving
findings; no secret is shown.
Add here: a place a declaration or a run names.
Not here: the machine (`places_machine.py`), MLflow's store (`places_store.py`), order and output (`doctor.py`).
"""

import os
from collections.abc import Iterator, Sequence

from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.finding import Finding
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.explain import explained
from resources.platform import Platform
from resources.scorer_source import JUDGE_MODEL
from resources.webhook import Webhook, configured


def declarations(agents: Sequence[Agent], broken: Sequence[str]) -> Iterator[Finding]:
    """The agents, and those that cannot be read."""
    if agents or not broken:
        state = "ok" if agents else "warn"
        names = ", ".join(agent.name for agent in agents) or "none"
        yield Finding("agents", state, names, "" if agents else "Add a folder with a defs.yaml, or set LIFECYCLE_DEFS.")
    for sentence in broken:
        yield Finding("agents", "fail", sentence, "Other agents are not affected.")


def webhooks(agents: Sequence[Agent]) -> Iterator[Finding]:
    """Whether alerts and hand-offs have somewhere to go; neither address nor secret is shown."""
    for variable in sorted({agent.spec.alerts.webhook_env for agent in agents}):
        well = configured(variable)
        text = "configured" if well else f"{variable} is not set: no message is sent"
        yield Finding(
            "alert webhook",
            "ok" if well else "warn",
            text,
            "" if well else f"Set {variable} to your webhook's address.",
        )
    for agent in agents:
        declared = agent.spec.deployment
        if declared.target == "webhook":
            try:
                Webhook(declared.url_env, secret_env=declared.secret_env).require()
            except Refused as refusal:
                yield Finding("deployment webhook", "fail", str(refusal), f"Then materialize {agent.name}/deployment.")
            else:
                yield Finding("deployment webhook", "ok", f"{agent.name}: configured, signed")


def models(agents: Sequence[Agent]) -> Iterator[Finding]:
    """Whether judges and agents have a model to ask; without one, agents answer by their own means."""
    judge = os.environ.get(JUDGE_MODEL, "")
    if judge:
        yield Finding("judge model", "ok", judge)
    else:
        without = sorted({s.name for agent in agents for s in agent.spec.scorers if s.requires == JUDGE_MODEL})
        text = f"{JUDGE_MODEL} is not set" + (f": {', '.join(without)} left out" if without else "")
        remedy = f"Set {JUDGE_MODEL}, such as openai:/gpt-5-mini, and its key, to run judges." if without else ""
        yield Finding("judge model", "warn" if without else "ok", text, remedy)
    for agent in agents:
        variable = f"{agent.name.upper()}_MODEL"  # The shipped agent reads this name; others may not.
        text = os.environ.get(variable) or f"{variable} is not set: the agent answers by its own means"
        yield Finding("agent model", "ok", text)


def dagster_instance(sources: Sources) -> Iterator[Finding]:
    """Dagster's instance, and whether its daemon beats."""
    folder = sources.platform.dagster_home
    try:
        instance = sources.instance
        if instance is None:
            yield Finding("dagster instance", "warn", f"{folder} is not there yet", "Run make demo or make ui.")
            return
        with explained(str(folder)):
            statuses = instance.get_daemon_statuses()
    except Refused as refusal:
        yield Finding("dagster instance", "fail", str(refusal), "Then run lifecycle doctor again.")
        return
    yield Finding("dagster instance", "ok", str(folder))
    silent = sorted(name.lower() for name, status in statuses.items() if status.required and not status.healthy)
    text = f"no heartbeat of {', '.join(silent)}: sensors and schedules rest" if silent else "every daemon beats"
    yield Finding(
        "dagster daemon", "warn" if silent else "ok", text, "Run make ui: it starts the daemon." if silent else ""
    )


_CAN = {
    "local": (
        "log, evaluate, gate, register, promote, serve on loopback, score, archive to Delta, label in review queues",
        "grants, SQL warehouses, model serving endpoints, labeling sessions in a review app, native trace archival: "
        "those are Databricks'",
    ),
    "databricks": (
        "log, evaluate, gate, register in Unity Catalog, promote, deploy, monitor with registered scorers, archive by "
        "SQL, label in a review app, run partitions by Dagster Pipes",
        "score traces in this process: the workspace's monitoring job does, and backfills are asked of it",
    ),
}
"""Platform to what it can do and what it cannot."""


def capabilities(platform: Platform) -> Iterator[Finding]:
    """What this platform can do and cannot."""
    can, cannot = _CAN[platform.name]
    yield Finding(f"{platform.name} can", "ok", can)
    yield Finding(f"{platform.name} cannot", "ok", cannot)
