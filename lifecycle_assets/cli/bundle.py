"""`lifecycle bundle`: a Databricks Asset Bundle with an agent's periodic jobs.

Lives here: writing the files without touching what others wrote, and saying what to run next.
Add here: an option of writing.
Not here: what the files say (`lifecycle_assets/bundle.py`).
"""

import os
from pathlib import Path

import click

from lifecycle_assets.bundle import MARK, bundle_files
from lifecycle_assets.cli.agents import one_agent
from lifecycle_assets.cli.output import SaysNo, json_option, print_json, print_line
from resources.wheel import build_wheel, requirements


@click.command()
@click.argument("agent")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write to; default ./<agent>-bundle."
)
@json_option
def bundle(agent: str, out: Path | None, as_json: bool) -> int:
    """Write a Databricks Asset Bundle with an agent's periodic jobs."""
    found = one_agent(agent)
    folder = out or Path(f"{found.name}-bundle")
    wheel = build_wheel(found)
    texts = bundle_files(found, wheel.name, requirements())
    files = {f"dist/{wheel.name}": wheel.data, **{name: text.encode() for name, text in texts.items()}}
    for name, data in files.items():
        _require_ours(folder / name, data)
    for name, data in files.items():
        _write(folder / name, data)
    command = f"cd {folder} && databricks bundle deploy --var warehouse_id=<id of a SQL warehouse>"
    if as_json:
        print_json({"folder": str(folder), "files": sorted(files), "next": command})
        return 0
    print_line(f"{found.name}: {len(files)} files in {folder}. The volume {found.spec.volume} must be there.")
    print_line(f"Next: {command}")
    return 0


def _require_ours(path: Path, data: bytes) -> None:
    """Raise `SaysNo` when somebody else's file stands where ours should."""
    try:
        held = path.read_bytes() if path.exists() or path.is_symlink() else None
    except OSError as error:
        raise SaysNo(
            f"{path}: cannot be read ({error.strerror}); move it away, or name another folder by --out."
        ) from None
    if held is not None and held != data and not held.startswith(MARK.encode()):
        raise SaysNo(f"{path}: was not written by lifecycle bundle; move it away, or name another folder by --out.")


def _write(path: Path, data: bytes) -> None:
    """The file, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(data)
        partial.rename(path)
    except OSError as error:
        raise SaysNo(f"{path}: cannot be written ({error.strerror}); name another folder by --out.") from None
