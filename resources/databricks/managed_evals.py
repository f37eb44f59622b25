"""Requests to the workspace's managed evaluations (review apps, labeling sessions, datasets) with a bound on each.

Lives here: one request, and every page of a list.
Add here: nothing of what is asked; that belongs to `labeling_desk.py` and `datasets.py`.
Not here: what MLflow's own client does (`labeling_steps.py`).

databricks-agents makes the same requests without a time limit, logs a failed write as if it were done, and opens a
Spark session for a dataset whose table is not kept by the service. So what can be read or written by one plain request
goes through databricks-sdk, which signs in the same way, bounds every request, and changes nothing in the process.
"""

import time
from typing import Any
from urllib.parse import quote

from lifecycle_assets.refused import Refused
from resources.databricks.workspace import open_workspace
from resources.platform import Platform

BASE = "/api/2.0/managed-evals"
PAGE = 500
"""Entries of one page, as databricks-agents asks for them."""

SECONDS = 10.0
"""Bound of one request, and again of its retries: within 20 s, unless the workspace itself asks for a longer wait."""

READ_SECONDS = 20.0
"""No further page is asked for after this long: with the last request a list ends within 40 s."""

NOWHERE = ("ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "CATALOG_DOES_NOT_EXIST", "SCHEMA_DOES_NOT_EXIST")
"""Codes of a 404 that do not say that the thing asked for is absent."""


class ManagedEvals:
    """The requests. Raises what databricks-sdk raises; `explained` turns that into sentences."""

    def __init__(self, platform: Platform) -> None:
        """Opens nothing yet."""
        self._platform = platform

    def send(self, method: str, path: str, *, query: Any = None, body: Any = None) -> dict[str, Any]:
        """The answer to one request; empty when it has none."""
        client = open_workspace(self._platform, seconds=SECONDS)
        answer = client.api_client.do(method, path, query=query, body=body)
        return answer if isinstance(answer, dict) else {}

    def found(self, path: str, *, query: Any = None) -> dict[str, Any] | None:
        """The answer to a GET, None when the thing is not there. Any other error is raised: it says nothing of that."""
        from databricks.sdk.errors import NotFound

        try:
            return self.send("GET", path, query=query)
        except NotFound as error:
            if (error.error_code or "") in NOWHERE:
                raise
            return None

    def pages(self, path: str, field: str, *, seconds: float = READ_SECONDS, query: Any = None) -> list[dict[str, Any]]:
        """The entries `field` of every page. Raises `Refused` when more is left after `seconds`."""
        entries: list[dict[str, Any]] = []
        until, token = time.monotonic() + seconds, ""
        while True:
            asked = {**(query or {}), "page_size": PAGE, **({"page_token": token} if token else {})}
            answer = self.send("GET", path, query=asked)
            entries += answer.get(field) or []
            token = answer.get("next_page_token") or ""
            if not token:
                return entries
            if time.monotonic() > until:
                raise Refused(f"{path} was not read to its end within {seconds:g} s; run again later.")


def part(name: str) -> str:
    """A name as one segment of an address, whatever it holds."""
    return quote(name, safe="")
