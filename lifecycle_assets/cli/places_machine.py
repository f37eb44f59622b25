"""The machine as this product finds it, looked at without touching it.

Lives here: the platform, Python and libraries, folders and the disk; one function a place, giving findings.
Add here: something of the machine users have to set up.
Not here: MLflow's store (`places_store.py`), what is declared and asked (`places.py`), order and output (`doctor.py`).
"""

import importlib.metadata
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lifecycle_assets.cli.sources import shown_uri
from lifecycle_assets.finding import Finding
from resources.explain import without_password
from resources.platform import Platform

PROJECT = "lifecycle-assets"
PACKAGES = ("dagster", "mlflow", "deltalake", "duckdb")
LITTLE_MB, TOO_LITTLE_MB = 2_000, 200
"""Free disk below which there is a warning, and below which a demo does not fit."""


def platform_found(platform: Platform) -> Finding:
    """Which platform the environment names."""
    tables = "Unity Catalog" if platform.is_databricks else without_password(platform.warehouse)
    where = f"tracking {shown_uri(platform)}, tables {tables}"
    return Finding("platform", "ok", f"{platform.name}, environment {platform.environment}, {where}")


def versions() -> Iterator[Finding]:
    """Python and the libraries against the pins of this project."""
    wanted, python = _pins()
    now = ".".join(map(str, sys.version_info[:3]))
    well = python.contains(now)
    yield Finding(
        "python", "ok" if well else "fail", f"{now}, pinned {python}", "" if well else f"Use a Python {python}."
    )
    for name in PACKAGES:
        pin = wanted.get(name)
        specifier = pin.specifier if pin else SpecifierSet()
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", f"Run: pip install '{name}{specifier}'")
            continue
        well = specifier.contains(have)
        remedy = "" if well else f"Behaviour was tried with the pin; run: pip install '{name}{specifier}'"
        yield Finding(name, "ok" if well else "warn", f"{have}, pinned {specifier or 'nowhere'}", remedy)


def _pins() -> tuple[dict[str, Requirement], SpecifierSet]:
    """Requirements of this project by name, and its Python: from the installed package, else from the checkout."""
    try:
        lines = importlib.metadata.requires(PROJECT) or []
        python = importlib.metadata.metadata(PROJECT)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        file = Path(__file__).parents[2] / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"] if file.exists() else {}
        lines, python = project.get("dependencies", []), project.get("requires-python")
    found = [Requirement(line) for line in lines]
    return {one.name: one for one in found if "extra" not in str(one.marker or "")}, SpecifierSet(python or "")


def home(platform: Platform) -> Finding:
    """Whether local state can be written."""
    return _written("home", platform.home, "LIFECYCLE_HOME")


def tables(platform: Platform) -> Finding:
    """Whether the tables' folder can be written; an object store is not looked at."""
    scheme, separator, path = platform.warehouse.rpartition("://")
    if separator and scheme != "file":
        return Finding("tables", "ok", f"{without_password(platform.warehouse)} is an object store, not looked at")
    return _written("tables", Path(path), "LIFECYCLE_WAREHOUSE_URI")


def _written(name: str, wanted: Path, variable: str) -> Finding:
    """Whether a folder can be written, by a file that never has a name."""
    folder = _existing(wanted)
    remedy = f"Give this user permission or free space, or set {variable} to a folder you can write."
    if not folder.is_dir():
        return Finding(name, "fail", f"{wanted}: {folder} is not a folder", remedy)
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, "fail", f"{wanted}: {folder} cannot be written", remedy)
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x" * 65536)
    except OSError as error:
        return Finding(name, "fail", f"{wanted}: {folder} cannot be written ({error.strerror})", remedy)
    return Finding(name, "ok", f"{wanted} {'can be written' if folder == wanted else 'can be made'}")


def disk(platform: Platform) -> Finding:
    """Free space where local state is."""
    free = shutil.disk_usage(_existing(platform.home)).free // 1_000_000
    state = "fail" if free < TOO_LITTLE_MB else "warn" if free < LITTLE_MB else "ok"
    remedy = "" if state == "ok" else "Free space, or set LIFECYCLE_HOME to another disk."
    return Finding("disk", state, f"{free:,} MB free", remedy)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    for one in (folder, *folder.parents):
        try:
            if one.exists():
                return one
        except OSError:
            continue  # A folder above may not be entered: that one is looked at next.
    return Path(folder.anchor)
