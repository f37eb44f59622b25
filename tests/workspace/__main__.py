"""`python -m tests.workspace [PORT]`: serve an empty workspace until interrupted, and print how to reach it."""

import signal
import sys

from tests.workspace.server import client_environment, served_workspace

with served_workspace(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as workspace:
    for name, value in client_environment(workspace).items():
        print(f"export {name}={value}", flush=True)
    signal.pause()
