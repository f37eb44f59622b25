"""Jobs whose process dies with SIGKILL at a chosen instant.

Lives here: a process that has imported everything, and forks for each job one that kills itself at a function of ours.
Add here: a further way to choose the instant.
Not here: what must hold afterwards (the tests).
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lifecycle_assets.runner import Runner
from tests.building import World

_SCRIPT = """
import json, os, sys
from pathlib import Path
import deltalake, duckdb, matplotlib.backends.backend_agg, matplotlib.figure, mlflow.genai, pandas, scipy.stats
import mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.runner import Runner
from lifecycle_assets.home import open_instance
from lifecycle_assets.spec_file import read_agent
from resources.platform import Platform
from resources.worker import WorkerFailed, run_worker
from tests.deadly import deadly

try:  # The source of workers is there from now on, and shared by all that is forked below.
    run_worker("nothing", {}, platform=Platform.from_env(), progress=print)
except WorkerFailed:
    pass


for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.dup2(2, 1)
        deadly(asked["function"], asked["event"], asked["times"])
        definitions = agent_definitions(read_agent(Path(sys.argv[1])))
        runner = Runner(definitions, open_instance(Platform.from_env()), print)
        runner.settle_interrupted()
        runner.job(asked["job"], partition_key=asked["day"] or None, run_config=asked["config"])
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Killer:
    """Starts the agent's jobs and kills them."""

    def __init__(self, world: World, process: subprocess.Popen[str]) -> None:
        self._world, self._process = world, process

    def settle(self) -> int:
        """Free what the killed runs hold, as the demo and the daemon do before they go on; returns how many."""
        return Runner(self._world.definitions, self._world.instance, print).settle_interrupted()

    def kill(
        self,
        job: str,
        function: str,
        event: str,
        *,
        day: str = "",
        times: int = 1,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Run the job until `function` (`module:qualified.name`) is entered or left for the `times`th time.

        `event` is `call` or `return`. The process then is gone as after kill -9: nothing of it runs any more.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        name = f"{self._world.agent.name}_{job}"
        asked = {"job": name, "function": function, "event": event, "day": day, "times": times, "config": config}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code = self._process.stdout.readline().strip()
        assert code == str(-signal.SIGKILL.value), f"{function} was never reached: the job ended with {code or 'none'}"


@contextmanager
def killer(world: World) -> Iterator[Killer]:
    """A killer of the world's jobs, as long as the block runs."""
    file = str(world.agent.folder / "defs.yaml")
    log = world.platform.home / "killed.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, file],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Killer(world, process)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log.read_text()[-3000:]}") from error
        finally:
            process.kill()
            process.communicate()
