"""Registering a logged model once.

Lives here: who may create its version, who made one, and what a version's tags may be.
Add here: a condition that both registries put on registering.
Not here: creating and finding versions (`model_registry.py`, `databricks/registry/model_registry.py`).

A registry never says that a logged model is registered already, and of two processes that look and then create, both
create. So the right to create is claimed first, on the run that logged the model. The claim of a process that is gone
is followed by the next claim; that one looks again before it creates, and what is there twice all the same is removed
by whoever made the later version.
"""

import re
import time
import uuid
from collections.abc import Callable, Mapping
from itertools import count, takewhile
from typing import TYPE_CHECKING

from lifecycle_assets.records import digest
from lifecycle_assets.refused import Refused
from resources import claims
from resources import run_marks as marks

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from resources.model_registry import RegisteredVersion

LOOK_SECONDS = 0.5
"""How long between two looks at what the process that claimed the creation has done."""

MAKING_SECONDS = 1800
"""How long the files of a version may take to be written; a process of that number later on is another one."""

TAG_KEY_CHARACTERS, TAG_VALUE_CHARACTERS, TAGS = 250, 1000, 50
"""What a version may hold everywhere: keys as MLflow's, values and number of tags as Unity Catalog's
(https://docs.databricks.com/database-objects/tags.html)."""

_KEY = re.compile(r"[\w./ :-]+")


def create_once(
    client: "MlflowClient",
    run_id: str,
    name: str,
    *,
    look: "Callable[[], RegisteredVersion | None]",
    create: "Callable[[], RegisteredVersion]",
) -> "RegisteredVersion":
    """The version that `look` finds, once one process has called `create`; the others wait for it.

    Raises `Refused` when a process that still runs has not created it in `MAKING_SECONDS`.
    """
    key = f"lifecycle.version.{digest(name)}"
    until = time.monotonic() + MAKING_SECONDS
    while time.monotonic() < until:
        run = client.get_run(run_id)
        taken = list(takewhile(run.data.params.__contains__, (f"{key}.{number}" for number in count(1))))
        if taken and taken[-1] not in run.data.tags and _at_work(run.data.params[taken[-1]]):
            found = look()
            if found is not None:
                return found
            time.sleep(LOOK_SECONDS)
            continue
        mine, slot = f"{int(time.time())} {uuid.uuid4().hex[:8]} {claims.myself()}", f"{key}.{len(taken) + 1}"
        if claims.claim(client, run_id, slot, mine) != mine:
            continue
        try:
            return look() or create()
        finally:
            client.set_tag(run_id, slot, "ended")
    raise Refused(f"{name}: another process has been registering this model for half an hour; end it, then run again.")


def _at_work(claimed: str) -> bool:
    since, _, claimant = claimed.partition(" ")
    age = time.time() - int(since) if since.isdigit() else MAKING_SECONDS
    return maker_lives(claimant.partition(" ")[2], age)


def maker_lives(mark: str, age_seconds: float) -> bool:
    """Whether who made a version `age_seconds` ago, and left `claims.myself` on it, may still be at it."""
    return claims.at_work(mark, age_seconds, believed_seconds=MAKING_SECONDS)


def model_named(tag: str, source: object, known: str = "") -> str:
    """The logged model of a version: what its tag says, where its files are from and what the registry knows agree on.

    Empty when nothing names one, or they name different ones: anybody may write a tag, so that one alone would let a
    version take over the evidence of another model.
    """
    origin = str(source or "")
    linked = origin.removeprefix("models:/") if origin.startswith("models:/m-") else ""
    named = {one for one in (tag, linked, known) if one}
    return named.pop() if len(named) == 1 else ""


def storable(tags: Mapping[str, str], stored: Callable[[str], str]) -> dict[str, str]:
    """The tags with values cut to what a version can hold; `stored` is the name a registry keeps a tag under.

    Raises `Refused` for a key that cannot be stored, before anything is.
    """
    under: dict[str, str] = {}
    for key in tags:
        if not _KEY.fullmatch(key) or len(key) > TAG_KEY_CHARACTERS:
            raise Refused(
                f"A version cannot have the tag '{marks.shortened(key, 80)}': use at most {TAG_KEY_CHARACTERS} "
                "letters, digits, spaces and . _ - / :, and run again."
            )
        twin = under.setdefault(stored(key), key)
        if twin != key:
            raise Refused(f"The tags '{twin}' and '{key}' are one to this registry ({stored(key)}): rename one.")
    if len(tags) > TAGS:
        raise Refused(f"A version can have {TAGS} tags, {len(tags)} were given: drop some.")
    return {key: marks.shortened(value, TAG_VALUE_CHARACTERS) for key, value in tags.items()}
