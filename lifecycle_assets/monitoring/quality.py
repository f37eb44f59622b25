"""The daily numbers: from the tables to rows of `quality_metrics`.

Lives here: naming what the engine counted, and its intervals.
Add here: a number people should watch every day.
Not here: SQL (`quality_sql.py`), intervals (`intervals.py`), alert rules (`alert_rules.py`), the asset (`tables.py`),
views for ad-hoc questions (`resources/sql/views.py`).

A number of a slice has the slice in its name, `latency/p95{tenant=acme}`, so that a metric without braces is about all
traces. Tag values come from outside: a name holds at most `VALUE_CHARACTERS` of one, and everything but letters,
digits and `_.-~` percent-encoded (RFC 3986).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any
from urllib.parse import quote

from lifecycle_assets.monitoring.alert_rules import MEASURES
from lifecycle_assets.monitoring.intervals import mean_interval, share_interval
from lifecycle_assets.monitoring.quality_sql import VALUES_SQL, statements
from lifecycle_assets.records import digest
from resources.needs import SqlEngine

ROWS = 1_000_000
"""Rows one statement may answer with: 20 scorers, 5 tags of 200 values, and samples of their means stay below it."""

VALUE_CHARACTERS = 60
"""Characters of a tag's value in a metric's name at most; one of so many or more ends in a digest of the whole."""

REST = "other"
"""Stands for all values of a tag that have no slice of their own; a value that reads so is written %6Fther."""

SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

Group = tuple[str, str | None, str]
"""Slice, part and model id."""


def daily_rows(
    sql: SqlEngine,
    prefix: str,
    day: date,
    *,
    scorer_prefix: str,
    versions: Mapping[str, str],
    slices: Sequence[str] = (),
    max_slice_values: int = 20,
) -> list[dict[str, Any]]:
    """Rows of `quality_metrics` for one day, one for each model, metric and slice.

    `scorer_prefix` is cut from registered scorer names; `versions` maps model id to registered version; `slices` are
    tags of traces.
    """
    named = {
        tag: [row["value"] for row in sql.query(prefix, VALUES_SQL, [tag, day, max_slice_values]).dicts()]
        for tag in slices
    }
    found = {
        name: sql.query(prefix, text, values, limit=ROWS).dicts()
        for name, (text, values) in statements(day, named).items()
    }
    numbers = _Numbers(day, versions)
    for row in found["counts"]:
        numbers.share(row, "error_rate", row["errors"], row["n"])
        numbers.add(row, "traces", row["n"], row["n"])
    ranks = {(*_group(row), row["measure"], row["share"]): (row["low"], row["high"]) for row in found["ranks"]}
    samples = _samples(found["measure_samples"])
    for row in found["measures"]:
        measure, n = row["measure"], row["n"]
        for name, share in SHARES.items():
            interval = ranks.get((*_group(row), measure, share), (None, None))
            numbers.add(row, f"{measure}/{name}", row[name], n, interval)
        if measure in MEASURES:
            numbers.add(row, f"{measure}/sum", row["total"], n)
            numbers.mean(row, f"{measure}/mean", row["total"], n, samples[(*_group(row), measure)])
    samples = _samples(found["score_samples"])
    for row in found["scores"]:
        if not row["name"].startswith(scorer_prefix):
            continue
        scorer, n = row["name"].removeprefix(scorer_prefix), row["scored"]
        numbers.share(row, f"{scorer}/error_rate", row["failed"], row["n"])
        if n and row["passes"]:
            numbers.share(row, f"{scorer}/mean", round(row["total"]), n)
        elif n:
            numbers.mean(row, f"{scorer}/mean", row["total"], n, samples[(*_group(row), row["name"])])
    for row in found["feedback"]:
        numbers.add(row, "feedback", row["n"], row["n"])
        numbers.share(row, "negative_feedback_rate", row["negative"], row["n"])
        numbers.share(row, "positive_rate", row["n"] - row["negative"], row["n"])
    return sorted(numbers.rows, key=lambda row: (row["model_id"], row["metric"]))


class _Numbers:
    """Rows of one day as they are found."""

    def __init__(self, day: date, versions: Mapping[str, str]) -> None:
        self._day, self._versions = day, versions
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        row: Mapping[str, Any],
        metric: str,
        value: float,
        n: int,
        interval: tuple[float | None, float | None] | None = None,
    ) -> None:
        """A number of the model and slice that `row` is about."""
        low, high = interval or (None, None)
        self.rows.append(
            {
                "trace_date": self._day,
                "model_id": row["model_id"],
                "version": self._versions.get(row["model_id"], ""),
                "metric": metric + slice_name(row["slice"], row["part"]),
                "value": _steady(value),
                "n": n,
                "ci_low": _steady(low),
                "ci_high": _steady(high),
            }
        )

    def share(self, row: Mapping[str, Any], metric: str, hits: int, n: int) -> None:
        """A share with its interval."""
        self.add(row, metric, hits / n, n, share_interval(hits, n))

    def mean(self, row: Mapping[str, Any], metric: str, total: float, n: int, sample: Sequence[float]) -> None:
        """A mean with its interval."""
        name = f"{self._day}:{row['model_id']}:{metric}{slice_name(row['slice'], row['part'])}"
        self.add(row, metric, total / n, n, mean_interval(sample, n, total / n, name))


def slice_name(tag: str, value: str | None) -> str:
    """What a slice adds to the name of a metric: `{tag=value}`, nothing for all traces; None is all other values."""
    if not tag:
        return ""
    if value is None:
        return f"{{{tag}={REST}}}"
    escaped = "%6Fther" if value == REST else quote(value, safe="")
    if len(escaped) >= VALUE_CHARACTERS:  # So that no shorter value reads like one that was cut.
        escaped = f"{escaped[: VALUE_CHARACTERS - 9]}~{digest(value, length=8)}"
    return f"{{{tag}={escaped}}}"


def _group(row: Mapping[str, Any]) -> Group:
    return row["slice"], row["part"], row["model_id"]


def _samples(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str | None, str, str], list[float]]:
    found: dict[tuple[str, str | None, str, str], list[float]] = {}
    for row in rows:
        found.setdefault((*_group(row), row["name"]), []).append(row["value"])
    return found


def _steady(value: float | None) -> float | None:
    """`value` in 12 digits: an engine adds in any order, and a day whose rows are the same keeps its numbers."""
    return None if value is None else float(f"{value:.12g}")
