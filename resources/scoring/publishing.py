"""Writing assessments to MLflow, many at a time.

Lives here: `Writer` and its three ways: a database of known schema, any store, a server.
Add here: a faster way, once MLflow has one.
Not here: which assessments (`publisher.py`), what they say (`trace_scores.py`).

MLflow has no call for many assessments: `create_assessment` takes five statements and a commit each. Where the
database has a schema we tested, a batch is one statement, with the columns `create_assessment` fills: MLflow makes a
row of the first assessment of a kind, and the others differ from it in ids, times and value. Otherwise, and for a
batch the database refuses, they are created one by one.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from resources.mlflow_store import open_client
from resources.platform import Platform
from resources.reading.database import KNOWN_REVISIONS, database_of
from resources.reading.store_state import sqlite_path

CONNECTIONS = 4
"""Requests to a server at once: its workers are the limit."""

_GONE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


class Writer(ABC):
    """Writes assessments. Those of a trace that is gone are left out: nobody can see them any more."""

    batch: int
    """Assessments of one `write`, so that it takes some seconds at most."""

    @abstractmethod
    def write(self, new: Sequence[Any], changed: Sequence[Any]) -> None:
        """Create `new` and update `changed`; both may be there, or not, because another process was faster."""

    @abstractmethod
    def close(self) -> None:
        """Let go of threads and connections."""


class _OneByOne(Writer):
    """Through `create_assessment` of MLflow's store, on `connections` threads."""

    batch = 1_000

    def __init__(self, store: Any, connections: int) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="publish")

    def write(self, new: Sequence[Any], changed: Sequence[Any]) -> None:
        """See `Writer.write`."""
        list(self._pool.map(self._create, new))
        list(self._pool.map(self._update, changed))

    def close(self) -> None:
        """See `Writer.close`."""
        self._pool.shutdown(cancel_futures=True)

    def _create(self, feedback: Any) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._store.create_assessment(feedback)
        except MlflowException as error:
            if error.error_code in _GONE:
                return
            # A duplicate id is a constraint violation on SQL; over HTTP the 500 hides which, so look.
            there = self._there(feedback)
            if there is None:
                raise
            if not _same(there, feedback):
                self._update(feedback)

    def _update(self, feedback: Any) -> None:
        from mlflow.exceptions import MlflowException

        there = self._there(feedback)
        if there is None:
            self._create_again(feedback)
        elif not _same(there, feedback):
            try:
                self._store.update_assessment(
                    trace_id=feedback.trace_id,
                    assessment_id=feedback.assessment_id,
                    feedback=feedback.feedback,
                    rationale=feedback.rationale,
                    metadata=feedback.metadata,
                )
            except MlflowException as error:
                if error.error_code not in _GONE:
                    raise

    def _create_again(self, feedback: Any) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._store.create_assessment(feedback)
        except MlflowException as error:
            if error.error_code not in _GONE and self._there(feedback) is None:
                raise

    def _there(self, feedback: Any) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._store.get_assessment(feedback.trace_id, feedback.assessment_id)
        except MlflowException as error:
            if error.error_code not in _GONE:
                raise
            return None


