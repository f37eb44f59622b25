"""Answers of people: what a question allows, and how an answer is an assessment.

Lives here: checking an answer, finding the answers among a trace's assessments, writing one.
Add here: a way to ask. Not here: sessions and items (`labeling_desk.py`), what answers are used for (`labels.py`).
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import LabelSchema
from lifecycle_assets.spec_file import Agent


def pass_fail_options(schema: LabelSchema) -> tuple[str, str]:
    """The words for True and False of a pass-or-fail question."""
    return (schema.options[0], schema.options[1]) if len(schema.options) == 2 else ("Yes", "No")


def fits(schema: LabelSchema, value: Any) -> bool:
    """Whether a value answers the question; MLflow itself takes anything."""
    if schema.input == "pass_fail":
        return isinstance(value, bool)
    if schema.input == "numeric":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, str) and (schema.input == "text" or value in schema.options)


def refuse_unfit(agent: Agent, answers: Mapping[str, Any]) -> None:
    """Raise `Refused` for an undeclared question and for an answer the question does not allow."""
    schemas = {schema.name: schema for schema in agent.spec.labeling.schemas}
    for name, value in answers.items():
        if name not in schemas:
            raise Refused(f"{agent.name}: no label schema '{name}' is declared; declared are {', '.join(schemas)}.")
        if not fits(schemas[name], value):
            raise Refused(f"{agent.name}: {value!r:.60} is no answer to '{name}'; {_allowed(schemas[name])}.")


def answers_of(agent: Agent, info: Any) -> Iterator[tuple[LabelSchema, Any]]:
    """Valid assessments of people on a trace, each with the declared question it answers."""
    schemas = {schema.name: schema for schema in agent.spec.labeling.schemas}
    for assessment in info.assessments:
        schema = schemas.get(assessment.name)
        if schema is None or assessment.valid is False or assessment.source.source_type != "HUMAN":
            continue
        if (schema.type == "feedback") == (assessment.feedback is not None):
            yield schema, assessment


def reviewer_of(assessment: Any) -> str:
    """Who said it, in lower case, as MLflow compares them."""
    return (assessment.source.source_id or "").strip().lower()


def write_answer(mlflow: Any, agent: Agent, info: Any, schema: LabelSchema, value: Any, reviewer: str) -> bool:
    """Write one answer under an id of (trace, question, reviewer), or replace the reviewer's former one.

    False when the reviewer said so before.
    """
    from mlflow.entities import AssessmentSource, Expectation, Feedback

    kind = Feedback if schema.type == "feedback" else Expectation
    assessment = kind(name=schema.name, value=value, source=AssessmentSource("HUMAN", reviewer))
    own = [a for asked, a in answers_of(agent, info) if asked == schema and reviewer_of(a) == reviewer]
    if not own:
        named = f"{info.trace_id}|{schema.name}|{reviewer}"
        assessment.assessment_id = "a-" + hashlib.sha256(named.encode()).hexdigest()[:32]
        _log(mlflow, info.trace_id, assessment)
        return True
    newest = max(own, key=lambda a: a.last_update_time_ms or 0)
    if newest.value == value:
        return False
    mlflow.update_assessment(info.trace_id, newest.assessment_id, assessment)
    return True


def _log(mlflow: Any, trace_id: str, assessment: Any) -> None:
    """Log it; when its answer got lost, the client asks again and is told that it is there already."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracing.client import TracingClient

    try:
        mlflow.log_assessment(trace_id, assessment)
    except MlflowException:
        there = TracingClient(mlflow.get_tracking_uri()).get_trace_info(trace_id).assessments
        if assessment.assessment_id not in {one.assessment_id for one in there}:
            raise


def _allowed(schema: LabelSchema) -> str:
    """What may be answered, in words."""
    options = f"one of {', '.join(schema.options)}"
    kinds = {"pass_fail": "True or False", "numeric": "a number", "text": "a text", "categorical": options}
    return f"answer with {kinds[schema.input]}"
