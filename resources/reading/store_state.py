"""A number that names all a tracking store holds now.

Lives here: what a SQLite file says of itself, without a look into it.
Add here: another store that can say whether anything was written.
Not here: the facts of the file (`file_facts.py`), what was written (`trace_reader.py`).
"""

import time
from pathlib import Path

from resources.file_facts import TICK_NS, file_state


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of a `sqlite:` tracking URI, None for any other."""
    scheme, _, rest = tracking_uri.partition("://")
    if scheme.partition("+")[0] != "sqlite" or not rest.removeprefix("/"):
        return None
    return Path(rest.partition("?")[0].removeprefix("/"))


def sqlite_state(path: Path) -> int:
    """A digest of what every write to a SQLite file changes; below 2**63, 0 when it cannot be told.

    By the facts of the files alone: opening and closing one would take away the locks this process holds on it. A file
    that was written just now is looked at again when the file system's clock has ticked on, some 20 ms later.
    """
    said = file_state(path)
    if not said and path.exists():
        time.sleep(1.1 * TICK_NS / 1e9)
        said = file_state(path)
    return (int(said[:16], 16) >> 1 or 1) if said else 0


def store_state(tracking_uri: str) -> int:
    """The state of a tracking store; 0 where it cannot be told: a server, or another database."""
    path = sqlite_path(tracking_uri)
    return 0 if path is None else sqlite_state(path)
