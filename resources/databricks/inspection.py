"""What `lifecycle doctor` finds in a workspace: at most `REQUESTS` requests, none of which changes anything.

Lives here: looking at the sign-in, the warehouse, and at each agent's experiment, scorers, review app, endpoint.
Add here: a thing people have to set up in the workspace.
Not here: which grants are needed (`grants.py`), places of this machine (`lifecycle_assets/cli/places_machine.py`).
"""

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from lifecycle_assets.finding import Finding
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import MAX_SCORERS
from lifecycle_assets.spec_file import Agent
from resources.databricks.archive.trace_source import ARCHIVAL
from resources.databricks.deployment.serving import endpoint_name
from resources.databricks.faults import workspace_name
from resources.databricks.grants import missing_grants, needed_grants
from resources.databricks.scoring.scheduled_scorers import broken_sentence, unfit
from resources.databricks.tracing.trace_place import Place, place_from
from resources.databricks.workspace import open_workspace
from resources.explain import explained
from resources.platform import Platform

REQUESTS = 20
"""Requests `lifecycle doctor` may make in all."""

SECONDS = 5.0
"""How long one of them may take."""

CLIENTS = ("databricks-sdk", "databricks-agents", "dagster-databricks", "sqlglot")
EXTRA = "pip install 'lifecycle-assets[databricks]'"
Found = TypeVar("Found")


class _Budget(Exception):  # noqa: N818 - it reads as what happened
    """The requests are used up."""


