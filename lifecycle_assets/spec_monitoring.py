"""What a `defs.yaml` may say about production: the archive, its upkeep, coverage, backfills, slices, anomalies.

Lives here: the pydantic models of `archive`, `monitoring`, `backfill` and `anomalies`.
Add here: a field when a user must decide something about production traces; a default that is safe.
Not here: scorers and alert rules (`spec.py`).
"""

import re
from datetime import UTC, date, datetime
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from lifecycle_assets.spec_base import Strict


class Redact(Strict):
    """Text that never reaches a table."""

    pattern: str = Field(description="Regular expression.")
    replacement: str = Field(default="[redacted]", description="What stands there instead.")


class StoreRetention(Strict):
    """How long traces stay in MLflow once the archive is proven to hold their day."""

    after_days: int = Field(ge=1, description="Age in days from which traces leave the tracking store.")
    how: Literal["delete", "archive"] = Field(
        default="archive",
        description="archive: MLflow moves the spans to its artifact store; delete: MLflow deletes the traces.",
    )


class Upkeep(Strict):
    """How the tables are kept quick and small."""

    compact_from: int = Field(default=32, ge=2, description="Files of one day from which they are rewritten as one.")
    zorder: bool = Field(default=True, description="Whether closed days are sorted by trace_id when rewritten.")
    vacuum_hours: int = Field(
        default=168, ge=1, description="Hours for which replaced files stay, for readers that have them open."
    )


class ArchivePolicy(Strict):
    """How production traces are kept."""

    table_prefix: str = Field(default="", pattern=r"^[a-z0-9_]*$", description="Before each table; default <name>_.")
    settle_minutes: float = Field(default=5, ge=0, description="A trace is taken this long after its last event.")
    late_days: int = Field(default=7, ge=0, le=90, description="Days back in which late assessments are looked for.")
    redact: list[Redact] = Field(default_factory=list, description="Applied to every text before it is written.")
    retention_days: int | None = Field(
        default=None,
        ge=1,
        description="Days the tables keep; archive_upkeep removes older ones. null keeps all.",
    )
    start_date: str = Field(
        default="2025-01-01", pattern=r"^\d{4}-\d{2}-\d{2}$", description="First day of the partitions, UTC."
    )
    upkeep: Upkeep = Field(default_factory=Upkeep, description="Compaction, sorting and vacuum.")
    store_retention: StoreRetention | None = Field(
        default=None, description="When traces leave MLflow's own store; null keeps them there."
    )

    @field_validator("start_date")
    @classmethod
    def _a_day(cls, value: str) -> str:
        try:
            day = date.fromisoformat(value)
        except ValueError:
            raise ValueError(f"'{value}' is no day; write one that was, such as 2025-01-31") from None
        if day > datetime.now(UTC).date():
            raise ValueError(f"'{value}' is yet to come (UTC), and no day could be run; write today or a day that was")
        return value

    @model_validator(mode="after")
    def _kept_long_enough(self) -> Self:
        if self.store_retention and self.store_retention.after_days <= self.late_days:
            raise ValueError(
                f"store_retention.after_days is {self.store_retention.after_days}, and late_days is {self.late_days}; "
                "traces must stay in MLflow for as long as late assessments are looked for"
            )
        return self


class CoverageTarget(Strict):
    """How complete and how soon scores have to be there."""

    share: float = Field(default=0.95, ge=0, le=1, description="Share of sampled traces that must be scored in time.")
    within_minutes: int = Field(
        default=120, ge=1, description="Minutes after a trace ended (and settled) within which it should be scored."
    )


class Monitoring(Strict):
    """How production is scored and counted."""

    every_minutes: int | None = Field(
        default=None, ge=1, le=60, description="Minutes between two runs on Databricks; null leaves it as it is."
    )
    workers: int = Field(
        default=4, ge=1, le=64, description="Calls of judges and other scorers with a price at once, on this platform."
    )
    coverage: CoverageTarget = Field(default_factory=CoverageTarget, description="The target of the check coverage.")
    slices: list[str] = Field(
        default_factory=list,
        max_length=5,
        description="Tags of traces by whose values the daily numbers are cut too, such as environment or tenant.",
    )
    max_slice_values: int = Field(
        default=20, ge=1, le=200, description="Values of one tag that get numbers of their own; the rest are 'other'."
    )

    @field_validator("slices")
    @classmethod
    def _plain(cls, value: list[str]) -> list[str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name):
                raise ValueError(f"'{name[:40]}' is no tag name of letters, digits, dots, dashes, underscores")
            if value.count(name) > 1:
                raise ValueError(f"'{name}' is listed twice; remove one")
        return value


class BackfillPolicy(Strict):
    """How far and how dear a scorer backfill may go."""

    lookback_days: int = Field(default=30, ge=1, le=365, description="Oldest day a backfill reaches, in days.")
    max_cost_usd: float = Field(default=5.0, ge=0, description="USD the sensor may spend on one UTC day.")
    max_traces: int = Field(default=10_000, ge=1, description="Traces the sensor may have scored on one UTC day.")


class Anomalies(Strict):
    """Comparing production with the same hours of earlier weeks."""

    enabled: bool = Field(default=True, description="Whether volume, error rate, latency and scores are compared.")
    weeks: int = Field(default=4, ge=3, le=12, description="Earlier weeks that are compared with.")
    false_alarms_per_year: float = Field(
        default=2.0, gt=0, le=365, description="Alarms a check may raise in a year of quiet traffic, on average."
    )
