"""The agent's source as a digest and a commit.

Lives here: what counts as the source of an agent, and how it is read without running it.
Add here: a further input whose change must give a new logged model.
Not here: logging the model.
"""

import hashlib
import subprocess
from pathlib import Path

from lifecycle_assets.records import SourceRecord, digest
from lifecycle_assets.spec_file import Agent


def observe_source(agent: Agent) -> SourceRecord:
    """Digest of the agent's code, code paths and declaration, and the git commit (empty outside a checkout)."""
    files = {
        relative: _files_digest(agent.path(relative))
        for relative in (agent.spec.agent.path, *agent.spec.agent.code_paths)
    }
    declared = agent.spec.agent.model_dump(mode="json")
    return SourceRecord(digest({"files": files, "agent": declared, "name": agent.name}), git_commit(agent.folder))


def git_commit(folder: Path) -> str:
    """The commit `folder` is at, with `-dirty` when it holds changes; empty when it is not in a git checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git(folder, "status", "--porcelain", "--", ".") else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _files_digest(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            total.update(f"{file.relative_to(path.parent).as_posix()}\0".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
