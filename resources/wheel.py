"""The product and one agent as a wheel.

Lives here: building the wheel from what is installed, naming it by its content.
Add here: a file a step needs on the other side.
Not here: where it is put (`databricks/volume.py`), who installs it (`databricks/step_job.py`, `cli/bundle.py`).

A build backend needs the checkout, which an installed product does not have; so the packages are zipped as they are
imported here. The same content gives the same bytes on every machine: fixed times, no compression, names in order.
The content's digest is part of the version, so a changed agent is another wheel, which no environment has cached.

The agent's folder travels inside, with the declaration as this process understood it. Hidden files do not: they hold
what people keep to themselves.
"""

import base64
import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import yaml

import lifecycle_assets
import resources
import sensors
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import COMPONENT_TYPE, Agent

PACKAGE = "lifecycle_assets"
"""Name of the distribution, as a file name writes it."""

ENTRY_POINTS = """\
[console_scripts]
lifecycle-step = lifecycle_assets.monitoring.remote:main
lifecycle-periodic = lifecycle_assets.periodic:main
"""
"""What a job may call by name."""

NEEDED = (
    "dagster",
    "mlflow",
    "databricks-sdk",
    "databricks-agents",
    "pandas",
    "orjson",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "matplotlib",
    "scipy",
    "statsmodels",
    "requests",
    "sqlglot",
)
"""Distributions the steps import on Databricks; each is pinned there to the version that is here."""

MAX_BYTES = 100_000_000
"""Bytes of an agent's folder beyond which it is no code: data belongs into a table or a volume of its own."""


@dataclass(frozen=True)
class Wheel:
    """A wheel: its file name and its bytes."""

    name: str
    data: bytes


def requirements() -> list[str]:
    """Pins of what the wheel imports. Raises `Refused` naming the extra when one of them is not installed here."""
    try:
        return [f"{name}=={metadata.version(name)}" for name in NEEDED]
    except metadata.PackageNotFoundError as error:
        raise Refused(f"{error.name} is not installed: run pip install 'lifecycle-assets[databricks]'.") from None


def build_wheel(agent: Agent) -> Wheel:
    """The wheel of this product and `agent`. Raises `Refused` when the agent's folder is too large."""
    files = {**_own_files(), **_agent_files(agent)}
    content = hashlib.sha256()
    for name, data in sorted(files.items()):
        content.update(f"{name}\0{len(data)}\0".encode() + data)
    version = f"{_own_version()}+{content.hexdigest()[:16]}"
    info = f"{PACKAGE}-{version}.dist-info"
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: lifecycle-assets\nVersion: {version}\nRequires-Python: >=3.11\n"
    ).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: lifecycle\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = ENTRY_POINTS.encode()
    lines = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items()]
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, data)
    return Wheel(f"{PACKAGE}-{version}-py3-none-any.whl", buffer.getvalue())


def _own_files() -> dict[str, bytes]:
    """The packages as imported, without any agent."""
    found = {}
    for package in (lifecycle_assets, resources, sensors):
        assert package.__file__ is not None  # None of them is a namespace package.
        folder = Path(package.__file__).parent
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder.parent)
            if path.is_file() and "__pycache__" not in inside.parts and inside.parts[:2] != (PACKAGE, "defs"):
                found[inside.as_posix()] = path.read_bytes()
    return found


def _agent_files(agent: Agent) -> dict[str, bytes]:
    """The agent's folder below `lifecycle_assets/defs`, where the product looks for agents."""
    root, found, size = agent.folder.resolve(), {}, 0
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if any(part.startswith(".") or part == "__pycache__" for part in inside.parts):
            continue
        if path.is_file() and path.resolve().is_relative_to(root):
            size += path.stat().st_size
            if size > MAX_BYTES:
                raise Refused(
                    f"{agent.folder}: holds more than {MAX_BYTES // 1_000_000} MB, too much to ship with a job; move "
                    "data into a table or a volume."
                )
            found[f"{PACKAGE}/defs/{agent.name}/{inside.as_posix()}"] = path.read_bytes()
    document = {"type": COMPONENT_TYPE, "attributes": agent.spec.model_dump(mode="json", exclude_unset=True)}
    found[f"{PACKAGE}/defs/{agent.name}/defs.yaml"] = yaml.safe_dump(document).encode()
    return found


def _own_version() -> str:
    try:
        return metadata.version("lifecycle-assets").partition("+")[0]
    except metadata.PackageNotFoundError:
        return "0"


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
