"""Logged models, registered versions and aliases.

Lives here: the gateway to the model registry: what it returns, what it promises, and MLflow's implementation.
Add here: a question about logged models, versions or aliases.
Not here: steps that run the agent's code (`model_steps.py`), who may become champion (`release.py`).

`MlflowClient` speaks to an embedded store and a server alike; where Unity Catalog differs, see
`databricks/model_registry.py`.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lifecycle_assets.records import SourceRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources import run_marks as marks
from resources.agent_faults import check_source
from resources.claims import myself
from resources.explain import explained
from resources.mlflow_store import experiment_id, open_client
from resources.model_steps import agent_request, discard_run
from resources.platform import Platform
from resources.registration import create_once, maker_lives, model_named, storable
from resources.worker import Progress, run_worker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel as MlflowLoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException

READY_SECONDS = 300
"""How long a new version may take to become READY."""


@dataclass(frozen=True)
class LoggedModel:
    """A logged model and what was seen when it was logged.

    `created` is False when an existing model of the same source digest was found. `answer` is the shortened output
    of the smoke prediction, `smoke_seconds` its duration; `requirements` as stored with the model.
    """

    model_id: str
    run_id: str
    experiment_id: str
    created: bool
    has_signature: bool
    requirements: tuple[str, ...]
    resources: int
    answer: str
    smoke_seconds: float
    url: str = ""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model; `model_id` is empty when nothing links it to one logged model."""

    name: str
    version: str
    model_id: str
    tags: Mapping[str, str]
    created_ms: int


