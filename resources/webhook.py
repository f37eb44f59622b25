"""Telling people and runtimes: one JSON message to the URL an environment variable holds.

Lives here: posting a message so that it arrives, once as far as the receiver honours its id, and signing it.
Add here: what every message needs.
Not here: when to tell whom (`sensors/`, `webhook_deployer.py`), the wording of messages.

The URL often carries a token: neither it nor the secret is logged or part of any error.
"""

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lifecycle_assets.refused import Refused

TRIES = 3
TIMEOUT_SECONDS = 10.0

SECRET_PREFIX, SECRET_BYTES = "whsec_", (24, 64)
"""How a secret is written, and how many bytes it may have (Standard Webhooks 1.0.0, signature scheme)."""


def configured(env_name: str) -> bool:
    """Whether the environment variable holds anything; whether that is a URL is seen when a message is posted."""
    return bool(os.environ.get(env_name, "").strip())


@dataclass(frozen=True)
class Webhook:
    """The webhook whose URL is in the variable `env_name`, read anew for every message.

    `backoff_seconds` is the wait before the second try; the third waits twice as long. With its defaults a message
    takes at most 33 s, less than the 60 s a sensor's tick may take. With `secret_env`, the variable that holds the
    secret, messages are signed as Standard Webhooks (https://www.standardwebhooks.com, 1.0.0) says.
    """

    env_name: str
    backoff_seconds: float = 1.0
    secret_env: str = ""

    def require(self) -> None:
        """Raise `Refused` unless the variables hold what can be used; nothing is posted."""
        self._url()
        self._key()

    def post(self, message: Mapping[str, Any], *, event: str = "") -> None:
        """Post `message` as JSON under the id `event` (default: its `id`), so that a repeat can be recognised.

        The id is the header `Idempotency-Key`, and `webhook-id` of a signed message, which says the moment of each try
        besides. A connection that fails and the answers 429 and 5xx are tried 3 times. Raises `Refused`, without the
        URL, when a variable is unset or holds nothing usable, or the message was not accepted. Safe to repeat: the id
        is the same, also when it was accepted and the answer was lost.
        """
        url, key = self._url(), self._key()
        event = event or str(message["id"])
        body = json.dumps(dict(message), default=str).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": event}
        fault = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self.backoff_seconds * 2 ** (attempt - 1))
            signed = signature(key, event, int(time.time()), body) if key else {}
            fault, again = _attempt(url, body, {**headers, **signed})
            if not fault:
                return
            if not again:
                break
        secret = f" and the secret in {self.secret_env}" if self.secret_env else ""
        raise Refused(f"{self.env_name}: the webhook {fault}; check its receiver and the URL in that variable{secret}.")

    def _url(self) -> str:
        url = os.environ.get(self.env_name, "").strip()
        if not url:
            raise Refused(f"{self.env_name} is not set; set it to the webhook's URL.")
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            usable = False
        if not usable:
            raise Refused(f"{self.env_name} holds no URL that starts with http:// or https://; correct it.")
        return url

    def _key(self) -> bytes:
        """The bytes messages are signed with; none without `secret_env`."""
        if not self.secret_env:
            return b""
        secret = os.environ.get(self.secret_env, "").strip()
        remedy = f"make one: echo {SECRET_PREFIX}$(openssl rand -base64 32)"
        if not secret:
            raise Refused(f"{self.secret_env} is not set; set it to the secret its receiver knows, or {remedy}")
        try:
            key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        least, most = SECRET_BYTES
        if not secret.startswith(SECRET_PREFIX) or not least <= len(key) <= most:
            raise Refused(
                f"{self.secret_env} holds no secret: it must be {SECRET_PREFIX} and the base64 of {least} to {most} "
                f"random bytes; {remedy}"
            )
        return key


def signature(key: bytes, event: str, moment: int, body: bytes) -> dict[str, str]:
    """The headers of a signed message: its id, the moment of this try (epoch seconds), and the HMAC of all three."""
    signed = hmac.new(key, f"{event}.{moment}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": event,
        "webhook-timestamp": str(moment),
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def _attempt(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[str, bool]:
    """One try: what went wrong (empty when the message was accepted), and whether another try may help."""
    import requests

    try:
        with (
            _unlogged(),
            requests.post(
                url, data=body, headers=headers, timeout=TIMEOUT_SECONDS, allow_redirects=False, stream=True
            ) as response,
        ):
            status = response.status_code
    except requests.Timeout:
        return f"did not answer within {TIMEOUT_SECONDS:g} s", True
    except requests.ConnectionError:
        return "cannot be reached", True
    except requests.RequestException as error:
        return f"could not be called ({type(error).__name__})", False
    if 200 <= status < 300:
        return "", False
    return f"answered with status {status}", status == 429 or status >= 500


@contextmanager
def _unlogged() -> Generator[None]:
    """Keep urllib3 from logging this thread's request: at debug level it logs the path, where tokens are."""
    logger, thread = logging.getLogger("urllib3.connectionpool"), threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(of_others)
    try:
        yield
    finally:
        logger.removeFilter(of_others)
