"""The hand-off as files, for runtimes that nobody here tells: an app, a container, a cluster of a job.

Lives here: the variables of a version as the text each runtime reads (pure), what a version's tags say about where it
was handed to (pure), and writing files whole.
Add here: the file of another runtime.
Not here: which variables there are and who is told (`deployer.py`), the app.yaml of an app that is deployed
(`databricks/deployment/app_yaml.py`).

A secret stays a reference: to a resource of the app, to the shell that calls docker, or as the cluster resolves it.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import yaml

from lifecycle_assets.records import DeploymentRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_secrets import secret_reference
from resources.explain import explained

SHELL_LETTERS = "'\"$`\\"
"""What a cluster's shell may read otherwise: the Jobs API exports each variable as written, in quotes of its own."""

Rendered = tuple[dict[str, str], dict[str, str]]
"""File name to its text, and file name to the sentence why there is none."""


def item_lines(name: str, kind: str, value: str) -> list[str]:
    """An item of the list `env` in app.yaml; `kind` is `value` or `valueFrom`."""
    return [f"- name: {name}", f"  {kind}: {yaml.safe_dump(value, default_style=chr(34), width=10**6).rstrip()}"]


def app_yaml(env: Mapping[str, str]) -> str:
    """The list `env` of a Databricks App's app.yaml. A secret comes from a resource of the app named like it."""
    lines = ["env:"]
    for name, value in sorted(env.items()):
        reference = secret_reference(value)
        if reference is None:
            lines += [f"  {line}" for line in item_lines(name, "value", value)]
        else:
            resource = name.lower().replace("_", "-")
            lines.append(f"  # resource {resource} of the app: the secret {'/'.join(reference)}, permission Can read")
            lines += [f"  {line}" for line in item_lines(name, "valueFrom", resource)]
    return "\n".join(lines) + "\n"


def docker_env(env: Mapping[str, str]) -> str:
    """The file of `docker run --env-file`, where every letter behind the first `=` counts and none is escaped.

    A secret is a name alone: docker takes its value from the shell that calls it. Raises `Refused` for a value that is
    no single line of printable text: such a file cannot say it. Source: docker/cli, pkg/kvfile.
    """
    lines = ["# docker run --env-file FILE; quotes are part of a value"]
    for name, value in sorted(env.items()):
        reference = secret_reference(value)
        if not value.isprintable():
            raise Refused(f"{name} is no single line of text, which docker.env cannot say: write it in one line.")
        if reference is None:
            lines.append(f"{name}={value}")
        else:
            lines += [f"# {name}: the secret {'/'.join(reference)}, set in the shell that calls docker", name]
    return "\n".join(lines) + "\n"


def job_cluster(env: Mapping[str, str]) -> str:
    """`spark_env_vars` of a `new_cluster` of the Jobs API as JSON; a cluster resolves a reference to a secret itself.

    Raises `Refused` for a value the cluster's shell might change, see `SHELL_LETTERS`.
    """
    for name, value in sorted(env.items()):
        if any(letter in value for letter in SHELL_LETTERS) or not value.isprintable():
            raise Refused(
                f"{name} holds a quote, $, a backslash or a letter that is not printed, which job_cluster.json cannot "
                "say: write it without, or set it in the job's own code."
            )
    return json.dumps({"new_cluster": {"spark_env_vars": dict(sorted(env.items()))}}, indent=2) + "\n"


FILES: Mapping[str, Callable[[Mapping[str, str]], str]] = MappingProxyType(
    {"app.yaml": app_yaml, "docker.env": docker_env, "job_cluster.json": job_cluster}
)
"""File name to how it is rendered."""


def rendered(env: Mapping[str, str]) -> Rendered:
    """Every file of `FILES`, or why there is none."""
    texts, faults = {}, {}
    for name, render in FILES.items():
        try:
            texts[name] = render(env)
        except Refused as refusal:
            faults[name] = str(refusal)
    return texts, faults


def deployment_tags(agent: Agent, handed: DeploymentRecord) -> dict[str, str]:
    """What a version says about where it was handed to; an empty value takes the tag of a former hand-off away.

    None for the target `none`. The tags of a version that was replaced stay: they say where and when it ran last.
    """
    if handed.target == "none":
        return {}
    declared, target = agent.spec.deployment, handed.target
    return {
        "lifecycle.deployed_to": target,
        "lifecycle.endpoint": handed.location.rpartition("/")[2] if target == "databricks_serving" else "",
        "lifecycle.app": declared.app if target == "databricks_app" else "",
        "lifecycle.job": declared.job if target == "databricks_job" else "",
        "lifecycle.deployed_at": handed.handed_at,
    }


def keep_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Make the files of `FILES` in `folder` say `texts`; one that has no text goes, and the folder with the last.

    Each appears whole or not at all, and is not touched when it says so already: killed anywhere and repeated, all are
    there.
    """
    with explained(str(folder)):
        for name in FILES:
            file, text = folder / name, texts.get(name)
            if text is None:
                file.unlink(missing_ok=True)
            elif not file.exists() or file.read_bytes() != text.encode():
                replace_file(file, text)
        if not texts and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def replace_file(file: Path, text: str) -> None:
    """Replace `file` so that a reader sees the former text or the new one, and a power cut leaves one of them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