class _Batched(_OneByOne):
    """A batch in one transaction of a database whose schema we know."""

    batch = 6_000  # Other writers of SQLite wait for it, some 0.2 s.

    def write(self, new: Sequence[Any], changed: Sequence[Any]) -> None:
        """See `Writer.write`. A batch the database refuses goes again without what is there by now, then one by one."""
        if not self._taken(new):
            there = self._there_of(new)
            missing = [one for one in new if one.assessment_id not in there]
            if not self._taken(missing):
                super().write(missing, ())
            super().write((), [one for one in new if one.assessment_id in there])
        super().write((), changed)

    def _taken(self, new: Sequence[Any]) -> bool:
        """Whether the database took them, all at once; else it has none of them."""
        from mlflow.exceptions import MlflowException

        try:
            self._insert(new)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":  # What the store makes of a violated constraint.
                raise
            return False
        return True

    def _there_of(self, new: Sequence[Any]) -> set[str]:
        from mlflow.store.tracking.dbmodels.models import SqlAssessments

        ids = [one.assessment_id for one in new]
        with self._store.ManagedSessionMaker() as session:
            found = session.query(SqlAssessments.assessment_id).filter(SqlAssessments.assessment_id.in_(ids)).all()
        return {assessment_id for (assessment_id,) in found}

    def _insert(self, new: Sequence[Any]) -> None:
        from mlflow.store.tracking.dbmodels.models import SqlAssessments, SqlTraceInfo
        from sqlalchemy import insert

        columns = (SqlTraceInfo.request_id, SqlTraceInfo.experiment_id, SqlTraceInfo.timestamp_ms)
        alike: dict[Any, dict[str, Any]] = {}
        with self._store.ManagedSessionMaker(read_only=False) as session:
            ids = {feedback.trace_id for feedback in new}
            found = session.query(*columns).filter(SqlTraceInfo.request_id.in_(ids)).all()
            traces = {trace_id: (experiment, at) for trace_id, experiment, at in found}
            rows = [_row(one, *traces[one.trace_id], alike) for one in new if one.trace_id in traces]
            if rows:
                session.execute(insert(SqlAssessments.__table__), rows)


def _row(feedback: Any, experiment: int, trace_ms: int, alike: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    """The columns MLflow fills for a feedback of ours. `alike` keeps rows that MLflow made, by what makes others so."""
    from mlflow.store.tracking.dbmodels.models import SqlAssessments
    from mlflow.store.tracking.utils.trace_analytics import assessment_aggregate

    value, error, source = feedback.feedback.value, feedback.feedback.error, feedback.source
    failed = (error.error_code, error.error_message) if error else None
    said = (*feedback.metadata.items(), feedback.rationale, failed)
    kind = (feedback.name, source.source_type, source.source_id, feedback.span_id, feedback.overrides, *said)
    if kind not in alike:
        made = SqlAssessments.from_mlflow_entity(feedback)
        alike[kind] = {column.key: getattr(made, column.key) for column in SqlAssessments.__table__.columns}
    number, is_number = assessment_aggregate(value)
    return {
        **alike[kind],
        "assessment_id": feedback.assessment_id,
        "trace_id": feedback.trace_id,
        "value": json.dumps(value),
        "aggregate_value": number,
        "is_numeric_value": is_number,
        "created_timestamp": feedback.create_time_ms,
        "last_updated_timestamp": feedback.last_update_time_ms,
        "experiment_id": experiment,
        "trace_timestamp_ms": trace_ms,
    }


def open_writer(platform: Platform) -> Writer:
    """The quickest way to write assessments there; close it."""
    open_client(platform)
    from mlflow.tracing.client import TracingClient

    store = TracingClient(platform.tracking_uri).store
    path, database = sqlite_path(platform.tracking_uri), database_of(platform)
    if database is None or database.revision() not in KNOWN_REVISIONS or _has_rollups():
        return _OneByOne(store, 1 if path else CONNECTIONS)
    if path is not None:
        _write_ahead(store.engine)
    return _Batched(store, 1)


def _has_rollups() -> bool:
    from mlflow.store.tracking.utils.sql_trace_rollups import rollups_enabled

    return rollups_enabled()


def _write_ahead(engine: Any) -> None:
    """Have SQLite keep a write-ahead log, so that nobody who reads waits for a batch; it remembers.

    A commit is on the disk when it returns: SQLite's own default for such a log is to sync it each time.
    """
    from sqlalchemy.exc import OperationalError

    with engine.connect() as connection, suppress(OperationalError):  # Somebody reads just now: another time.
        connection.exec_driver_sql("PRAGMA journal_mode=WAL").fetchall()


def _same(there: Any, feedback: Any) -> bool:
    """Whether an assessment says what another one says."""

    def said(one: Any) -> tuple[Any, ...]:
        error = one.feedback.error
        value = one.feedback.value
        number = float(value) if isinstance(value, int | float) else value
        return (number, one.rationale, *((error.error_code, error.error_message or "") if error else ()))

    return there.feedback is not None and said(there) == said(feedback)
