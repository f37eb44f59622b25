"""Every sensor of twenty agents in one daemon of Dagster's: what that costs, and whether each has its turn.

Lives here: job `tick_twenty_agents`. Add here: another thing the daemon does all the time.
Not here: single ticks (`ticks.py`).

Both sides run Dagster's own daemon with its code server, on a home as the product prepares it, with as many sensors at
the same intervals. Of one minute the CPU seconds of both processes count, of 120 that two cores have. Ours fails when a
sensor ticked later than its interval and twice the daemon's own loop.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.job import Job, Measured, Turn
from benchmarks.server import end_session
from benchmarks.ticks import agents_of, definitions_of, prepare_agents, use, users_sensor

if TYPE_CHECKING:
    import dagster as dg

AGENTS = 20
MINUTE = 60.0
WARM = 40.0
"""Seconds from the first tick of the last sensor until the minute begins: MLflow is imported, every cursor is kept."""

LOOP = 5.0
"""Seconds between two looks of Dagster's daemon for sensors whose interval is over (`dagster/_daemon/sensor.py`)."""

LOCATION = "from benchmarks.daemon import location\n\ndefs = location({ours!r}, {given!r})\n"


def prepare(turn: Turn) -> None:
    """The store with a model, a session and a dataset for each of twenty agents."""
    prepare_agents(turn, AGENTS)


def location(ours: bool, given: str) -> "dg.Definitions":
    """What the code server loads: every sensor of twenty agents, or as many as people write them."""
    import dagster as dg

    found = json.loads(given)
    turn = Turn(**{**found, **{name: Path(found[name]) for name in ("store", "folder", "shared")}})
    mine = definitions_of(agents_of(turn, AGENTS))
    if ours:
        return mine
    return dg.Definitions.merge(*(users_sensor(turn, f"of_{name}", n) for name, n in intervals(mine).items()))


def intervals(definitions: "dg.Definitions") -> dict[str, int]:
    """Sensor to its minimum interval in seconds."""
    return {sensor.name: sensor.minimum_interval_seconds or 30 for sensor in definitions.sensors or ()}


@contextmanager
def _daemon(turn: Turn, *, ours: bool) -> Iterator[int]:
    """The process of a daemon over a copy of the prepared instance; afterwards nothing of it is left."""
    assert turn.shared is not None
    given = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(turn).items()}
    file = turn.folder / "location.py"
    file.write_text(LOCATION.format(ours=ours, given=json.dumps({**given, "found": []})), encoding="utf-8")
    shutil.copytree(turn.shared / "dagster", turn.folder / "dagster")
    use(turn.shared)
    os.environ |= {"DAGSTER_HOME": str(turn.folder / "dagster"), "PYTHONPATH": str(Path(__file__).parents[1])}
    with (turn.folder / "daemon.log").open("wb") as log:
        command = [sys.executable, "-m", "dagster._daemon", "run", "-f", str(file)]
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield daemon.pid
    finally:
        end_session(daemon, 20)


def _ticks(turn: Turn) -> dict[str, list[float]]:
    """Sensor to the times of its ticks, oldest first, from the instance's storage."""
    file = turn.folder / "dagster" / "schedules" / "schedules.db"
    found: dict[str, list[float]] = {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as storage:
        for (body,) in storage.execute("SELECT tick_body FROM job_ticks WHERE type = 'SENSOR' ORDER BY id"):
            tick = json.loads(body)
            found.setdefault(tick["job_name"], []).append(tick["timestamp"])
    return found


def _cpu_seconds(session: int) -> dict[str, float]:
    """Process to its CPU seconds so far, of all living processes of a session (Linux)."""
    found = {}
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = process.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # It has ended meanwhile.
        if int(fields[3]) == session:
            found[process.parent.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _measure(turn: Turn, *, ours: bool) -> dict[str, list[float]]:
    """CPU seconds of a minute's ticks; returns sensor to when it ticked, from a minute before, and the end."""
    wanted, deadline = intervals(definitions_of(agents_of(turn, AGENTS))), time.monotonic() + 600
    with _daemon(turn, ours=ours) as session:
        while len(_ticks(turn)) < len(wanted):
            if time.monotonic() > deadline:
                raise RuntimeError((turn.folder / "daemon.log").read_text(encoding="utf-8")[-3000:])
            time.sleep(1)
        time.sleep(WARM)
        before = _cpu_seconds(session)
        after, began = dict(before), time.time()
        while time.time() < began + MINUTE:
            time.sleep(1)
            after |= _cpu_seconds(session)  # Code servers are started anew, and end with what they took.
        ended, found = time.time(), _ticks(turn)
    ticked = sum(began <= at < ended for times in found.values() for at in times)
    # A machine that is too busy for all ticks of a minute is not a faster one.
    share = sum(MINUTE / interval for interval in wanted.values()) / ticked
    turn.found.append(Measured((sum(after.values()) - sum(before.values())) * share, turn.n, 0.0))
    return {name: [*(at for at in times if ended - 2 * MINUTE < at < ended), ended] for name, times in found.items()}


def users(turn: Turn) -> None:
    """The baseline: as many sensors that ask for the default page of traces."""
    _measure(turn, ours=False)


def ours(turn: Turn) -> None:
    """Every sensor of twenty agents. Raises `RuntimeError` when one did not have its turn."""
    found, wanted = _measure(turn, ours=True), intervals(definitions_of(agents_of(turn, AGENTS)))
    late = {
        name: max(after - before for before, after in pairwise(times)) - wanted[name] for name, times in found.items()
    }
    worst = max(late, key=late.__getitem__)
    said = (
        f"{worst} ticked {late[worst]:.1f} s after its interval of {wanted[worst]} s, the latest of {len(late)} sensors"
    )
    print(said, flush=True)
    if late[worst] > 2 * LOOP:
        raise RuntimeError(f"{said}: the daemon's own loop takes {LOOP:g} s")


JOBS = (
    Job(
        "tick_twenty_agents",
        "All sensors of twenty agents in one daemon and its code server: CPU seconds a minute, against as many of the "
        "baseline at the same intervals.",
        "each sensor at its interval, within two of the daemon's loops of 5 s",
        users,
        ours,
        prepare=prepare,
        rounds=1,
    ),
)
