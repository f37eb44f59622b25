"""The real Dagster UI with a browser before it, for pictures and for browser tests.

Lives here: starting `dagster dev` on a free port and ending all of it, asking its GraphQL, a page in headless Chromium.
Add here: what both a picture and a browser test need.
Not here: which pages are opened (`make_pictures.py`, `tests/ui/`).
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
START_SECONDS = 150
STOP_SECONDS = 5
SETTLE_MS = 1500
"""What the UI takes to draw and to move into place once everything is there."""

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOCATIONS = """
{ workspaceOrError { ... on Workspace { locationEntries {
    name loadStatus locationOrLoadError { __typename ... on PythonError { message stack } } } } } }
"""


def free_port() -> int:
    """A port of the loopback interface nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextmanager
def dagster_ui(dagster_home: Path, *more_workspaces: Path, daemon: bool = True) -> Generator[str]:
    """`dagster dev` with the shipped workspace, and others besides, while the block runs; yields the UI's URL.

    Without `daemon` only its webserver: nothing starts runs then. Each code location has been loaded, or has failed
    to load, when the block starts. Every process that was started is ended when it leaves. Raises `RuntimeError` with
    the end of its log when it does not come up.
    """
    url = f"http://{HOST}:{free_port()}"
    port = url.rpartition(":")[2]
    seen = dagster_home / ".nux" / "nux.yaml"  # What the UI writes when its first-visit dialog was answered.
    seen.parent.mkdir(parents=True, exist_ok=True)
    seen.write_text("{seen: 1}\n", encoding="utf-8")
    program = ["dagster", "dev"] if daemon else ["dagster_webserver"]
    command = [sys.executable, "-m", *program, "-h", HOST, "-p", port]
    for workspace in (ROOT / "workspace.yaml", *more_workspaces):
        command += ["-w", str(workspace)]
    env = {**os.environ, "DAGSTER_HOME": str(dagster_home)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=dagster_home, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if not _loads(process, url):
                log.seek(0)
                raise RuntimeError(f"dagster dev did not come up:\n{log.read()[-2000:]}")
            yield url
        finally:
            _end(process)


def locations(url: str) -> list[dict[str, Any]]:
    """The code locations as the UI knows them: name, loadStatus, locationOrLoadError."""
    request = urllib.request.Request(  # noqa: S310 a loopback address of ours
        f"{url}/graphql", json.dumps({"query": LOCATIONS}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 a loopback address of ours
        return json.load(response)["data"]["workspaceOrError"]["locationEntries"]


def _loads(process: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(urllib.error.URLError, OSError):
            found = locations(url)
            if found and all(entry["loadStatus"] == "LOADED" for entry in found):
                return True
        time.sleep(0.25)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group, and wait until its leader is gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_SECONDS)


def chromium() -> str:
    """The system's Chromium. Raises `RuntimeError` when there is none; none is ever downloaded."""
    for name in CHROMIUM:
        found = shutil.which(name)
        if found:
            return found
    raise RuntimeError("Chromium is not installed: install the package chromium of your system.")


@contextmanager
def browser_page(width: int, height: int) -> Generator[Page]:
    """A page of that size in headless Chromium, in light colours."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            yield page
        finally:
            browser.close()


def open_lineage(page: Page, url: str) -> None:
    """The global asset lineage from left to right, every group expanded, without the panels beside it."""
    page.goto(f"{url}/locations")
    page.evaluate("localStorage.setItem('asset-graph-direction', JSON.stringify('horizontal'))")
    page.get_by_text("Hide navigation").click()
    page.goto(f"{url}/asset-groups")
    page.locator("//input[starts-with(@placeholder, 'Jump to')]/following::button[1]").click()
    page.wait_for_timeout(SETTLE_MS)
    page.keyboard.press("Alt+KeyE")
    page.wait_for_url("**/asset-groups?*expanded=*")
    page.wait_for_timeout(SETTLE_MS)
