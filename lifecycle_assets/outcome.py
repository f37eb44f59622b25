"""What a step gives, in plain values: the same whether it ran in this process or on Databricks.

Lives here: an outcome, its checks, their JSON form, and the materialization they become.
Add here: a further fact every step may give.
Not here: the steps (`monitoring/steps.py`), where they run (`resources/compute.py`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import dagster as dg

from lifecycle_assets.edges import RECORD_KEY

MARKDOWN = "markdown"
"""Key of the JSON object that stands for Markdown among metadata."""


@dataclass(frozen=True)
class Check:
    """A check of the step's own asset; `is_error` says how grave a failure is (else it is a warning)."""

    name: str
    passed: bool
    description: str
    is_error: bool = True


@dataclass(frozen=True)
class Outcome:
    """Data version, metadata (numbers, text and Markdown), checks, and the record when the asset has one."""

    data_version: str
    metadata: Mapping[str, Any]
    checks: list[Check] = field(default_factory=list)
    record: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives the same outcome back."""
        shown = {
            name: {MARKDOWN: value.md_str} if isinstance(value, dg.MarkdownMetadataValue) else value
            for name, value in self.metadata.items()
        }
        checks = [asdict(check) for check in self.checks]
        return {"data_version": self.data_version, "metadata": shown, "checks": checks, "record": self.record}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The outcome of `value`. Raises `KeyError` or `TypeError` for anything else."""
        metadata = {
            name: dg.MetadataValue.md(shown[MARKDOWN]) if isinstance(shown, Mapping) else shown
            for name, shown in value["metadata"].items()
        }
        checks = [Check(**check) for check in value["checks"]]
        return cls(value["data_version"], metadata, checks, value["record"])

    def to_result(self) -> dg.MaterializeResult:
        """The materialization, its record and checks included."""
        record = {} if self.record is None else {RECORD_KEY: dg.MetadataValue.json(dict(self.record))}
        return dg.MaterializeResult(
            metadata={**self.metadata, **record},
            data_version=dg.DataVersion(self.data_version),
            check_results=[
                dg.AssetCheckResult(
                    check_name=check.name,
                    passed=check.passed,
                    description=check.description,
                    severity=dg.AssetCheckSeverity.ERROR if check.is_error else dg.AssetCheckSeverity.WARN,
                )
                for check in self.checks
            ],
        )
