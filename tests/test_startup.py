"""Loading the code location imports next to nothing, and loads what Dagster's own loader would.

Lives here: which modules loading may not import, and how many it imports; the agents' own way against Dagster's.
Add here: a module that loading must not import. Not here: seconds (`benchmarks/load.py`).
"""

import gc
import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from lifecycle_assets.definitions import defs
from lifecycle_assets.load_error import one_sentence
from lifecycle_assets.spec_file import find_agents, only_agents
from tests.building import write_agent

HEAVY = (
    "adbc_driver_manager",
    "adbc_driver_postgresql",
    "adbc_driver_sqlite",
    "databricks",
    "deltalake",
    "duckdb",
    "matplotlib",
    "mlflow",
    "numpy",
    "openai",
    "orjson",
    "pandas",
    "pyarrow",
    "requests",
    "scipy",
    "sklearn",
    "sqlglot",
    "statsmodels",
    "tomlkit",
    "urllib3",
)
"""Libraries that only runs, ticks and commands need."""

MOST = 65
"""Modules that loading adds to `import dagster`, ours among them: a bound that is noticed when it is crossed."""

_LOAD = """
import json, sys
import dagster
before = set(sys.modules)
from lifecycle_assets.definitions import defs
defs().get_repository_def()
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_loading_imports_no_library_and_few_modules() -> None:
    done = subprocess.run([sys.executable, "-c", _LOAD], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "lifecycle_assets.component" in loaded
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []
    assert [name for name in loaded if name.startswith("resources.databricks")] == []
    assert len(loaded) <= MOST, loaded


def test_agents_alone_are_what_dagsters_own_loader_finds() -> None:
    ours = defs()
    theirs = dg.load_from_defs_folder(path_within_project=Path(__file__).parents[1])
    for found in (ours, theirs):
        found.get_repository_def()
    assert _names(ours) == _names(theirs)
    assert gc.isenabled()


def _names(found: dg.Definitions) -> dict[str, object]:
    repository = found.get_repository_def()
    graph = repository.asset_graph
    return {
        "assets": {
            key.to_user_string(): (
                graph.get(key).description,
                sorted(k.to_user_string() for k in graph.get(key).parent_keys),
            )
            for key in graph.get_all_asset_keys()
        },
        "checks": sorted(f"{key.asset_key.to_user_string()}:{key.name}" for key in graph.asset_check_keys),
        "jobs": sorted(job.name for job in repository.get_all_jobs()),
        "schedules": sorted(schedule.name for schedule in repository.schedule_defs),
        "sensors": sorted(sensor.name for sensor in repository.sensor_defs),
    }


@pytest.mark.parametrize(
    ("file", "text", "alone"),
    [
        ("__init__.py", "", True),
        ("more/__init__.py", "\n", True),
        ("tiny/helper.py", "x = 1\n", True),
        ("assets.py", "import dagster\n", False),
        ("more/other.py", "", False),
        ("more/defs.yaml", "type: dagster.DefsFolderComponent\n", False),
        ("readme.txt", "", False),
    ],
)
def test_other_definitions_are_left_to_dagster(tmp_path: Path, file: str, text: str, *, alone: bool) -> None:
    write_agent(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert only_agents(find_agents(tmp_path), tmp_path) is alone


@pytest.mark.parametrize("more", ["post_processing:\n  assets: []\n", "---\ntype: x\n", "requirements: {}\n"])
def test_a_declaration_that_asks_more_of_dagster_is_left_to_it(tmp_path: Path, more: str) -> None:
    file = write_agent(tmp_path)
    agents = find_agents(tmp_path)
    assert only_agents(agents, tmp_path)
    file.write_text(file.read_text() + more)
    assert not only_agents(agents, tmp_path)


def test_a_wrong_declaration_is_one_sentence(tmp_path: Path) -> None:
    write_agent(tmp_path, attributes={"nonsense": 1})
    with pytest.raises(Exception, match="is not a known field") as caught, one_sentence():
        find_agents(tmp_path)
    assert "\n" not in str(caught.value).strip()
