"""`make demo`: the whole life of `docs_agent`, by its real assets.

Lives here: the stages in order. Add here: a stage when the graph gains one.
Not here: anything faked; every stage runs what the UI and the daemon run.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
from rich.console import Console
from rich.table import Table

from lifecycle_assets.definitions import defs
from lifecycle_assets.demo.reviewer import answers_for
from lifecycle_assets.demo.snapshot import Snapshot, take
from lifecycle_assets.demo.traffic import read_visits, send_traffic
from lifecycle_assets.edges import latest
from lifecycle_assets.home import open_instance, prepare_home
from lifecycle_assets.records import ChampionRecord
from lifecycle_assets.refused import Refused
from lifecycle_assets.review.assets import sessions_of
from lifecycle_assets.runner import Runner
from lifecycle_assets.spec_file import Agent, find_agents
from resources.census import count
from resources.labeling_desk import MlflowLabelingDesk
from resources.platform import Platform
from resources.trace_store import MlflowTraceStore

AGENT = "docs_agent"
REVIEWED = 5
"""Items the demo's reviewer completes; the rest stays open for you."""

NEXT = (
    ("make ui", "the graph, on http://127.0.0.1:3000"),
    (".venv/bin/lifecycle status {}", "where each stage stands"),
    (".venv/bin/lifecycle history {}", "every move of the champion, and why"),
    (".venv/bin/lifecycle lineage champion --agent {}", "from the source to the traces"),
    (".venv/bin/lifecycle query {} 'FROM quality_by_version'", "the numbers, in SQL"),
    (".venv/bin/lifecycle serve {}", "ask the champion yourself"),
)
"""What to open after the demo."""


@dataclass
class Demo:
    """The state the stages share."""

    agent: Agent
    platform: Platform
    runner: Runner
    console: Console
    report: list[tuple[str, float, dict[str, tuple[int, int]]]] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        """Count what there is."""
        return take(self.agent, self.runner.instance, self.platform)

    @contextmanager
    def stage(self, title: str) -> Generator[None]:
        """Announce a stage, time it, and say what it made."""
        self.console.rule(f"[bold]{title}", align="left", style="dim")
        before, started = self.snapshot(), time.monotonic()
        yield
        changes = {name: pair for name, pair in self.snapshot().changes(before).items() if pair[0] != pair[1]}
        made = ", ".join(f"{after - was:+d} {name.replace('_', ' ')}" for name, (was, after) in changes.items())
        seconds = time.monotonic() - started
        self.say(f"{made or 'nothing new'} ({seconds:.0f} s)")
        self.report.append((title, seconds, changes))

    def say(self, line: str) -> None:
        """One line of progress."""
        self.console.print(f"  {line}", markup=False, highlight=False)


def run_demo(demo: Demo) -> None:
    """Every stage in the order of the lifecycle."""
    name, runner = demo.agent.name, demo.runner
    with demo.stage("Release: source, logged model, evaluation, version, champion, deployment"):
        runner.job(f"{name}_release")
    with demo.stage("Traffic: users ask the served champion over HTTP"):
        _traffic(demo)
    with demo.stage("Monitoring: scorers, scores, archive, daily numbers"):
        _monitor(demo)
    with demo.stage("Review: a labeling session, completed in part"):
        runner.tick(f"{name}_labeling_session_sensor")
        _review(demo)
        runner.tick(f"{name}_label_sync_sensor")
    with demo.stage("The loop closes: labels are in the dataset, the champion is evaluated on it"):
        runner.job(f"{name}_release")
        _monitor(demo)


def _traffic(demo: Demo) -> None:
    champion = latest(demo.runner.instance, dg.AssetKey([demo.agent.name, "champion_alias"]), ChampionRecord)
    assert champion is not None  # The release stage has just materialized it.
    visits = read_visits(demo.agent.path("traffic.jsonl"))
    done = count(demo.platform, demo.agent).production_by_model.get(champion.model_id, 0)
    if done >= len(visits):
        demo.say(f"{done} questions were asked of {champion.model_id} before: none is asked again")
        return
    send_traffic(demo.agent, visits[done:], demo.platform, demo.say)


