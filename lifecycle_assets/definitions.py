"""The code location: every agent below `defs/`.

Lives here: loading the folder. Add here: nothing. Not here: what an agent consists of (`component.py`).

Dagster's way of loading a folder (`load_from_defs_folder`) reads pyproject.toml twice and describes every component
type of every installed package, for the pages of its own editor: some 150 ms. Agents alone need none of it. So they
are built here when the folder holds nothing else, and by Dagster, with the same definitions, when it does.

Python's collector rests meanwhile: what is made stays, and a pass over all of `import dagster` takes 40 ms.
"""

import gc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from lifecycle_assets.load_error import one_sentence


@dg.definitions
def defs() -> dg.Definitions:
    """All agents of the code location."""
    with one_sentence(), _nothing_collected():
        from lifecycle_assets.spec_file import find_agents, only_agents

        agents = find_agents()
        if not only_agents(agents):
            return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
        from lifecycle_assets.component import agent_definitions

        return dg.Definitions.merge(*(agent_definitions(agent) for agent in agents))


@contextmanager
def _nothing_collected() -> Generator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
