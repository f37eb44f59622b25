"""What a person meets in the browser: the lineage, an asset's page, and a broken declaration.

Lives here: the real UI on the shipped workspace, driven in the system's Chromium.
Add here: a page that must be found and read.
Not here: starting UI and browser (`docs/dagster_ui.py`), what the graph consists of (`tests/test_graph.py`).
"""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from docs.dagster_ui import ROOT, browser_page, dagster_ui, locations, open_lineage
from lifecycle_assets.home import prepare_home
from resources.platform import Platform
from tests.test_graph import ASSETS

GROUPS = sorted({group for group, *_ in ASSETS.values()})


@pytest.fixture
def dagster_home(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(platform.home / "dagster"))
    return prepare_home(platform)


def test_lineage_shows_every_asset_in_its_group_and_an_asset_says_what_it_is(dagster_home: Path):
    with dagster_ui(dagster_home) as url, browser_page(2400, 900) as page:
        open_lineage(page, url)
        for name in [*GROUPS, *ASSETS]:
            expect(page.get_by_text(name, exact=True).first).to_be_in_viewport()
        assert len(GROUPS) == 4
        assert len(ASSETS) == 15

        page.goto(f"{url}/assets/docs_agent/champion_alias")
        expect(page.get_by_text("The first champion is gated like any other", exact=False)).to_be_visible()
        expect(page.get_by_text("Never materialized").first).to_be_visible()


def test_a_broken_declaration_is_one_sentence_on_the_page_of_code_locations(dagster_home: Path, tmp_path: Path):
    project = broken_project(tmp_path / "project")
    with dagster_ui(dagster_home, project=project, daemon=False) as url, browser_page(1400, 900) as page:
        error = locations(url)[0]["locationOrLoadError"]
        assert error["stack"] == []

        page.goto(f"{url}/locations")
        page.get_by_text("View error").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("docs_agent/defs.yaml: attributes.archive.settle_minute is not a known field")
        expect(dialog).to_contain_text("did you mean 'settle_minutes'?")
        assert "Traceback" not in dialog.inner_text()
        assert 'File "' not in dialog.inner_text()


def broken_project(folder: Path) -> Path:
    """A copy of the shipped project in which one field of `docs_agent` is misspelled."""
    for name in ("lifecycle_assets", "sensors", "resources"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("workspace.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    declaration = folder / "lifecycle_assets" / "defs" / "docs_agent" / "defs.yaml"
    text = declaration.read_text(encoding="utf-8")
    assert "settle_minutes:" in text
    declaration.write_text(text.replace("settle_minutes:", "settle_minute:"), encoding="utf-8")
    return folder
