"""The demo's users: a client that asks the served champion over HTTP, in sessions, and gives feedback.

Lives here: starting `lifecycle serve`, asking, sending thumbs to MLflow as an application does.
Add here: another habit of users.
Not here: what is asked (`traffic.jsonl` beside the agent).
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import requests

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.feedback import send_feedback
from resources.platform import Platform

START_SECONDS = 90


@dataclass(frozen=True)
class Visit:
    """One question of one user, and the thumb they gave (`up`, `down` or none)."""

    session: str
    user: str
    question: str
    feedback: str | None
    comment: str


def read_visits(file: Path) -> list[Visit]:
    """The questions of `traffic.jsonl`."""
    return [Visit(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


@contextmanager
def served(agent: Agent) -> Generator[str]:
    """`lifecycle serve` on a free loopback port while the block runs; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lifecycle_assets.cli.main", "serve", agent.name, "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
        try:
            _wait_until_up(process, f"http://127.0.0.1:{port}", cast("TextIO", log))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_up(process: subprocess.Popen[bytes], url: str, log: TextIO) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/ping", timeout=2).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.25)
    log.seek(0)
    said = log.read().strip()[-500:]
    raise Refused(f"lifecycle serve did not answer on {url} within {START_SECONDS} s; its log ends: {said}")


def ask(url: str, visit: Visit) -> str:
    """Ask one question; returns the id of the trace the answer names. Raises `Refused` for an answer that is none."""
    body = {
        "input": [{"role": "user", "content": visit.question}],
        "context": {"conversation_id": visit.session, "user_id": visit.user},
    }
    answer = requests.post(f"{url}/invocations", json=body, timeout=60)
    if not answer.ok:
        raise Refused(f"{url}: answered {answer.status_code} to '{visit.question[:60]}': {answer.text[:200]}")
    return answer.json()["custom_outputs"]["trace_id"]


def send_traffic(agent: Agent, visits: list[Visit], platform: Platform, say: Callable[[str], None]) -> None:
    """Serve the champion, ask every question, send every thumb."""
    with served(agent) as url:
        say(f"lifecycle serve {agent.name} answers on {url}")
        for number, visit in enumerate(visits, start=1):
            trace_id = ask(url, visit)
            if visit.feedback:
                send_feedback(platform, trace_id, up=visit.feedback == "up", user=visit.user, comment=visit.comment)
            if number % 12 == 0 or number == len(visits):
                say(f"asked {number} of {len(visits)} questions")
