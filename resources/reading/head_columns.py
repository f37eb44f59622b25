"""From stored traces to the columns of `traces`, many at a time.

Lives here: the columns of a page, and telling which traces are out of the ordinary.
Add here: a column of `traces` that comes from the database.
Not here: the rows of single traces (`trace_rows.py`), assessments (`assessment_columns.py`), spans
(`span_columns.py`), reading (`database_sql.py`).

What is made here is what `trace_rows.rows_of` makes of the same trace; what is odd is left to it.
"""

from typing import TYPE_CHECKING, Any

from resources.arrow_compute import compute
from resources.reading.stored_traces import PROMOTED_FROM, Stored, promoted
from resources.tables import arrow_schema
from resources.trace_rows import COPIES

if TYPE_CHECKING:
    import pyarrow as pa

LATEST_MS = 253_402_300_799_999
"""The last moment of the year 9999, after which Python knows no date."""

_STATES = ("OK", "ERROR", "STATE_UNSPECIFIED")
_BESIDE = ("request", "response", "archived_at")  # Columns of `traces` that are not of its head.


def trace_columns(stored: Stored, experiment_id: str) -> "tuple[pa.Table, set[int]]":
    """Columns of `traces` with `nth`, without request and response, in the order of `nth`; and which are odd."""
    import pyarrow as pa

    pc = compute()

    heads = stored.heads.sort_by("nth")
    count = heads.num_rows
    places = heads.column("nth").to_pylist()
    of = {nth: place for place, nth in enumerate(places)}
    odd = _odd_pairs(stored.tags) | _odd_pairs(stored.metadata)
    columns = {name: heads.column(name).to_pylist() for name in ("state", "request_ms", "trace_name", *PROMOTED_FROM)}
    extra: list[tuple[int, str, str]] = []
    for place, nth in enumerate(places):
        if columns["state"][place] not in _STATES or not 0 <= columns["request_ms"][place] <= LATEST_MS:
            odd.add(nth)
    for nth, *said in zip(places, *(columns[name] for name in PROMOTED_FROM), strict=True):
        extra += ((nth, key, value) for key, value in promoted(dict(zip(PROMOTED_FROM, said, strict=True))).items())
    names = [
        (nth, "mlflow.traceName", name)
        for nth, name in zip(places, columns["trace_name"], strict=True)
        if name is not None
    ]
    metadata = _with(stored.metadata, extra)
    tags = _with(stored.tags, names)
    picked = {
        "session_id": _picked(metadata, "mlflow.trace.session", of),
        "user_id": _picked(metadata, "mlflow.trace.user", of),
        "source": _picked(metadata, "mlflow.source.type", of),
        "model": _picked(metadata, "mlflow.modelId", of),
        "tagged": _picked(tags, "mlflow.modelId", of),
        "environment": _picked(tags, "environment", of),
    }
    starts = [ms if 0 <= ms <= LATEST_MS else 0 for ms in columns["request_ms"]]
    moments = pa.array(starts, pa.int64())
    kept = metadata.filter(pc.invert(pc.is_in(metadata.column("key"), pa.array(COPIES, pa.string()))))
    made = {
        "trace_id": heads.column("trace_id"),
        "experiment_id": pa.array([experiment_id] * count, pa.string()),
        "request_time": pc.multiply(moments, 1000).cast(pa.timestamp("us", tz="UTC")),
        "trace_date": pa.array([ms // 86_400_000 for ms in starts], pa.int32()).cast(pa.date32()),
        "state": heads.column("state"),
        "execution_ms": heads.column("execution_ms"),
        "model_id": [picked["model"][n] or picked["tagged"][n] or "" for n in range(count)],
        "session_id": picked["session_id"],
        "user_id": picked["user_id"],
        "environment": [picked["environment"][n] or picked["source"][n] for n in range(count)],
        "tags": _maps(tags, places),
        "metadata": _maps(kept, places),
        "input_tokens": heads.column("input_tokens"),
        "output_tokens": heads.column("output_tokens"),
        "cost_usd": heads.column("total_cost"),
    }
    fields = [field for field in arrow_schema("traces") if field.name not in _BESIDE]
    arrays = [_typed(made[field.name], field.type) for field in fields]
    schema = pa.schema([*fields, pa.field("nth", pa.int64())])
    return pa.Table.from_arrays([*arrays, _typed(heads.column("nth"), pa.int64())], schema=schema), odd


def _typed(values: Any, kind: "pa.DataType") -> Any:
    import pyarrow as pa

    return pa.array(values, kind) if isinstance(values, list) else values.cast(kind)


def _odd_pairs(pairs: "pa.Table") -> set[int]:
    """Places of traces with a null among the values."""
    pc = compute()

    if not pairs.column("value").null_count:
        return set()
    return set(pairs.filter(pc.is_null(pairs.column("value"))).column("nth").to_pylist())


def _with(pairs: "pa.Table", more: list[tuple[int, str, str]]) -> "pa.Table":
    """Pairs and further ones, by place and key."""
    import numpy as np
    import pyarrow as pa

    listed = list(zip(*more, strict=True)) or [(), (), ()]
    kinds = (pa.int64(), pa.string(), pa.string())
    added = pa.table({n: pa.array(v, k) for n, v, k in zip(("nth", "key", "value"), listed, kinds, strict=True)})
    whole = pa.concat_tables([pairs.cast(added.schema), added])
    # Keys are few: ordering their numbers is some times as fast as ordering them.
    coded = whole.column("key").combine_chunks().dictionary_encode()
    known = coded.dictionary.to_pylist()
    rank = np.empty(len(known), np.int64)
    rank[sorted(range(len(known)), key=known.__getitem__)] = np.arange(len(known))
    at = whole.column("nth").to_numpy() * max(len(known), 1) + rank[coded.indices.to_numpy()]
    return whole.take(pa.array(np.argsort(at, kind="stable")))


def _picked(pairs: "pa.Table", key: str, of: dict[int, int]) -> list[str]:
    """The value of one key by the trace's row, empty without one."""
    pc = compute()

    found = pairs.filter(pc.equal(pairs.column("key"), key))
    values = [""] * len(of)
    for nth, value in zip(found.column("nth").to_pylist(), found.column("value").to_pylist(), strict=True):
        if nth in of:
            values[of[nth]] = value or ""
    return values


def _maps(pairs: "pa.Table", places: list[int]) -> "pa.Array":
    """A map for each place of the pairs that follow each other by place."""
    import numpy as np
    import pyarrow as pa

    pc = compute()

    pairs = pairs.filter(pc.is_in(pairs.column("nth"), pa.array(places, pa.int64())))  # Some were deleted in between.
    nth = pairs.column("nth").to_numpy()
    offsets = np.append(np.searchsorted(nth, np.array(places, np.int64)), len(nth)).astype(np.int32)
    keys, values = (pairs.column(name).combine_chunks() for name in ("key", "value"))
    return pa.MapArray.from_arrays(pa.array(offsets), keys, values)
