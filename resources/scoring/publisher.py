"""Publishing scores: what the tables hold and MLflow lacks is written to MLflow, with the same ids and times.

Lives here: which scores are pending, in which order they go, and noting what MLflow has.
Add here: nothing but a rule of what has to be in MLflow before it is noted.
Not here: one write to MLflow (`publishing.py`), the tables (`score_table.py`), scoring (`local_scoring.py`).

Why it may be killed anywhere and run again: a score is pending until `publications` names it, and it is named after
MLflow has it. What MLflow has already, because the last run died in between, is seen by its id and not written again;
of two processes at once MLflow refuses the second, whose id is the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from lifecycle_assets.records import ScorerVersion
from resources.explain import explained
from resources.platform import Platform
from resources.reading.trace_reader import TraceReader
from resources.redaction import Redaction
from resources.scoring.publishing import Writer, open_writer
from resources.scoring.score_table import ScoreTable, select, with_digest
from resources.scoring.trace_scores import feedback_of
from resources.tables import PARTITION
from resources.worker import Progress

if TYPE_CHECKING:
    import pyarrow as pa

REPORT_SECONDS = 3.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Lag:
    """Scores of ours that MLflow does not have yet, and since when the oldest of them is in the tables."""

    pending: int = 0
    oldest: datetime | None = None

    @property
    def minutes(self) -> float:
        """Age of the oldest; 0 when there is none."""
        return (datetime.now(UTC) - self.oldest).total_seconds() / 60 if self.oldest else 0.0


def lag_of(table: ScoreTable, day: date) -> Lag:
    """What is pending of a day. Reads two tables, nothing of MLflow."""
    since = table.pending(day).column("updated_at").to_pylist()
    return Lag(len(since), min(since, default=None))


class Publisher:
    """Writes one agent's scores to MLflow."""

    def __init__(
        self,
        platform: Platform,
        table: ScoreTable,
        reader: TraceReader,
        scorers: Mapping[tuple[str, str], ScorerVersion],
        redact: Redaction = (),
    ) -> None:
        self._platform, self._table, self._reader = platform, table, reader
        self._scorers, self._redact = scorers, redact
        self._opened: Writer | None = None

    @property
    def _writer(self) -> Writer:
        self._opened = self._opened or open_writer(self._platform)
        return self._opened

    def close(self) -> None:
        """Let go of what was opened."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    def publish(self, day: date, rows: "pa.Table", sessions: Mapping[str, str], progress: Progress) -> None:
        """Write rows `ScoreTable.land` has just written; `sessions` are those of session scores, by trace."""
        with explained(self._platform.tracking_uri):
            self._write(day, with_digest(rows).to_pylist(), sessions, progress)

    def publish_rest(self, day: date, progress: Progress) -> int:
        """Write what earlier runs left over, after looking what of it MLflow has; how many were pending."""
        pending = self._table.pending(day)
        if not pending.num_rows:
            return 0
        progress(f"{day}: {pending.num_rows} scores are not in MLflow yet: publishing them")
        with explained(self._platform.tracking_uri):
            most = self._writer.batch
            for start in range(0, pending.num_rows, most):
                batch = pending.slice(start, most)
                found, sessions = self._in_mlflow(day, batch)
                rows = found.to_pylist()
                self._table.note(day, self._noted([row for row in rows if row["same"]], day))
                self._write(day, [row for row in rows if not row["same"]], sessions, progress)
        return pending.num_rows

    def _in_mlflow(self, day: date, batch: "pa.Table") -> "tuple[pa.Table, dict[str, str]]":
        """The batch with `is_new` (MLflow lacks it) and `same` (it says the same there); sessions of the traces."""
        import pyarrow as pa

        ids = batch.column("trace_id").unique()
        start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
        listing = pa.table({"trace_id": ids, "request_ms": pa.array([start] * len(ids), pa.int64())})
        heads = list(self._reader.heads(listing, redact=self._redact))
        traces = pa.concat_tables([one.traces.select(["trace_id", "session_id"]) for one in heads])
        said = with_digest(pa.concat_tables([one.assessments for one in heads]))
        found = select(
            "SELECT g.*, h.trace_id IS NULL AS is_new, coalesce(h.digest = g.digest, false) AS same "
            "FROM given g LEFT JOIN said h USING (trace_id, assessment_id)",
            given=batch,
            said=said,
        )
        return found, dict(zip(*(traces.column(name).to_pylist() for name in traces.column_names), strict=True))

    def _write(self, day: date, rows: list[dict[str, Any]], sessions: Mapping[str, str], progress: Progress) -> None:
        if not rows:
            return
        begun = shown = datetime.now(UTC)
        most = self._writer.batch
        for start in range(0, len(rows), most):
            batch = rows[start : start + most]
            new = [self._feedback(row, sessions) for row in batch if row["is_new"]]
            changed = [self._feedback(row, sessions) for row in batch if not row["is_new"]]
            self._writer.write(new, changed)
            self._table.note(day, self._noted(batch, day))
            now, done = datetime.now(UTC), start + len(batch)
            if now - shown > timedelta(seconds=REPORT_SECONDS):
                rate, shown = done / (now - begun).total_seconds(), now
                progress(f"{day}: published {done} of {len(rows)} scores, {rate:.0f} a second")

    def _feedback(self, row: Mapping[str, Any], sessions: Mapping[str, str]) -> Any:
        scorer = self._scorers.get((row["name"], row["scorer_version"]))
        session = sessions.get(row["trace_id"], "") if scorer and scorer.level == "session" else ""
        return feedback_of(row, digest=scorer.digest if scorer else "", session=session)

    @staticmethod
    def _noted(rows: list[dict[str, Any]], day: date) -> "pa.Table":
        from resources.tables import arrow_table

        now, same = datetime.now(UTC), ("trace_id", "assessment_id", "digest")
        return arrow_table(
            "publications", [{**{key: row[key] for key in same}, PARTITION: day, "published_at": now} for row in rows]
        )
