"""Files of the workspace that MLflow writes: artifacts of runs and logged models, and files of registered versions.

Lives here: the object store behind them, the Files API for those two roots, presigned addresses, MLflow's own
credential and list routes for artifacts.
Add here: another way a client reaches an artifact.
Not here: Volumes and DBFS (`files.py`).

A presigned address is outside `/api/`, carries its right in the query, and refuses a bearer token as a cloud's storage
does: a client that sends one leaks it.
"""

import posixpath
import time
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from tests.workspace.app import Call, Failure, Reply, Route, Workspace

ROOTS = ("WorkspaceInternal", "Models")
SIGNATURE = "signed-by-the-emulator"


class Storage:
    """Files by absolute path: `/WorkspaceInternal/Mlflow/Artifacts/...`, `/Models/<catalog>/<schema>/<model>/<n>/`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.blobs: dict[str, bytes] = {}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        routes = [
            Route("PUT", "/storage/{path:path}", self.signed_put),
            Route("GET", "/storage/{path:path}", self.signed_get),
            Route("POST", "/api/2.0/fs/create-upload-url", self.url_of),
            Route("POST", "/api/2.0/fs/create-download-url", self.url_of),
        ]
        for root in ROOTS:
            file, folder = f"/api/2.0/fs/files/{root}/{{path:path}}", f"/api/2.0/fs/directories/{root}/{{path:path}}"
            routes += [
                Route("PUT", file, self.put),
                Route("GET", file, self.get),
                Route("HEAD", file, self.get),
                Route("DELETE", file, self.delete),
                Route("HEAD", folder, self.is_folder),
                Route("GET", folder, self.folder),
            ]
        return routes

    def below(self, folder: str) -> list[str]:
        """Paths of all files below a folder."""
        return sorted(path for path in self.blobs if path.startswith(folder.rstrip("/") + "/"))

    def entries(self, folder: str) -> list[tuple[str, bool, int]]:
        """What lies directly in a folder: path, whether it is a folder, size in bytes."""
        found: dict[str, tuple[str, bool, int]] = {}
        for path in self.below(folder):
            name, *deeper = path[len(folder.rstrip("/")) + 1 :].split("/")
            inside = f"{folder.rstrip('/')}/{name}"
            found[inside] = (inside, bool(deeper), 0 if deeper else len(self.blobs[path]))
        return list(found.values())

    def presigned(self, path: str) -> str:
        """The address under which a file is read or written without a token."""
        return f"{self.workspace.url}/storage{quote(path)}?X-Signature={SIGNATURE}"

    def put(self, call: Call) -> Reply:
        """PUT fs/files/...: write a file whole."""
        path = _path(call, "files")
        if path in self.blobs and call.query.get("overwrite") != "true":
            raise Failure(409, "ALREADY_EXISTS", "The file being created already exists.")
        self.blobs[path] = call.body
        return Reply(status=204)

    def get(self, call: Call) -> Reply:
        """GET or HEAD fs/files/..."""
        path = _path(call, "files")
        if path not in self.blobs:
            raise Failure(404, "NOT_FOUND", f"The file being accessed is not found: {path}")
        modified = formatdate(time.time(), usegmt=True)
        return Reply(self.blobs[path], 200, {"content-type": "application/octet-stream", "last-modified": modified})

    def delete(self, call: Call) -> Reply:
        """DELETE fs/files/..."""
        if self.blobs.pop(_path(call, "files"), None) is None:
            raise Failure(404, "NOT_FOUND", "The file being accessed is not found.")
        return Reply(status=204)

    def is_folder(self, call: Call) -> Reply:
        """HEAD fs/directories/..."""
        return Reply(status=200 if self.below(_path(call, "directories")) else 404)

    def folder(self, call: Call) -> dict[str, Any]:
        """GET fs/directories/..."""
        folder = _path(call, "directories")
        if not self.below(folder):
            raise Failure(404, "NOT_FOUND", f"The directory being accessed is not found: {folder}")
        some, token = self.workspace.page(self.entries(folder), call, default=1000)
        contents = [
            {
                "path": path,
                "name": posixpath.basename(path),
                "is_directory": is_folder,
                **({} if is_folder else {"file_size": size, "last_modified": int(time.time() * 1000)}),
            }
            for path, is_folder, size in some
        ]
        return {"contents": contents, **({"next_page_token": token} if token else {})}

    def url_of(self, call: Call) -> dict[str, Any]:
        """POST fs/create-upload-url and fs/create-download-url."""
        return {"url": self.presigned(call.json["path"]), "headers": [{"name": "x-of-storage", "value": "1"}]}

    def signed_put(self, call: Call) -> Reply:
        """PUT to a presigned address."""
        _require_signature(call)
        self.blobs[call.path.removeprefix("/storage")] = call.body
        return Reply(status=200)

    def signed_get(self, call: Call) -> Reply:
        """GET of a presigned address."""
        _require_signature(call)
        path = call.path.removeprefix("/storage")
        if path not in self.blobs:
            return Reply(b"<Error><Code>NoSuchKey</Code></Error>", 404)
        return Reply(self.blobs[path], 200, {"content-type": "application/octet-stream"})


class Artifacts:
    """MLflow's artifact routes: what its client falls back to when the Files API fails."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def routes(self) -> list[Route]:
        """The routes of this part."""
        base, model = "/api/2.0/mlflow/artifacts", "/api/2.0/mlflow/logged-models/{model_id}/artifacts"
        return [
            Route("GET", f"{base}/list", self.list_run),
            Route("POST", f"{base}/credentials-for-read", self.of_run),
            Route("POST", f"{base}/credentials-for-write", self.of_run),
            Route("GET", f"{model}/directories", self.list_model),
            Route("POST", f"{model}/credentials-for-upload", self.of_model),
            Route("POST", f"{model}/credentials-for-download", self.of_model),
        ]

    def of_run(self, call: Call) -> dict[str, Any]:
        """POST artifacts/credentials-for-read and -write."""
        root = self._root_of_run(call.json["run_id"])
        return {"credential_infos": [self._credential(root, path) for path in call.json.get("path", [])]}

    def of_model(self, call: Call) -> dict[str, Any]:
        """POST logged-models/{id}/artifacts/credentials-for-upload and -download."""
        root = self._root_of_model(call.parts["model_id"])
        return {"credentials": [{"credential_info": self._credential(root, p)} for p in call.json.get("paths", [])]}

    def list_run(self, call: Call) -> dict[str, Any]:
        """GET artifacts/list."""
        return self._listed(self._root_of_run(call.query["run_id"]), call.query.get("path", ""), call)

    def list_model(self, call: Call) -> dict[str, Any]:
        """GET logged-models/{id}/artifacts/directories."""
        root = self._root_of_model(call.parts["model_id"])
        return self._listed(root, call.query.get("artifact_directory_path", ""), call)

    def _root_of_run(self, run_id: str) -> str:
        from tests.workspace.runs import Runs

        return folder_of(self.workspace[Runs].run(run_id)["info"]["artifact_uri"])

    def _root_of_model(self, model_id: str) -> str:
        from tests.workspace.logged_models import LoggedModels

        return folder_of(self.workspace[LoggedModels].model(model_id)["info"]["artifact_uri"])

    def _credential(self, root: str, path: str) -> dict[str, Any]:
        signed = self.workspace[Storage].presigned(posixpath.join(root, path))
        return {"path": path, "signed_uri": signed, "type": "AWS_PRESIGNED_URL", "headers": []}

    def _listed(self, root: str, path: str, call: Call) -> dict[str, Any]:
        storage = self.workspace[Storage]
        folder = posixpath.join(root, path) if path else root
        if folder in storage.blobs:
            return {"files": [{"path": path, "is_dir": False, "file_size": len(storage.blobs[folder])}]}
        some, token = self.workspace.page(storage.entries(folder), call, default=1000)
        files = [
            {"path": posixpath.relpath(name, root), "is_dir": is_folder, **({} if is_folder else {"file_size": size})}
            for name, is_folder, size in some
        ]
        return {"files": files, **({"next_page_token": token} if token else {})}


def folder_of(artifact_uri: str) -> str:
    """Where the Files API keeps `dbfs:/databricks/mlflow-tracking/<exp>/<run>/...` or `.../logged_models/<m>/...`."""
    experiment, *rest = artifact_uri.removeprefix("dbfs:/databricks/mlflow-tracking/").split("/")
    kind, rest = ("LoggedModels", rest[1:]) if rest[0] == "logged_models" else ("Runs", rest)
    return "/".join(["/WorkspaceInternal/Mlflow/Artifacts", experiment, kind, *rest])


def _path(call: Call, kind: str) -> str:
    return call.path.removeprefix(f"/api/2.0/fs/{kind}").rstrip("/")


def _require_signature(call: Call) -> None:
    if call.headers.get("authorization"):
        raise Failure(400, "InvalidArgument", "Only one auth mechanism allowed.")
    if call.query.get("X-Signature") != SIGNATURE:
        raise Failure(403, "SignatureDoesNotMatch", "The signature is not of this address.")
