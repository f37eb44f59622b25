"""Ratios, side by side in one run: `python -m benchmarks.run [JOB ...] [--corpus HOME] [--n N] [--rounds R]`.

Lives here: finding the jobs, running their sides in turn, the rows of `results.json`.
Add here: a column of `results.json`.
Not here: jobs (a module each), what a side is given (`job.py`), the page (`page.py`), traces (`corpus.py`).

Sides alternate, each a process of its own: a machine that slows down slows all of them. Of every side the median
counts. Memory is the peak above what the process held when its timed work began, that of its children included. With
`--corpus` the store of that home is read (a copy of it), whoever made it.
"""

import argparse
import importlib
import json
import os
import pkgutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks.job import Job, Measured, Side, Turn, clean_environment
from benchmarks.server import mlflow_server
from benchmarks.stores import Part, copied, copy_of, newest, snapshot

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
SLOW_S = 60.0
"""A baseline slower than this is measured once."""


def jobs() -> list[Job]:
    """All jobs, by name, from every module of this folder that has `JOBS`."""
    found = [
        job
        for module in pkgutil.iter_modules(benchmarks.__path__)
        for job in getattr(importlib.import_module(f"benchmarks.{module.name}"), "JOBS", ())
    ]
    return sorted(found, key=lambda job: job.name)


def run_side(side: Side, turn: Turn) -> list[Measured]:
    """Call a side in a fresh process and return what it measured. Raises `RuntimeError` with its output on failure."""
    turn.folder.mkdir(parents=True, exist_ok=True)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(turn).items()}
    command = [sys.executable, "-m", "benchmarks.side", f"{side.__module__}:{side.__name__}", json.dumps(given)]
    environment = clean_environment(turn.folder, turn.uri)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side.__module__}.{side.__name__} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return [Measured(**found) for found in json.loads(done.stdout.splitlines()[-1])]


