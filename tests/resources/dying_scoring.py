"""Processes that score a day, alone or beside each other, and die where they are told to.

Lives here: a process that has imported everything, and forks for each request one that scores.
Add here: a further way to choose the instant. Not here: what must hold afterwards (the tests).
"""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_SCRIPT = """
import json, os, sys
from datetime import date
from pathlib import Path
import deltalake, duckdb, mlflow.genai, mlflow.store.tracking.sqlalchemy_store
from lifecycle_assets.spec_file import read_agent
from resources.scoring.local_scoring import LocalScoring
from resources.platform import Platform
from resources.scorer_registry import MlflowScorerRegistry
from tests.deadly import deadly

def score(asked):
    os.dup2(2, 1)
    os.environ["LIFECYCLE_HOME"] = asked["home"]
    if asked["function"]:
        deadly(asked["function"], asked["event"], asked["times"])
    agent, platform = read_agent(Path(asked["agent"])), Platform.from_env()
    scorers = MlflowScorerRegistry(platform).registered(agent)
    LocalScoring(platform).score_day(
        agent, date.fromisoformat(asked["day"]), scorers, settled_before_ms=2**53, progress=print
    )

for line in sys.stdin:
    asked, pids, codes = json.loads(line), [], []
    for _ in range(asked["processes"]):
        pids.append(os.fork())
        if pids[-1] == 0:
            code = 1
            try:
                score(asked)
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    for pid in pids:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(json.dumps(codes), flush=True)
"""


class Scorers:
    """Scores days in processes of their own."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def score(
        self,
        home: Path,
        agent: Path,
        day: str,
        function: str = "",
        *,
        event: str = "return",
        times: int = 1,
        of: int = 1,
    ) -> list[int]:
        """Exit codes of `of` processes at once; each dies as `function` is entered or left for the `times`th time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        named = {"home": str(home), "agent": str(agent), "day": day, "processes": of}
        self._process.stdin.write(json.dumps({**named, "function": function, "event": event, "times": times}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.errors
        return json.loads(line)

    @property
    def errors(self) -> str:
        """What the processes said of their errors, the last of it."""
        return self._log.read_text()[-3000:]


@contextmanager
def scorers(folder: Path) -> Generator[Scorers]:
    """Processes that score, as long as the block runs."""
    log = folder / "scoring.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            cwd=Path(__file__).parents[2],
            # MLflow leaves the store it was opened with last there.
            env={name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Scorers(process, log)
        finally:
            process.kill()
            process.communicate()
