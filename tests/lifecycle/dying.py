"""A job whose process dies with SIGKILL at a chosen instant.

Lives here: running a job in a process of its own that kills itself when a function of ours is entered or left.
Add here: nothing but a further way to choose the instant.
Not here: what must hold afterwards (the tests).
"""

import signal
import subprocess
import sys
from pathlib import Path

from tests.building import World

_SCRIPT = """
import os, signal, sys
from pathlib import Path
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.demo.runs import QUIET
from lifecycle_assets.home import open_instance
from lifecycle_assets.spec_file import read_agent
from resources.platform import Platform

file, job, day, function, event, times = sys.argv[1:]
left = [int(times)]

def watch(frame, what, _):
    if what == event and frame.f_code.co_qualname == function:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(watch)
agent_definitions(read_agent(Path(file))).resolve_job_def(job).execute_in_process(
    instance=open_instance(Platform.from_env()), partition_key=day or None, run_config=QUIET
)
"""


def die(world: World, job: str, function: str, event: str, *, day: str = "", times: int = 1) -> None:
    """Run the job until `function` (by qualified name) is entered or left (`call`, `return`) for the `times`th time."""
    file = str(world.agent.folder / "defs.yaml")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, file, f"{world.agent.name}_{job}", day, function, event, str(times)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, f"{function} was never reached: {done.stderr[-2000:]}"
