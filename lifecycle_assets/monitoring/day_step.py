"""What a partitioned step of monitoring is given.

Lives here: one value. Add here: what every such step needs. Not here: the steps (`*_step.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from lifecycle_assets.spec_file import Agent
from resources.worker import Progress


@dataclass(frozen=True)
class DayStep:
    """One step for one agent and one UTC day: the records it builds on as JSON, the gateways it asks, its progress."""

    agent: Agent
    day: date
    inputs: Mapping[str, Any]
    gateways: Mapping[str, Any]
    progress: Progress
