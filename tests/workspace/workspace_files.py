"""Files of the workspace's own tree (`/Workspace/...`), as the Workspace API imports and exports them.

Lives here: files and folders by path. Add here: another object of that tree.
Not here: volumes and DBFS (`files.py`), what an app does with its source (`apps.py`).
"""

import base64
import posixpath
import re
import time
from typing import Any

from tests.workspace.app import Call, Failure, Reply, Route, Workspace

BASE = "/api/2.0/workspace"


class WorkspaceFiles:
    """`files` maps a path to its content, `modified` to epoch milliseconds; paths are kept without `/Workspace`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.files: dict[str, bytes] = {}
        self.modified: dict[str, int] = {}
        self.folders: set[str] = {"/", "/Users", "/Shared"}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        return [
            Route("POST", f"{BASE}/import", self.put),
            Route("GET", f"{BASE}/export", self.export),
            Route("POST", f"{BASE}/mkdirs", self.mkdirs),
            Route("GET", f"{BASE}/get-status", self.status),
            Route("GET", f"{BASE}/list", self.list),
            Route("POST", f"{BASE}/delete", self.delete),
        ]

    def write(self, path: str, content: str) -> None:
        """Put a file there, with its folders."""
        self._mkdirs(posixpath.dirname(_path(path)))
        self._write(_path(path), content.encode())

    def text(self, path: str) -> str:
        """Content of a file."""
        return self.files[_path(path)].decode()

    def put(self, call: Call) -> None:
        """POST import: JSON with base64 content, or a multipart form with the bytes themselves."""
        form = call.headers.get("content-type", "").startswith("multipart/form-data")
        asked = _multipart(call) if form else call.json
        path = _path(asked["path"])
        content = asked["content"] if form else base64.b64decode(asked["content"])
        if posixpath.dirname(path) not in self.folders:
            raise Failure(
                404, "RESOURCE_DOES_NOT_EXIST", f"The parent folder ({posixpath.dirname(path)}) does not exist."
            )
        if path in self.files and asked.get("overwrite") not in (True, "true"):
            raise Failure(400, "RESOURCE_ALREADY_EXISTS", f"Path ({path}) already exists.")
        if asked.get("format", "SOURCE") == "SOURCE" and not asked.get("language"):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "The language is required for format SOURCE.")
        self._write(path, content)

    def export(self, call: Call) -> dict[str, Any] | Reply:
        """GET export: base64 in JSON, or the bytes with direct_download."""
        path = self._file(call.query["path"])
        if call.query.get("direct_download") == "true":
            return Reply(self.files[path], headers={"content-type": "application/octet-stream"})
        content = base64.b64encode(self.files[path]).decode()
        return {"content": content, "file_type": posixpath.splitext(path)[1].lstrip(".")}

    def mkdirs(self, call: Call) -> None:
        """POST mkdirs."""
        self._mkdirs(_path(call.json["path"]))

    def status(self, call: Call) -> dict[str, Any]:
        """GET get-status."""
        return self._status(_path(call.query["path"]))

    def list(self, call: Call) -> dict[str, Any]:
        """GET list."""
        folder = _path(call.query["path"])
        self._status(folder)
        inside = [path for path in (*self.files, *self.folders) if posixpath.dirname(path) == folder != path]
        return {"objects": [self._status(path) for path in sorted(inside)]} if inside else {}

    def delete(self, call: Call) -> None:
        """POST delete, of a file."""
        path = self._file(call.json["path"])
        del self.files[path], self.modified[path]

    def _write(self, path: str, content: bytes) -> None:
        self.files[path] = content
        self.modified[path] = int(time.time() * 1000)

    def _mkdirs(self, path: str) -> None:
        while path not in self.folders:
            self.folders.add(path)
            path = posixpath.dirname(path)

    def _file(self, path: str) -> str:
        self._status(_path(path))
        return _path(path)

    def _status(self, path: str) -> dict[str, Any]:
        shown: dict[str, Any] = {"path": path, "object_id": abs(hash(path)) % 10**9, "resource_id": "1"}
        if path in self.files:
            when = self.modified[path]
            return {**shown, "object_type": "FILE", "modified_at": when, "size": len(self.files[path])}
        if path in self.folders:
            return {**shown, "object_type": "DIRECTORY"}
        raise Failure(404, "RESOURCE_DOES_NOT_EXIST", f"Path ({path}) doesn't exist.")


def _path(path: str) -> str:
    if not path.startswith("/"):
        raise Failure(400, "INVALID_PARAMETER_VALUE", f"Path ({path}) doesn't start with '/'.")
    return "/" + path.removeprefix("/Workspace").strip("/")


def _multipart(call: Call) -> dict[str, Any]:
    boundary = b"--" + call.headers["content-type"].partition("boundary=")[2].encode()
    found: dict[str, Any] = {}
    for part in call.body.split(boundary)[1:-1]:
        head, _, content = part.strip(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        assert name is not None
        found[name[1].decode()] = content if b"filename=" in head else content.decode()
    return found
