"""A PostgreSQL of our own on the loopback interface, for tests.

Lives here: making a cluster in a temporary folder, starting it, and ending it.
Add here: a setting of the server a test needs.
Not here: installing it (`postgres.sh`), what is asked of it.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "lifecycle"
"""The superuser of the cluster, and the owner of its databases; no password is asked for on the loopback interface."""


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, the newest version; None where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: float(file.parts[-3]))
    named = shutil.which("initdb")
    return found[-1].parent if found else Path(named).parent if named else None


@contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database of a server that ends with the block. The server refuses to be run by root."""
    folder = binaries()
    assert folder is not None, "there is no PostgreSQL: run sh tests/postgres.sh"
    owner = _owner()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as made:
        home = Path(made)
        if owner is not None:
            os.chown(home, owner.pw_uid, owner.pw_gid)

        def run(*command: str) -> None:
            as_owner = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            done = subprocess.run(command, cwd=home, capture_output=True, text=True, **as_owner)
            assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"

        data = str(home / "data")
        run(str(folder / "initdb"), "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        settings = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={home} -c fsync=off"
        run(str(folder / "pg_ctl"), "-D", data, "-w", "-l", str(home / "log"), "-o", settings, "start")
        try:
            yield f"postgresql+psycopg2://{USER}@127.0.0.1:{port}/postgres"
        finally:
            run(str(folder / "pg_ctl"), "-D", data, "-w", "-m", "immediate", "stop")


def _owner() -> pwd.struct_passwd | None:
    """Who the server runs as, None for ourselves."""
    if os.geteuid() != 0:
        return None
    return next(
        pwd.getpwnam(name) for name in ("postgres", "nobody") if name in {one.pw_name for one in pwd.getpwall()}
    )
