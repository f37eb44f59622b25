"""Scores on their way to a server: while it answers, while it does not, and when somebody was faster."""

import shutil
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from resources.mlflow_store import experiment_id
from resources.platform import Platform
from resources.scoring.local_scoring import pending
from resources.scoring.publishing import open_writer
from resources.scoring.trace_scores import feedback_of
from tests.resources.mlflow_server import mlflow_server
from tests.resources.test_scoring import DAY, TRACES, Place, filled

__all__ = ["filled"]


@pytest.fixture(scope="module")
def served(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server over a store with traces."""
    home = tmp_path_factory.mktemp("served")
    shutil.copy(filled, home / "mlflow.db")
    with mlflow_server(home / "mlflow.db", home / "server") as platform:
        yield int(platform.tracking_uri.rpartition(":")[2])


@contextmanager
def wire(to: int, port: int = 0) -> Generator[tuple[int, Callable[[], None]]]:
    """A port of this process that leads to another one, and what cuts it."""
    listening = socket.create_server(("127.0.0.1", port))
    opened: list[socket.socket] = [listening]

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection(("127.0.0.1", to))
                opened.extend([near, far])
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    def cut() -> None:
        for end in opened:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1], cut
    finally:
        cut()


def test_a_server_that_goes_away_keeps_nothing_from_the_table_and_the_next_run_goes_on(
    served: int, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = served
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with wire(port) as (near, cut):
        http = Platform.from_env(
            {"LIFECYCLE_HOME": str(platform.home), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{near}"}
        )
        place = Place(http, tmp_path / "agents")
        place.declare("spans", "answered")

        class Lines(list[str]):
            def append(self, line: str) -> None:
                super().append(line)
                if line.endswith(" landed"):
                    cut()

        place.lines = Lines()
        found = place.score()
        assert (found.written, found.pending) == (2 * TRACES, 2 * TRACES)
        assert "the scores are in the tables, and not yet in MLflow" in found.unpublished
        assert "does not answer" in found.unpublished
        assert pending(http, place.agent, DAY).pending == 2 * TRACES
    with wire(port, near):
        place.lines = []
        again = place.score()
        assert (again.calls, again.pending, again.unpublished) == (0, 0, "")
        assert any("120 scores are not in MLflow yet" in line for line in place.lines)
        place.whole(2 * TRACES)
        row = place.scores()[0]
        writer = open_writer(http)
        writer.write([feedback_of(row)], [feedback_of({**row, "value_number": 9.0})])
        writer.write([feedback_of({**row, "trace_id": "tr-gone", "assessment_id": "a-gone"})], [])
        writer.close()
        (changed,) = [one for one in place.in_mlflow() if one["assessment_id"] == row["assessment_id"]]
        assert (changed["value_number"], len(place.in_mlflow())) == (9.0, 2 * TRACES)


def test_a_batch_with_something_that_is_there_goes_again_without_it(filled: Path, platform: Platform) -> None:
    shutil.copy(filled, platform.home / "mlflow.db")
    place = Place(platform, platform.home / "agents")
    place.declare("spans")
    place.score()
    experiment_id(platform, "/agents/tiny")
    rows = place.scores()
    new = [{**row, "assessment_id": f"a-more-{n}"} for n, row in enumerate(rows)]
    writer = open_writer(platform)
    gone = {**rows[0], "trace_id": "tr-gone", "assessment_id": "a-gone"}
    from mlflow.tracing.client import TracingClient

    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        asked.append(statement)

    engine = TracingClient(platform.tracking_uri).store.engine
    event.listen(engine, "before_cursor_execute", note)
    writer.write([feedback_of(row) for row in (rows[3], *new, gone)], [])
    event.remove(engine, "before_cursor_execute", note)
    writer.close()
    assert len(place.in_mlflow()) == 2 * TRACES
    assert sum(statement.startswith("INSERT") for statement in asked) == 2, "one more, however many there are"
