"""Processes that register versions and move aliases, raced and killed.

Lives here: logged models to move between, a mover, and a process that has imported everything and forks for each job.
Add here: a further job for such a process.
Not here: what must hold afterwards (the tests).
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lifecycle_assets.records import AliasMove, EvalRecord
from lifecycle_assets.release.moves import AliasMover, State, new_move
from lifecycle_assets.spec_file import Agent, read_agent
from resources.alias_ledger import MlflowAliasLedger
from resources.archive.delta_archive import DeltaArchive
from resources.evaluator import MlflowEvaluator
from resources.mlflow_store import experiment_id, open_client
from resources.model_registry import MlflowModelRegistry
from resources.platform import Platform
from tests.deadly import deadly


def logged(agent: Agent, platform: Platform, count: int, *, decided: bool = True) -> list[EvalRecord]:
    """That many logged models, each with its run, and a decision kept on it."""
    from tests.building import evaluation_of

    client, experiment = open_client(platform), experiment_id(platform, agent.spec.experiment)
    records = []
    for _ in range(count):
        run_id = client.create_run(experiment).info.run_id
        model_id = client.create_logged_model(experiment, name="tiny", source_run_id=run_id).model_id
        client.finalize_logged_model(model_id, "READY")
        records.append(evaluation_of(model_id, run_id=run_id))
        if decided:
            MlflowEvaluator(platform).keep_decision(records[-1])
    return records


def mover(agent: Agent, platform: Platform, progress: Callable[[str], None] = print) -> AliasMover:
    """A mover of the agent's aliases on a local platform."""
    return AliasMover(
        agent,
        registry=MlflowModelRegistry(platform),
        ledger=MlflowAliasLedger(platform),
        archive=DeltaArchive(platform),
        evaluator=MlflowEvaluator(platform),
        progress=progress,
    )


def promotion(state: State, evaluation: EvalRecord, *, actor: str = "me") -> AliasMove:
    """The move that makes the version of that evaluation champion."""
    version = next(one.version for one in state.versions.values() if one.model_id == evaluation.model_id)
    was = {alias: state.aliases.get(alias, "") for alias in ("champion", "previous")}
    return new_move(
        decision="passed",
        before=was,
        after={"champion": version, "previous": was["champion"]},
        evaluation=evaluation,
        actor=actor,
        reason="It reached every threshold.",
        dagster_run_id="dagster-1",
    )


def _promote(agent: Agent, records: Sequence[EvalRecord], asked: dict[str, Any]) -> None:
    """One move, to the version of the record asked for."""
    mover(agent, Platform.from_env()).move(lambda state: promotion(state, records[asked["record"]]))


def _promote_often(agent: Agent, records: Sequence[EvalRecord], asked: dict[str, Any]) -> None:
    """Until there are so many moves, make the next one, to another version than the champion's.

    All processes begin each round together: one that is ahead would win every time, and nothing would be a race.
    """
    moves, wishes = mover(agent, Platform.from_env()), 0
    for number in range(1, asked["rounds"] + 1):

        def next_one(state: State, number: int = number) -> AliasMove | None:
            nonlocal wishes
            if len(state.moves) >= number:
                return None
            wishes += 1
            return promotion(state, records[number % len(records)], actor=f"process {os.getpid()}")

        asked["together"].wait(timeout=120)
        moves.move(next_one)
    Path(asked["out"]).with_suffix(f".{os.getpid()}").write_text(str(wishes))


def _register(agent: Agent, records: Sequence[EvalRecord], asked: dict[str, Any]) -> None:
    """Register every model asked for."""
    registry = MlflowModelRegistry(Platform.from_env())
    for record in asked["records"]:
        registry.register(agent.spec.model_name, records[record].model_id, {"eval": "run-1"})


JOBS = {"promote": _promote, "promote_often": _promote_often, "register": _register}


class Processes:
    """A process that forks as many as are asked for at once."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def run(
        self, job: str, evaluations: Sequence[EvalRecord], *, processes: int = 1, die: str = "", **asked: Any
    ) -> None:
        """Run the job in that many processes; `die` is `module:qualified.name call|return times`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        kept = [evaluation.to_json() for evaluation in evaluations]
        line = json.dumps({"job": job, "evaluations": kept, "processes": processes, "die": die, **asked})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline() or "[]")
        expected = -signal.SIGKILL.value if die else 0
        assert codes == [expected] * processes, f"{die or job}: ended with {codes}\n{self._log.read_text()[-3000:]}"


@contextmanager
def processes(agent: Agent, platform: Platform) -> Generator[Processes]:
    """Such a process, as long as the block runs."""
    log = platform.home / "processes.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.moving", str(agent.folder / "defs.yaml")],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "LIFECYCLE_HOME": str(platform.home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Processes(process, log)
        finally:
            process.kill()
            process.communicate()


def _serve(file: Path) -> None:
    import deltalake  # noqa: F401 Imported once, before the forks.
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    agent = read_agent(file)
    for line in sys.stdin:
        asked = json.loads(line)
        records = [EvalRecord.from_json(record) for record in asked["evaluations"]]
        asked["together"] = multiprocessing.get_context("fork").Barrier(asked["processes"])
        start, children = time.time() + 0.1, []
        for _ in range(asked["processes"]):
            pid = os.fork()
            if pid == 0:
                os.dup2(2, 1)
                if asked["die"]:
                    function, event, times = asked["die"].split()
                    deadly(function, event, int(times))
                time.sleep(max(0, start - time.time()))
                JOBS[asked["job"]](agent, records, asked)
                os._exit(0)
            children.append(pid)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
