"""What a person meets in the browser: the lineage, an asset's page, and a broken declaration.

Lives here: the real UI on the shipped workspace, driven in the system's Chromium.
Add here: a page that must be found and read.
Not here: starting UI and browser (`docs/dagster_ui.py`), what the graph consists of (`tests/test_graph.py`).
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Page, expect

from docs.dagster_ui import ROOT, browser_page, dagster_ui, locations, open_lineage
from lifecycle_assets.home import prepare_home
from resources.platform import Platform
from tests.test_graph import ASSETS

GROUPS = sorted({group for group, *_ in ASSETS.values()})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The UI on an empty home, with the shipped code location and a broken copy of it."""
    folder = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        patched.setenv("LIFECYCLE_HOME", str(folder / "home"))
        patched.setenv("DAGSTER_HOME", str(folder / "home" / "dagster"))
        with dagster_ui(prepare_home(Platform.from_env()), broken_project(folder / "broken")) as found:
            yield found


@pytest.fixture
def page() -> Iterator[Page]:
    with browser_page(2400, 900) as found:
        yield found


def test_lineage_shows_every_asset_in_its_group_and_an_asset_says_what_it_is(url: str, page: Page):
    open_lineage(page, url)
    assert len(GROUPS) == 4
    assert len(ASSETS) == 16
    for name in [*GROUPS, *ASSETS]:
        expect(page.get_by_text(name, exact=True).first).to_be_in_viewport()

    page.goto(f"{url}/assets/docs_agent/champion_alias")
    expect(page.get_by_text("The first champion is gated like any other", exact=False)).to_be_visible()
    expect(page.get_by_text("Never materialized").first).to_be_visible()


def test_a_broken_declaration_is_one_sentence_on_the_page_of_code_locations(url: str, page: Page):
    loaded = {entry["name"]: entry["locationOrLoadError"] for entry in locations(url)}
    assert loaded["lifecycle_assets"]["__typename"] == "RepositoryLocation"
    assert loaded["broken"]["stack"] == []

    page.goto(f"{url}/locations")
    page.get_by_text("View error").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("docs_agent/defs.yaml: attributes.archive.settle_minute is not a known field")
    expect(dialog).to_contain_text("did you mean 'settle_minutes'?")
    assert "Traceback" not in dialog.inner_text()
    assert 'File "' not in dialog.inner_text()


def broken_project(folder: Path) -> Path:
    """A workspace with a copy of the shipped project in which one field of `docs_agent` is misspelled.

    Its code location runs in a Python that finds the copy first: the project itself is installed.
    """
    for name in ("lifecycle_assets", "sensors", "resources"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    declaration = folder / "lifecycle_assets" / "defs" / "docs_agent" / "defs.yaml"
    text = declaration.read_text(encoding="utf-8")
    assert "settle_minutes:" in text
    declaration.write_text(text.replace("settle_minutes:", "settle_minute:"), encoding="utf-8")
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    workspace["load_from"][0]["python_module"].update(location_name="broken", executable_path=str(python))
    (folder / "workspace.yaml").write_text(yaml.safe_dump(workspace), encoding="utf-8")
    return folder / "workspace.yaml"
