"""One task of a job as a process of this machine, as Databricks would start it.

Lives here: libraries, environment and parameters of a task; `/Volumes` and `/dbfs` inside the process.
Not here: the life of a run (`jobs.py`), the files (`files.py`).

A wheel is unzipped in front of the search path, so its code runs and not a checkout's. Other requirements are not
installed: one that this environment does not satisfy fails the run, as pip would; and what no requirement brings
cannot be imported, though it is there.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.workspace.app import Failure
from tests.workspace.files import Files

SITE = '''
"""Paths of the workspace inside the process: what a mount does on Databricks."""

import builtins, functools, io, os, sys

ABSENT = set(os.environ.pop("EMULATED_ABSENT").split(","))


class Absent:
    """Refuses to find what no requirement of the task brings."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent)
ROOT, PLACES = os.environ["EMULATED_ROOT"], ("/Volumes", "/dbfs", "/Workspace")


def mapped(path):
    if not isinstance(path, (str, os.PathLike)):
        return path
    text = os.fspath(path)
    inside = isinstance(text, str) and any(text == place or text.startswith(place + "/") for place in PLACES)
    return ROOT + text if inside else path


def over(function):
    @functools.wraps(function)
    def call(*args, **options):
        return function(*(mapped(one) for one in args), **options)
    return call


builtins.open = io.open = over(io.open)
for name in ("stat", "lstat", "listdir", "scandir", "mkdir", "rmdir", "remove", "unlink", "rename", "replace",
             "open", "access", "utime", "chmod"):
    setattr(os, name, over(getattr(os, name)))
'''

WHEEL_MAIN = """
import importlib, importlib.metadata, sys

package, entry, *parameters = sys.argv[1:]
sys.argv = [entry, *parameters]
try:
    points = importlib.metadata.distribution(package).entry_points
    function = next(point for point in points if point.name == entry).load()
except StopIteration:
    function = getattr(importlib.import_module(package), entry)
function()
"""


class TaskProcess:
    """The process of one task. `code` is None while it runs."""

    def __init__(self, files: Files, task: dict[str, Any], libraries: list[str], env: dict[str, str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="workspace-job-")
        home = Path(self.folder.name)
        self.log = home / "output.txt"
        self.libraries_error = ""
        (home / "site").mkdir()
        (home / "site" / "sitecustomize.py").write_text(SITE)
        (home / "wheel_main.py").write_text(WHEEL_MAIN)
        paths = [str(home / "site")]
        for number, library in enumerate(libraries):
            fault, path = _installed(files, library, home / f"wheel-{number}")
            self.libraries_error = self.libraries_error or fault
            paths += [path] if path else []
        (home / "work").mkdir()
        self.process = None if self.libraries_error else self._start(files, task, home, paths, libraries, env)

    def _start(
        self,
        files: Files,
        task: dict[str, Any],
        home: Path,
        paths: list[str],
        libraries: list[str],
        env: dict[str, str],
    ) -> "subprocess.Popen[bytes]":
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *_command(files, task, home)],
                cwd=home / "work",
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(home / "work"),
                    "TMPDIR": str(home / "work"),
                    "PYTHONPATH": os.pathsep.join(paths),
                    "EMULATED_ROOT": str(files.root),
                    "EMULATED_ABSENT": ",".join(_absent(tuple(libraries))),
                    **env,
                },
            )

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs."""
        return 1 if self.process is None else self.process.poll()

    def close(self) -> str:
        """End it and what it started; returns what it printed, errors included."""
        if self.process is not None:
            if self.process.poll() is None:
                os.killpg(self.process.pid, 9)
            self.process.wait()
        said = self.libraries_error or self.log.read_text(errors="replace")
        self.folder.cleanup()
        return said


def _command(files: Files, task: dict[str, Any], home: Path) -> list[str]:
    if "python_wheel_task" in task:
        wheel = task["python_wheel_task"]
        named = [f"--{key}={value}" for key, value in wheel.get("named_parameters", {}).items()]
        script, given = str(home / "wheel_main.py"), [wheel["package_name"], wheel["entry_point"]]
        return [script, *given, *wheel.get("parameters", []), *named]
    if "spark_python_task" in task:
        python = task["spark_python_task"]
        return [str(files.path(python["python_file"])), *python.get("parameters", [])]
    raise Failure(400, "INVALID_PARAMETER_VALUE", f"Task '{task.get('task_key')}' is of a kind this server cannot run.")


def _installed(files: Files, library: str, folder: Path) -> tuple[str, str]:
    """`(fault, path)`: an empty fault, and the path to search for a wheel."""
    if library.endswith(".whl"):
        wheel = files.path(library)
        if not wheel.is_file():
            return f"Library installation failed: {library}: no such file.", ""
        if not re.fullmatch(r"[A-Za-z0-9_.]+-[^-]+-[^-]+-[^-]+-[^-]+\.whl", wheel.name):
            return f"Library installation failed: {wheel.name} is not a valid wheel filename.", ""
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        return "", str(folder)
    requirement = Requirement(library)
    try:
        if requirement.specifier.contains(metadata.version(requirement.name), prereleases=True):
            return "", ""
    except metadata.PackageNotFoundError:
        pass
    return f"Library installation failed: no matching distribution found for {library}.", ""


@cache
def _absent(libraries: tuple[str, ...]) -> list[str]:
    """Modules of this environment that none of the requirements brings, directly or not."""
    brought: set[str] = set()
    wanted = [Requirement(library) for library in libraries if not library.endswith(".whl")]
    while wanted:
        requirement = wanted.pop()
        key = f"{canonicalize_name(requirement.name)}[{','.join(sorted(requirement.extras))}]"
        if key in brought:
            continue
        brought |= {key, canonicalize_name(requirement.name)}
        try:
            lines = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue
        for line in map(Requirement, lines):
            if not line.marker or any(line.marker.evaluate({"extra": one}) for one in {"", *requirement.extras}):
                wanted.append(line)
    return [
        module
        for module, names in metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in names} & brought
    ]
