"""Telling people: one JSON message to the URL an environment variable holds.

Lives here: posting a message so that it arrives, once as far as the receiver honours its id.
Add here: what every message needs, such as a signature.
Not here: when to tell whom (`sensors/`), the wording of messages.

The URL often carries a token: it is neither logged nor part of any error.
"""

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

import requests

from lifecycle_assets.refused import Refused

TRIES = 3
TIMEOUT_SECONDS = 10.0


def configured(env_name: str) -> bool:
    """Whether the environment variable holds anything; whether that is a URL is seen when a message is posted."""
    return bool(os.environ.get(env_name, "").strip())


@dataclass(frozen=True)
class Webhook:
    """The webhook whose URL is in the variable `env_name`, read anew for every message.

    `backoff_seconds` is the wait before the second try; the third waits twice as long. With its defaults a message
    takes at most 33 s, less than the 60 s a sensor's tick may take.
    """

    env_name: str
    backoff_seconds: float = 1.0

    def post(self, message: Mapping[str, Any]) -> None:
        """Post `message` as JSON; its `id` is the header `Idempotency-Key`, so that a repeat can be recognised.

        A connection that fails and the answers 429 and 5xx are tried 3 times. Raises `Refused`, without the URL, when
        the variable is unset or no http(s) URL, or the message was not accepted. Safe to repeat: the id is the same.
        """
        url = self._url()
        body = json.dumps(dict(message), default=str).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(message["id"])}
        fault = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self.backoff_seconds * 2 ** (attempt - 1))
            fault, again = _attempt(url, body, headers)
            if not fault:
                return
            if not again:
                break
        raise Refused(f"{self.env_name}: the webhook {fault}; check its receiver and the URL in that variable.")

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


def _attempt(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[str, bool]:
    """One try: what went wrong (empty when the message was accepted), and whether another try may help."""
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
