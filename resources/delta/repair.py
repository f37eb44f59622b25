"""Days some of whose files are gone or damaged, taken out of the tables so that archiving writes them again.

Lives here: finding such days, proving that MLflow still has them, and what is taken out in which order.
Add here: another damage that archiving a day again heals.
Not here: what damage says to a reader (`faults.py`), archiving (`archive/delta_archive.py`).

Nothing that can be read is lost: rows of intact files stay, but for those of `traces`, which MLflow is proven to hold.
They go first: archiving notes how many rows a day has, so it finds the day short, and compares it with all that its
spans and assessments hold. Killed after that, the damage of the others is still there and the next run goes on.
"""

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from lifecycle_assets.spec_file import Agent
from resources.archive.marks import Days
from resources.delta.files import active_days, files_in_folder
from resources.delta.table import open_table, rows_of_day, storage, zstd
from resources.delta.write import retried
from resources.mlflow_store import experiment_id
from resources.platform import Platform
from resources.reading.reading import open_reader
from resources.tables import PARTITION, TABLES, arrow_schema, is_partitioned
from resources.upkeep.upkeep import Restored
from resources.worker import Progress

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

FROM_MLFLOW = ("traces", "spans", "assessments")
"""Tables whose days MLflow can give again. Rows of the others come back when their step runs."""


def restore(platform: Platform, agent: Agent, progress: Progress) -> list[Restored]:
    """See `Upkeep.restore`. One listing a table; MLflow is asked only about days that are damaged."""
    prefix, damaged = agent.spec.table_prefix, {}
    for table in TABLES:
        where = platform.table_uri(prefix + table)
        with storage(where):
            target = open_table(where)
            for day, paths in broken_days(target).items() if target else ():
                damaged.setdefault(day, {})[table] = paths
    restored = []
    for day, tables in sorted(damaged.items(), key=lambda item: item[0] or date.min):
        restored.append(_restore(platform, agent, day, tables, progress))
        progress(restored[-1].said)
    return restored


def broken_days(target: "DeltaTable") -> dict[date | None, set[str]]:
    """Day to those of its files that are gone or have another size than the log says."""
    there = files_in_folder(target)
    found = {day.day: {path for path, size in day.sizes if there.get(path) != size} for day in active_days(target)}
    return {day: paths for day, paths in found.items() if paths}


def _restore(
    platform: Platform, agent: Agent, day: date | None, tables: dict[str, set[str]], progress: Progress
) -> Restored:
    named = f"{len(set().union(*tables.values()))} files of {', '.join(sorted(tables))}"
    if day is None:
        said = f"{named} are gone or damaged, and nothing holds their rows but a backup; put the files back."
        return Restored(datetime.now(UTC).date(), True, said)
    lacking = _lacking(platform, agent, day, progress) if set(tables) & set(FROM_MLFLOW) else ""
    if lacking:
        given_up = f"deltalake.DeltaTable(its folder).delete(\"{PARTITION} = '{day}'\")"
        return Restored(
            day,
            True,
            f"{day}: {named} are gone or damaged, and {lacking}; put the files back from a backup, or give the day up "
            f"in every table by {given_up}: until then queries that need them fail.",
        )
    if set(tables) & set(FROM_MLFLOW):
        _forget_traces(platform, agent, day)
    for table, broken in tables.items():
        if table != "traces":
            _keep_readable(platform.table_uri(agent.spec.table_prefix + table), table, day, broken)
    again = "archived_traces" if set(tables) & set(FROM_MLFLOW) else "the steps of"
    return Restored(
        day, False, f"{day}: {named} were gone or damaged and are out of the tables; run {again} of that day again."
    )


def _lacking(platform: Platform, agent: Agent, day: date, progress: Progress) -> str:
    """Why MLflow cannot give the day again; empty when it has all its traces."""
    where, days = platform.table_uri(agent.spec.table_prefix + "traces"), Days(day, day)
    with storage(where):
        target = open_table(where)
        rows = sum(one.rows for one in active_days(target) if one.day == day) if target else 0
        broken = broken_days(target) if target else {}
        is_readable = target is not None and day not in broken
        held = set(rows_of_day(target, "traces", day, "trace_id")[0].to_pylist()) if is_readable else set()
    reader = open_reader(platform, experiment_id(platform, agent.spec.experiment), progress)
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    there = set(reader.list(days.since_ms, days.until_ms, settled_before_ms=now_ms).ids)
    if held - there or len(there) < rows:
        return f"MLflow holds {len(there)} of the day's {rows} traces"
    return ""


def _forget_traces(platform: Platform, agent: Agent, day: date) -> None:
    """Take the day's rows of `traces` out of the table: archiving then finds fewer than it noted, and compares all."""
    where = platform.table_uri(agent.spec.table_prefix + "traces")

    def attempt() -> None:
        target = open_table(where)
        if target is not None and any(one.day == day for one in active_days(target)):
            target.delete(f"{PARTITION} = DATE '{day}'")

    retried(where, attempt)


def _keep_readable(where: str, table: str, day: date, broken: set[str]) -> None:
    """Replace the day by the rows of its intact files, in one commit."""

    def attempt() -> None:
        from deltalake import write_deltalake

        target = open_table(where)
        if target is None:
            return
        intact = [path for one in active_days(target) if one.day == day for path in one.paths if path not in broken]
        write_deltalake(
            target,
            _rows_of(target, table, day, intact),
            mode="overwrite",
            predicate=f"{PARTITION} = '{day}'",
            writer_properties=zstd(),
        )

    retried(where, attempt)


def _rows_of(target: "DeltaTable", table: str, day: date, paths: list[str]) -> "pa.Table":
    """Rows of these files of one day, in the table's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import PyFileSystem

    schema, folder = arrow_schema(table), PyFileSystem(DeltaStorageHandler(target.table_uri))
    parts = [schema.empty_table()]
    for path in paths:
        read = pq.ParquetFile(folder.open_input_file(path)).read()
        if is_partitioned(table):
            read = read.append_column(schema.field(PARTITION), pa.repeat(pa.scalar(day), read.num_rows))
        parts.append(read.select(schema.names).cast(schema))
    return pa.concat_tables(parts)
