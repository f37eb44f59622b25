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

    heads = by_place(stored.heads)
    nth, started = heads.column("nth").combine_chunks(), heads.column("request_ms").combine_chunks()
    dated = pc.and_(pc.greater_equal(started, 0), pc.less_equal(started, LATEST_MS))
    known = pc.is_in(heads.column("state").combine_chunks(), value_set=pa.array(_STATES, pa.string()))
    odd = set(nth.filter(pc.invert(pc.and_(dated, known))).to_pylist())
    odd |= _odd_pairs(stored.tags) | _odd_pairs(stored.metadata)
    session = heads.column("session_id").combine_chunks()
    metadata = _Pairs(
        stored.metadata,
        nth,
        {
            "mlflow.trace.session": session,
            "mlflow.trace.tokenUsage": _numbers(heads, USAGE),
            "mlflow.trace.cost": _numbers(heads, COST),
        },
    )
    tags = _Pairs(stored.tags, nth, {"mlflow.traceName": heads.column("trace_name").combine_chunks()})
    model, environment = metadata.picked("mlflow.modelId"), tags.picked("environment")
    starts = pc.if_else(dated, started, 0)
    made = {
        "trace_id": heads.column("trace_id"),
        "experiment_id": pa.repeat(pa.scalar(experiment_id, pa.string()), len(nth)),
        "request_time": pc.multiply(starts, 1000).cast(pa.timestamp("us", tz="UTC")),
        "trace_date": pc.divide(starts, _DAY_MS).cast(pa.int32()),
        "state": heads.column("state"),
        "execution_ms": heads.column("execution_ms"),
        "model_id": pc.if_else(pc.equal(model, ""), tags.picked("mlflow.modelId"), model),
        "session_id": pc.fill_null(session, ""),
        "user_id": metadata.picked("mlflow.trace.user"),
        "environment": pc.if_else(pc.equal(environment, ""), metadata.picked("mlflow.source.type"), environment),
        "tags": tags.maps(),
        "metadata": metadata.maps(beside=COPIES),
        "input_tokens": heads.column("input_tokens"),
        "output_tokens": heads.column("output_tokens"),
        "cost_usd": heads.column("total_cost"),
    }
    fields = [field for field in arrow_schema("traces") if field.name not in _BESIDE]
    schema = pa.schema([*fields, pa.field("nth", pa.int64())])
    return pa.Table.from_arrays([*(as_field(made[field.name], field) for field in fields), nth], schema=schema), odd


def as_field(column: Any, field: "pa.Field") -> Any:
    """A column in the type of a field: a cast that changes nothing takes longer than looking."""
    return column if column.type == field.type else column.cast(field.type)


def by_place(heads: "pa.Table") -> "pa.Table":
    """Heads in the order of `nth`, as SQLite gives them."""
    nth = heads.column("nth").to_numpy()
    return heads if (nth[1:] > nth[:-1]).all() else heads.sort_by("nth")


def _odd_pairs(pairs: "pa.Table") -> set[int]:
    """Places of traces with a null among the values."""
    pc = compute()

    if not pairs.column("value").null_count:
        return set()
    return set(pairs.column("nth").filter(pc.is_null(pairs.column("value"))).to_pylist())


def _numbers(heads: "pa.Table", names: tuple[str, ...]) -> "pa.Array":
    """Columns of numbers as MLflow gives them in metadata: one text a trace, null without any."""
    import pyarrow as pa

    said = tuple(name for name in names if heads.column(name).null_count < heads.num_rows)
    if not said:
        return pa.nulls(heads.num_rows, pa.string())
    listed = zip(*(heads.column(name).to_pylist() for name in said), strict=True)
    whole = "{" + ", ".join(f'"{name}": %r' for name in said) + "}"  # What is made of a trace that has them all.
    made = [whole % values if None not in values else numbers_text(said, values) or None for values in listed]
    return pa.array(made, pa.string())


class _Pairs:
    """Tags or metadata of the traces in `nth`, with `more`: key to its value of each of them, left out where null.

    Pairs are in the order of trace and key. Those of other traces, which were deleted in between, are left out.
    """

    def __init__(self, pairs: "pa.Table", nth: "pa.Array", more: "dict[str, pa.Array]") -> None:
        import numpy as np
        import pyarrow as pa

        text = pa.string()
        keys = [pa.repeat(pa.scalar(key, text), len(nth)) for key in more]
        coded = pa.concat_arrays([pairs.column("key").combine_chunks().cast(text), *keys]).dictionary_encode()
        values = pa.concat_arrays([pairs.column("value").combine_chunks().cast(text), *more.values()])
        self._keys, known = coded.dictionary, coded.dictionary.to_pylist()
        self._code = {key: code for code, key in enumerate(known)}
        self._traces = len(nth)
        rows = np.searchsorted(nth.to_numpy(), pairs.column("nth").to_numpy())
        there = np.append(nth.to_numpy(), -1)[rows] == pairs.column("nth").to_numpy()
        rows = np.concatenate([rows, *[np.arange(len(nth))] * len(more)])
        kept = np.concatenate([there, np.ones(len(nth) * len(more), bool)])
        if values.null_count:
            kept &= values.is_valid().to_numpy(zero_copy_only=False)
        # Keys are few: ordering their numbers is some times as fast as ordering them.
        rank = np.empty(len(known), np.int64)
        rank[sorted(range(len(known)), key=known.__getitem__)] = np.arange(len(known))
        codes = coded.indices.to_numpy()
        order = np.argsort(rows * max(len(known), 1) + rank[codes], kind="stable")
        order = order[kept[order]]
        self._rows, self._codes, self._values = rows[order], codes[order], values.take(pa.array(order))

    def picked(self, key: str) -> "pa.Array":
        """The value of one key by the trace's row, empty without one."""
        import numpy as np
        import pyarrow as pa

        found = np.flatnonzero(self._codes == self._code.get(key, -1))[::-1]
        at = np.full(self._traces, -1)
        at[self._rows[found]] = found
        return compute().fill_null(self._values.take(pa.array(at, mask=at < 0)), "")

    def maps(self, *, beside: tuple[str, ...] = ()) -> "pa.Array":
        """A map for each trace, without the keys in `beside`."""
        import numpy as np
        import pyarrow as pa

        rows, codes, values = self._rows, self._codes, self._values
        left_out = [self._code[key] for key in beside if key in self._code]
        if left_out:
            kept = ~np.isin(codes, left_out)
            rows, codes, values = rows[kept], codes[kept], values.filter(pa.array(kept))
        offsets = np.searchsorted(rows, np.arange(self._traces + 1)).astype(np.int32)
        return pa.MapArray.from_arrays(pa.array(offsets), self._keys.take(pa.array(codes)), values)
