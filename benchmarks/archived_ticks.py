"""The labeling sensor's tick after 100 traces came into an archive that holds many.

Lives here: job `tick_newly_archived`. Add here: another sensor whose decision rests on what is archived.
Not here: ticks on MLflow's store (`ticks.py`).

Before each tick 100 traces of the newest day are appended once more under other ids, with their assessments, in a
commit a table. Only the tick is timed. The baseline is the sensor people write, as in `ticks.py`.
"""

import shutil
from typing import TYPE_CHECKING

from benchmarks.archive import archived
from benchmarks.job import Job, Turn
from benchmarks.ticks import NEW, REPEATS, definitions_of, opened, tick, use, users_sensor

if TYPE_CHECKING:
    import pyarrow as pa

SENSOR = "labeling_session_sensor"


def users(turn: Turn) -> None:
    """The baseline: a tick of a sensor that asks for the default page of traces."""
    _begin(turn)
    definitions = users_sensor(turn)
    with opened() as instance:
        tick(definitions, "users", instance, None)
        for _ in range(REPEATS):
            with turn.timed():
                tick(definitions, "users", instance, None)


def ours(turn: Turn) -> None:
    """The tick after each 100 traces; the first one, untimed, decides on all."""
    from benchmarks.sample import sample_agent

    assert turn.shared is not None
    _begin(turn)
    shutil.copytree(turn.shared / "warehouse", turn.folder / "warehouse")
    agent = sample_agent(turn)
    definitions, name = definitions_of([agent]), f"{agent.name}_{SENSOR}"
    with opened() as instance:
        cursor = tick(definitions, name, instance, None).cursor
        for number in range(REPEATS):
            _archive_more(turn, agent.spec.table_prefix, number)
            with turn.timed():
                done = tick(definitions, name, instance, cursor)
            assert done.cursor != cursor, "the tick saw nothing new"
            cursor = done.cursor


def _begin(turn: Turn) -> None:
    from lifecycle_assets.home import prepare_home
    from resources.platform import Platform

    use(turn.folder, turn.uri)
    prepare_home(Platform.from_env())


def _archive_more(turn: Turn, prefix: str, number: int) -> None:
    """100 traces of the newest day again, as of other ids."""
    from resources.delta.table import rows_of_day
    from resources.delta.write import append_rows, table_to_write
    from resources.platform import Platform

    targets = {
        table: table_to_write(Platform.from_env().table_uri(prefix + table), table)
        for table in ("assessments", "traces")
    }
    whole = {table: rows_of_day(target, table, turn.last_day) for table, target in targets.items()}
    ids = whole["traces"].column("trace_id").slice(0, NEW)
    for table, target in targets.items():
        append_rows(target, _again(whole[table], ids, number))


def _again(rows: "pa.Table", ids: "pa.ChunkedArray", number: int) -> "pa.Table":
    import pyarrow as pa

    from resources.arrow_compute import compute

    pc = compute()
    of_them = rows.filter(pc.is_in(rows.column("trace_id"), value_set=ids.combine_chunks()))
    renamed = [f"{trace_id}-{number}" for trace_id in of_them.column("trace_id").to_pylist()]
    place = of_them.column_names.index("trace_id")
    return of_them.set_column(place, of_them.schema.field(place), pa.array(renamed, of_them.schema.field(place).type))


JOBS = (
    Job(
        "tick_newly_archived",
        "The labeling sensor after 100 traces were archived, against a tick that asks for the default page of traces.",
        "at most 100 ms",
        users,
        ours,
        prepare=archived,
    ),
)
