"""Rows and tables with other columns than each other: a table somebody widened, a table of an older release.

Lives here: making them fit.
Add here: another difference that does no harm.
Not here: differences that are refused (`faults.py`), the columns (`tables.py`).
"""

from typing import TYPE_CHECKING, TypeVar

from resources.tables import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable


Rows = TypeVar("Rows", "pa.Table", "pa.RecordBatchReader", "pa.Table | pa.RecordBatchReader")


def fitted(source: Rows, target: "DeltaTable") -> Rows:
    """`source` with the columns `target` has beyond ours, as nulls, so that a table somebody widened takes it."""
    import pyarrow as pa

    known = set(source.schema.names)
    beyond = [field.name for field in target.schema().fields if field.name not in known]
    if not beyond:
        return source
    held = pa.schema(target.schema())
    schema = pa.schema([*source.schema, *(held.field(name) for name in beyond)])

    def widened(batch: "pa.RecordBatch") -> "pa.RecordBatch":
        nulls = [pa.nulls(batch.num_rows, held.field(name).type) for name in beyond]
        return pa.RecordBatch.from_arrays([*batch.columns, *nulls], schema=schema)

    if isinstance(source, pa.Table):
        return pa.Table.from_batches([widened(batch) for batch in source.to_batches()], schema=schema)
    return pa.RecordBatchReader.from_batches(schema, (widened(batch) for batch in source))


def complete(target: "DeltaTable", table: str) -> "DeltaTable":
    """The table, with the columns that later releases added to it. One commit, and only when one is missing."""
    from deltalake import DeltaTable, Schema

    held = {field.name for field in target.schema().fields}
    lacking = [field for field in Schema.from_arrow(arrow_schema(table)).fields if field.name not in held]
    if not lacking:
        return target
    target.alter.add_columns(lacking)
    return DeltaTable(target.table_uri)
