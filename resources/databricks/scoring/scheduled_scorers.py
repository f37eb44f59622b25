"""The list of scheduled scorers of an experiment, as the workspace keeps it.

Lives here: reading the list without rebuilding any scorer, telling which of them cannot be rebuilt, putting back what
another writer's list left out.
Add here: a field of a scheduled scorer.
Not here: registering and starting (`scorer_steps.py`).

MLflow's and databricks-agents' own readers rebuild every scorer and fail for all when one cannot be; so the list is
read by the SDK's client, with its sign-in, bounds and retries.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from resources.databricks.workspace import open_workspace
from resources.platform import Platform

MAX_PAGES = 100

DEFINITIONS = (
    "builtin_scorer_class",
    "call_source",
    "instructions_judge_pydantic_data",
    "memory_augmented_judge_data",
    "third_party_scorer_data",
    "ensemble_scorer_data",
)
"""Fields of MLflow's `SerializedScorer` (3.17), one of which says what the scorer does."""


@dataclass(frozen=True)
class Scheduled:
    """A scheduled scorer. `version` is None where the workspace numbers no definitions; `raw` is the whole entry."""

    name: str
    sample_rate: float
    filter: str
    version: int | None
    serialized: str
    raw: Mapping[str, Any]


def scheduled_scorers(platform: Platform, experiment: str) -> dict[str, Scheduled]:
    """Every scheduled scorer of the experiment (its id), by name; empty before the first was registered."""
    found: dict[str, Scheduled] = {}
    query: dict[str, str] = {}
    for _ in range(MAX_PAGES):
        answer: Any = open_workspace(platform).api_client.do("GET", _path(experiment), query=query)
        entries = (answer.get("scheduled_scorers") or {}).get("scorers") or []
        found.update((entry["name"], _scheduled(entry)) for entry in entries)
        token = answer.get("next_page_token")
        if not token:
            break
        query = {"page_token": token}
    return found


def put_back(platform: Platform, experiment: str, there: Iterable[Scheduled], lost: Iterable[Scheduled]) -> None:
    """Write the list that is there with the lost entries as they were."""
    body = {
        "scheduled_scorers": {"scorers": [dict(one.raw) for one in (*there, *lost)]},
        "update_mask": "scheduled_scorers.scorers",
    }
    open_workspace(platform).api_client.do("PATCH", _path(experiment), body=body)


def rebuilt(scorer: Scheduled) -> Any:
    """The MLflow scorer of an entry. Runs the stored definition in this process, so only in a worker.

    Raises whatever MLflow or the definition raises when it cannot be rebuilt.
    """
    from mlflow.genai.scorers import Scorer

    return Scorer.model_validate_json(scorer.serialized)


def unfit(serialized: str) -> str:
    """Why a stored definition surely cannot be rebuilt, seen without running it; empty when nothing is seen.

    A definition is an object with a name and one of `DEFINITIONS`, as MLflow's `SerializedScorer` wants it.
    """
    try:
        stored = json.loads(serialized)
    except ValueError:
        return "it is not JSON"
    if not isinstance(stored, dict) or not stored.get("name"):
        return "it is no object with a name"
    return "" if any(stored.get(field) for field in DEFINITIONS) else f"it holds none of {', '.join(DEFINITIONS)}"


def broken(scorers: Iterable[Scheduled]) -> dict[str, str]:
    """Scorers that cannot be rebuilt, name to reason. Only in a worker, see `rebuilt`."""
    found = {}
    for scorer in scorers:
        try:
            rebuilt(scorer)
        except Exception as error:  # noqa: BLE001 - a stored definition is foreign code: its fault is a result
            found[scorer.name] = " ".join(str(error).split())[:200]
    return found


def broken_sentence(name: str, reason: str, experiment: str) -> str:
    """What to do about a scorer that cannot be rebuilt."""
    return (
        f"scorer {name[:100]!r} of experiment {experiment} cannot be rebuilt ({reason}); the others are not stopped by "
        f"it. Remove it: mlflow.genai.scorers.delete_scorer(name={name[:100]!r}, experiment_id={experiment!r})."
    )


def _path(experiment: str) -> str:
    return f"/api/2.0/managed-evals/scheduled-scorers/{quote(experiment, safe='')}"


def _scheduled(entry: Mapping[str, Any]) -> Scheduled:
    version = entry.get("scorer_version")
    return Scheduled(
        name=entry["name"],
        sample_rate=float(entry.get("sample_rate") or 0.0),
        filter=entry.get("filter_string") or "",
        version=int(str(version)) if str(version).isdecimal() else None,
        serialized=entry.get("serialized_scorer") or json.dumps({}),
        raw=entry,
    )
