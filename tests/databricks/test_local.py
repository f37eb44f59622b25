"""The local platform does without Databricks: nothing of it is imported, from loading to the commands.

Lives here: that one promise. Not here: what the local platform does (`tests/lifecycle/`).
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.building import day_of, released_once

LIFE = """
import sys

# A name that is None cannot be imported: whoever tries fails.
BLOCKED = ["resources.databricks", "databricks.agents", "dagster_databricks", "sqlglot", "pyspark"]
sys.modules.update(dict.fromkeys(BLOCKED))
from pathlib import Path

from click.testing import CliRunner

from lifecycle_assets.cli.main import main
from lifecycle_assets.home import open_instance
from lifecycle_assets.spec_file import read_agent
from resources.platform import Platform
from tests.building import World

platform, agent = Platform.from_env(), read_agent(Path(sys.argv[1]))
with open_instance(platform) as instance:
    world = World(agent, platform, instance)
    done = world.run("monitor", partition_key=sys.argv[2])
    said = [event.step_failure_data.error.to_string() for event in done.all_events if event.is_step_failure]
    assert done.success, said
    world.tick("champion_drift_sensor")
for command in (["status", "tiny"], ["doctor"], ["plan", "tiny"]):
    answer = CliRunner().invoke(main, [*command, "--json"])
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.output
print("well")
"""


def test_a_day_is_monitored_and_commands_answer_without_databricks(migrated_store: Path, tmp_path: Path) -> None:
    with released_once(migrated_store).copy(tmp_path) as world:
        file = world.agent.folder / "defs.yaml"
        done = subprocess.run(
            [sys.executable, "-c", LIFE, str(file), day_of(1)],
            env={**os.environ, "LIFECYCLE_DEFS": str(file.parents[1])},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.stdout.splitlines()[-1:] == ["well"], done.stderr[-3000:]
