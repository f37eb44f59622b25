"""What a version in Unity Catalog says of itself.

Lives here: our tags under the names that registry takes, the logged model of a version, whether one is still made.
Add here: another fact that is kept on a version.
Not here: asking for versions and changing them (`model_registry.py`).
"""

import os
import socket
import time
from typing import TYPE_CHECKING

from resources import run_marks as marks
from resources.model_registry import READY_SECONDS, RegisteredVersion

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

MAKING_SECONDS = 1800
"""How long the files of a version may take to be written; a process of that number later on is another one."""

_PREFIX, _STORED_PREFIX = "lifecycle.", "lifecycle_"


def stored_tag(name: str) -> str:
    """The name of a tag as Unity Catalog takes it: `. , - = / :` are reserved there."""
    return "".join("_" if letter in ".,-=/:" else letter for letter in name)


def model_of(version: "ModelVersion") -> str:
    """The logged model of a version; empty when nothing links it to one."""
    source = str(version.source or "")
    linked = source.removeprefix("models:/") if source.startswith("models:/m-") else ""
    return version.tags.get(stored_tag(marks.MODEL_ID)) or version.model_id or linked


def described_version(version: "ModelVersion") -> RegisteredVersion:
    """The version with our tags under the names they have everywhere else; who made it is left out."""
    tags = {
        _PREFIX + tag.removeprefix(_STORED_PREFIX) if tag.startswith(_STORED_PREFIX) else tag: value
        for tag, value in version.tags.items()
        if tag != stored_tag(marks.WORKER)
    }
    return RegisteredVersion(
        name=version.name,
        version=str(version.version),
        model_id=model_of(version),
        tags=tags,
        created_ms=int(version.creation_timestamp),
    )


def maker() -> str:
    """How this process names itself on a version it makes."""
    return f"{socket.gethostname()}:{os.getpid()}"


def being_made(version: "ModelVersion") -> bool:
    """Whether a process may still be at work on it: not when it ran here and is gone, nor after `MAKING_SECONDS`.

    Of another machine's process nothing is known: it is believed for `READY_SECONDS`.
    """
    if version.status != "PENDING_REGISTRATION":
        return False
    age = time.time() - version.creation_timestamp / 1000
    host, _, process = version.tags.get(stored_tag(marks.WORKER), "").rpartition(":")
    if host == socket.gethostname() and process.isdigit():
        return age < MAKING_SECONDS and int(process) != os.getpid() and marks.process_lives(int(process))
    return age < READY_SECONDS
