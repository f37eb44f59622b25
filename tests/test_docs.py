"""What the documentation says exists.

Lives here: the generated page against the code, links, commands, targets, fields and the walk-through's agent.
Add here: another kind of statement a page makes that a machine can hold against the code.
Not here: whether a sentence is true.
"""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from pydantic import TypeAdapter

from docs import make_decisions
from docs.make_reference import PAGE, render
from lifecycle_assets.cli.main import COMMANDS
from lifecycle_assets.component import agent_definitions
from lifecycle_assets.spec import AgentSpec
from lifecycle_assets.spec_file import dataset_rows, read_agent
from lifecycle_assets.spec_release import Gate
from resources.agent_faults import check_source
from resources.scorer_source import free_names, is_stored_whole

ROOT = Path(__file__).resolve().parents[1]
DOCS_AGENT = ROOT / "lifecycle_assets" / "defs" / "docs_agent" / "defs.yaml"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def shown_code(page: Path) -> str:
    """Everything in a page that is code: fenced blocks and code spans."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for _, block in FENCE.findall(text)]
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))])


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_is_that_of_the_code():
    assert PAGE.read_text(encoding="utf-8") == render(), "run python -m docs.make_reference"


def test_the_table_of_decisions_is_that_of_the_code():
    page = make_decisions.PAGE.read_text(encoding="utf-8")
    assert page == make_decisions.render(), "run python -m docs.make_decisions"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_named_commands_and_targets_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(linked), target
    code = shown_code(page)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\blifecycle ([a-z]+)\b", code)) <= set(COMMANDS)
    assert set(re.findall(r"(?<![\w-])make ([a-z]+)\b", code)) <= targets
    for module in re.findall(r"python -m ((?:docs|benchmarks|lifecycle_assets)[.\w]*)", code):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def check_run_configuration(shown: dict[str, Any]) -> None:
    """It is taken by a job of the shipped agent, as the launchpad takes it."""
    repository = agent_definitions(read_agent(DOCS_AGENT)).get_repository_def()
    jobs = [repository.get_job(name) for name in repository.job_names if not name.startswith("__")]
    taking = [job for job in jobs if set(shown["ops"]) <= {node.name for node in job.nodes}]
    assert taking, f"no job has {', '.join(shown['ops'])}"
    for job in taking:
        dg.validate_run_config(job, shown)


def test_shown_parts_of_a_declaration_are_valid():
    kinds = {name: field.annotation for name, field in AgentSpec.model_fields.items()} | {"gate": Gate}
    checked = set()
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            shown = yaml.safe_load(block) if language == "yaml" else {}
            if "ops" in shown:
                check_run_configuration(shown)
                continue
            parts = {"scorers": shown} if isinstance(shown, list) else shown.get("attributes", shown)
            for name, part in parts.items():
                if name != "type":
                    TypeAdapter(kinds[name]).validate_python(part)
                    checked.add(name)
    assert {"scorers", "gate", "labeling", "backfill", "alerts"} <= checked


def test_the_agent_of_the_readme_is_valid(tmp_path: Path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    walk = text[text.index("## Bring your own agent") : text.index("## Settings")]
    blocks = {language: block for language, block in reversed(FENCE.findall(walk)) if language != "python"}
    agent_py, scorers_py = [block for language, block in FENCE.findall(walk) if language == "python"]
    for name, content in {
        "agent.py": agent_py,
        "scorers.py": scorers_py,
        "eval_dataset.jsonl": blocks["json"],
        "defs.yaml": blocks["yaml"],
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    agent = read_agent(tmp_path / "defs.yaml")
    check_source(agent)
    assert len(dataset_rows(tmp_path / "eval_dataset.jsonl")) == agent.spec.eval.gate.thresholds[0].min_rows
    for scorer in agent.spec.scorers:
        function = str(scorer.source).partition(":")[2]
        assert free_names(tmp_path / "scorers.py", function) == []
        assert is_stored_whole(tmp_path / "scorers.py", function)


def test_settings_of_the_readme_are_read_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    settings = text[text.index("## Settings") : text.index("## Where state is")]
    sources = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("lifecycle_assets", "sensors", "resources")
        for file in (ROOT / folder).rglob("*.py")
    )
    names = re.findall(r"^\| `([A-Z_]+)`", settings, re.MULTILINE)
    assert len(names) >= 9
    assert [name for name in names if name not in sources] == []
