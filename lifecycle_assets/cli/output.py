"""How commands print: tables for people, JSON for scripts, refusals for both.

Lives here: cleaning text of others, tables, JSON, the option `--json`, a command's own ways to say no.
Add here: a shape of output two commands share.
Not here: what is printed.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import click

MAX_CELL = 300
"""Characters of one cell; `--json` has the whole."""

WIDTH_OF_FILES = 200
"""Columns of output that goes to a file or a pipe, where no terminal says how wide it is."""

MIN_COLUMN, BETWEEN = 14, 3
"""Columns of text below which a column of a table is not readable, unless it holds less; those between two of them."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Misuse(click.ClickException):
    """The command was called with something that cannot be."""

    exit_code = 2


class SaysNo(click.ClickException):
    """The command was called rightly, and the answer is no."""

    exit_code = 1


def clean(value: object) -> str:
    """`value` as one line without control characters, so that a terminal shows it and obeys none of it."""
    if isinstance(value, float):
        value = f"{value:.0f}" if 1_000 <= abs(value) < 1e15 else f"{value:.4g}"
    text = "" if value is None else str(value)
    return "".join(ch if ch.isprintable() else " " for ch in text)


def print_json(value: object, *, one_line: bool = False) -> None:
    """Print `value` as JSON that any reader takes: ASCII, dates ISO 8601, no NaN."""
    click.echo(json.dumps(jsonable(value), indent=None if one_line else 2, allow_nan=False))


def jsonable(value: Any) -> Any:
    """`value` in JSON's own types; a time without a zone is UTC, a number that is not finite is null."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    return value.hex() if isinstance(value, bytes) else str(value)


def iso(moment: float | datetime | None) -> str:
    """A moment, given as epoch seconds or datetime, as ISO 8601 UTC; empty when there is none."""
    if moment is None:
        return ""
    found = moment if isinstance(moment, datetime) else datetime.fromtimestamp(moment, UTC)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="seconds")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table no wider than the terminal, or a block a row where it would not fit.

    No cell is interpreted; a list is a cell of several lines.
    """
    console, rows = _console(), [*rows]
    if sum(_needed(columns, rows)) > console.width:
        _print_blocks(columns, rows)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column, needed in zip(columns, _needed(columns, rows), strict=True):
        table.add_column(Text(clean(column)), overflow="fold", min_width=needed - BETWEEN)
    for row in rows:
        table.add_row(*(Text("\n".join(_lines(cell))) for cell in row))
    console.print(table)


def _needed(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[int]:
    """Columns of text each column of a table needs to be readable, with what is between it and the next."""
    lines = [[clean(column), *(line for row in rows for line in _lines(row[n]))] for n, column in enumerate(columns)]
    return [min(max(map(len, one)), MIN_COLUMN) + BETWEEN for one in lines]


def _print_blocks(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    names = [clean(column) for column in columns]
    wide = max(map(len, names), default=0)
    for row in rows:
        for name, cell in zip(names, row, strict=True):
            for number, line in enumerate(_lines(cell)):
                if line:
                    click.echo(f"{'' if number else name:<{wide}}  {line}")
        click.echo("")


def print_line(text: str = "", *, style: Callable[[str], str] = lambda line: line) -> None:
    """Print one line, cleaned; `style` may colour it for a terminal."""
    click.echo(style(clean(text)))


def mark(state: str) -> str:
    """A state in its colour; plain when the output is no terminal."""
    colours = {"ok": "green", "warn": "yellow", "differs": "yellow", "fail": "red", "could not read": "red"}
    return click.style(clean(state), fg=colours.get(state))


def _lines(cell: object) -> list[str]:
    return [_cell(item) for item in cell] if isinstance(cell, list) else [_cell(cell)]


def _cell(value: object) -> str:
    text = clean(value)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


def _console() -> Any:
    from rich.console import Console

    bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if bounded else WIDTH_OF_FILES, markup=False, highlight=False, emoji=False)
