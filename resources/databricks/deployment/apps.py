"""Handing over to a Databricks App.

Lives here: deploying an app from a new `app.yaml`, waiting, and taking a failed deployment back.
Add here: a further step of a deployment.
Not here: the file (`app_source.py`) and its text (`app_yaml.py`); the app itself: its code, resources and permissions.
"""

import time
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from lifecycle_assets.records import DeploymentRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_secrets import secret_reference
from resources.databricks.deployment.app_source import AppSource, Source, epoch, plain
from resources.databricks.deployment.app_yaml import Items
from resources.databricks.deployment.handing import HANDED_AT, asked, now, patient, said, same, shown
from resources.databricks.workspace import open_workspace, wait_for
from resources.deployer import MODEL_URI, Deployer, Move, nothing_handed_over, silent, variables
from resources.platform import Platform
from resources.worker import Progress

if TYPE_CHECKING:
    from databricks.sdk.service.apps import App, AppDeployment

TICK_SECONDS = 1.1
"""Between writing and deploying: deployments are dated to the second, and the later one must be dated later."""

Result = TypeVar("Result")


class AppDeployer(Deployer):
    """Keeps the environment in an app's `app.yaml` at the champion, and the app deployed from it.

    Why a rerun is safe: the file is written only when it would say something else, and deployed only when no deployment
    that succeeded is younger than the file. A deployment in progress is waited for, whoever started it. The former text
    lies beside the file until the deployment succeeded, so that it is gone back to also after a kill in between.
    """

    def __init__(self, platform: Platform, *, every: float = 2.0) -> None:
        self._platform = platform
        self._every = every

    def hand_off(self, agent: Agent, move: Move, *, progress: Progress = silent) -> DeploymentRecord:
        """Write `app.yaml` and deploy the app, which is started when it is stopped.

        Raises `Refused` when there is no such app, when it lacks a resource for a declared secret, when the deployment
        fails (with its message; the former `app.yaml` is deployed again), and when it is not over in time.
        """
        with asked(f"app {agent.spec.deployment.app}"):
            app, files = self._settled(agent, progress), self._files(agent)
            source = files.read()
            env = variables(agent, self._platform, model_id=move.model_id, runtime="workspace")
            env |= {MODEL_URI: f"models:/{agent.spec.model_name}/{move.version}", HANDED_AT: now()}
            items = _items(app, env)
            former = None if _deployed(app, source) else files.unfinished(source)
            if not same(plain(items), source.env):
                former = source.text if former is None else former
                source = files.change(source, items, former)
            if not _deployed(app, source):
                progress(f"app {app.name}: deploying version {move.version}")
                failure = self._deploy(agent, source, progress)
                if failure is not None:
                    raise self._taken_back(agent, source, former, failure, progress)
            files.settle()
            return self._record(agent, source)

    def current(self, agent: Agent) -> DeploymentRecord | None:
        """What `app.yaml` says when the app runs from it; None when it says nothing of this model."""
        source = self._live(agent)
        return None if source is None else self._record(agent, source)

    def environment(self, agent: Agent) -> dict[str, str]:
        """Our variables in `app.yaml`; a secret as the app's resource it comes from."""
        source = self._live(agent)
        if source is None:
            raise nothing_handed_over(agent)
        return {**shown(source.env), **source.references}

    def _live(self, agent: Agent) -> Source | None:
        with asked(f"app {agent.spec.deployment.app}"):
            app = self._look_up(agent)
            source = self._files(agent).read() if app is not None else None
        if app is None or source is None or not _deployed(app, source):
            return None
        return source if source.env.get(MODEL_URI, "").startswith(f"models:/{agent.spec.model_name}/") else None

    def _files(self, agent: Agent) -> AppSource:
        return AppSource(self._platform, agent.spec.deployment.source_path)

    def _look_up(self, agent: Agent) -> "App | None":
        from databricks.sdk.errors import NotFound

        try:
            return open_workspace(self._platform).apps.get(agent.spec.deployment.app)
        except NotFound as error:
            if error.error_code == "ENDPOINT_NOT_FOUND":  # The API is not there, which says nothing of the app.
                raise
            return None

    def _app(self, agent: Agent) -> "App":
        app = self._look_up(agent)
        if app is None:
            name = agent.spec.deployment.app
            raise Refused(f"app {name} does not exist: create it (Compute > Apps), or correct deployment.app.")
        return app

    def _settled(self, agent: Agent, progress: Progress) -> "App":
        """The app once no deployment is in progress."""

        def look() -> "App | None":
            app = self._app(agent)
            return None if app.pending_deployment and _state(app.pending_deployment) == "IN_PROGRESS" else app

        return self._wait(agent, "the deployment of", look, progress)

    def _running(self, agent: Agent, progress: Progress) -> "App":
        """The app once its compute runs, which is started once when it does not: deployments need it."""
        from databricks.sdk.errors import BadRequest, ResourceConflict

        started = False

        def look() -> "App | None":
            nonlocal started
            app = self._app(agent)
            compute = app.compute_status
            state = compute.state.value if compute and compute.state else "ACTIVE"
            if state == "ERROR" and started:
                raise Refused(
                    f"app {app.name}: its compute does not start: {said(compute.message if compute else '')}."
                )
            if state in ("STOPPED", "ERROR") and not started:
                started = True
                progress(f"app {app.name}: starting its compute")
                try:
                    open_workspace(self._platform).apps.start(app.name)
                except (BadRequest, ResourceConflict) as error:
                    progress(f"app {app.name}: {said(str(error), 100)}")  # Somebody else started it.
            return app if state == "ACTIVE" else None

        return self._wait(agent, "the compute of", look, progress)

    def _wait(self, agent: Agent, what: str, look: Callable[[], Result | None], progress: Progress) -> Result:
        declared = agent.spec.deployment
        return wait_for(
            f"{what} app {declared.app}",
            patient(look, progress),
            seconds=60 * declared.wait_minutes,
            progress=progress,
            every=self._every,
        )

    def _deploy(self, agent: Agent, source: Source, progress: Progress) -> str | None:
        """Deploy and wait; the message of a deployment that failed, None when it succeeded.

        An error when asking may be a lost answer: then the deployment that is younger than the file is ours.
        """
        from databricks.sdk.service.apps import AppDeployment, AppDeploymentMode

        name, apps = agent.spec.deployment.app, open_workspace(self._platform).apps
        self._running(agent, progress)
        self._settled(agent, progress)  # Starting an app deploys what was active.
        time.sleep(TICK_SECONDS)
        asked_for = AppDeployment(source_code_path=self._files(agent).folder, mode=AppDeploymentMode.SNAPSHOT)
        try:
            made = apps.deploy(name, asked_for).response
        except OSError as error:
            newest = self._app(agent).pending_deployment or max(
                islice(apps.list_deployments(name), 50), key=_created, default=None
            )
            if newest is None or _created(newest) < source.written:
                return said(str(error))
            made = newest

        def look() -> "AppDeployment | None":
            found = apps.get_deployment(name, made.deployment_id or "")
            return found if _state(found) != "IN_PROGRESS" else None

        done = self._wait(agent, "the deployment of", look, progress)
        if _state(done) == "SUCCEEDED":
            return None
        return said((done.status.message if done.status else "") or _state(done))

    def _taken_back(
        self, agent: Agent, source: Source, former: str | None, failure: str, progress: Progress
    ) -> Refused:
        """The refusal of a failed deployment, after the former `app.yaml` was deployed again."""
        name, files = agent.spec.deployment.app, self._files(agent)
        told = f"app {name} could not be deployed: {failure}; see {self._page(agent)}."
        if former is None:
            return Refused(f"{told} app.yaml stays as it is; mend the cause, then run this step again.")
        progress(f"app {name}: the deployment failed, the former app.yaml is deployed again")
        second = self._deploy(agent, files.go_back(source, former), progress)
        files.settle()
        if second is not None:
            return Refused(f"{told} app.yaml is as it was before, but deploying that failed too: {second}.")
        return Refused(f"{told} The former app.yaml is deployed again; mend the cause, then run this step again.")

    def _page(self, agent: Agent) -> str:
        return f"{open_workspace(self._platform).config.host}/apps/{agent.spec.deployment.app}"

    def _record(self, agent: Agent, source: Source) -> DeploymentRecord:
        env = source.env
        version, model_id = env[MODEL_URI].rpartition("/")[2], env.get("MLFLOW_ACTIVE_MODEL_ID", "")
        return DeploymentRecord("databricks_app", self._page(agent), version, model_id, env.get(HANDED_AT, ""))


def _items(app: "App", env: dict[str, str]) -> Items:
    """The variables as items of `env`: a reference to a secret by the app's resource for it."""
    resources = {(r.secret.scope, r.secret.key): r.name for r in app.resources or [] if r.secret}
    items = []
    for name, value in env.items():
        reference = secret_reference(value)
        if reference is None:
            items.append({"name": name, "value": value})
        elif reference in resources:
            items.append({"name": name, "valueFrom": resources[reference]})
        else:
            raise Refused(
                f"app {app.name} has no resource for the secret {'/'.join(reference)} that {name} names: add it to the "
                "app's resources (type Secret, permission Can read), then run this step again."
            )
    return items


def _deployed(app: "App", source: Source) -> bool:
    """Whether the active deployment was made from the source as it is now."""
    active, folder = app.active_deployment, source.path.rpartition("/")[0]
    return (
        active is not None
        and _state(active) in ("SUCCEEDED", "")
        and (active.source_code_path or folder).rstrip("/") == folder
        and _created(active) >= source.written
    )


def _created(deployment: "AppDeployment") -> float:
    return epoch(deployment.create_time or "")


def _state(deployment: "AppDeployment") -> str:
    state = deployment.status.state if deployment.status else None
    return state.value if state else ""
