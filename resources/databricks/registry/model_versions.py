"""What a version in Unity Catalog says of itself.

Lives here: our tags under the names that registry takes, the logged model of a version, whether one is still made.
Add here: another fact that is kept on a version.
Not here: asking for versions and changing them (`model_registry.py`).
"""

import time
from typing import TYPE_CHECKING

from resources import run_marks as marks
from resources.model_registry import RegisteredVersion
from resources.registration import maker_lives, model_named

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_PREFIX, _STORED_PREFIX = "lifecycle.", "lifecycle_"


def stored_tag(name: str) -> str:
    """The name of a tag as Unity Catalog takes it: `. , - = / :` are reserved there."""
    return "".join("_" if letter in ".,-=/:" else letter for letter in name)


def shown_tag(stored: str) -> str:
    """The name a stored tag is given back under: ours as they are everywhere else, others as they are."""
    return _PREFIX + stored.removeprefix(_STORED_PREFIX) if stored.startswith(_STORED_PREFIX) else stored


def model_of(version: "ModelVersion") -> str:
    """The logged model of a version; see `model_named`."""
    return model_named(version.tags.get(stored_tag(marks.MODEL_ID), ""), version.source, version.model_id or "")


def described_version(version: "ModelVersion") -> RegisteredVersion:
    """The version with our tags under the names they have everywhere else; who made it is left out."""
    tags = {shown_tag(tag): value for tag, value in version.tags.items() if tag != stored_tag(marks.WORKER)}
    return RegisteredVersion(
        name=version.name,
        version=str(version.version),
        model_id=model_of(version),
        tags=tags,
        created_ms=int(version.creation_timestamp),
    )


def being_made(version: "ModelVersion") -> bool:
    """Whether somebody may still be at work on it; see `claims.at_work`."""
    if version.status != "PENDING_REGISTRATION":
        return False
    age = time.time() - version.creation_timestamp / 1000
    return maker_lives(version.tags.get(stored_tag(marks.WORKER), ""), age)
