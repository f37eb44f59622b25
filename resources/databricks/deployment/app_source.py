"""The files of an app's source that a hand-off touches.

Lives here: reading and writing `app.yaml`, and the copy of it to go back to.
Add here: a further file of the source a hand-off writes.
Not here: what stands in `app.yaml` (`app_yaml.py`), deploying it (`apps.py`).
"""

import base64
from dataclasses import dataclass
from datetime import datetime

from lifecycle_assets.refused import Refused
from resources.databricks.deployment.app_yaml import Items, items_of, render
from resources.databricks.deployment.handing import HANDED_AT
from resources.databricks.workspace import open_workspace
from resources.platform import Platform

BEFORE = "app.yaml.before-hand-off"
"""Beside `app.yaml` while a hand-off is under way: the text to go back to. A run that died leaves it for the next."""


@dataclass(frozen=True)
class Source:
    """`app.yaml`: its path, its text (empty when absent), when it was written (epoch seconds)."""

    path: str
    text: str
    written: float

    @property
    def env(self) -> dict[str, str]:
        """Our variables in it."""
        return plain(items_of(self.text))

    @property
    def references(self) -> dict[str, str]:
        """Those of them that come from a resource of the app."""
        return plain([item for item in items_of(self.text) if "valueFrom" in item])


class AppSource:
    """The folder an app is deployed from."""

    def __init__(self, platform: Platform, folder: str) -> None:
        self._platform = platform
        self.folder = folder.rstrip("/")

    def read(self) -> Source:
        """`app.yaml`, or `app.yml` when only that is there."""
        for name in ("app.yaml", "app.yml"):
            path = f"{self.folder}/{name}"
            text = self._text(path)
            if text is not None:
                status = open_workspace(self._platform).workspace.get_status(path)
                handed = plain(items_of(text)).get(HANDED_AT, "")
                return Source(path, text, status.modified_at / 1000 if status.modified_at else epoch(handed))
        return Source(f"{self.folder}/app.yaml", "", 0.0)

    def unfinished(self, source: Source) -> str | None:
        """The text a hand-off that ended midway started from, None when none did or the text was changed since."""
        before = self._text(f"{self.folder}/{BEFORE}")
        if before is None or render(before, items_of(source.text)) != source.text != before:
            return None
        return before

    def change(self, source: Source, items: Items, former: str) -> Source:
        """Put `items` into `app.yaml`, keeping `former` as the text to go back to."""
        self._write(f"{self.folder}/{BEFORE}", former)
        self._write(source.path, render(source.text, items))
        return self.read()

    def go_back(self, source: Source, former: str) -> Source:
        """Make `app.yaml` what it was; one that was absent or empty goes."""
        if former:
            self._write(source.path, former)
        else:
            self._delete(source.path)
        return self.read()

    def settle(self) -> None:
        """Forget the text to go back to."""
        if self._text(f"{self.folder}/{BEFORE}") is not None:
            self._delete(f"{self.folder}/{BEFORE}")

    def _text(self, path: str) -> str | None:
        from databricks.sdk.errors import NotFound
        from databricks.sdk.service.workspace import ExportFormat

        try:
            found = open_workspace(self._platform).workspace.export(path, format=ExportFormat.AUTO)
        except NotFound as error:
            if error.error_code == "ENDPOINT_NOT_FOUND":
                raise
            return None
        try:
            return base64.b64decode(found.content or "").decode()
        except UnicodeDecodeError:
            raise Refused(f"{path}: is not UTF-8 text; correct the file in the app's source.") from None

    def _write(self, path: str, text: str) -> None:
        from databricks.sdk.service.workspace import ImportFormat

        content = base64.b64encode(text.encode()).decode()
        open_workspace(self._platform).workspace.import_(
            path, content=content, format=ImportFormat.AUTO, overwrite=True
        )

    def _delete(self, path: str) -> None:
        from databricks.sdk.errors import NotFound

        try:
            open_workspace(self._platform).workspace.delete(path)
        except NotFound:
            return  # The answer of a first try was lost.


def plain(items: Items) -> dict[str, str]:
    """Items of `env` as a mapping; a secret is shown as the app's resource it comes from."""
    return {item["name"]: item["value"] if "value" in item else f"valueFrom {item['valueFrom']}" for item in items}


def epoch(moment: str) -> float:
    """Epoch seconds of an ISO 8601 moment, 0 for anything else."""
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return 0.0
