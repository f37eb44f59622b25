"""One JSON message to a real receiver on the loopback interface, signed where that is asked for."""

import base64
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from resources.webhook import Webhook, configured, signature

TOKEN = "T0ken"
SECRET = "whsec_" + base64.b64encode(b"twenty-four bytes or more").decode()
MESSAGE = {"id": "alert-7", "text": "grounded/mean is 0.4", "agent": "tiny"}


class Receiver(ThreadingHTTPServer):
    """Answers with `statuses` in turn (the last one from then on; 0 hangs up) and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = [200]
        self.received: list[tuple[str, dict[str, str], Any]] = []
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/services/{TOKEN}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(body)
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


@contextmanager
def listening() -> Generator[Receiver]:
    """A receiver while the block runs."""
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with listening() as server:
        monkeypatch.setenv("MY_WEBHOOK", server.url)
        yield server


def documented_check() -> Callable[[str, Mapping[str, str], bytes], bool]:
    """`is_genuine(secret, headers, body)` as the docs give it to whoever writes a receiver."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "deploy.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    return found["is_genuine"]


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


SIGNED = Webhook("MY_WEBHOOK", backoff_seconds=0.01, secret_env="MY_SECRET")


def test_a_signed_message_is_genuine_to_the_letter(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SECRET", SECRET)
    is_genuine = documented_check()
    receiver.statuses = [500, 204]
    SIGNED.post({"type": "tried", "data": {"é": '"'}}, event="tiny-2-abc")
    for (_, headers, _), body in zip(receiver.received, receiver.bodies, strict=True):
        assert (headers["webhook-id"], headers["Idempotency-Key"]) == ("tiny-2-abc", "tiny-2-abc")
        assert is_genuine(SECRET, headers, body)
        assert not is_genuine(SECRET, headers, body + b" ")
        assert not is_genuine(SECRET, {**headers, "webhook-id": "tiny-3-abc"}, body)
        assert not is_genuine("whsec_" + base64.b64encode(b"another secret of a receiver").decode(), headers, body)
        assert not is_genuine(SECRET, {**headers, "webhook-timestamp": str(int(time.time()) - 3600)}, body)
    assert len(receiver.received) == 2


def test_the_signature_is_the_one_other_implementations_make():
    """The example of the specification's own libraries."""
    key, event = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "msg_p5jXN8AQM9LWM0D4loKWxJek"
    signed = signature(key, event, 1614265330, b'{"test": 2432232314}')
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("secret", "sentence"),
    [
        ("", "MY_SECRET is not set; set it to the secret"),
        (SECRET.removeprefix("whsec_"), "MY_SECRET holds no secret: it must be whsec_"),
        ("whsec_c2hvcnQ=", "the base64 of 24 to 64 random bytes"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "the base64 of 24 to 64 random bytes"),
        ("whsec_not base64!", "MY_SECRET holds no secret"),
    ],
)
def test_nothing_is_posted_without_a_usable_secret(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, secret: str, sentence: str
):
    monkeypatch.setenv("MY_SECRET", secret)
    for call in (SIGNED.require, lambda: SIGNED.post({"type": "tried"}, event="e")):
        with pytest.raises(Refused, match=sentence) as refused:
            call()
        assert len(secret) < 8 or secret not in str(refused.value)
    assert receiver.received == []


def test_the_secret_is_in_no_log_and_no_error(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("MY_SECRET", SECRET)
    receiver.statuses = [404]
    with caplog.at_level(logging.DEBUG), pytest.raises(Refused) as refused:
        SIGNED.post({"type": "tried"}, event="e")
    told = f"{refused.value} {refused.value!r} {caplog.text} {receiver.received} {SIGNED}"
    assert SECRET not in told
    assert SECRET.removeprefix("whsec_") not in told


def test_an_id_that_is_no_header_is_a_sentence(receiver: Receiver):
    with pytest.raises(Refused, match="could not be called"):
        WEBHOOK.post({"id": "a\r\nX-Evil: 1"})
    assert receiver.received == []
