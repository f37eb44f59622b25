"""The code location: every agent below `defs/`.

Lives here: loading the folder. Add here: nothing. Not here: what an agent consists of (`component.py`).
"""

from pathlib import Path

import dagster as dg

from lifecycle_assets.load_error import one_sentence
from lifecycle_assets.spec_file import find_agents


@dg.definitions
def defs() -> dg.Definitions:
    """All agents of the code location."""
    with one_sentence():
        find_agents()
        return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
