"""The workspace's client: one a process, with bounded waits.

Lives here: opening `databricks.sdk.WorkspaceClient`, and waiting for a state.
Add here: what every gateway to the workspace needs.
Not here: what is asked of the workspace; MLflow's own client (`resources/mlflow_store.py`).
"""

import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from lifecycle_assets.refused import Refused
from resources.databricks.faults import message
from resources.platform import Platform
from resources.worker import Progress

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

REQUEST_SECONDS = 20.0
"""How long one request may take, and how long it is tried again in all when the workspace says 429 or 503."""

Result = TypeVar("Result")


@cache
def open_workspace(platform: Platform, *, seconds: float = REQUEST_SECONDS) -> "WorkspaceClient":
    """The workspace's client, by the SDK's own authentication: environment, profile, or the runtime's.

    `seconds` bounds a request, and again its retries. Raises `Refused` when no way to authenticate is configured.
    """
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.clock import RealClock
    from databricks.sdk.core import Config

    class Impatient(RealClock):
        """Sleeps no longer than the retries may take in all: the SDK sleeps a Retry-After as long as it says."""

        def sleep(self, seconds: float) -> None:
            super().sleep(min(seconds, limit))

    limit, profile = seconds, platform.tracking_uri.partition("://")[2] or None
    try:
        config = Config(
            profile=profile,
            http_timeout_seconds=seconds,
            retry_timeout_seconds=int(seconds),
            product="lifecycle-assets",
            product_version=version("lifecycle-assets"),
            clock=Impatient(),
        )
        return WorkspaceClient(config=config)
    except ValueError as error:
        reason = message(error)[:200]
        raise Refused(
            f"No Databricks workspace can be reached with this environment ({reason}): set DATABRICKS_HOST and sign in "
            "(databricks auth login), or name a profile by MLFLOW_TRACKING_URI=databricks://PROFILE."
        ) from None


def require_agents() -> None:
    """Raise `Refused` when databricks-agents is not installed."""
    if find_spec("databricks") is None or find_spec("databricks.agents") is None:
        raise Refused("databricks-agents is not installed: run pip install 'lifecycle-assets[databricks]'.")


def wait_for(
    what: str, look: Callable[[], Result | None], *, seconds: float, progress: Progress, every: float = 2.0
) -> Result:
    """What `look` gives once it is not None; asked at once, then every `every` seconds, `seconds` in all.

    Raises `Refused` when the time is up; the work in the workspace goes on.
    """
    until = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() + every > until:
            raise Refused(f"{what} is not done after {seconds:g} s; it goes on there: run this step again later.")
        progress(f"waiting for {what}")
        time.sleep(every)
