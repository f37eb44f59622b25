"""What the thousandth small commit costs: `python -m benchmarks.upkeep` prints it at 0, 100, 500 and 1,000 commits.

Lives here: appending as the archive does, with and without what keeps a table quick, and asking it something.
Add here: another cost that grows with commits.
Not here: the upkeep (`resources/upkeep/delta_upkeep.py`), how jobs are run (`run.py`).

A commit is 100 traces of one day, the size of a busy experiment's minute. Ours is a table as the archive makes it,
whose day is rewritten in passing (`resources/delta/compaction.py`); the baseline is `write_deltalake` with mode append.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.job import Job, Turn
from benchmarks.traces import vocabulary

if TYPE_CHECKING:
    import pyarrow as pa

COMMITS = 1_000
AT = (0, 100, 500, 1_000)
ROWS = 100
DAY = date(2026, 11, 1)
_SAMPLES = 9
_WORDS = 400  # Of a request and its response together: some 2.5 KB.

Append = Callable[[str, "pa.Table"], None]


def rows(commit: int) -> "pa.Table":
    """The traces of one commit; their texts compress as much as those of the corpus (`traces.py`)."""
    import numpy as np

    from resources.tables import arrow_table

    words, chances = vocabulary(7)
    drawn = np.searchsorted(chances, np.random.default_rng([7, commit]).random(ROWS * _WORDS)).tolist()
    texts = [" ".join(words[word] for word in drawn[n * _WORDS : (n + 1) * _WORDS]) for n in range(ROWS)]
    start = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC) + timedelta(seconds=commit)
    key = {"trace_date": DAY, "experiment_id": "1", "request_time": start, "state": "OK", "execution_ms": 900}
    made = [{"request": text[:1_000], "response": text[1_000:], "tags": {"environment": "prod"}} for text in texts]
    return arrow_table("traces", [key | one | {"trace_id": f"tr-{commit:06}-{n:03}"} for n, one in enumerate(made)])


def plainly(where: str, batch: "pa.Table") -> None:
    """As users do."""
    from deltalake import write_deltalake

    write_deltalake(where, batch, mode="append", partition_by=["trace_date"])


def as_archived(where: str, batch: "pa.Table") -> None:
    """As the archive does: with a note, and the day rewritten when it has many files."""
    from resources.delta.compaction import compact_busy_days
    from resources.delta.write import append_rows, table_to_write

    target = table_to_write(where, "traces")
    append_rows(target, batch, {"archive:1:2026-11-01": (target.transaction_version("archive:1:2026-11-01") or 0) + 1})
    compact_busy_days(target, [DAY])


def ask(where: str) -> None:
    """Open the table and count a column, as a query does."""
    import duckdb
    from deltalake import DeltaTable

    files = [uri.removeprefix("file://") for uri in DeltaTable(where).file_uris()]
    duckdb.connect().read_parquet(files).aggregate("count(DISTINCT trace_id), avg(execution_ms)").fetchall()


def _after_a_thousand(turn: Turn, append: Append) -> None:
    where, batches = str(turn.folder / "traces"), [rows(commit) for commit in range(COMMITS + _SAMPLES)]
    for batch in batches[:COMMITS]:
        append(where, batch)
    for batch in batches[COMMITS:]:
        with turn.timed():
            append(where, batch)
            ask(where)


def plain_commits(turn: Turn) -> None:
    """A commit and a query after a thousand appends that nobody looked after."""
    _after_a_thousand(turn, plainly)


def our_commits(turn: Turn) -> None:
    """The same of a table that the archive writes."""
    _after_a_thousand(turn, as_archived)


JOBS = (
    Job(
        name="commits_1000",
        meaning="The 1,001st append of 100 traces to a day and a query of it: our table against write_deltalake.",
        goal="flat in the number of commits",
        baseline=plain_commits,
        ours=our_commits,
        rounds=1,
        corpus=False,
    ),
)


def _curve(name: str, append: Append) -> None:
    with tempfile.TemporaryDirectory() as folder:
        where, done = str(Path(folder) / "traces"), 0
        append(where, rows(0))
        for wanted in AT:
            passed = []
            for commit in range(done + 1, wanted + 1):
                passed.append(_ms(append, where, rows(commit)))
            done = wanted
            commits, queries = [], []
            for sample in range(_SAMPLES):
                commits.append(_ms(append, where, rows(COMMITS * 2 + wanted + sample)))
                queries.append(_ms(ask, where))
            figures = f"commit {statistics.median(commits):6.1f} ms, query {statistics.median(queries):6.1f} ms"
            since = f"; those before {statistics.mean(passed):6.1f} ms, at most {max(passed):6.1f}" if passed else ""
            print(f"{name:>8} after {wanted:5} commits: {figures}{since}", flush=True)


def _ms(work: Callable[..., None], *given: object) -> float:
    """Milliseconds that some work takes."""
    started = time.perf_counter()
    work(*given)
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Print the curves."""
    for name, append in (("ours", as_archived), ("plain", plainly)):
        if name in (sys.argv[1:] or ("ours", "plain")):
            _curve(name, append)


if __name__ == "__main__":
    main()
