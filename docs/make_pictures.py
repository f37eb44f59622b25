"""The pictures of the documentation, taken from the real UI: `python -m docs.make_pictures`.

Lives here: which pages are shown, and how large. Reads the state `make demo` left in `LIFECYCLE_HOME`.
Add here: a picture a page of the documentation needs.
Not here: the UI and the browser (`dagster_ui.py`).

The pictures are taken from a copy of the Dagster instance and without its daemon, so that taking them changes nothing.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page

from docs.dagster_ui import SETTLE_MS, browser_page, dagster_ui, open_lineage
from lifecycle_assets.refused import Refused
from resources.platform import Platform

PICTURES = Path(__file__).resolve().parent / "pictures"
AGENT = "docs_agent"


def asset_graph(page: Page, url: str) -> None:
    """The global lineage."""
    open_lineage(page, url)
    page.get_by_text("judge_agreement").first.wait_for()
    _save(page, "asset_graph")


def quality_metrics(page: Page, url: str) -> None:
    """The page of `quality_metrics` with the plot of its last materialization."""
    page.goto(f"{url}/assets/{AGENT}/quality_metrics")
    _open_plot(page)
    _save(page, "quality_metrics")


def gate(page: Page, url: str) -> None:
    """The check `gate` of `eval_results` with its plot."""
    page.goto(f"{url}/assets/{AGENT}/eval_results?view=checks&checkDetail=gate")
    page.get_by_text("Latest execution").wait_for()
    _open_plot(page)
    _save(page, "gate")


def _open_plot(page: Page) -> None:
    page.locator("tr", has_text="plot").get_by_text("[Show Markdown]").click()
    page.locator("img[src^='data:image']").wait_for()
    page.wait_for_timeout(SETTLE_MS)


def _save(page: Page, name: str) -> None:
    page.screenshot(path=PICTURES / f"{name}.png")


def main() -> None:
    """Take every picture. Raises `Refused` when no demo was run."""
    home = Platform.from_env().dagster_home
    if not (home / "dagster.yaml").exists():
        raise Refused(f"{home}: nothing to take pictures of; run make demo first.")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "dagster"
        shutil.copytree(home, copy)
        with dagster_ui(copy, daemon=False) as url:
            for take, width, height in ((asset_graph, 2400, 900), (quality_metrics, 1600, 1240), (gate, 1600, 800)):
                with browser_page(width, height) as page:
                    take(page, url)
    for file in sorted(PICTURES.glob("*.png")):
        print(f"{file.name}: {file.stat().st_size // 1024} KB")


if __name__ == "__main__":
    try:
        main()
    except Refused as refusal:
        sys.exit(str(refusal))
