"""Ratios, side by side in one run: `python -m benchmarks.run [JOB ...]`.

Lives here: the jobs, measuring them in turn as whole processes, writing `results.json` and `docs/benchmarks.md`.
Add here: a job with its baseline.
Not here: assertions on time; a number is compared with its neighbour, never with a clock.

Baseline and ours alternate, so that a machine that slows down slows both. Peak memory is the operating system's
figure for the largest process of a run.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Job:
    """Two commands that do the same; `meaning` says what is compared, `goal` the ratio that is wanted."""

    name: str
    meaning: str
    goal: str
    baseline: list[str]
    ours: list[str]
    rounds: int


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _execute(job: str) -> list[str]:
    return [sys.executable, "-m", "dagster", "job", "execute", "-m", "benchmarks.locations", "-a", "release", "-j", job]


JOBS = [
    Job(
        "load",
        "Loading the code location with docs_agent, against loading an empty one; each in a fresh process.",
        "at most 1.5 times the empty one",
        _python("from benchmarks.locations import empty; empty().get_repository_def()"),
        _python("from lifecycle_assets.definitions import defs; defs().get_repository_def()"),
        7,
    ),
    Job(
        "release",
        "A release of seven steps that only import mlflow: Dagster's default multiprocess executor against in process.",
        "several times as fast as the default",
        _execute("multiprocess"),
        _execute("in_process"),
        3,
    ),
]


def measure(command: list[str], home: str) -> tuple[float, float]:
    """Wall seconds and peak memory (MB) of one run of `command`. Raises when it fails."""
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "DAGSTER_HOME": home}, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command[:6])} failed:\n{output.read()[-2000:]}")
    return seconds, usage.ru_maxrss / 1024


def compare(job: Job) -> dict[str, object]:
    """Run baseline and ours in turn, one uncounted round first, and return the row of `results.json`."""
    seconds: dict[str, list[float]] = {"baseline": [], "ours": []}
    memory: dict[str, list[float]] = {"baseline": [], "ours": []}
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
        for round_number in range(job.rounds + 1):
            for side, command in (("baseline", job.baseline), ("ours", job.ours)):
                taken, peak = measure(command, home)
                if round_number:
                    seconds[side].append(taken)
                    memory[side].append(peak)
            print(f"{job.name}: round {round_number} of {job.rounds}", flush=True)
    baseline, ours = statistics.median(seconds["baseline"]), statistics.median(seconds["ours"])
    print(f"{job.name}: baseline {baseline:.2f} s, ours {ours:.2f} s, ratio {baseline / ours:.2f}", flush=True)
    return {
        "job": job.name,
        "n": job.rounds,
        "baseline_s": round(baseline, 3),
        "ours_s": round(ours, 3),
        "ratio": round(baseline / ours, 2),
        "limit_fraction": None,
        "baseline_rss_mb": round(statistics.median(memory["baseline"])),
        "ours_rss_mb": round(statistics.median(memory["ours"])),
        "spread_s": {side: [round(min(found), 3), round(max(found), 3)] for side, found in seconds.items()},
    }


def write_page(rows: list[dict[str, object]]) -> None:
    """The table people read."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`: baseline and ours in turn, in one run, as whole processes; medians. Read the ratios:",
        "the seconds are those of the machine it ran on.",
        "",
        "| job | what is compared | goal | baseline s | ours s | baseline / ours |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    by_name = {job.name: job for job in JOBS}
    for row in rows:
        job = by_name[str(row["job"])]
        lines.append(
            f"| {job.name} | {job.meaning} | {job.goal} | {row['baseline_s']} | {row['ours_s']} | {row['ratio']} |"
        )
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure the named jobs, or all."""
    wanted = sys.argv[1:] or [job.name for job in JOBS]
    unknown = sorted(set(wanted) - {job.name for job in JOBS})
    if unknown:
        sys.exit(f"No job {', '.join(unknown)}; there are {', '.join(job.name for job in JOBS)}.")
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    rows = {row["job"]: row for row in kept}
    for job in JOBS:
        if job.name in wanted:
            rows[job.name] = compare(job)
            RESULTS.write_text(json.dumps(list(rows.values()), indent=2) + "\n", encoding="utf-8")
    write_page([rows[job.name] for job in JOBS if job.name in rows])


if __name__ == "__main__":
    main()
