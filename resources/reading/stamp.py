"""When a trace was archived.

Lives here: `archived_at`, said by whoever writes the rows.
Add here: nothing. Not here: writing them (`sqlite_child.py`, and `archive/`).
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from resources.tables import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa


def stamped(traces: "pa.Table") -> "pa.Table":
    """Traces with the present moment as `archived_at`."""
    import pyarrow as pa

    place, now = traces.column_names.index("archived_at"), datetime.now(UTC)
    moment = pa.repeat(pa.scalar(now, arrow_schema("traces").field("archived_at").type), traces.num_rows)
    return traces.set_column(place, "archived_at", moment)