class ModelRegistry(ABC):
    """Logs agents as models, registers them, and moves aliases."""

    @abstractmethod
    def log(self, agent: Agent, source: SourceRecord, *, progress: Progress, dagster_run_id: str = "") -> LoggedModel:
        """The logged model of this source digest: the existing one, or a new one after a smoke prediction.

        Raises `Refused` when the agent has no `set_model`, does not import, or fails its smoke prediction.
        """

    @abstractmethod
    def register(self, name: str, model_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """The version of this logged model under `name`: the existing one with its tags completed, or a new one."""

    @abstractmethod
    def loads_back(self, version: RegisteredVersion, request: Mapping[str, object], *, progress: Progress) -> str:
        """Load the version from the registry in a process of its own, predict, and return the shortened answer."""

    @abstractmethod
    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """Give the version these tags, an empty value taking a tag away; returns it as the registry has it then.

        In this order, one after the other; no write for what it says already. Raises `Refused` when there is no such
        version.
        """

    @abstractmethod
    def version(self, name: str, version: str) -> RegisteredVersion:
        """The version as the registry has it now, whatever was read before. Raises `Refused` when there is none."""

    def shown_tag(self, tag: str) -> str:
        """The name under which a tag written as `tag` is read: not every registry takes every name."""
        return tag

    @abstractmethod
    def versions(self, name: str, *, anew: Collection[str] = ()) -> list[RegisteredVersion]:
        """Every version, oldest first; empty only when the registered model does not exist or has none.

        The tags of a version may be those this process read before, unless its number is in `anew`.
        """

    @abstractmethod
    def aliases(self, name: str) -> dict[str, str]:
        """Alias to version; empty only when the registered model does not exist or has none."""

    @abstractmethod
    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point `alias` at `version`; no write when it is there already.

        Raises `Refused` when the version does not exist or the registry denies it.
        """

    @abstractmethod
    def delete_alias(self, name: str, alias: str) -> None:
        """Remove `alias`; no write when it is not there."""


class MlflowModelRegistry(ModelRegistry):
    """The registry of an MLflow tracking store, embedded or a server."""

    worker_seconds: float | None = None
    """How long a step that runs the agent's code may take; None: as long as it takes."""

    def __init__(self, platform: Platform) -> None:
        """Opens nothing yet."""
        self._platform = platform

    def log(self, agent: Agent, source: SourceRecord, *, progress: Progress, dagster_run_id: str = "") -> LoggedModel:
        """See `ModelRegistry.log`. Killed anywhere and repeated, one complete model remains."""
        with explained(self._platform.tracking_uri):
            client, experiment = self._client(), experiment_id(self._platform, agent.spec.experiment)
            self._close_abandoned(client, experiment, agent)
            found = self._complete_model(client, experiment, agent, source.digest)
        if found is not None:
            return self._described(found, created=False)
        check_source(agent)
        tags = {marks.AGENT: agent.name, marks.SOURCE_DIGEST: source.digest, marks.GIT_COMMIT: source.git_commit}
        request = {
            **agent_request(agent),
            "experiment_id": experiment,
            "model_tags": {name: value for name, value in tags.items() if value},
            "run_tags": {**tags, marks.STEP: "logged_model", marks.DAGSTER_RUN: dagster_run_id},
        }
        answer = self._run("log_model", request, progress)
        with explained(self._platform.tracking_uri):
            return self._described(client.get_logged_model(answer["model_id"]), created=True)

    def register(self, name: str, model_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """See `ModelRegistry.register`.

        Killed anywhere and repeated, and in any number of processes at once, one version remains: a single process
        may create it (`registration.py`), it names its logged model and its maker from its first moment, and of two
        the later one is removed by its maker, or when that is gone, by whoever comes next.
        """
        wanted = {**storable(tags, self._stored), marks.MODEL_ID: model_id}
        with explained(self._platform.tracking_uri):
            client = self._client()
            found = self._existing(client, name, model_id)
            if found is None:
                run_id = client.get_logged_model(model_id).source_run_id
                look, create = (
                    lambda: self._existing(client, name, model_id),
                    lambda: self._made(client, name, model_id, wanted),
                )
                found = create_once(client, run_id, name, look=look, create=create) if run_id else create()
            for tag, value in wanted.items():
                if found.tags.get(tag) != value:
                    client.set_model_version_tag(name, found.version, self._stored(tag), value)
            self._link_back(client, found)
            return RegisteredVersion(name, found.version, model_id, {**found.tags, **wanted}, found.created_ms)

    def loads_back(self, version: RegisteredVersion, request: Mapping[str, object], *, progress: Progress) -> str:
        """See `ModelRegistry.loads_back`. Writes nothing, no trace either."""
        asked = {"model_uri": f"models:/{version.name}/{version.version}", "input": dict(request)}
        return self._run("predict", asked, progress)["answer"]

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """See `ModelRegistry.tag_version`. Killed in between and repeated, the rest is written."""
        with explained(self._platform.tracking_uri):
            client = self._client()
            tags, found = storable(tags, self._stored), self.version(name, version)
            for tag, value in tags.items():
                if value and found.tags.get(tag) != value:
                    client.set_model_version_tag(name, version, self._stored(tag), value)
                elif not value and tag in found.tags:
                    client.delete_model_version_tag(name, version, self._stored(tag))
            kept = {tag: value for tag, value in {**found.tags, **tags}.items() if value or tag not in tags}
            return replace(found, tags=kept)

    def version(self, name: str, version: str) -> RegisteredVersion:
        """See `ModelRegistry.version`."""
        with explained(self._platform.tracking_uri), self._about_version(name, version):
            return self._described_version(self._client().get_model_version(name, version))

    def versions(self, name: str, *, anew: Collection[str] = ()) -> list[RegisteredVersion]:
        """See `ModelRegistry.versions`. One search tells everything: nothing is remembered."""
        with explained(self._platform.tracking_uri):
            return [_version(one) for one in self._all(name)]

    def aliases(self, name: str) -> dict[str, str]:
        """See `ModelRegistry.aliases`."""
        with explained(self._platform.tracking_uri):
            client = self._client()
            from mlflow.exceptions import MlflowException

            try:
                model = client.get_registered_model(name)
            except MlflowException as error:
                if not self._is_absent(error, name):
                    raise
                return {}
            return {alias: str(version) for alias, version in model.aliases.items()}

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """See `ModelRegistry.set_alias`."""
        with explained(self._platform.tracking_uri):
            if self.aliases(name).get(alias) != version:
                with self._about_version(name, version):
                    self._client().set_registered_model_alias(name, alias, version)

    def delete_alias(self, name: str, alias: str) -> None:
        """See `ModelRegistry.delete_alias`."""
        with explained(self._platform.tracking_uri):
            if alias in self.aliases(name):
                self._client().delete_registered_model_alias(name, alias)

    def _client(self) -> "MlflowClient":
        return open_client(self._platform)

    def _run(self, action: str, request: Mapping[str, object], progress: Progress) -> dict[str, Any]:
        return run_worker(
            action, request, platform=self._platform, progress=progress, timeout_seconds=self.worker_seconds
        )

    def _is_absent(self, error: "MlflowException", name: str) -> bool:
        """Whether the error says that what was asked for does not exist."""
        return error.error_code == "RESOURCE_DOES_NOT_EXIST"

    @contextmanager
    def _about_version(self, name: str, version: str) -> Generator[None]:
        """Say in a sentence that the version inside the block does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if not self._is_absent(error, name):
                raise
            raise Refused(f"Version {version} of {name} is not there: it was deleted, or never registered.") from None

    def _stored(self, tag: str) -> str:
        """The name this registry keeps a tag under."""
        return tag

    def _described_version(self, version: "ModelVersion") -> RegisteredVersion:
        return _version(version)

    def _close_abandoned(self, client: "MlflowClient", experiment: str, agent: Agent) -> None:
        for run in marks.abandoned_runs(client, experiment, {marks.STEP: "logged_model", marks.AGENT: agent.name}):
            discard_run(client, experiment, run.info.run_id, "KILLED")

    def _complete_model(
        self, client: "MlflowClient", experiment: str, agent: Agent, digest: str
    ) -> "MlflowLoggedModel | None":
        tags = {marks.AGENT: agent.name, marks.SOURCE_DIGEST: digest, marks.COMPLETE: "true"}
        found = client.search_logged_models([experiment], marks.where_filter(tags))
        ready = [model for model in found if str(model.status) == "READY"]
        return min(ready, key=lambda model: model.creation_timestamp, default=None)

    def _described(self, model: "MlflowLoggedModel", *, created: bool) -> LoggedModel:
        facts, smoke = json.loads(model.tags[marks.FACTS]), json.loads(model.tags[marks.SMOKE])
        return LoggedModel(
            model_id=model.model_id,
            run_id=model.source_run_id or "",
            experiment_id=model.experiment_id,
            created=created,
            has_signature=facts["has_signature"],
            requirements=tuple(facts["requirements"]),
            resources=facts["resources"],
            answer=smoke["answer"],
            smoke_seconds=smoke["seconds"],
            url=marks.page(self._platform, f"experiments/{model.experiment_id}/models/{model.model_id}"),
        )

    def _all(self, name: str) -> "list[ModelVersion]":
        client, found, token = self._client(), [], None
        while True:
            some = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
            found += some
            token = some.token
            if not token:
                return sorted(found, key=lambda one: int(one.version))

    def _finished(self, client: "MlflowClient", name: str, model_id: str) -> "list[ModelVersion]":
        """The versions of the logged model that can be used, oldest first."""
        return [version for version in self._all(name) if self._described_version(version).model_id == model_id]

    def _existing(
        self, client: "MlflowClient", name: str, model_id: str, *, mine: str = ""
    ) -> RegisteredVersion | None:
        """The version of the logged model: the one an alias names, else the oldest.

        A later one without an alias is removed when this call made it (`mine`), or a process of ours that is gone.
        """
        versions = self._finished(client, name, model_id)
        if len(versions) < 2:
            return self._described_version(versions[0]) if versions else None
        aliased = set(self.aliases(name).values())
        kept = next((version for version in versions if str(version.version) in aliased), versions[0])
        for version in versions:
            if version in (kept, versions[0]) or str(version.version) in aliased:
                continue
            mark = version.tags.get(self._stored(marks.WORKER), "")
            age = time.time() - version.creation_timestamp / 1000
            gone = mark and not maker_lives(mark, age)
            if str(version.version) == mine or gone:
                client.delete_model_version(name, str(version.version))
        return self._described_version(kept)

    def _made(self, client: "MlflowClient", name: str, model_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        made = self._created(client, name, model_id, {**tags, marks.WORKER: myself()})
        return self._existing(client, name, model_id, mine=made.version) or made

    def _created(self, client: "MlflowClient", name: str, model_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """A new version; its tags name the logged model and the maker from the first moment."""
        self._ensure_model(client, name)
        model = client.get_logged_model(model_id)
        version = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=model.source_run_id,
            model_id=model_id,
            tags=dict(tags),
            await_creation_for=READY_SECONDS,
        )
        return _version(version)

    def _ensure_model(self, client: "MlflowClient", name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise

    def _link_back(self, client: "MlflowClient", version: RegisteredVersion) -> None:
        """Name the version on the logged model, as MLflow's server does and its embedded store does not."""
        model = client.get_logged_model(version.model_id)
        links = json.loads(model.tags.get("mlflow.modelVersions") or "[]")
        if not any(link["name"] == version.name and str(link["version"]) == version.version for link in links):
            links.append({"name": version.name, "version": version.version})
            client.set_logged_model_tags(version.model_id, {"mlflow.modelVersions": json.dumps(links)})


def _version(version: "ModelVersion") -> RegisteredVersion:
    tags = {tag: value for tag, value in version.tags.items() if tag != marks.WORKER}
    return RegisteredVersion(
        name=version.name,
        version=str(version.version),  # An int from SQLite, a str over HTTP.
        model_id=model_named(tags.get(marks.MODEL_ID, ""), version.source),
        tags=tags,
        created_ms=int(version.creation_timestamp),
    )
