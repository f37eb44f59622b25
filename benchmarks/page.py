"""docs/benchmarks.md and its pictures, from the rows of `results.json`.

Lives here: the table and the pictures people read.
Add here: a picture that says what the table does not. Not here: measuring (`run.py`).

Pictures are SVG in colours that are readable on white and on black; they hold no date, so that they change only
when the numbers do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.job import Job

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
PICTURES = PAGE.parent / "pictures"
INK, OURS, THEIRS = "#7d8590", "#2f81f7", "#c69026"

HEAD = """# Benchmarks

Made by `make bench`, on a corpus of made-up traces (`benchmarks/traces.py`: 4 to 6 spans, payloads of 1 to 2 KB, tags,
sessions, 3 % errors, thumbs on 40 %). Baseline and ours run in turn, each in a fresh process, on the same store;
seconds are medians, from least to greatest in parentheses. Memory is the peak above where the timed work began, child
processes included. Imports and opening the store are not timed, but for `load` and `release`. A baseline slower than a
minute ran once.
Read the ratios: seconds are those of the machine it ran on.

`python -m benchmarks.run JOB ... --corpus HOME` measures on the store of another home, `--n` on a smaller corpus.
"""


def write_page(rows: Sequence[dict[str, Any]], jobs: Sequence[Job]) -> None:
    """Write the page and its pictures."""
    by_name = {job.name: job for job in jobs}
    lines = [HEAD, f"![Ratios]({_ratios(rows)})", "", f"![Memory]({_memory(rows)})", ""]
    lines += [
        "| job | traces | baseline | ours | ratio | of the limit | memory, MB: baseline / ours |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        limit = f"{row['limit_fraction']:.0%}" if row["limit_fraction"] else ""
        lines.append(
            f"| `{row['job']}` | {row['n'] or ''} | {_time(row, 'baseline')} | {_time(row, 'ours')} | "
            f"{row['ratio']:,.4g} | {limit} | {row['baseline_rss_mb']} / {row['ours_rss_mb']} |"
        )
    lines += ["", "| job | what is compared | goal |", "| --- | --- | --- |"]
    lines += [f"| `{row['job']}` | {by_name[row['job']].meaning} | {by_name[row['job']].goal} |" for row in rows]
    sampled = [row for row in rows if row["n"] and row["baseline_sample"] < row["n"]]
    if sampled:
        lines += ["", "Baselines measured on fewer traces, at the rate they had there:"]
        lines += [f"`{row['job']}` on {row['baseline_sample']:,}." for row in sampled]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _time(row: dict[str, Any], side: str) -> str:
    least, most = row[f"{side}_spread_s"]
    return f"{_seconds(row[f'{side}_s'])} ({_seconds(least)} to {_seconds(most)})"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _ratios(rows: Sequence[dict[str, Any]]) -> str:
    figure, axes = _axes(len(rows))
    names = [row["job"] for row in rows]
    axes.barh(names, [row["ratio"] for row in rows], color=[OURS if row["ratio"] >= 1 else THEIRS for row in rows])
    axes.set_xscale("log")
    axes.axvline(1, color=INK, linewidth=1)
    for place, row in enumerate(rows):
        axes.annotate(f" {row['ratio']:,.3g}", (max(row["ratio"], 1), place), va="center", color=INK, fontsize=8)
    axes.set_title("Times as fast as the baseline (logarithmic)", color=INK, fontsize=10, loc="left")
    return _save(figure, "benchmarks_ratio.svg")


def _memory(rows: Sequence[dict[str, Any]]) -> str:
    shown = [row for row in rows if row["n"]]
    figure, axes = _axes(len(shown))
    for offset, side, colour in ((-0.2, "baseline", THEIRS), (0.2, "ours", OURS)):
        places = [place + offset for place in range(len(shown))]
        axes.barh(places, [row[f"{side}_rss_mb"] for row in shown], height=0.36, color=colour, label=side)
    axes.set_yticks(range(len(shown)), [row["job"] for row in shown])
    legend = axes.legend(frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_color(INK)
    axes.set_title("Peak memory above the start, MB", color=INK, fontsize=10, loc="left")
    return _save(figure, "benchmarks_memory.svg")


def _axes(count: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.32 * max(count, 1)), layout="constrained")
    axes.invert_yaxis()
    axes.tick_params(colors=INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    return figure, axes


def _save(figure: Any, name: str) -> str:
    from matplotlib import pyplot

    figure.savefig(PICTURES / name, transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    return f"pictures/{name}"
