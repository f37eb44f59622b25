"""The partitioned steps of monitoring by the name of their asset.

Lives here: the list, so that the same code runs in this process and in a job on Databricks.
Add here: a step whose asset has daily partitions. Not here: the steps (`*_step.py`), where a step runs.
"""

from collections.abc import Callable

from lifecycle_assets.monitoring.archive_step import archived_traces
from lifecycle_assets.monitoring.day_step import DayStep
from lifecycle_assets.monitoring.quality_step import quality_metrics
from lifecycle_assets.monitoring.scores_step import trace_scores
from lifecycle_assets.outcome import Outcome

STEPS: dict[str, Callable[[DayStep], Outcome]] = {
    "trace_scores": trace_scores,
    "archived_traces": archived_traces,
    "quality_metrics": quality_metrics,
}
"""Asset name to its step."""

GATEWAYS_OF = {
    "trace_scores": ("scoring",),
    "archived_traces": ("archive", "sql"),
    "quality_metrics": ("archive", "sql", "registry"),
}
"""Asset name to the gateways its step asks, by resource key."""
