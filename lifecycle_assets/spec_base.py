"""What every model of a declaration builds on.

Lives here: strictness, names, a line a number is held against.
Add here: a piece two parts of the declaration share.
Not here: fields (`spec.py`, `spec_runtime.py`).
"""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]


class Strict(BaseModel):
    """Frozen, and refuses what it does not know."""

    # Built when the first declaration is read, with what it is part of: a third of the time.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Line(Strict):
    """A line a number is held against. Exactly one of `at_least` and `at_most`: the direction is declared."""

    at_least: float | None = Field(default=None, allow_inf_nan=False, description="Lowest value that is well.")
    at_most: float | None = Field(
        default=None, allow_inf_nan=False, description="Highest value that is well; for latency and cost."
    )

    @model_validator(mode="after")
    def _one_direction(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give exactly one of at_least and at_most")
        return self

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is an improvement."""
        return self.at_least is not None
