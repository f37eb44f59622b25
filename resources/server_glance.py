"""Cheap looks at an MLflow server: one request for each thing watched, with nothing of Dagster's and no gateway.

Lives here: the same facts that `store_glance.py` reads from MLflow's SQLite file, through MLflow's own client.
Add here: a further thing a sensor watches, as facts of one answer.
Not here: what is compared with what (`store_glance.py`), what the facts mean.

Several things may be told by one answer, which is then asked for once a look. That something does not exist is a fact
as well; every other refusal tells nothing, and who asked goes on as if there were no look. A server that does not
answer raises `MlflowException`: asking it more would only wait once more.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from resources.mlflow_store import open_client
from resources.platform import Platform

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.entities.model_registry import RegisteredModel

PAGE = 1000
"""Versions a request: what the registry asks for as well (`model_registry.py`)."""

ITEMS = 500
"""Items of a review queue a request: the most a server gives."""

Facts = object
"""Anything whose `repr` is the same for the same facts."""


class NotToldError(Exception):
    """The server was asked, or would have to be, and what is watched cannot be told by its answer."""


class ServerAnswers:
    """What a server answers within one look: each question is asked once."""

    def __init__(self, platform: Platform) -> None:
        """Asks nothing yet. Imports MLflow."""
        self._client = open_client(platform)
        self._model, self._experiment = cache(self._asked_model), cache(self._asked_experiment)

    def aliases(self, model: str) -> Facts:
        """The aliases of a registered model."""
        found = self._model(model)
        return found and sorted((alias, str(version)) for alias, version in found.aliases.items())

    def versions(self, model: str, tags: Sequence[str]) -> Facts:
        """All versions of a registered model with those of their tags."""
        found = pages(lambda token: self._client.search_model_versions(f"name = '{model}'", PAGE, page_token=token))
        return sorted(
            (str(one.version), one.current_stage, one.creation_timestamp, [one.tags.get(tag) for tag in tags])
            for one in found
        )

    def version_at(self, model: str, alias: str) -> Facts:
        """The version an alias names, with all its tags."""
        absent = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # The latter for an alias that is not set.
        found = told(lambda: self._client.get_model_version_by_alias(model, alias), absent)
        return found and (str(found.version), found.current_stage, sorted(found.tags.items()))

    def run_named_by(self, model: str, experiment: str, tag: str) -> Facts:
        """The run that a registered model names by a tag, or else an experiment: its stage, parameters and tags."""
        found = self._model(model)
        named = found.tags.get(tag) if found else None
        by: Facts = model
        if not named:
            deciding = self._experiment(experiment)
            named = deciding.tags.get(tag) if deciding else None
            by = deciding and (experiment, deciding.lifecycle_stage)
        run: Run | None = told(lambda: self._client.get_run(named)) if named else None
        data = run and (run.info.lifecycle_stage, sorted(run.data.params.items()), sorted(run.data.tags.items()))
        return by, named, data

    def experiment_tags(self, experiment: str, prefix: str) -> Facts:
        """The tags of an experiment whose names begin with `prefix`."""
        found = self._experiment(experiment)
        return found and (
            found.experiment_id,
            found.lifecycle_stage,
            sorted((key, value) for key, value in found.tags.items() if key.startswith(prefix)),
        )

    def completed_items(self, queue_id: str) -> Facts:
        """The completed items of a review queue, and when each was completed."""
        from mlflow.genai.review_queues import list_review_queue_items

        found = pages(
            lambda token: list_review_queue_items(queue_id, status="complete", max_results=ITEMS, page_token=token)
        )
        return sorted((one.item_id, one.last_update_time_ms) for one in found)

    def dataset(self, dataset_id: str) -> Facts:
        """An evaluation dataset: every write of records changes the digest or the number of records."""
        if not dataset_id:
            raise NotToldError
        found = told(lambda: self._client.get_dataset(dataset_id))
        return found and (found.dataset_id, found.name, found.digest, found.profile, found.last_update_time)

    def _asked_model(self, name: str) -> "RegisteredModel | None":
        return told(lambda: self._client.get_registered_model(name))

    def _asked_experiment(self, name: str) -> "Experiment | None":
        return told(lambda: self._client.get_experiment_by_name(name))


def told(ask: Callable[[], Any], absent: Sequence[str] = ("RESOURCE_DOES_NOT_EXIST",)) -> Any:
    """The answer, None for what does not exist. Raises `NotToldError` for another refusal of the server's."""
    from mlflow.exceptions import RestException

    try:
        return ask()
    except RestException as error:
        if error.error_code not in absent:
            raise NotToldError from error
        return None


def pages(ask: Callable[[str | None], Any]) -> list[Any]:
    """What all pages hold, each asked for by the token of the one before; nothing for what does not exist."""
    found: list[Any] = []
    token = None
    while True:
        some = told(partial(ask, token))
        found += some or []
        token = some.token if some is not None else None
        if not token:
            return found


def facts_of(platform: Platform, watched: Sequence[tuple[Facts, Callable[[ServerAnswers], Facts]]]) -> str:
    """Digest of the facts of all things watched, each given with what names it; empty when one cannot be told."""
    answers, found = ServerAnswers(platform), hashlib.sha256(platform.tracking_uri.encode())
    try:
        for about, ask in watched:
            found.update(repr((about, ask(answers))).encode())
    except NotToldError:
        return ""
    return found.hexdigest()[:32]
