"""Logged models and registered versions in a Databricks workspace.

Lives here: where Unity Catalog's registry differs from MLflow's own: what its searches leave out, versions that are
not ready yet, duplicates an answer that got lost leaves behind, the names its tags may have.
Add here: a further difference of that registry.
Not here: how a version says whose it is (`model_versions.py`), what both registries do alike
(`resources/model_registry.py`), steps that run the agent's code (`model_steps.py`).

Creating a version is a POST that the client repeats when the answer is lost, an upload, and a second POST. Every
version therefore names its logged model and the process that makes it from its first moment; one that is not READY
and whose maker is gone is removed, and the finished one is kept. Nothing else is ever deleted.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lifecycle_assets.refused import Refused
from resources import run_marks as marks
from resources.databricks.registry.model_versions import being_made, described_version, model_of, shown_tag, stored_tag
from resources.databricks.workspace import wait_for
from resources.explain import explained
from resources.model_registry import READY_SECONDS, MlflowModelRegistry, RegisteredVersion
from resources.platform import Platform

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

POLL_SECONDS = 1.0
"""How long between two looks at a version that is not ready."""

LOST_ANSWER_SECONDS = 20
"""How long a version is looked for after its registration failed: it may have been done, and only the answer lost."""

READERS = 8
"""Versions read at once: a search tells neither tags nor aliases, each version is asked for them."""

_seen: dict[tuple[Platform, str, str, int], RegisteredVersion] = {}
"""Versions that were read with their evaluation: what they say of where they come from is not asked again."""


class UnityModelRegistry(MlflowModelRegistry):
    """The registry of Unity Catalog, and the logged models of the workspace."""

    worker_seconds = 1800

    def versions(self, name: str, *, anew: Collection[str] = ()) -> list[RegisteredVersion]:
        """See `ModelRegistry.versions`. One request a version, as a search tells no tags."""
        with explained(self._platform.tracking_uri):
            hits, found = self._hits(name), {}
            for hit in hits:
                seen = _seen.get(self._key(hit))
                if seen is not None and seen.version not in anew:
                    found[seen.version] = seen
            for version in self._read(name, [hit for hit in hits if str(hit.version) not in found]):
                described = described_version(version)
                found[described.version] = described
                if version.status == "READY" and marks.EVALUATION in described.tags:
                    _seen[self._key(version)] = described
            return sorted(found.values(), key=lambda one: int(one.version))

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """See `ModelRegistry.set_alias`. Only a version that is READY gets one."""
        with explained(self._platform.tracking_uri):
            if self.aliases(name).get(alias) == version:
                return
            with self._about_version(name, version):
                self._ready(self._client(), name, version)
            try:
                self._client().set_registered_model_alias(name, alias, version)
            except Exception:  # Whatever was raised, it may have been set: the registry knows.
                if self.aliases(name).get(alias) != version:
                    raise

    def delete_alias(self, name: str, alias: str) -> None:
        """See `ModelRegistry.delete_alias`."""
        with explained(self._platform.tracking_uri):
            try:
                super().delete_alias(name, alias)
            except Exception:  # Whatever was raised, it may have been removed: the registry knows.
                if alias in self.aliases(name):
                    raise

    def version(self, name: str, version: str) -> RegisteredVersion:
        """See `ModelRegistry.version`. What this process remembers of the version is forgotten."""
        for key in [key for key in _seen if key[:3] == (self._platform, name, version)]:
            del _seen[key]
        return super().version(name, version)

    def shown_tag(self, tag: str) -> str:
        """See `ModelRegistry.shown_tag`."""
        return shown_tag(stored_tag(tag))

    def _stored(self, tag: str) -> str:
        return stored_tag(tag)

    def _described_version(self, version: "ModelVersion") -> RegisteredVersion:
        return described_version(version)

    def _created(self, client: "MlflowClient", name: str, model_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        self._ensure_model(client, name)
        try:
            version = client.create_model_version(
                name,
                source=f"models:/{model_id}",
                model_id=model_id,
                tags={stored_tag(tag): value for tag, value in tags.items()},
            ).version
        except Exception as error:  # Whatever was raised, the work may have been done: the registry knows.
            if "Model passed for registration" in str(error):
                raise Refused(
                    f"{model_id} has no signature with inputs and outputs, which Unity Catalog requires: make the "
                    "agent a ResponsesAgent, or give its predict type hints, then release again."
                ) from error
            done = self._done_after_all(client, name, model_id)
            if done is None:
                raise
            return done
        return self._ready(client, name, str(version))

    def _done_after_all(self, client: "MlflowClient", name: str, model_id: str) -> RegisteredVersion | None:
        """The version whose registration raised, when the workspace has finished it nevertheless."""
        until = time.monotonic() + LOST_ANSWER_SECONDS
        while True:
            versions = self._of_model(name, model_id)
            ready = [version for version in versions if version.status == "READY"]
            if ready or not versions or time.monotonic() > until:
                return described_version(ready[0]) if ready else None
            time.sleep(POLL_SECONDS)

    def _finished(self, client: "MlflowClient", name: str, model_id: str) -> "list[ModelVersion]":
        """The READY versions of the logged model. What a process that is gone left unfinished is removed.

        A version that another process is making is waited for.
        """
        while True:
            versions = self._of_model(name, model_id)
            ready = [version for version in versions if version.status == "READY"]
            making = next((version for version in versions if being_made(version)), None)
            if ready or making is None:
                self._remove_unfinished(client, name, versions)
                return ready
            self._ready(client, name, str(making.version))

    def _ready(self, client: "MlflowClient", name: str, version: str) -> RegisteredVersion:
        """The version once it is READY."""

        def look() -> "ModelVersion | None":
            found = client.get_model_version(name, version)
            if found.status == "FAILED_REGISTRATION":
                raise Refused(
                    f"Version {version} of {name} could not be registered: "
                    f"{marks.shortened(found.status_message or 'the workspace gives no reason')}; run this step again."
                )
            return found if found.status == "READY" else None

        what = f"Registering version {version} of {name}"
        found = wait_for(what, look, seconds=READY_SECONDS, progress=lambda _: None, every=POLL_SECONDS)
        return described_version(found)

    def _remove_unfinished(self, client: "MlflowClient", name: str, versions: "Iterable[ModelVersion]") -> None:
        """Delete versions made by us that never became READY: looked at once more, without an alias only."""
        from mlflow.exceptions import MlflowException

        for version in versions:
            if version.status == "READY" or stored_tag(marks.WORKER) not in version.tags:
                continue
            try:
                now = client.get_model_version(name, version.version)
                if now.status != "READY" and not now.aliases:
                    client.delete_model_version(name, version.version)
            except MlflowException as error:
                if not self._is_absent(error, name):
                    raise

    def _of_model(self, name: str, model_id: str) -> "list[ModelVersion]":
        """Every version of the logged model, finished or not, oldest first."""
        found = [version for version in self._read(name, self._hits(name)) if model_of(version) == model_id]
        return sorted(found, key=lambda version: int(version.version))

    def _hits(self, name: str) -> "list[ModelVersion]":
        """What a search tells of all versions; empty only when the registered model does not exist or has none."""
        from mlflow.exceptions import MlflowException

        client, found, token = self._client(), [], None
        while True:
            try:
                some = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
            except MlflowException as error:
                if not self._is_absent(error, name):
                    raise
                return []
            found += some
            token = some.token
            if not token:
                return found

    def _read(self, name: str, hits: "Sequence[ModelVersion]") -> "list[ModelVersion]":
        """Those versions, whole; one that was deleted meanwhile is left out."""
        from mlflow.exceptions import MlflowException

        client = self._client()

        def whole(hit: "ModelVersion") -> "ModelVersion | None":
            try:
                return client.get_model_version(name, str(hit.version))
            except MlflowException as error:
                if not self._is_absent(error, name):
                    raise
                return None

        return [version for version in _at_once(whole, hits) if version is not None]

    def _key(self, version: "ModelVersion") -> tuple[Platform, str, str, int]:
        """Names a version for good: numbers begin anew when a registered model is deleted and made again."""
        return self._platform, version.name, str(version.version), int(version.creation_timestamp)

    def _is_absent(self, error: Exception, name: str) -> bool:
        """Whether the workspace says that the model or version does not exist: any other 404 is a failure to read."""
        code, text = getattr(error, "error_code", ""), str(error)
        return code == "RESOURCE_DOES_NOT_EXIST" or (code == "NOT_FOUND" and name.rpartition(".")[2] in text)


def _at_once(
    work: "Callable[[ModelVersion], ModelVersion | None]", items: "Sequence[ModelVersion]"
) -> "list[ModelVersion | None]":
    """`work` of every item, some at a time, in order. The first failure ends it: what has not begun is not begun."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(READERS, len(items))) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
