"""A number that names all a tracking store holds now.

Lives here: what a SQLite file and a PostgreSQL server say of themselves, without a look into a table.
Add here: another store that can say whether anything was written.
Not here: what was written (`trace_reader.py`).
"""

import hashlib
from pathlib import Path

from resources.explain import explained

_HEADER = 100  # Bytes of a SQLite header; 24-27 count its changes, 92-95 say at which count it was valid.
_WAL_HEADER = 32  # Of the write-ahead log; 16-23 are salts, new with every restart of the log.
_INDEX_HEADER = 48  # Of the log's index: its count of changes, last frame and checksums.


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of a `sqlite:` tracking URI, None for any other."""
    scheme, _, rest = tracking_uri.partition("://")
    if scheme.partition("+")[0] != "sqlite" or not rest.removeprefix("/"):
        return None
    return Path(rest.partition("?")[0].removeprefix("/"))


def sqlite_state(path: Path) -> int:
    """A digest of what every write to a SQLite database changes; below 2**63, never 0.

    Without a log it is the change counter of the header (https://www.sqlite.org/fileformat.html#file_change_counter).
    With one it is the salts of the log and the header of its index, which counts changes
    (https://www.sqlite.org/walformat.html#the_wal_index_header). Sizes and times tell a restored copy apart.
    """
    digest = hashlib.sha256()
    heads = (("", _HEADER), ("-wal", _WAL_HEADER), ("-shm", _INDEX_HEADER))
    with explained(f"sqlite:///{path}"):
        for suffix, head in heads:
            file = path.with_name(path.name + suffix)
            try:
                with file.open("rb") as opened:
                    digest.update(opened.read(head).ljust(head))
                said = file.stat()
            except FileNotFoundError:
                digest.update(b"none".ljust(head))
                continue
            if suffix != "-shm":  # Readers write to the index too.
                digest.update(f"{said.st_ino} {said.st_size} {said.st_mtime_ns}".encode().ljust(80))
    return int.from_bytes(digest.digest()[:8]) >> 1 or 1


def store_state(tracking_uri: str) -> int:
    """The state of a tracking store; 0 where it cannot be told: a server, or another database."""
    path = sqlite_path(tracking_uri)
    return 0 if path is None else sqlite_state(path)
