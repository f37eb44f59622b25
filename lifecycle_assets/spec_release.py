"""What a `defs.yaml` may say about when a version may meet users, and when it is taken back.

Lives here: thresholds, the comparison with the champion, approval, automatic rollback, shadow comparison.
Add here: a condition of a move of an alias.
Not here: how scores come about (`spec.py`), where the champion runs (`spec_runtime.py`).
"""

import hashlib
import re
from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from lifecycle_assets.spec_base import Line, Name, Strict

AGGREGATIONS = ("mean", "min", "max", "p50", "p90", "p95", "p99")
"""How the values of one scorer become the number of a metric `<scorer>/<aggregation>`."""

DEFAULT_TAG = "lifecycle.approval"
"""Version tag that decides when none is declared."""

AGE = r"^[1-9][0-9]{0,3}[hd]$"
"""A duration in hours or days."""


def duration(age: str) -> timedelta:
    """`12h` or `30d` as a duration."""
    number = int(age[:-1])
    return timedelta(hours=number) if age.endswith("h") else timedelta(days=number)


class Threshold(Line):
    """A line the evaluation has to reach."""

    metric: str = Field(description=f"<scorer>/<aggregation>, aggregation one of {', '.join(AGGREGATIONS)}.")
    min_rows: int = Field(default=1, ge=1, description="Rows the scorer must have given a value for.")
    max_error_rate: float = Field(default=0.0, ge=0, le=1, description="Share of rows that may have failed, 0..1.")
    max_regression: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="How much worse than the champion this metric may be, in its own unit; default that of incumbent.",
    )


class Incumbent(Strict):
    """How the candidate is compared with the champion: on the same records, with the same scorers, row by row."""

    max_regression: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="How much worse than the champion a metric may be."
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Confidence of the comparison, 0.5..1.")
    power: float = Field(
        default=0.8, gt=0.5, lt=1, description="Chance to tell, 0.5..1, that the number of rows asked for is made for."
    )
    require: Literal["not_worse", "better"] = Field(
        default="not_worse", description="What the comparison must show: not_worse on every metric, or better on one."
    )
    unsure: Literal["block", "allow"] = Field(
        default="block", description="What happens when there are not enough rows to tell."
    )


class Gate(Strict):
    """When an evaluation is good enough for the alias `champion`."""

    mode: Literal["enforce", "dry_run", "disabled"] = Field(
        default="enforce",
        description="enforce blocks; dry_run records the verdict and lets through; disabled records 'ungated'.",
    )
    thresholds: list[Threshold] = Field(default_factory=list, description="Lines to reach, all of them.")
    incumbent: Incumbent | None = Field(default_factory=Incumbent, description="Comparison with the champion, or null.")
    max_age: str = Field(default="30d", pattern=AGE, description="How old evidence may be: 12h, 30d.")
    approval: Literal["none", "required"] = Field(
        default="none",
        description="required: a version that passed waits as challenger until a person approves it.",
    )
    approval_tag: str = Field(
        default=DEFAULT_TAG,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}$",
        description="Version tag that says approved or rejected, such as the name of the approval task of a "
        "Databricks deployment job.",
    )
    approval_max_age: str = Field(default="7d", pattern=AGE, description="How long an approval counts: 12h, 7d.")

    @property
    def digest(self) -> str:
        """Names the gate: evidence that was held against another one lets nothing through.

        How approval is given and how old evidence may be are not part of it: they say nothing about numbers, and are
        held against a version whenever it is decided on.
        """
        numbers = self.model_dump_json(exclude={"approval", "approval_tag", "approval_max_age", "max_age"})
        return hashlib.sha256(numbers.encode()).hexdigest()[:16]

    @property
    def longest_age(self) -> timedelta:
        """`max_age` as a duration."""
        return duration(self.max_age)

    @property
    def longest_approval(self) -> timedelta:
        """`approval_max_age` as a duration."""
        return duration(self.approval_max_age)

    @field_validator("approval_tag")
    @classmethod
    def _not_one_of_ours(cls, tag: str) -> str:
        # Unity Catalog keeps `lifecycle.x` as `lifecycle_x`: both are names of what the graph itself says of a version.
        if tag != DEFAULT_TAG and re.match(r"(lifecycle|mlflow)[._-]", tag, re.IGNORECASE):
            raise ValueError(f"'{tag}' is a name that the graph or MLflow keeps for itself: take another")
        return tag

    @model_validator(mode="after")
    def _thresholds_unless_disabled(self) -> Self:
        if self.mode != "disabled" and not self.thresholds:
            raise ValueError("a gate without thresholds passes anything: add thresholds, or set mode: disabled")
        return self


class RollbackRule(Strict):
    """A number that may not drop under a fresh champion, against its predecessor at the same hours of the week."""

    metric: str = Field(
        description="<scorer>/mean, error_rate, latency/p50 or latency/p95 (seconds): a number of production traces."
    )
    max_drop: float = Field(
        ge=0,
        allow_inf_nan=False,
        description="How much worse it may be, in its own unit; error_rate and latency are better when lower.",
    )


class Rollback(Strict):
    """When the champion is taken back without being asked. A rollback by hand needs none of this."""

    automatic: bool = Field(default=False, description="Whether a breach starts the rollback job by itself.")
    rules: list[RollbackRule] = Field(default_factory=list, description="Numbers that may not drop.")
    window_hours: int = Field(default=1, ge=1, le=24, description="Length of one window, in hours.")
    k: int = Field(default=3, ge=1, description="Windows that must breach, the newest included.")
    n: int = Field(default=4, ge=1, le=168, description="Windows looked at.")
    min_traces: int = Field(default=20, ge=1, description="Traces a window must hold to be judged.")
    fresh_days: int = Field(default=7, ge=1, le=90, description="Days a champion counts as fresh.")
    recovered_at: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="A breached number counts as recovered below this share of max_drop, 0..1.",
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.k > self.n:
            raise ValueError("k must not exceed n")
        if self.automatic and not self.rules:
            raise ValueError("an automatic rollback without rules never happens: add rules, or remove automatic")
        return self


class Shadow(Strict):
    """How a waiting version is compared with the champion on the champion's own recorded requests."""

    max_traces: int = Field(default=100, ge=1, le=10_000, description="Recorded requests replayed at most.")
    lookback_days: int = Field(default=14, ge=1, le=365, description="Days back from which requests are taken.")
    max_cost_usd: float = Field(default=5.0, ge=0, description="USD the scorers may cost, by their cost_per_call.")
    scorers: list[Name] = Field(default_factory=list, description="Scorers that run; empty: those of the gate.")
