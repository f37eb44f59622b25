"""Where a partitioned step runs.

Lives here: the gateway `Compute`, and its local implementation: this process.
Add here: what a place to run a step has to be told.
Not here: the steps (`lifecycle_assets/monitoring/steps.py`), jobs of a workspace (`databricks/compute/compute.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import dagster as dg

from lifecycle_assets.outcome import Outcome
from lifecycle_assets.spec_file import Agent


@dataclass(frozen=True)
class StepRequest:
    """One step: the asset's name, the UTC day, and the records it builds on as JSON."""

    step: str
    day: date
    inputs: Mapping[str, Any]


class Compute(ABC):
    """Runs a step where the declaration says."""

    @abstractmethod
    def run(
        self, context: dg.AssetExecutionContext, agent: Agent, request: StepRequest, here: Callable[[], Outcome]
    ) -> Outcome:
        """The outcome of `request`; `here` runs it in this process.

        Safe to repeat because steps are: what is there is found and not written again. Raises `Refused` when the
        step refused, wherever it ran, or the place to run it failed.
        """


class LocalCompute(Compute):
    """Runs it in this process, whatever the declaration says: the same YAML serves a laptop and a workspace."""

    def run(
        self, context: dg.AssetExecutionContext, agent: Agent, request: StepRequest, here: Callable[[], Outcome]
    ) -> Outcome:
        """See `Compute.run`."""
        return here()