class Inspection:
    """One look at a workspace; every request is counted."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._left = REQUESTS

    def findings(self, agents: Sequence[Agent]) -> Iterator[Finding]:
        """Everything, in order; an agent that no request is left for is named."""
        yield from clients()
        try:
            with explained(self._platform.tracking_uri):
                w = open_workspace(self._platform, seconds=SECONDS)
            me = self._ask(w.current_user.me)
        except Refused as refusal:
            yield Finding("workspace", "fail", str(refusal), "The rest of the workspace was not looked at.")
            return
        yield Finding("workspace", "ok", f"{workspace_name()}, signed in as {me.user_name or me.display_name}")
        yield self._warehouse(w)
        for number, agent in enumerate(agents):
            try:
                yield from self._agent(w, agent, me)
            except _Budget:
                names = ", ".join(one.name for one in agents[number:])
                text = f"not looked at, or not wholly: {names}; doctor makes at most {REQUESTS} requests"
                yield Finding("agents", "warn", text, "Set LIFECYCLE_DEFS to a folder with fewer agents.")
                return

    def _ask(self, request: Callable[[], Found], cost: int = 1) -> Found:
        """The answer. Raises `Refused` for a known fault, `_Budget` before one request too many."""
        if self._left < cost:
            raise _Budget
        self._left -= cost
        with explained(self._platform.tracking_uri):
            return request()

    def _warehouse(self, w: Any) -> Finding:
        if not self._platform.warehouse_id:
            remedy = "Set DATABRICKS_WAREHOUSE_ID to the id of a SQL warehouse you may use."
            return Finding("warehouse", "fail", "DATABRICKS_WAREHOUSE_ID is not set", remedy)
        from databricks.sdk.errors import NotFound

        try:
            found = self._ask(lambda: w.warehouses.get(self._platform.warehouse_id))
        except NotFound:
            remedy = "Correct DATABRICKS_WAREHOUSE_ID: databricks warehouses list."
            return Finding("warehouse", "fail", f"{self._platform.warehouse_id} does not exist", remedy)
        except Refused as refusal:
            return Finding("warehouse", "fail", str(refusal), "Have CAN USE on the warehouse granted.")
        state = found.state.value if found.state else "unknown"
        if state in ("DELETED", "DELETING"):
            return Finding("warehouse", "fail", f"{found.name} is {state.lower()}", "Name another warehouse.")
        note = "" if state == "RUNNING" else "; the first statement starts it"
        return Finding("warehouse", "ok", f"{found.name} is {state.lower()}{note}")

    def _agent(self, w: Any, agent: Agent, me: Any) -> Iterator[Finding]:
        name = f"{agent.name} experiment"
        try:
            place, tags = self._experiment(w, agent)
        except Refused as refusal:
            yield Finding(name, "fail", str(refusal), "Correct the field experiment, or ask for access to it.")
            place, tags = None, {}
        else:
            made = f"is made by the first run; folder {agent.spec.experiment.rpartition('/')[0] or '/'} must be there"
            there = f"is {place.experiment_id}" if place else made
            yield Finding(name, "ok", f"{agent.spec.experiment} {there}")
        if place is not None:
            yield from self._set_up(w, agent, place, tags)
        yield from self._grants(agent, me, place)  # Last: they may take all requests that are left.

    def _set_up(self, w: Any, agent: Agent, place: Place, tags: dict[str, str]) -> Iterator[Finding]:
        """What an experiment that is there needs besides grants."""
        yield location(agent, place)
        bound = place.warehouse_id
        yield Finding(
            f"{agent.name} monitoring",
            "ok" if bound else "warn",
            f"warehouse {bound} is bound" if bound else "no warehouse is bound to the experiment",
            "" if bound else f"Materialize {agent.name}/logged_model: it binds DATABRICKS_WAREHOUSE_ID.",
        )
        yield from self._scorers(w, agent, place.experiment_id)
        yield self._review_app(w, agent, place.experiment_id)
        if agent.spec.tracing.location == "experiment":
            yield archival(agent, tags.get(ARCHIVAL, ""))
        if agent.spec.deployment.target == "databricks_serving":
            yield self._endpoint(w, agent)

    def _experiment(self, w: Any, agent: Agent) -> tuple[Place | None, dict[str, str]]:
        """Where the experiment keeps its traces, None when it is not there; and its tags."""
        if not agent.spec.experiment.startswith("/"):
            raise Refused(f"experiment '{agent.spec.experiment}' is not an absolute path like /Shared/{agent.name}.")
        from databricks.sdk.errors import NotFound

        try:
            found = self._ask(lambda: w.experiments.get_by_name(agent.spec.experiment)).experiment
        except NotFound:
            return None, {}
        tags = {tag.key: tag.value for tag in found.tags or []}
        return place_from(found.experiment_id, tags), tags

    def _grants(self, agent: Agent, me: Any, place: Place | None) -> Iterator[Finding]:
        """A finding for each missing grant, or one that none is."""
        wanted = needed_grants(agent, me.user_name, trace_tables=place.tables if place else ())
        name, missing = f"{agent.name} grants", 0
        try:
            for grant in missing_grants(self._platform, wanted, me=me, ask=self._ask):
                missing += 1
                text = f"{grant.privilege.replace('_', ' ')} on {grant.name} is missing for {grant.principal}"
                yield Finding(name, "fail", text, f"Have an owner run: {grant.statement}")
        except Refused as refusal:
            yield Finding(name, "fail", str(refusal), "Then run lifecycle doctor again.")
            return
        if not missing:
            yield Finding(name, "ok", f"{len(wanted)} are held, or wait for what does not exist yet")

    def _scorers(self, w: Any, agent: Agent, experiment: str) -> Iterator[Finding]:
        name = f"{agent.name} scorers"
        from databricks.sdk.errors import NotFound

        path = f"/api/2.0/managed-evals/scheduled-scorers/{experiment}"
        try:
            answer = self._ask(lambda: w.api_client.do("GET", path))
        except NotFound:
            yield Finding(name, "ok", f"0 of {MAX_SCORERS}: none is registered yet")
            return
        except Refused as refusal:
            yield Finding(name, "fail", str(refusal), "Production monitoring is a preview: have it enabled.")
            return
        scorers = (answer.get("scheduled_scorers") or {}).get("scorers") or []
        active = [one for one in scorers if float(one.get("sample_rate") or 0) > 0]
        declared, text = len(agent.spec.scorers), f"{len(active)} of {MAX_SCORERS} are active"
        if len(active) > MAX_SCORERS:
            yield Finding(name, "fail", text, "Stop scorers nobody needs.")
        else:
            full = len(active) == MAX_SCORERS and declared > 0
            yield Finding(name, "warn" if full else "ok", text, "No further scorer can be added." if full else "")
        for one in scorers:
            reason = unfit(one.get("serialized_scorer") or "")
            if reason:
                what, _, remedy = broken_sentence(str(one.get("name")), reason, experiment).partition("; ")
                yield Finding(name, "warn", what, remedy.partition(". ")[2])

    def _review_app(self, w: Any, agent: Agent, experiment: str) -> Finding:
        name, asked = f"{agent.name} labeling", {"filter": f"experiment_id={experiment}"}
        try:
            answer = self._ask(lambda: w.api_client.do("GET", "/api/2.0/managed-evals/review-apps", query=asked))
        except Refused as refusal:
            return Finding(name, "fail", str(refusal), "Have an administrator enable the preview in the workspace.")
        apps = (answer or {}).get("review_apps") or []
        return Finding(name, "ok", "there is a review app" if apps else "the first session makes the review app")

    def _endpoint(self, w: Any, agent: Agent) -> Finding:
        name, endpoint = f"{agent.name} endpoint", endpoint_name(agent, self._platform)
        from databricks.sdk.errors import NotFound

        try:
            found = self._ask(lambda: w.serving_endpoints.get(endpoint))
        except NotFound:
            return Finding(name, "ok", f"{endpoint} is made by the first deployment")
        except Refused as refusal:
            return Finding(name, "fail", str(refusal), "Have CAN MANAGE on the endpoint granted.")
        state = found.state.ready.value if found.state and found.state.ready else "unknown"
        return Finding(name, "ok" if state == "READY" else "warn", f"{endpoint} is {state.lower()}")


def clients() -> Iterator[Finding]:
    """The clients of the extra, as installed."""
    for name in CLIENTS:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", f"Run: {EXTRA}")


def location(agent: Agent, place: Place) -> Finding:
    """Where traces of the agent go, against what is declared."""
    name, schema = f"{agent.name} traces", agent.spec.trace_schema
    in_catalog = agent.spec.tracing.location == "unity_catalog"
    wanted = (f"{schema}.{agent.spec.trace_prefix}", schema) if in_catalog else ("",)
    if place.path.lower() in [one.lower() for one in wanted]:
        return Finding(name, "ok", f"kept in {place.path or 'the experiment'}")
    if not place.path:
        remedy = f"Materialize {agent.name}/logged_model: it links the experiment."
        return Finding(name, "warn", f"not linked yet to {wanted[0]}", remedy)
    return Finding(
        name,
        "fail",
        f"the experiment is linked to {place.path}, declared is {wanted[0] or 'the experiment'}",
        "A location cannot be changed: declare that one under tracing, or name another experiment.",
    )


def archival(agent: Agent, table: str) -> Finding:
    """Whether this project has switched native archival on."""
    name = f"{agent.name} archival"
    if table:
        return Finding(name, "ok", f"native archival goes to {table}")
    return Finding(name, "warn", "native archival is not switched on", f"Run {agent.name}_monitor: it does so once.")
