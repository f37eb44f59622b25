"""Stored traces as rows, each trace by itself: what is out of the ordinary, and what is redacted.

Lives here: `rows`: from MLflow's own entities to a batch.
Add here: a further way in which a trace has to be read.
Not here: what is ordinary (`page_columns.py`), rows (`trace_rows.py`), the API (`public_reader.py`).
"""

from collections.abc import Sequence
from typing import Any

from resources.reading import stored_traces
from resources.reading.page_columns import elsewhere
from resources.reading.public_reader import PublicReader
from resources.reading.row_batches import batch_of, rows_or_why, unreadable
from resources.reading.stored_traces import Stored
from resources.reading.trace_reader import Batch, Quarantined
from resources.redaction import Redaction, Text


def rows(
    stored: Stored, starts: Sequence[int], experiment_id: str, public: PublicReader, redact: Redaction = ()
) -> Batch:
    """All traces of `stored`, which started at `starts`; those whose spans are elsewhere are read through MLflow."""
    made_rows, lost, text = [], [], Text(redact)
    infos, away = stored_traces.infos(stored, experiment_id), elsewhere(stored)
    spans = {} if stored.spans is None else stored_traces.span_dicts(stored.spans)
    for nth in sorted(infos):
        found: Any = (infos[nth], spans.get(nth, []))
        failed = next((one for one in found if isinstance(one, Exception)), None)
        if nth in away:
            found = public.fetch.alone(stored.ids[nth])
        elif failed is not None:
            found = unreadable(failed)
        made = rows_or_why(*found, text) if isinstance(found, tuple) else found
        if isinstance(made, str):
            lost.append(Quarantined(stored.ids[nth], starts[nth], made))
        elif made is not None:
            made_rows.append(made)
    return batch_of(made_rows, with_spans=stored.spans is not None, quarantined=tuple(lost))
