"""Evaluation datasets and evaluations."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle_assets.gate import Evidence
from lifecycle_assets.records import DatasetRecord
from lifecycle_assets.spec_file import Agent
from resources.worker import Progress


@dataclass(frozen=True)
class Evaluated:
    """An evaluation run. `reused` when a finished run of the same model, dataset digest and scorers was found.

    `agent_errors` counts rows on which the agent itself failed.
    """

    run_id: str
    evidence: Evidence
    agent_errors: int
    reused: bool
    url: str = ""


class Evaluator(ABC):
    """Keeps the evaluation dataset and evaluates logged models on it."""

    @abstractmethod
    def ensure_dataset(self, agent: Agent) -> DatasetRecord:
        """Bring the MLflow dataset up to the declared file (records of reviewers stay) and describe it."""

    @abstractmethod
    def merge_labels(self, agent: Agent, records: Sequence[Mapping[str, Any]]) -> DatasetRecord:
        """Merge records `{inputs, expectations, source}` of reviewed traces; repeating changes nothing."""

    @abstractmethod
    def evaluate(
        self, agent: Agent, model_id: str, dataset: DatasetRecord, *, progress: Progress
    ) -> Evaluated:
        """Evaluate the logged model on exactly this dataset digest with the agent's active scorers."""

    @abstractmethod
    def attach_verdict(self, run_id: str, verdict: Mapping[str, str]) -> None:
        """Write the verdict on the evaluation run as tags; repeating changes nothing."""
