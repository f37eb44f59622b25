"""Files of the workspace: Unity Catalog volumes by the Files API, and DBFS.

Lives here: `/Volumes/...` and `dbfs:/...` as folders on disk, so that a job's process can open them.
Not here: files of runs and models (`artifacts.py`), the volumes as objects (`unity.py`), processes (`jobs.py`).
"""

import base64
import shutil
import tempfile
import time
import weakref
from pathlib import Path, PurePosixPath
from typing import Any

from tests.workspace.app import Call, Failure, Reply, Route, Workspace
from tests.workspace.lake import Lake

FILES, FOLDERS, DBFS = "/api/2.0/fs/files", "/api/2.0/fs/directories", "/api/2.0/dbfs"
BLOCK = 1024 * 1024
"""Bytes of one DBFS read or block, as documented."""


class Files:
    """`/Volumes` and DBFS in a temporary folder that goes when the workspace does.

    `path` is where a file of the workspace is on this machine. A volume must have been made (`unity.py`).
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.root = Path(tempfile.mkdtemp(prefix="workspace-files-"))
        weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        for name in ("Volumes", "dbfs", "Workspace"):
            (self.root / name).mkdir()
        self.uploads: dict[int, Path] = {}

    def routes(self) -> list[Route]:
        """The routes of this part."""
        volume_file, volume_folder = f"{FILES}/Volumes/{{rest:path}}", f"{FOLDERS}/Volumes/{{rest:path}}"
        return [
            Route("PUT", volume_file, self.put_file),
            Route("GET", volume_file, self.get_file),
            Route("HEAD", volume_file, self.get_file),
            Route("DELETE", volume_file, self.delete_file),
            Route("PUT", volume_folder, self.put_folder),
            Route("GET", volume_folder, self.list_folder),
            Route("HEAD", volume_folder, self.head_folder),
            Route("DELETE", volume_folder, self.delete_folder),
            Route("POST", f"{DBFS}/mkdirs", self.mkdirs),
            Route("POST", f"{DBFS}/put", self.put),
            Route("POST", f"{DBFS}/create", self.create),
            Route("POST", f"{DBFS}/add-block", self.add_block),
            Route("POST", f"{DBFS}/close", self.close),
            Route("POST", f"{DBFS}/delete", self.delete),
            Route("POST", f"{DBFS}/move", self.move),
            Route("GET", f"{DBFS}/read", self.read),
            Route("GET", f"{DBFS}/get-status", self.status),
            Route("GET", f"{DBFS}/list", self.list),
        ]

    def path(self, name: str) -> Path:
        """Where `/Volumes/...`, `dbfs:/...`, `/dbfs/...` or `/Workspace/...` is on this machine."""
        text = name.removeprefix("dbfs:")
        if not text.startswith(("/Volumes/", "/dbfs/", "/Workspace/")):
            text = "/dbfs" + text
        parts = PurePosixPath(text).parts[1:]
        if ".." in parts:
            raise Failure(400, "INVALID_PARAMETER_VALUE", f"The path '{name}' is not allowed.")
        return self.root.joinpath(*parts)

    def names(self, below: str = "/Volumes") -> list[str]:
        """Every file below a folder of the workspace, as the workspace names it."""
        return sorted("/" + str(found.relative_to(self.root)) for found in self.path(below + "/").rglob("*.*"))

    def _volume(self, call: Call) -> tuple[str, Path]:
        rest = call.parts["rest"].rstrip("/")
        levels = rest.split("/")
        if ".".join(levels[:3]).lower() not in self.workspace[Lake].volumes:
            raise Failure(404, "NOT_FOUND", f"Volume '{'.'.join(levels[:3])}' does not exist.")
        path = self.path(f"/Volumes/{rest}")
        self.path("/Volumes/" + "/".join(levels[:3])).mkdir(parents=True, exist_ok=True)
        return f"/Volumes/{rest}", path

    def put_file(self, call: Call) -> Reply:
        """PUT fs/files: whole or not at all."""
        name, path = self._volume(call)
        if not path.parent.is_dir():
            raise Failure(404, "NOT_FOUND", f"The directory being accessed is not found: {PurePosixPath(name).parent}")
        if path.exists() and call.query.get("overwrite", "false") != "true":
            raise Failure(409, "ALREADY_EXISTS", f"The file being created already exists: {name}")
        path.write_bytes(call.body)
        return Reply(status=204)

    def get_file(self, call: Call) -> Reply:
        """GET and HEAD fs/files."""
        name, path = self._volume(call)
        if not path.is_file():
            raise Failure(404, "NOT_FOUND", f"The file being accessed is not found: {name}")
        modified = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(path.stat().st_mtime))
        return Reply(path.read_bytes(), headers={"content-type": "application/octet-stream", "last-modified": modified})

    def delete_file(self, call: Call) -> Reply:
        """DELETE fs/files."""
        name, path = self._volume(call)
        if not path.is_file():
            raise Failure(404, "NOT_FOUND", f"The file being accessed is not found: {name}")
        path.unlink()
        return Reply(status=204)

    def put_folder(self, call: Call) -> Reply:
        """PUT fs/directories, like mkdir -p."""
        _, path = self._volume(call)
        path.mkdir(parents=True, exist_ok=True)
        return Reply(status=204)

    def head_folder(self, call: Call) -> Reply:
        """HEAD fs/directories."""
        name, path = self._volume(call)
        if not path.is_dir():
            raise Failure(404, "NOT_FOUND", f"The directory being accessed is not found: {name}")
        return Reply()

    def list_folder(self, call: Call) -> dict[str, Any]:
        """GET fs/directories, paged."""
        name, path = self._volume(call)
        if not path.is_dir():
            raise Failure(404, "NOT_FOUND", f"The directory being accessed is not found: {name}")
        some, token = self.workspace.page(sorted(path.iterdir()), call, default=1000)
        contents = [
            {
                "path": f"{name}/{one.name}",
                "name": one.name,
                "is_directory": one.is_dir(),
                "last_modified": int(one.stat().st_mtime * 1000),
                **({} if one.is_dir() else {"file_size": one.stat().st_size}),
            }
            for one in some
        ]
        return {"contents": contents, **({"next_page_token": token} if token else {})}

    def delete_folder(self, call: Call) -> Reply:
        """DELETE fs/directories: an empty one."""
        name, path = self._volume(call)
        if not path.is_dir():
            raise Failure(404, "NOT_FOUND", f"The directory being accessed is not found: {name}")
        if any(path.iterdir()):
            raise Failure(400, "DIRECTORY_NOT_EMPTY", f"The directory is not empty: {name}")
        path.rmdir()
        return Reply(status=204)

    def mkdirs(self, call: Call) -> dict[str, Any]:
        """POST dbfs/mkdirs."""
        self.path(call.json["path"]).mkdir(parents=True, exist_ok=True)
        return {}

    def put(self, call: Call) -> dict[str, Any]:
        """POST dbfs/put: contents in base64, at most 1 MB."""
        contents = base64.b64decode(call.json.get("contents", ""))
        if len(contents) > BLOCK:
            raise Failure(400, "MAX_BLOCK_SIZE_EXCEEDED", "The contents exceed 1 MB.")
        self._new(call).write_bytes(contents)
        return {}

    def create(self, call: Call) -> dict[str, Any]:
        """POST dbfs/create."""
        path, handle = self._new(call), 7000 + len(self.uploads)
        path.write_bytes(b"")
        self.uploads[handle] = path
        return {"handle": handle}

    def add_block(self, call: Call) -> dict[str, Any]:
        """POST dbfs/add-block."""
        with self._upload(call).open("ab") as file:
            file.write(base64.b64decode(call.json["data"]))
        return {}

    def close(self, call: Call) -> dict[str, Any]:
        """POST dbfs/close."""
        self._upload(call)
        del self.uploads[call.json["handle"]]
        return {}

    def delete(self, call: Call) -> dict[str, Any]:
        """POST dbfs/delete; nothing there is no error."""
        path = self.path(call.json["path"])
        if path.is_dir():
            if any(path.iterdir()) and not call.json.get("recursive"):
                raise Failure(400, "IO_ERROR", f"Unable to delete non-empty path {call.json['path']}.")
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        return {}

    def move(self, call: Call) -> dict[str, Any]:
        """POST dbfs/move."""
        source, target = self.path(call.json["source_path"]), self.path(call.json["destination_path"])
        if not source.exists():
            raise _absent(call.json["source_path"])
        if target.exists():
            raise Failure(400, "RESOURCE_ALREADY_EXISTS", f"{call.json['destination_path']} already exists.")
        source.rename(target)
        return {}

    def read(self, call: Call) -> dict[str, Any]:
        """GET dbfs/read: at most 1 MB from `offset`, in base64."""
        path, offset = self._there(call), int(call.query.get("offset", 0))
        data = path.read_bytes()[offset : offset + min(int(call.query.get("length", BLOCK)), BLOCK)]
        return {"bytes_read": len(data), "data": base64.b64encode(data).decode()}

    def status(self, call: Call) -> dict[str, Any]:
        """GET dbfs/get-status."""
        return self._info(call.query["path"], self._there(call))

    def list(self, call: Call) -> dict[str, Any]:
        """GET dbfs/list: not paged."""
        name, path = call.query["path"], self._there(call)
        if path.is_file():
            return {"files": [self._info(name, path)]}
        return {"files": [self._info(f"{name.rstrip('/')}/{one.name}", one) for one in sorted(path.iterdir())]}

    def _new(self, call: Call) -> Path:
        path = self.path(call.json["path"])
        if path.exists() and not call.json.get("overwrite"):
            raise Failure(400, "RESOURCE_ALREADY_EXISTS", f"{call.json['path']} already exists.")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _upload(self, call: Call) -> Path:
        if call.json["handle"] not in self.uploads:
            raise Failure(400, "RESOURCE_DOES_NOT_EXIST", f"No open stream with handle {call.json['handle']}.")
        return self.uploads[call.json["handle"]]

    def _there(self, call: Call) -> Path:
        path = self.path(call.query["path"])
        if not path.exists():
            raise _absent(call.query["path"])
        return path

    @staticmethod
    def _info(name: str, path: Path) -> dict[str, Any]:
        size = 0 if path.is_dir() else path.stat().st_size
        return {
            "path": name.removeprefix("dbfs:"),
            "is_dir": path.is_dir(),
            "file_size": size,
            "modification_time": int(path.stat().st_mtime * 1000),
        }


def _absent(name: str) -> Failure:
    return Failure(404, "RESOURCE_DOES_NOT_EXIST", f"No file or directory exists on path {name}.")
