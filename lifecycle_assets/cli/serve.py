"""`lifecycle serve`: MLflow's own server for what was handed to the runtime.

Lives here: holding the hand-off against the champion, the server's command and environment, its life and end.
Add here: another server an agent can run in.
Not here: handing over (`resources/deployer.py`), proof of what runs (asset check `running_version_matches_champion`).
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from lifecycle_assets.cli.agents import one_agent
from lifecycle_assets.cli.output import Misuse, SaysNo, json_option, print_json, print_line
from lifecycle_assets.cli.sources import Sources
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.spec_file import Agent
from resources.mlflow_store import SETTINGS
from resources.platform import Platform

HOST = "127.0.0.1"
START_SECONDS = 120
STOP_SECONDS = 10
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""Linux: be told when the parent dies; become the parent of orphaned descendants."""


@dataclass(frozen=True)
class Serving:
    """What is started: the version, its logged model, and the process."""

    version: str
    model_id: str
    url: str
    command: tuple[str, ...]
    env: dict[str, str]


def serving(agent: Agent, sources: Sources, port: int) -> Serving:
    """What the hand-off says, when it is about the champion. Raises `SaysNo` when it is not."""
    step = f"materialize {agent.name}/deployment (job {agent.name}_release)"
    if agent.spec.deployment.target == "none":
        raise SaysNo(f"{agent.name}: deployment.target is none in defs.yaml; set it to local, then {step}.")
    handed = sources.deployer.current(agent)
    if handed is None:
        raise SaysNo(f"{agent.name}: no version was handed to the runtime; {step}.")
    if handed.target != "local":
        raise SaysNo(f"{agent.name}: it runs as {handed.target} ({handed.location}), not here; set target: local.")
    champion = sources.registry.aliases(agent.spec.model_name).get(CHAMPION, "") if sources.has_store else ""
    if champion != handed.version:
        now = f"version {champion}" if champion else "nobody"
        raise SaysNo(f"{agent.name}: handed over is version {handed.version}, champion is {now}; {step}.")
    platform = sources.platform
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_EXPERIMENT")}
    env.pop("MLFLOW_RUN_ID", None)
    env = {
        **SETTINGS,
        **env,
        "MLFLOW_TRACKING_URI": platform.tracking_uri,
        "MLFLOW_REGISTRY_URI": platform.registry_uri,
        "LIFECYCLE_HOME": str(platform.home),
        **sources.deployer.environment(agent),
        # MLflow starts `uvicorn` by name: the one of this Python.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    uri = f"models:/{agent.spec.model_name}/{handed.version}"
    server = ("-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-h", HOST, "-p", str(port))
    return Serving(handed.version, handed.model_id, f"http://{HOST}:{port}", (sys.executable, *server), env)


def free_port(port: int) -> int:
    """`port` when nobody listens there, any free one for 0. Raises `Misuse` when it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise Misuse(f"{HOST}:{port}: {reason}; give --port another number, or 0 for a free one.") from None
        return probe.getsockname()[1]


class Server:
    """The server's process with all it starts: one group, which ends as a whole."""

    def __init__(self, started: Serving, *, quiet: bool) -> None:
        self.stopping = 0.0
        output = sys.stderr.fileno() if quiet else None  # Standard output belongs to the JSON line.
        _linux_prctl(PR_SET_CHILD_SUBREAPER, 1)  # Else who outlives `mlflow` waits for an init that may never reap it.
        self.process = subprocess.Popen(
            started.command, env=started.env, stdout=output, start_new_session=True, preexec_fn=_die_with_parent
        )

    def stop(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Ask the whole group to end; a signal handler."""
        self.stopping = self.stopping or time.monotonic()
        self._signal(signal.SIGTERM)

    def wait_until_up(self, url: str) -> bool:
        """True when it answers; False when it ended, was stopped, or did not answer in time."""
        deadline = time.monotonic() + START_SECONDS
        while self.process.poll() is None and not self.stopping and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{url}/ping", timeout=2):  # noqa: S310 a loopback address of ours
                    return True
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        return False

    def wait(self) -> int:
        """The server's exit code, once nothing of its group is left."""
        while self.process.poll() is None:
            if self.stopping and time.monotonic() - self.stopping > STOP_SECONDS:
                self._signal(signal.SIGKILL)
            time.sleep(0.1)
        deadline = time.monotonic() + STOP_SECONDS
        while self._signal(signal.SIGTERM) and time.monotonic() < deadline:
            time.sleep(0.05)
            with suppress(ChildProcessError):
                os.waitpid(-self.process.pid, os.WNOHANG)
        self._signal(signal.SIGKILL)
        return self.process.returncode

    def _signal(self, number: int) -> bool:
        """Send to the group; False when nothing of it is left."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True


def _die_with_parent() -> None:
    """On Linux, end when `lifecycle serve` is killed; MLflow does the same to the server it starts."""
    _linux_prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _linux_prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value)


@click.command()
@click.argument("agent")
@click.option("--port", type=click.IntRange(0, 65535), help="Port on the loopback interface; 0 takes a free one.")
@json_option
def serve(agent: str, port: int | None, as_json: bool) -> int:
    """Serve what champion names, on the loopback interface.

    The model and its environment are those of the hand-off, so that every trace names the model that answered.
    """
    declared = one_agent(agent)
    found = free_port(declared.spec.deployment.port if port is None else port)
    started = serving(declared, Sources(Platform.from_env()), found)
    server = Server(started, quiet=as_json)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.stop)
    up = server.wait_until_up(started.url)
    if up:
        _announce(declared, started, server.process.pid, as_json=as_json)
    elif not server.stopping:
        server.stop()
        code = server.wait()
        raise SaysNo(f"{agent}: the server did not answer on {started.url} (exit code {code}); its last lines say why.")
    code = server.wait()
    if server.stopping:
        return 0
    raise SaysNo(f"{agent}: the server ended with exit code {code}; its last lines say why.")


def _announce(agent: Agent, started: Serving, pid: int, *, as_json: bool) -> None:
    facts = {"url": started.url, "pid": pid, "model_id": started.model_id, "version": started.version}
    if as_json:
        print_json({"agent": agent.name, **facts}, one_line=True)
    else:
        print_line(f"{agent.name} version {started.version} ({started.model_id}) answers on {started.url}")
        body = '{"input": [{"role": "user", "content": "..."}], "context": {"conversation_id": "s1", "user_id": "me"}}'
        print_line(f"curl -s {started.url}/invocations -H 'Content-Type: application/json' -d '{body}'")
        print_line("Stop with Ctrl-C.")
    sys.stdout.flush()
