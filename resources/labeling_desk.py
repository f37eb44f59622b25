"""Labeling sessions for people."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle_assets.spec_file import Agent

QUEUED_TAG = "lifecycle.labeling_session"
"""Trace tag with the session a trace was put into; it stays when the reviewer removes the item."""


@dataclass(frozen=True)
class Session:
    """A labeling session: MLflow review queue locally."""

    session_id: str
    name: str
    created: bool
    url: str = ""


@dataclass(frozen=True)
class Item:
    """One trace of a session: `pending`, `complete` or `declined` (as MLflow names it), and who completed it."""

    trace_id: str
    status: str
    completed_by: str
    updated_ms: int


@dataclass(frozen=True)
class Label:
    """One answer of one reviewer."""

    trace_id: str
    schema: str
    value: Any
    reviewer: str
    at_ms: int


class LabelingDesk(ABC):
    """Opens labeling sessions and reads what people said."""

    @abstractmethod
    def open(self, agent: Agent, name: str, trace_ids: Sequence[str]) -> Session:
        """The session of that name with these traces: made when absent, completed when a former run died."""

    @abstractmethod
    def items(self, session_id: str) -> list[Item]:
        """The session's items."""

    @abstractmethod
    def labels(self, agent: Agent, trace_ids: Sequence[str]) -> list[Label]:
        """Valid answers of people on these traces, for the declared label schemas."""

    @abstractmethod
    def review(self, agent: Agent, session_id: str, trace_id: str, answers: Mapping[str, Any], *, reviewer: str) -> None:
        """Answer and complete an item as a reviewer's client does."""
