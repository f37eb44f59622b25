"""Counting what is in MLflow: how much there is of an agent, and on which days.

Lives here: counts and the days of traces, read whole.
Add here: a kind of thing somebody wants counted.
Not here: anything a sensor does at every tick: these reads grow with what is stored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources import run_marks as marks
from resources.explain import explained
from resources.mlflow_store import experiment_id, open_client
from resources.platform import Platform

PAGE = 500
MOST = 100_000
"""Traces that are counted: what an experiment holds at most on Databricks."""


@dataclass(frozen=True)
class Census:
    """What MLflow holds of one agent; traces include those of evaluations, `by_model` only users' ones."""

    logged_models: int
    traces: int
    assessments: int
    production_by_model: dict[str, int]
    days: tuple[date, ...]


def count(platform: Platform, agent: Agent) -> Census:
    """Count the agent's logged models and traces; `days` are the UTC days with production traces, oldest first.

    Raises `Refused` beyond 100,000 traces: the tables count them faster.
    """
    with explained(platform.tracking_uri):
        client, experiment = open_client(platform), experiment_id(platform, agent.spec.experiment)
        mine = marks.where_filter({marks.AGENT: agent.name, marks.COMPLETE: "true"})
        models = client.search_logged_models([experiment], filter_string=mine)
        everything = list(_infos(client, _location(platform, agent, experiment)))
    production = [info for info in everything if "mlflow.sourceRun" not in info.trace_metadata]
    by_model: dict[str, int] = {}
    for info in production:
        model = info.trace_metadata.get("mlflow.modelId", "")
        by_model[model] = by_model.get(model, 0) + 1
    return Census(
        logged_models=len(models),
        traces=len(everything),
        assessments=sum(len(info.assessments) for info in everything),
        production_by_model=by_model,
        days=tuple(sorted({datetime.fromtimestamp(info.request_time / 1000, UTC).date() for info in production})),
    )


def _location(platform: Platform, agent: Agent, experiment: str) -> str:
    if not platform.is_databricks:
        return experiment
    from resources.databricks.tracing.trace_place import place_of

    return place_of(platform, agent.spec.experiment).location


def _infos(client: Any, location: str) -> Iterator[Any]:
    token, seen = None, 0
    while True:
        page = client.search_traces(locations=[location], max_results=PAGE, page_token=token, include_spans=False)
        yield from (trace.info for trace in page)
        token, seen = page.token, seen + len(page)
        if not token:
            return
        if seen >= MOST:
            raise Refused(f"{location} holds more than {MOST} traces; count them in the tables: lifecycle query.")
