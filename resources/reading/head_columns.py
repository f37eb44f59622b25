"""From stored traces to the columns of `traces`, many at a time.

Lives here: the columns of a page, and telling which traces are out of the ordinary.
Add here: a column of `traces` that comes from the database.
Not here: the rows of single traces (`trace_rows.py`), assessments (`assessment_columns.py`), spans
(`span_columns.py`), reading (`database_sql.py`).

What is made here is what `trace_rows.rows_of` makes of the same trace; what is odd is left to it.
"""

from typing import TYPE_CHECKING, Any

from resources.arrow_compute import compute
from resources.reading.database_sql import COST, USAGE
from resources.reading.stored_traces import Stored, numbers_text
from resources.tables import arrow_schema
from resources.trace_rows import COPIES

if TYPE_CHECKING:
    import pyarrow as pa

LATEST_MS = 253_402_300_799_999
"""The last moment of the year 9999, after which Python knows no date."""

_STATES = ("OK", "ERROR", "STATE_UNSPECIFIED")
_DAY_MS = 86_400_000
_BESIDE = ("request", "response", "archived_at")  # Columns of `traces` that are not of its head.


def trace_columns(stored: Stored, experiment_id: str) -> "tuple[pa.Table, set[int]]":
    """Columns of `traces` with `nth`, without request and response, in the order of `nth`; and which are odd."""
    import pyarrow as pa

    pc = compute()

    heads = stored.heads.sort_by("nth")
    nth, started = heads.column("nth").combine_chunks(), heads.column("request_ms").combine_chunks()
    dated = pc.and_(pc.greater_equal(started, 0), pc.less_equal(started, LATEST_MS))
    known = pc.is_in(heads.column("state").combine_chunks(), value_set=pa.array(_STATES, pa.string()))
    odd = set(nth.filter(pc.invert(pc.and_(dated, known))).to_pylist())
    odd |= _odd_pairs(stored.tags) | _odd_pairs(stored.metadata)
    metadata = _with(
        stored.metadata,
        ("mlflow.trace.session", heads.column("session_id")),
        ("mlflow.trace.tokenUsage", _numbers(heads, USAGE)),
        ("mlflow.trace.cost", _numbers(heads, COST)),
        nth=nth,
    )
    tags = _with(stored.tags, ("mlflow.traceName", heads.column("trace_name")), nth=nth)
    model, source = (_picked(metadata, key, nth) for key in ("mlflow.modelId", "mlflow.source.type"))
    tagged, environment = (_picked(tags, key, nth) for key in ("mlflow.modelId", "environment"))
    starts = pc.if_else(dated, started, 0)
    kept = metadata.filter(pc.invert(pc.is_in(metadata.column("key"), pa.array(COPIES, pa.string()))))
    made = {
        "trace_id": heads.column("trace_id"),
        "experiment_id": pa.repeat(pa.scalar(experiment_id, pa.string()), len(nth)),
        "request_time": pc.multiply(starts, 1000).cast(pa.timestamp("us", tz="UTC")),
        "trace_date": pc.divide(starts, _DAY_MS).cast(pa.int32()),
        "state": heads.column("state"),
        "execution_ms": heads.column("execution_ms"),
        "model_id": pc.if_else(pc.equal(model, ""), tagged, model),
        "session_id": _picked(metadata, "mlflow.trace.session", nth),
        "user_id": _picked(metadata, "mlflow.trace.user", nth),
        "environment": pc.if_else(pc.equal(environment, ""), source, environment),
        "tags": _maps(tags, nth),
        "metadata": _maps(kept, nth),
        "input_tokens": heads.column("input_tokens"),
        "output_tokens": heads.column("output_tokens"),
        "cost_usd": heads.column("total_cost"),
    }
    fields = [field for field in arrow_schema("traces") if field.name not in _BESIDE]
    schema = pa.schema([*fields, pa.field("nth", pa.int64())])
    return pa.Table.from_arrays([*(made[field.name].cast(field.type) for field in fields), nth], schema=schema), odd


def _odd_pairs(pairs: "pa.Table") -> set[int]:
    """Places of traces with a null among the values."""
    pc = compute()

    if not pairs.column("value").null_count:
        return set()
    return set(pairs.filter(pc.is_null(pairs.column("value"))).column("nth").to_pylist())


def _numbers(heads: "pa.Table", names: tuple[str, ...]) -> "pa.Array":
    """Columns of numbers as MLflow gives them in metadata: one text a trace, null without any."""
    import pyarrow as pa

    listed = zip(*(heads.column(name).to_pylist() for name in names), strict=True)
    return pa.array([numbers_text(names, values) or None for values in listed], pa.string())


def _with(pairs: "pa.Table", *more: "tuple[str, Any]", nth: "pa.Array") -> "pa.Table":
    """Pairs and further ones, by place and key: of each trace in `nth` its value of a key, unless that is null."""
    import numpy as np
    import pyarrow as pa

    pc = compute()

    schema = pa.schema([("nth", pa.int64()), ("key", pa.string()), ("value", pa.string())])
    parts = [pairs.cast(schema)]
    for key, values in more:
        keys = pa.repeat(pa.scalar(key, pa.string()), len(nth))
        parts.append(pa.table([nth, keys, values], schema=schema).filter(pc.is_valid(values)))
    whole = pa.concat_tables(parts)
    # Keys are few: ordering their numbers is some times as fast as ordering them.
    coded = whole.column("key").combine_chunks().dictionary_encode()
    known = coded.dictionary.to_pylist()
    rank = np.empty(len(known), np.int64)
    rank[sorted(range(len(known)), key=known.__getitem__)] = np.arange(len(known))
    at = whole.column("nth").to_numpy() * max(len(known), 1) + rank[coded.indices.to_numpy()]
    return whole.take(pa.array(np.argsort(at, kind="stable")))


def _picked(pairs: "pa.Table", key: str, nth: "pa.Array") -> "pa.Array":
    """The value of one key by the trace's row, empty without one."""
    pc = compute()

    found = pairs.filter(pc.equal(pairs.column("key"), key))
    at = pc.index_in(nth, found.column("nth").combine_chunks())
    return pc.fill_null(found.column("value").combine_chunks().take(at), "")


def _maps(pairs: "pa.Table", places: "pa.Array") -> "pa.Array":
    """A map for each place of the pairs that follow each other by place."""
    import numpy as np
    import pyarrow as pa

    pc = compute()

    pairs = pairs.filter(pc.is_in(pairs.column("nth"), places))  # Some were deleted in between.
    nth = pairs.column("nth").to_numpy()
    offsets = np.append(np.searchsorted(nth, places.to_numpy()), len(nth)).astype(np.int32)
    keys, values = (pairs.column(name).combine_chunks() for name in ("key", "value"))
    return pa.MapArray.from_arrays(pa.array(offsets), keys, values)
