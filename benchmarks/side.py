"""One side of a benchmark in a process of its own: `python -m benchmarks.side MODULE:FUNCTION TURN`.

Lives here: calling the function and printing what it measured as the last line, in JSON.
Add here: nothing. Not here: what a side does (the jobs' modules), when it runs (`run.py`).
"""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.job import Turn


def main() -> None:
    """Run the named side on the turn given as JSON."""
    module, _, function = sys.argv[1].partition(":")
    given = json.loads(sys.argv[2])
    for name in ("store", "folder", "shared"):
        given[name] = given[name] and Path(given[name])
    turn = Turn(**given)
    getattr(importlib.import_module(module), function)(turn)
    print("\n" + json.dumps([asdict(found) for found in turn.found]), flush=True)


if __name__ == "__main__":
    main()
