"""Text and pictures for the pages people read.

Lives here: escaping, Markdown tables, plots as Markdown images.
Add here: a shape of display that two assets share.
Not here: deciding what is shown.
"""

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import dagster as dg

MAX_CELL = 200
"""Characters of hostile text shown in one cell; the table keeps the whole."""

_MARKS = r"\\`*_{}\[\]()#+!|~"


def literal(value: object, limit: int = MAX_CELL) -> str:
    """`value` as one line, cut at `limit` characters, for places that show text as it is: metadata that is text."""
    if isinstance(value, float):
        value = f"{value:.0f}" if 1_000 <= abs(value) < 1e15 else f"{value:.4g}"
    text = "" if value is None else str(value)
    text = "".join(ch if ch.isprintable() else " " for ch in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(value: object, limit: int = MAX_CELL) -> str:
    """`value` as one line that Markdown and HTML show literally, cut at `limit` characters."""
    return re.sub(rf"([{_MARKS}])", r"\\\1", html.escape(literal(value, limit), quote=False))


def unescaped(text: str) -> str:
    """What `plain` was given: a check's description as a terminal or a message shows it."""
    return html.unescape(re.sub(rf"\\([{_MARKS}])", r"\1", text))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    """A Markdown table; every cell is escaped."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


Point = tuple[str, float, float | None, float | None]
"""A day (ISO 8601), its value (NaN: it has none), and the interval's ends."""


def with_gaps(points: Sequence[Point], *, days: int = 1) -> list[Point]:
    """Points, oldest first, with one of NaN for every day between them that has none: a line has a gap there.

    `days` is how far two neighbours are apart.
    """
    found: list[Point] = []
    for point in points:
        while found and (after := date.fromisoformat(found[-1][0]) + timedelta(days=days)).isoformat() < point[0]:
            found.append((after.isoformat(), math.nan, None, None))
        found.append(point)
    return found


def lines_plot(title: str, series: Mapping[str, Sequence[Point]], *, unit: str) -> dg.MarkdownMetadataValue:
    """A small picture for each series: points `(day, value, low, high)` with their interval as a band.

    A value that is NaN leaves a gap. On a white ground with dark text, so that it is readable on a dark page too.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(series) > 1 else 1
    height = max(1, -(-len(series) // columns))
    figure = Figure(figsize=(4.6 * columns, 2.1 * height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for index, (name, points) in enumerate(series.items()):
        axes = figure.add_subplot(height, columns, index + 1)
        days = [point[0][5:] for point in points]
        values = [point[1] for point in points]
        axes.plot(days, values, marker="o", color="#3d5afe", linewidth=1.5, markersize=4)
        low = [point[1] if point[2] is None else point[2] for point in points]
        high = [point[1] if point[3] is None else point[3] for point in points]
        axes.fill_between(days, low, high, color="#3d5afe", alpha=0.15)
        if len(points) == 1:
            # Of equal numbers the last digits of mean and bound may differ.
            around = [[max(values[0] - low[0], 0.0)], [max(high[0] - values[0], 0.0)]]
            axes.errorbar(days, values, yerr=around, color="#3d5afe", capsize=4)
        axes.set_title(name.replace("$", r"\$"), fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.locator_params(axis="y", nbins=4)
        if len(days) > 7:
            axes.set_xticks(range(0, len(days), -(-len(days) // 7)))
    figure.supylabel(unit, fontsize=8)
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    return _image(figure, title)


def thresholds_plot(
    title: str, rows: Sequence[tuple[str, float | None, float, float | None, bool]]
) -> dg.MarkdownMetadataValue:
    """Bars of `(metric, value, limit, champion, passed)`: the limit as a tick, the champion as a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.55 * len(rows) + 0.9), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for position, (metric, value, limit, champion, passed) in enumerate(reversed(rows)):
        scale = max(abs(limit), abs(value or 0), abs(champion or 0)) or 1.0
        axes.barh(position, (value or 0) / scale, color="#a5d6a7" if passed else "#ef9a9a", height=0.4)
        axes.plot([limit / scale] * 2, [position - 0.25, position + 0.25], color="black", linewidth=2)
        if champion is not None:
            axes.plot(champion / scale, position, marker="o", color="#ff9800", markersize=6)
        label = "no value" if value is None else f"{value:.3g}"
        axes.annotate(
            f"{metric.replace('$', '')}: {label} (limit {limit:g})", (0.01, position + 0.22), va="bottom", fontsize=8
        )
    axes.set_yticks([])
    axes.set_xticks([])
    dot = " Dot: champion." if any(row[3] is not None for row in rows) else ""
    axes.set_title(f"{title}. Tick: limit.{dot}".replace("$", r"\$"), fontsize=9, loc="left")
    return _image(figure, title)


def differences_plot(
    title: str, rows: Sequence[tuple[str, float, float | None, float | None, float, str]]
) -> dg.MarkdownMetadataValue:
    """Differences `(metric, difference, low, high, allowed, outcome)` with their intervals, each on its own scale.

    Positive is better. The red ground is what is not allowed: everything below `-allowed`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {"better": "#1b5e20", "not worse": "#3d5afe", "worse": "#b71c1c", "unsure": "#b26a00"}
    figure = Figure(figsize=(7, 0.85 * len(rows) + 0.5), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for index, (metric, difference, low, high, allowed, outcome) in enumerate(rows):
        axes = figure.add_subplot(len(rows), 1, index + 1)
        colour = colours.get(outcome, "black")
        ends = [difference if low is None else low, difference if high is None else high]
        reach = 1.2 * max(allowed, *map(abs, (difference, *ends))) or 1.0
        axes.axvspan(-reach, -allowed, color="#ef9a9a", alpha=0.5, linewidth=0)
        axes.axvline(0, color="black", linewidth=1)
        axes.plot(ends, [0, 0], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(difference, 0, marker="o", color=colour, markersize=8)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=7)
        axes.set_title(f"{metric}: {outcome}".replace("$", r"\$"), fontsize=9, loc="left", color=colour)
    figure.suptitle(f"{title}. Right of 0 is better; red is not allowed.".replace("$", r"\$"), fontsize=9)
    return _image(figure, title)


def _image(figure: Any, alternative: str) -> dg.MarkdownMetadataValue:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return dg.MetadataValue.md(f"![{plain(alternative)}](data:image/png;base64,{encoded})")
