"""What handing over to any runtime of the workspace needs.

Lives here: one form for errors, looking again when a look fails for a moment, and the marks of a hand-off.
Add here: what a second runtime needs too.
Not here: a runtime itself (`serving.py`, `apps.py`, `job_trigger.py`), the variables (`resources/deployer.py`).
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_secrets import looks_secret
from resources.databricks.faults import message
from resources.explain import explained
from resources.worker import Progress

HANDED_AT = "LIFECYCLE_HANDED_AT"
"""Variable that says when a version was handed over: it goes where the version goes, and is no difference by itself."""

Result = TypeVar("Result")


@contextmanager
def asked(what: str) -> Generator[None]:
    """Turn what the workspace or the network answers inside the block into `Refused`; `what` begins the sentence."""
    try:
        with explained("databricks"):
            yield
    except OSError as error:  # Every error of databricks-sdk and of requests is one.
        raise Refused(f"{what}: the workspace answered: {said(message(error) or type(error).__name__)}.") from error


def patient(look: Callable[[], Result | None], progress: Progress) -> Callable[[], Result | None]:
    """`look` for a wait: a busy, broken or silent workspace is not the end of what is waited for."""

    def again() -> Result | None:
        from databricks.sdk.errors import InternalError, TemporarilyUnavailable

        try:
            return look()
        except (InternalError, TemporarilyUnavailable, TimeoutError) as error:
            progress(f"the workspace did not answer ({said(str(error), 100)}); looking again")
            return None

    return again


def said(text: str | None, limit: int = 300) -> str:
    """What the workspace said as one bounded line without a full stop at its end."""
    line = " ".join("".join(ch if ch.isprintable() else " " for ch in text or "").split()).rstrip(". ")
    return (line if len(line) <= limit else line[: limit - 1] + "…") or "no reason given"


def same(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two environments say the same, whenever they were handed over."""
    return {**one, HANDED_AT: ""} == {**other, HANDED_AT: ""}


def shown(env: dict[str, str]) -> dict[str, str]:
    """An environment for people: a secret somebody wrote into the runtime by hand stays unseen."""
    return {name: "(not shown)" if looks_secret(name, value) else value for name, value in env.items()}


def now() -> str:
    """The present moment, UTC, as hand-offs carry it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def at(epoch_ms: int | None) -> str:
    """A moment of the workspace as hand-offs carry it; empty when it is not known."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="seconds") if epoch_ms else ""