def _monitor(demo: Demo) -> None:
    for day in count(demo.platform, demo.agent).days:
        demo.runner.job(f"{demo.agent.name}_monitor", partition_key=day.isoformat())


def _review(demo: Demo) -> None:
    """Complete a few items the way a reviewer's client does, once for each session."""
    desk, traces = MlflowLabelingDesk(demo.platform), MlflowTraceStore(demo.platform)
    for session in sessions_of(demo.runner.instance, demo.agent.name):
        items = desk.items(session.session_id)
        if any(item.status == "complete" for item in items):
            demo.say(f"{session.name}: reviewed before")
            continue
        demo.say(
            f"{session.name}: the demo answers {min(REVIEWED, len(items))} of {len(items)} items as reviewer 'demo'"
        )
        for item in items[:REVIEWED]:
            answers = answers_for(traces, item.trace_id)
            desk.review(demo.agent, session.session_id, item.trace_id, answers, reviewer="demo")


def show_result(demo: Demo) -> None:
    """The table of what was built, and what to open."""
    table = Table(title=f"{demo.agent.name}: what each stage made", title_justify="left", show_lines=False)
    for column in ("stage", "seconds", "made"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for title, seconds, changes in demo.report:
        made = ", ".join(f"{after - was:+d} {key.replace('_', ' ')}" for key, (was, after) in changes.items())
        table.add_row(title.split(":")[0], f"{seconds:.0f}", made or "unchanged")
    demo.console.print(table)
    for command, meaning in NEXT:
        demo.console.print(f"  {command.format(demo.agent.name)}", markup=False, highlight=False, end="")
        demo.console.print(f"  # {meaning}", style="dim", markup=False, highlight=False)


def start_over(platform: Platform, say: Callable[[str], None]) -> None:
    """Delete the local state. Refuses a folder that does not look like ours."""
    home = platform.home
    if not home.exists():
        return
    ours = {"dagster", "mlflow.db", "artifacts", "warehouse", "deployments"}
    foreign = sorted(path.name for path in home.iterdir() if path.name.split("-")[0] not in ours)
    if foreign or home in (Path.home(), Path("/")):
        raise Refused(f"{home}: holds {', '.join(foreign[:3])}, which this product did not make; delete it yourself.")
    say(f"starting over: {home} is deleted")
    shutil.rmtree(home)


def main() -> None:
    """Run the demo; exit code 1 with one line when a stage refuses."""
    parser = argparse.ArgumentParser(prog="make demo", description="The whole life of docs_agent.")
    parser.add_argument("--fresh", action="store_true", help="delete the local state first")
    options = parser.parse_args()
    console = Console()
    try:
        platform = Platform.from_env()
        if platform.is_databricks:
            raise Refused(
                "The demo lives on a laptop: unset LIFECYCLE_PLATFORM; on Databricks launch docs_agent_release, see "
                "docs/how-to/databricks.md."
            )
        if options.fresh:
            start_over(platform, console.print)
        prepare_home(platform)
        demo = _open(platform, console)
        started = time.monotonic()
        run_demo(demo)
        console.rule(style="dim")
        show_result(demo)
        console.print(f"{time.monotonic() - started:.0f} s, state in {platform.home}", highlight=False)
    except Refused as refusal:
        console.print(str(refusal), style="red", markup=False, highlight=False)
        sys.exit(1)


def _open(platform: Platform, console: Console) -> Demo:
    agent = next(agent for agent in find_agents() if agent.name == AGENT)
    demo = Demo(agent, platform, Runner(defs(), open_instance(platform), lambda _: None), console)
    demo.runner.say = demo.say
    interrupted = demo.runner.settle_interrupted()
    if interrupted:
        demo.say(f"{interrupted} runs of an interrupted demo were settled")
    return demo


if __name__ == "__main__":
    main()
