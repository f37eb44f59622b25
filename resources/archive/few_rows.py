"""Comparing a few rows with what a table holds of them, without a database.

Lives here: the same answers as `row_changes.changes` and `gone`, for some hundred rows: starting DuckDB costs more.
Add here: nothing `row_changes.py` does not do.
Not here: many rows (`row_changes.py`), writing (`upsert.py`).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from resources.archive.row_changes import Changes
from resources.tables import KEYS, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

FEW = 1_000
"""Rows up to which this is quicker."""


def held_rows(rows: Any, table: str) -> "pa.Table":
    """Rows held, a stream of delta-rs, with the columns asked for in the types of the table."""
    import pyarrow as pa

    found, whole = pa.RecordBatchReader.from_stream(rows).read_all(), arrow_schema(table)
    return found.cast(pa.schema([whole.field(name) for name in found.schema.names]))


def few_changes(source: "pa.Table", held: "pa.Table", table: str, names: Sequence[str]) -> Changes:
    """What of `source` is new to `held`, or differs from it in one of `names`.

    A score of ours lands in the table before MLflow has it, so one that is newer there stays.
    """
    known = dict(_keyed(held, table, names))
    new, changed = [], []
    for place, (key, row) in enumerate(_keyed(source, table, names)):
        if key not in known:
            new.append(place)
        elif row != known[key] and not _is_newer_score(table, known[key], row):
            changed.append(place)
    return Changes(_taken(source, new), _taken(source, changed))


def any_gone(source: "pa.Table", held: "pa.Table") -> bool:
    """Whether `held` has a valid assessment that `source` does not have."""
    given = {key for key, _ in _keyed(source, "assessments", ())}
    valid = zip(_keyed(held, "assessments", ()), held.column("valid").to_pylist(), strict=True)
    return any(is_valid and key not in given for (key, _), is_valid in valid)


def _taken(source: "pa.Table", places: list[int]) -> "pa.Table":
    return source.take(places) if places else source.slice(0, 0)


def _is_newer_score(table: str, held: dict[str, Any], said: dict[str, Any]) -> bool:
    if table != "assessments" or held["scorer_version"] is None:
        return False
    return None in (held["updated_at"], said["updated_at"]) or held["updated_at"] > said["updated_at"]


def _keyed(rows: "pa.Table", table: str, names: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Key and values of each row."""
    keys = KEYS[table]
    for row in rows.select(list(dict.fromkeys((*keys, *names)))).to_pylist():
        yield tuple(row[key] for key in keys), row
