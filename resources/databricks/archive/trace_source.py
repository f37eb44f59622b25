"""Which table of the workspace an agent's traces are archived from.

Lives here: choosing between the tables in Unity Catalog and native archival, switching the latter on, reading shapes.
Add here: another place to choose.
Not here: the SQL over that place (`archive_sources.py`), linking an experiment to Unity Catalog (`tracing.py`).
"""

import re

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.databricks.archive.archive_sources import OtelTables, Source, TraceTable
from resources.databricks.archive.column_types import Kind, read_kind
from resources.databricks.sql.sql_engine import absent_tables
from resources.databricks.sql.statements import StatementFailed, run_statement, ticked
from resources.databricks.tracing.trace_place import Place, place_of
from resources.explain import explained
from resources.mlflow_store import open_client
from resources.platform import Platform
from resources.worker import Progress, run_worker

ARCHIVAL = "lifecycle.archival"
"""Experiment tag: the table the workspace archives its traces into, once that was switched on."""

NATIVE = "native_traces"
"""Name, after the agent's prefix, of the table the workspace archives traces into."""

_SWITCH_SECONDS = 120.0
_SAYS_ABSENT = re.compile(r"cannot be found|does not exist|not found", re.IGNORECASE)


def trace_source(platform: Platform, agent: Agent, experiment: str, progress: Progress) -> tuple[Source | None, bool]:
    """Where traces are read from, None before the first round of native archival; and whether that is the place.

    Switches native archival on where traces are kept in the experiment (its id is `experiment`). Raises `Refused`
    when that is refused, and when the experiment should be linked to Unity Catalog and is not.
    """
    place = place_of(platform, agent.spec.experiment)
    if place.kind == "unity_catalog":
        return _otel(platform, place), False
    if place.kind == "unity_schema":
        view = place.spans_table.removesuffix("_otel_spans") + "_unified"
        return TraceTable(ticked(view), _described(platform, view), place.path), False
    if agent.spec.tracing.location == "unity_catalog":
        raise Refused(
            f"Experiment {agent.spec.experiment} does not keep its traces in Unity Catalog yet: materialize "
            "production_traces, which links it, or set tracing.location: experiment in defs.yaml."
        )
    table = f"{agent.spec.table_prefix}{NATIVE}"
    _switch_on(platform, agent, experiment, table, progress)
    try:
        return TraceTable(ticked(table), _described(platform, table)), True
    except StatementFailed as failed:
        if is_absent(platform, failed, table):
            return None, True
        raise


def is_absent(platform: Platform, failed: StatementFailed, *tables: str) -> bool:
    """Whether a statement failed because one of these tables is not there; asked of the catalog when in doubt."""
    if failed.condition == "TABLE_OR_VIEW_NOT_FOUND":
        return True
    return bool(_SAYS_ABSENT.search(str(failed)) and absent_tables(platform, tables))


def _otel(platform: Platform, place: Place) -> Source:
    """The tables themselves, which can be read by day; the view over them where there are no annotations."""
    spans, view = place.spans_table, f"{place.path}_trace_unified"
    annotations = next(name for name in place.tables if "annotations" in name.rpartition(".")[2])
    try:
        shapes = _described(platform, spans), _described(platform, annotations)
    except StatementFailed as failed:
        if not is_absent(platform, failed, annotations):
            raise
        return TraceTable(ticked(view), _described(platform, view), place.path)
    return OtelTables(place.path, ticked(spans), ticked(annotations), *shapes)


def _described(platform: Platform, table: str) -> dict[str, Kind]:
    """Columns of a table. Raises `Refused` when it shows none."""
    kinds: dict[str, Kind] = {}
    for row in run_statement(platform, f"DESCRIBE TABLE {ticked(table)}").dicts():
        name = row.get("col_name") or row.get("column_name") or ""
        if not name or name.startswith("#"):
            break  # Partitions and details follow.
        kinds[name.lower()] = read_kind(row.get("data_type") or row.get("column_type") or "")
    if not kinds:
        raise Refused(f"{table}, where traces are kept, shows no columns; look at it in Catalog Explorer.")
    return kinds


def _switch_on(platform: Platform, agent: Agent, experiment: str, table: str, progress: Progress) -> None:
    """Native archival, once an experiment: its tag remembers that it is on."""
    client = open_client(platform)
    with explained(platform.tracking_uri):
        if client.get_experiment(experiment).tags.get(ARCHIVAL) == table:
            return
        progress(f"switching on the archival of {agent.spec.experiment} into {table}")
        run_worker(
            "enable_archival",
            {"experiment_id": experiment, "experiment": agent.spec.experiment, "table": table},
            platform=platform,
            progress=progress,
            timeout_seconds=_SWITCH_SECONDS,
        )
        client.set_experiment_tag(experiment, ARCHIVAL, table)
