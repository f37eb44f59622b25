"""What a damaged table says: one sentence that names the table, the damage, and the cure.

Lives here: telling a table of ours from one that must not be read, and what errors of its files mean.
Add here: a damage people meet.
Not here: opening tables (`table.py`), mending them (`repair.py`), full disks (`explain.py`).

Nothing here changes a table. A table somebody gave another column is read and written as before; one that lacks the
newest columns was written by an older release. Everything else that differs is refused: DuckDB reads the files by
name, so it would show rows that deletion vectors delete, and take a dropped column for an empty one.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from lifecycle_assets.refused import Refused
from resources.tables import PARTITION, TABLES, is_partitioned

if TYPE_CHECKING:
    from deltalake import DeltaTable

FEATURES = frozenset({"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"})
"""Reader features that change nothing about what the files listed in the log say (Delta's PROTOCOL.md)."""

UPKEEP = "run the job <agent>_upkeep"

_GONE = re.compile(r"No files found that match the pattern|Object at location .* not found|No such file", re.DOTALL)
_BROKEN = re.compile(
    r"No magic bytes|TProtocolException|Corrupt footer|Invalid Parquet|not a parquet|EOF: |too small to be a Parquet|"
    r"Parquet error|Snappy|ZSTD|failed to decompress|out of bounds of file",
    re.IGNORECASE,
)
_LOG = re.compile(
    r"Json error|contiguous commit files|Kernel error: Arrow error|log segment|checkpoint|protocol or metadata",
    re.IGNORECASE,
)
_NEWER = re.compile(r"Feature '([^']{1,60})' is not supported|Unsupported minimum reader version (\d+)")
_MAPPED = re.compile(r"column mapping|not found in schema", re.IGNORECASE)
_SHAPE = re.compile(r"Schema error: No field named (\S+?)\.|Cannot cast schema|SchemaMismatch", re.IGNORECASE)
_FILE = re.compile(r"([^\s'\"]+?)/([^\s'\"/]+)/((?:[a-z_]+=[^/\s'\"]+/)?part-[^\s'\"/]+?\.parquet)")


def explain_table(error: BaseException, where: str) -> str | None:
    """A sentence for a table whose files or log are damaged, None for anything else.

    `where` is the table's place, or that of all tables: the file in the error then says which.
    """
    text = str(error)
    if type(error).__module__.split(".")[0] in ("duckdb", "_duckdb"):
        # A query may say anything; only a file of a table is one.
        return _of_file(text, where) if _FILE.search(text) or "TProtocolException" in text else None
    newer = _NEWER.search(text)
    if newer:
        needs = f"feature {newer[1]}" if newer[1] else f"reader version {newer[2]}"
        return (
            f"{where}: another program made this table need a newer reader ({needs}); drop that feature with the "
            "program that added it, then run again."
        )
    if "Parquet error" in text and _FILE.search(text):
        return _of_file(text, where)
    if _LOG.search(text) and "Kernel error" in text:
        return (
            f"{where}/_delta_log: the table's log is damaged ({_short(text)}); put the file back from a backup, or "
            "move the table's folder away and archive the days again. Nothing was written."
        )
    if _MAPPED.search(text):
        return f"{where}: {_mapped()}"
    if _SHAPE.search(text):
        return (
            f"{where}: somebody changed the table's columns ({_short(text)}); change them back, or move the table's "
            "folder away and archive the days again."
        )
    return _of_file(text, where)


@contextmanager
def sound(where: str) -> Generator[None]:
    """Turn what a damaged table says inside the block into `Refused`; everything else passes unchanged."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # DataFusion's errors reach Python as plain `Exception`.
        sentence = explain_table(error, where)
        if sentence is None:
            raise
        raise Refused(sentence) from error


def _of_file(text: str, where: str) -> str | None:
    """What to say of a Parquet file that is gone or broken."""
    found = _FILE.search(unquote(text))
    text = _FILE.sub("", unquote(text))  # Every name says how its file is packed.
    place = f"{found[1]}/{found[2]}" if found and found[2] != "_delta_log" else where
    if found and "=" in found[2]:
        place, name = found[1], f"{found[2]}/{found[3]}"
    else:
        name = found[3] if found else "a file"
    place = place if place.startswith(("/", where[:1])) or "://" in place else f"/{place}"
    if _GONE.search(text):
        return (
            f"{place}: the table's log lists {name}, and the file is gone; put it back from a backup, or {UPKEEP}: "
            "days that MLflow still holds are archived again."
        )
    if _BROKEN.search(text):
        return (
            f"{place}: {name} is damaged and cannot be read; put it back from a backup, or delete it and {UPKEEP}: "
            "days that MLflow still holds are archived again."
        )
    return None


def require_sound(target: "DeltaTable", where: str) -> None:
    """Refuse a table that DuckDB would misread or that has lost columns of ours. Looks at the log only."""
    protocol = target.protocol()
    beyond = sorted(set(protocol.reader_features or ()) - FEATURES)
    if beyond:
        raise Refused(
            f"{where}: another program gave this table {', '.join(beyond)[:120]}, which DuckDB would not honour: it "
            "would show rows that are deleted. Drop the feature with that program (for deletion vectors: REORG TABLE … "
            "APPLY (PURGE), then ALTER TABLE … DROP FEATURE), then run again."
        )
    if target.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        raise Refused(f"{where}: {_mapped()}")
    table = table_at(where)
    if not table:
        return
    kept_by, wanted_by = target.metadata().partition_columns, [PARTITION] if is_partitioned(table) else []
    if kept_by != wanted_by:
        raise Refused(
            f"{where}: somebody wrote the table anew, with files by {', '.join(kept_by)[:80] or 'nothing'} instead of "
            f"{', '.join(wanted_by) or 'nothing'}; move the table's folder away and archive the days again."
        )
    found = {field.name: _kind(field.type) for field in target.schema().fields}
    wanted = _kinds(table)
    lost = [name for name in wanted if name not in found]
    # Columns are only ever added at the end, so a table of an older release lacks the last ones and no other.
    if lost and lost != list(wanted)[-len(lost) :]:
        raise Refused(
            f"{where}: somebody dropped the column {lost[0]} of the table; move the table's folder away and archive "
            "the days again, or add the column back and fill it."
        )
    changed = [name for name in wanted if name in found and found[name] != wanted[name]]
    if changed:
        name = changed[0]
        raise Refused(
            f"{where}: somebody changed the column {name} of the table from {wanted[name]} to {found[name][:40]}; "
            "change it back, or move the table's folder away and archive the days again."
        )


def require_no_lost_log(uri: str) -> None:
    """Refuse a folder with files of a table and no log: the table was there, and `_delta_log` is gone.

    For tables in folders only; an object store is not listed.
    """
    folder = Path(uri.removeprefix("file://"))
    if "://" in uri.removeprefix("file://") or not folder.is_dir():
        return
    if any(folder.glob("part-*.parquet")) or any(folder.glob("*=*/part-*.parquet")):
        raise Refused(
            f"{uri}: the folder holds files of a table, and the log that lists them is gone or empty; put _delta_log "
            "back from a backup, or move the folder away and archive the days again."
        )


def table_at(where: str) -> str:
    """The table of ours that is kept at a place: its name is the end of the folder's; empty for another table."""
    folder = where.rstrip("/").rpartition("/")[2]
    return next((table for table in TABLES if folder == table or folder.endswith(f"_{table}")), "")


def _mapped() -> str:
    return (
        "another program renamed columns of this table (column mapping), so its files have other columns than the "
        "table; move the table's folder away and archive the days again."
    )


_KINDS = {
    "VARCHAR": "string",
    "BIGINT": "long",
    "DOUBLE": "double",
    "BOOLEAN": "boolean",
    "DATE": "date",
    "TIMESTAMPTZ": "timestamp",
    "MAP(VARCHAR, VARCHAR)": "map<string, string>",
}
"""DuckDB's names of types as Delta's. By way of Arrow they would cost a process 0.2 s of imports."""


@cache
def _kinds(table: str) -> dict[str, str]:
    return {name: _KINDS[kind] for name, kind in TABLES[table].items()}


def _kind(kind: object) -> str:
    """A type of Delta in words, whether or not its values may be null."""
    named = str(getattr(kind, "type", "")) or type(kind).__name__
    inner = [_kind(part) for part in (getattr(kind, "key_type", None), getattr(kind, "value_type", None)) if part]
    return f"{named}<{', '.join(inner)}>" if inner else named


def _short(text: str) -> str:
    """The first words of an error, without the frames delta-rs adds."""
    return re.split(r" \d+: <unknown>|, ParsedLogPath|: ParsedLogPath", " ".join(text.split()))[0][:160].rstrip(". ")
