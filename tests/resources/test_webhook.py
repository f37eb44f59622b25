"""One JSON message to a real receiver on the loopback interface."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from resources.webhook import Webhook, configured

TOKEN = "T0ken"
MESSAGE = {"id": "alert-7", "text": "grounded/mean is 0.4", "agent": "tiny"}


class Receiver(ThreadingHTTPServer):
    """Answers with `statuses` in turn (the last one from then on; 0 hangs up) and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = [200]
        self.received: list[tuple[str, dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/services/{TOKEN}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, dict(self.headers), json.loads(body)))
        statuses = self.server.statuses
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if status == 0:
            self.connection.close()
            return
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("MY_WEBHOOK", server.url)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


WEBHOOK = Webhook("MY_WEBHOOK", backoff_seconds=0.01)


def test_a_message_arrives_once_with_its_id(receiver: Receiver):
    WEBHOOK.post(MESSAGE)
    ((path, headers, body),) = receiver.received
    assert path == f"/services/{TOKEN}"
    assert body == MESSAGE
    assert headers["Idempotency-Key"] == "alert-7"
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("faults", [[500], [503, 502], [0], [429, 0]])
def test_a_passing_fault_is_tried_again_with_the_same_id(receiver: Receiver, faults: list[int]):
    receiver.statuses = [*faults, 204]
    WEBHOOK.post(MESSAGE)
    assert [headers["Idempotency-Key"] for _, headers, _ in receiver.received] == ["alert-7"] * (len(faults) + 1)


def test_three_tries_with_growing_waits_then_a_sentence(receiver: Receiver):
    receiver.statuses = [500]
    started = time.monotonic()
    with pytest.raises(Refused, match="MY_WEBHOOK: the webhook answered with status 500; check its receiver"):
        Webhook("MY_WEBHOOK", backoff_seconds=0.1).post(MESSAGE)
    assert len(receiver.received) == 3
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("status", [301, 302, 400, 403, 404, 410])
def test_a_refusal_is_not_tried_again(receiver: Receiver, status: int):
    receiver.statuses = [status]
    with pytest.raises(Refused, match=f"answered with status {status}"):
        WEBHOOK.post(MESSAGE)
    assert [path for path, _, _ in receiver.received] == [f"/services/{TOKEN}"]


def test_nobody_listening_is_a_sentence(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_WEBHOOK", f"http://127.0.0.1:9/{TOKEN}")
    with pytest.raises(Refused, match="MY_WEBHOOK: the webhook cannot be reached"):
        WEBHOOK.post(MESSAGE)


@pytest.mark.parametrize("statuses", [[200], [500], [404], [0]])
def test_the_url_is_in_no_log_and_no_error(receiver: Receiver, caplog: pytest.LogCaptureFixture, statuses: list[int]):
    receiver.statuses = statuses
    port = str(receiver.server_address[1])
    logger = logging.getLogger("urllib3.connectionpool")
    filters = list(logger.filters)
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger=logger.name):
        try:
            WEBHOOK.post(MESSAGE)
        except Refused as refusal:
            told = f"{refusal} {refusal!r} {refusal.__cause__} {refusal.metadata}"
            assert TOKEN not in told
            assert port not in told
    assert TOKEN not in caplog.text
    assert logger.filters == filters


@pytest.mark.parametrize("url", ["ftp://host/T0ken", "file:///T0ken", "host/T0ken", "http://", "http://[T0ken"])
def test_only_http_urls_are_called(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("MY_WEBHOOK", url)
    with pytest.raises(Refused, match="MY_WEBHOOK holds no URL that starts with http:// or https://") as refused:
        WEBHOOK.post(MESSAGE)
    assert TOKEN not in str(refused.value)


def test_configured_only_when_the_variable_holds_something(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MY_WEBHOOK", raising=False)
    assert not configured("MY_WEBHOOK")
    with pytest.raises(Refused, match="MY_WEBHOOK is not set"):
        WEBHOOK.post(MESSAGE)
    monkeypatch.setenv("MY_WEBHOOK", "  ")
    assert not configured("MY_WEBHOOK")
    monkeypatch.setenv("MY_WEBHOOK", "https://example.org/x")
    assert configured("MY_WEBHOOK")


def test_an_id_that_is_no_header_is_a_sentence(receiver: Receiver):
    with pytest.raises(Refused, match="could not be called"):
        WEBHOOK.post({"id": "a\r\nX-Evil: 1"})
    assert receiver.received == []
