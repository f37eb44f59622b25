"""Which agents there are.

Lives here: finding declared agents so that one broken declaration does not hide the others.
Add here: another place agents are declared in.
Not here: reading a declaration (`lifecycle_assets/spec_file.py`).
"""

import os
from pathlib import Path

import click

from lifecycle_assets.cli.output import Misuse, clean
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import COMPONENT_TYPE, DEFS_FOLDER, Agent, read_agent

DEFS_VARIABLE = "LIFECYCLE_DEFS"
"""Environment variable with the folder of a team that keeps its agents in a project of its own."""


def defs_folder() -> Path:
    """The folder agents are looked for in. Raises `Misuse` when the variable names none."""
    given = os.environ.get(DEFS_VARIABLE)
    if given and not Path(given).is_dir():
        raise Misuse(f"{DEFS_VARIABLE} is {given}, which is not a folder; set it to the folder that holds your agents.")
    return Path(given) if given else DEFS_FOLDER


def known_agents(root: Path | None = None) -> tuple[list[Agent], list[str]]:
    """The agents that can be read, by name, and a sentence for each declaration that cannot."""
    agents: dict[str, Agent] = {}
    broken: list[str] = []
    for file in sorted((root or defs_folder()).glob("**/defs.yaml")):
        try:
            if COMPONENT_TYPE not in file.read_text(encoding="utf-8", errors="replace"):
                continue
            agent = read_agent(file)
        except Refused as refusal:
            broken.append(str(refusal))
            continue
        except OSError as error:
            broken.append(f"{file}: cannot be read ({error.strerror}); give this user permission.")
            continue
        if agent.name in agents:
            broken.append(f"{file}: name '{agent.name}' is taken by {agents[agent.name].folder}; give it another name.")
        else:
            agents[agent.name] = agent
    return [agents[name] for name in sorted(agents)], broken


def chosen_agents(name: str | None) -> tuple[list[Agent], list[str]]:
    """The agent of that name, or all; declarations that cannot be read are said on standard error.

    Raises `Misuse` naming the known agents when there is none of that name.
    """
    agents, broken = known_agents()
    for sentence in broken:
        click.echo(clean(sentence), err=True)
    if name is None:
        return agents, broken
    found = [agent for agent in agents if agent.name == name]
    if not found:
        known = ", ".join(agent.name for agent in agents) or "none"
        raise Misuse(f"No agent '{name}' is declared below {defs_folder()}; known: {known}.")
    return found, broken


def one_agent(name: str) -> Agent:
    """The agent of that name. Raises `Misuse` naming the known agents when there is none."""
    return chosen_agents(name)[0][0]
