"""Between MLflow's scorers and the gate: what a scorer is given of a trace, and what its answer means.

Lives here: the arguments of a scorer, and the one conversion of its answer into an `Outcome`.
Add here: a further kind of answer MLflow lets scorers return.
Not here: loading scorers (`scorer_registry.py`, `scorer_source.py`), writing assessments (`trace_store.py`).
"""

import math
from typing import Any

from lifecycle_assets.gate import Outcome

MAX_ERROR_CHARS = 500


def score(scorer: Any, trace: Any, *, with_expectations: bool = True) -> Outcome:
    """Run an MLflow scorer on one trace as `mlflow.genai.evaluate` does on a trace.

    Without expectations it is run as if nobody had said what was expected. What the scorer raises becomes
    `Outcome(error=...)`; a stop of the process (`SystemExit`, Ctrl-C) passes through.
    """
    try:
        given = arguments(trace)
        return outcome_of(scorer.run(trace=trace, **(given if with_expectations else {**given, "expectations": None})))
    except Exception as error:  # noqa: BLE001 - the scorer is the user's code: its fault is a result
        return _failed(f"{type(error).__name__}: {error}")


def arguments(trace: Any) -> dict[str, Any]:
    """Inputs and outputs of the root span, and the valid expectations by name (None when there are none)."""
    root = next((span for span in trace.data.spans if span.parent_id is None), None)
    expectations = sorted(trace.search_assessments(type="expectation"), key=lambda a: a.last_update_time_ms or 0)
    return {
        "inputs": root.inputs if root else None,
        "outputs": root.outputs if root else None,
        "expectations": {assessment.name: assessment.value for assessment in expectations} or None,
    }


def outcome_of(answer: Any) -> Outcome:
    """What an answer of a scorer means: yes is 1.0, no is 0.0, None is 'not applicable', a list is its mean.

    A `Feedback` counts by its value, or as failed by its error; a list fails when one of its members does. Anything
    that is no number, such as another word or NaN, is an error: it could not be aggregated.
    """
    from mlflow.entities import Assessment

    if isinstance(answer, list):
        outcomes = [outcome_of(member) for member in answer]
        failed = next((outcome for outcome in outcomes if outcome.error), None)
        values = [outcome.value for outcome in outcomes if outcome.value is not None]
        return failed or Outcome(math.fsum(values) / len(values) if values else None)
    if isinstance(answer, Assessment):
        error = getattr(answer, "error", None)
        if error is not None:
            return _failed(f"{error.error_code}: {error.error_message or ''}")
        return outcome_of(answer.value)
    if answer is None:
        return Outcome()
    if isinstance(answer, str):
        word = getattr(answer, "value", answer).strip().lower()
        if word in ("yes", "no"):
            return Outcome(float(word == "yes"))
    elif isinstance(answer, int | float) and math.isfinite(answer):
        return Outcome(float(answer))
    return _failed(f"ValueError: the scorer answered {answer!r:.80}; return a number, True, False, yes, no or None")


def _failed(text: str) -> Outcome:
    return Outcome(error=text[:MAX_ERROR_CHARS])
