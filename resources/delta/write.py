"""Writing to one Delta table: making it, appending, merging, and going on after another writer.

Lives here: what everything that writes needs of delta-rs.
Add here: a further way to write that is true of every table.
Not here: reading (`table.py`), which rows (`archive/delta_archive.py`, `scoring/score_table.py`), upkeep.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lifecycle_assets.refused import Refused
from resources.delta.data_files import DataFile
from resources.delta.shape import complete, fitted
from resources.delta.table import open_table, storage, zstd
from resources.tables import PARTITION, STATISTICS, arrow_schema, is_partitioned

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties

ATTEMPTS = 8
"""Each lost race means another writer got through, so this many in a row is no accident."""

_CHECKPOINT_EVERY = 20  # Commits. Opening reads the log since the last checkpoint: 0.1 ms a commit.

LOG_RETENTION = "interval 2 days"
"""How long single commits stay in the log once a checkpoint holds them: opening a table lists the log's folder."""

Result = TypeVar("Result")


class Overtaken(Exception):  # noqa: N818 a signal, not an error: whoever is overtaken reads again
    """Another writer committed since the table was read."""


def table_to_write(where: str, table: str) -> "DeltaTable":
    """The table at its newest version, made when it is not there, with the columns of this release."""
    found = open_table(where)
    return complete(found, table) if found else create_table(where, table)


def create_table(where: str, table: str) -> "DeltaTable":
    """The empty table; of two processes at once one makes it and both go on."""
    from deltalake import DeltaTable

    unusable = sorted(set(where) & set("%[]"))
    if unusable and "://" not in where:
        raise Refused(
            f"{where}: Delta cannot keep a table in a folder with {' or '.join(unusable)} in its name; use another "
            "folder."
        )
    return DeltaTable.create(
        where,
        arrow_schema(table),
        mode="ignore",
        partition_by=[PARTITION] if is_partitioned(table) else None,
        configuration={
            "delta.dataSkippingStatsColumns": ",".join(STATISTICS[table]),
            "delta.checkpointInterval": str(_CHECKPOINT_EVERY),
            "delta.logRetentionDuration": LOG_RETENTION,
        },
    )


def append_rows(
    target: "DeltaTable", source: "pa.Table | pa.RecordBatchReader", transactions: Mapping[str, int] | None = None
) -> None:
    """Append rows in one commit, which also notes the application transactions; without rows it only notes them.

    Raises `CommitFailedError` when another writer noted one of them since `target` was read.
    """
    from deltalake import write_deltalake

    rows = fitted(source, target)
    write_deltalake(
        target,
        rows,
        mode="append",
        writer_properties=zstd(),
        commit_properties=commit_with(transactions),
        post_commithook_properties=_afterwards(),
    )


def takes_files(target: "DeltaTable", table: str) -> bool:
    """Whether files with the columns of this release may be added: a table that asks for more has delta-rs write."""
    from deltalake import Schema

    def columns(schema: Schema) -> list[tuple[str, Any]]:
        return [(field.name, field.type) for field in schema.fields]

    plain = target.protocol().min_writer_version <= 2  # Beyond, columns may be renamed, generated or constrained.
    return plain and columns(target.schema()) == columns(Schema.from_arrow(arrow_schema(table)))


def add_files(target: "DeltaTable", files: Sequence[DataFile], transactions: Mapping[str, int]) -> None:
    """Append the rows of files of a table kept by day, in one commit that also notes the transactions.

    Raises as `append_rows` does. Only for a table that `takes_files`.
    """
    from deltalake.transaction import AddAction

    now_ms = int(time.time() * 1000)
    target.create_write_transaction(
        [AddAction(one.path, one.size, {PARTITION: one.day}, now_ms, True, one.statistics) for one in files],
        mode="append",
        schema=target.schema(),
        partition_by=[PARTITION],
        commit_properties=commit_with(transactions),
        post_commithook_properties=_afterwards(),
    )
    target.update_incremental()  # This commit does not go on to its own version, as others do.


def merge_rows(
    target: "DeltaTable", source: "pa.Table", predicate: str, transactions: Mapping[str, int] | None = None
) -> Any:
    """delta-rs' merger of `source` (alias s) into `target` (alias t)."""
    return target.merge(
        fitted(source, target),
        predicate,
        source_alias="s",
        target_alias="t",
        writer_properties=zstd(),
        streamed_exec=False,
        commit_properties=commit_with(transactions),
        post_commithook_properties=_afterwards(),
    )


def commit_with(transactions: Mapping[str, int] | None) -> "CommitProperties | None":
    """A commit that notes these application transactions."""
    if not transactions:
        return None
    from deltalake import CommitProperties, Transaction

    return CommitProperties(app_transactions=[Transaction(name, number) for name, number in transactions.items()])


def _afterwards() -> "PostCommitHookProperties":
    """What follows a commit: a checkpoint when one is due.

    Looking for old entries of the log lists all of them (5 ms at 1,000), so that is left to those who rewrite days.
    """
    from deltalake import PostCommitHookProperties

    return PostCommitHookProperties(cleanup_expired_logs=False)


def retried(where: str, attempt: Callable[[], Result]) -> Result:
    """`attempt`, again from reading the table whenever another writer committed in between.

    Raises `Refused` when the storage fails or other writers win again and again.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError

    with storage(where):
        for _ in range(ATTEMPTS):
            try:
                return attempt()
            except (CommitFailedError, Overtaken):
                continue
            except BaseException as fault:
                # A file that cannot be written to its end makes delta-rs panic; then there is no commit.
                if type(fault).__name__ == "PanicException" or "panic" in str(fault).lower():
                    raise Refused(
                        f"{where}: delta-rs broke off while it wrote a file, most often because the disk is full; "
                        "free space there, then run again. Nothing was committed."
                    ) from fault
                # Making a table is not a commit to delta-rs, but it too can be lost to another process.
                if not isinstance(fault, DeltaError) or "version 0 already exists" not in str(fault).lower():
                    raise
    raise Refused(
        f"{where}: other writers committed {ATTEMPTS} times while this step tried to; one writer a table is "
        "foreseen: let the other run end, then run this step again."
    )