class Group:
    """Jobs with the same baseline, corpus and preparation, measured in the same rounds."""

    def __init__(self, members: Sequence[Job], corpus: Path | None, scratch: Path, rounds: int | None) -> None:
        self.jobs, self.corpus, self.scratch = members, corpus, scratch
        self.first = members[0]
        self.rounds = rounds or max(job.rounds for job in members)
        every = (side for job in members for side in (job.baseline, job.ours, job.limit) if side)
        self.sides = list(dict.fromkeys(every))
        self.found: dict[Side, list[list[Measured]]] = {side: [] for side in self.sides}
        self.part = newest(corpus, self.first.most) if corpus else Part("", 0, 0, 0)

    def measure(self) -> list[dict[str, Any]]:
        """Run all rounds and return a row of `results.json` for each job."""
        names = ", ".join(job.name for job in self.jobs)
        with ExitStack() as stack:
            uri = f"sqlite:///{self.corpus}" if self.corpus else "sqlite://"
            if self.corpus and self.first.workers:
                store = stack.enter_context(copied(self.corpus, self.scratch))
                uri = stack.enter_context(mlflow_server(store, self.first.workers, self.scratch))
            print(f"{names}: {self.part.n:,} traces, {self.rounds} rounds", flush=True)
            shared = self.prepare(uri)
            for number in range(self.rounds):
                for side in self.sides:
                    if not (side is self.first.baseline and self.is_slow()):
                        self.turn(side, uri, shared)
                print(f"{names}: round {number + 1} of {self.rounds}: {self.last()}", flush=True)
        return [self.row(job) for job in self.jobs]

    def prepare(self, uri: str) -> Path | None:
        """What the sides share, made once for all jobs with the same preparation."""
        side = self.first.prepare
        if side is None:
            return None
        folder = self.scratch / f"{side.__module__}_{side.__name__}_{self.part.since_ms}"
        if not folder.exists():
            run_side(side, self.given(folder, self.corpus or folder / "mlflow.db", uri))
        return folder

    def given(self, folder: Path, store: Path, uri: str, shared: Path | None = None) -> Turn:
        """What a side is told."""
        return Turn(folder=folder, store=store, uri=uri, shared=shared, **asdict(self.part))

    def turn(self, side: Side, uri: str, shared: Path | None) -> None:
        """One side, once, in a folder (and, where it writes, with a store) of its own."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            folder = Path(name) / "home"
            store = self.corpus or folder / "mlflow.db"
            if self.corpus and self.first.writes and not self.first.workers:
                store = copy_of(self.corpus, Path(name))
                uri = f"sqlite:///{store}"
            self.found[side].append(run_side(side, self.given(folder, store, uri, shared)))

    def is_slow(self) -> bool:
        """Whether the baseline was measured and took too long to be measured again."""
        found = self.found[self.first.baseline]
        return bool(found) and sum(block.seconds for block in found[0]) > SLOW_S

    def last(self) -> str:
        """The last seconds of each side, for the one who waits."""
        return ", ".join(f"{side.__name__} {self.seconds(runs[-1]):.3f} s" for side, runs in self.found.items())

    def seconds(self, blocks: Iterable[Measured]) -> float:
        """The median block of one process, for all traces."""
        return statistics.median(
            block.seconds * (self.part.n / block.traces if block.traces else 1) for block in blocks
        )

    def row(self, job: Job) -> dict[str, Any]:
        """What `results.json` says of a job."""
        times = {side: [self.seconds(run) for run in runs] for side, runs in self.found.items()}
        memory = {
            side: statistics.median(max(b.rss_mb for b in run) for run in runs) for side, runs in self.found.items()
        }
        baseline, ours = statistics.median(times[job.baseline]), statistics.median(times[job.ours])
        limit = statistics.median(times[job.limit]) / ours if job.limit else None
        handled = {blocks.traces for run in self.found[job.baseline] for blocks in run}
        row = {
            "job": job.name,
            "n": self.part.n,
            "baseline_s": round(baseline, 6),
            "ours_s": round(ours, 6),
            "ratio": round(baseline / ours, 3),
            "limit_fraction": limit and round(limit, 3),
            "baseline_rss_mb": round(memory[job.baseline]),
            "ours_rss_mb": round(memory[job.ours]),
            "baseline_spread_s": [round(min(times[job.baseline]), 6), round(max(times[job.baseline]), 6)],
            "ours_spread_s": [round(min(times[job.ours]), 6), round(max(times[job.ours]), 6)],
            "baseline_sample": min(handled),
        }
        part = f", {limit:.0%} of the limit" if limit else ""
        print(f"{job.name}: baseline {baseline:.3f} s, ours {ours:.3f} s, ratio {baseline / ours:.2f}{part}, ", end="")
        print(f"memory {row['baseline_rss_mb']} / {row['ours_rss_mb']} MB", flush=True)
        return row


def groups(wanted: Sequence[Job]) -> list[list[Job]]:
    """Jobs that can share rounds, together."""

    def sharing(job: Job) -> tuple[Any, ...]:
        prepared = job.prepare.__qualname__ if job.prepare else ""
        side = f"{job.baseline.__module__}.{job.baseline.__name__}"
        return side, prepared, job.most or 0, job.workers, job.writes, job.corpus

    return [list(members) for _, members in groupby(sorted(wanted, key=sharing), key=sharing)]


def measure(wanted: Sequence[Job], corpus: Path | None, n: int, rounds: int | None) -> Iterator[dict[str, Any]]:
    """Rows of `results.json` for the jobs, on a corpus of `n` traces or on a copy of the store below `corpus`.

    Jobs that fail do not keep the others from being measured. Raises `RuntimeError` in the end, with what they said.
    """
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as name:
        scratch, store = Path(name), None
        if any(job.corpus for job in wanted):
            store = scratch / "corpus" / "mlflow.db"
            if corpus:
                snapshot(corpus / "mlflow.db", store)
            else:
                command = [sys.executable, "-m", "benchmarks.corpus", str(store.parent), str(n)]
                subprocess.run(command, cwd=ROOT, env=clean_environment(store.parent, f"sqlite:///{store}"), check=True)
        for members in groups(wanted):
            try:
                yield from Group(members, store if members[0].corpus else None, scratch, rounds).measure()
            except RuntimeError as error:
                failed.append(f"{', '.join(job.name for job in members)}: {error}")
                print(failed[-1], flush=True)
    if failed:
        raise RuntimeError("\n".join(failed))


def main() -> None:
    """Measure the named jobs, or all, and write `results.json` and the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="which to measure (default: all)")
    parser.add_argument("--corpus", type=Path, help="home of a platform whose mlflow.db is the corpus")
    parser.add_argument("--n", type=int, default=50_000, help="traces of the corpus made otherwise")
    parser.add_argument("--rounds", type=int, help="times each side is measured (default: as the job says)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the rows go (elsewhere no page is made)")
    asked = parser.parse_args()
    every = jobs()
    unknown = sorted(set(asked.jobs) - {job.name for job in every})
    if unknown:
        sys.exit(f"No job {', '.join(unknown)}; there are {', '.join(job.name for job in every)}.")
    if asked.corpus and not (asked.corpus / "mlflow.db").is_file():
        sys.exit(f"{asked.corpus} has no mlflow.db; make one with python -m benchmarks.corpus {asked.corpus} 1000.")
    wanted = [job for job in every if not asked.jobs or job.name in asked.jobs]
    kept = json.loads(asked.results.read_text(encoding="utf-8")) if asked.results.exists() else []
    rows = {row["job"]: row for row in kept if row["job"] in {job.name for job in every}}
    try:
        for row in measure(wanted, asked.corpus, asked.n, asked.rounds):
            rows[row["job"]] = row
            listed = [rows[job.name] for job in every if job.name in rows]
            asked.results.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    except RuntimeError as error:
        sys.exit(f"Not measured:\n{error}")
    finally:
        if asked.results == RESULTS:
            from benchmarks.page import write_page

            write_page([rows[job.name] for job in every if job.name in rows], every)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
