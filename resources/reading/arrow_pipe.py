"""Arrow tables through a pipe between two processes of ours.

Lives here: writing a head and tables, and taking them.
Add here: nothing of what they mean.
Not here: the processes (`public_pages.py`, `public_child.py`).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_PIPE_BYTES = 1 << 20  # As many as Linux allows anybody.
_F_SETPIPE_SZ = 1031  # Of Linux' fcntl.


def send(said: IO[bytes], head: Mapping[str, Any], tables: "Sequence[pa.Table]") -> None:
    """Write a head, which is JSON, and tables after it."""
    import pyarrow as pa

    parts = []
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        parts.append(sink.getvalue())
    said.write(json.dumps({**head, "sizes": [part.size for part in parts]}).encode() + b"\n")
    for part in parts:
        said.write(part)
    said.flush()


def take(said: IO[bytes]) -> "tuple[dict[str, Any], list[pa.Table]]":
    """The next head and its tables. Raises `EOFError` when the other process ended."""
    import pyarrow as pa

    line = said.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head, tables = json.loads(line), []
    for size in head["sizes"]:
        # Arrow's own memory, which is given back: bytes of Python's would leave holes of some 100 MB.
        held = pa.allocate_buffer(size)
        _fill(memoryview(held), said)
        with pa.ipc.open_stream(pa.BufferReader(held)) as stream:
            tables.append(stream.read_all())
    return head, tables


def _fill(held: memoryview, said: IO[bytes]) -> None:
    filled = 0
    while filled < len(held):
        got = said.readinto(held[filled:])  # ty: ignore[missing-attribute]
        if not got:
            raise EOFError
        filled += got


def widen(pipe: IO[bytes]) -> None:
    """Have the pipe hold more at once, where that can be set."""
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.fcntl(pipe.fileno(), _F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            return
