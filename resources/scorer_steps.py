"""Trying scorers in a process of their own.

Lives here: `try_scorers`, which the worker runs, and the synthetic trace it scores when there is no real one.
Add here: a fault of a registered copy that can be seen before it is registered.
Not here: the static look at the source (`scorer_source.py`), registering (`scorer_registry.py`).
"""

import base64
import json
import os
from collections.abc import Mapping
from typing import Any

from lifecycle_assets.gate import Outcome
from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import Builtin, Judge
from lifecycle_assets.spec_file import Agent
from resources.mlflow_store import open_mlflow
from resources.model_steps import rebuild_agent
from resources.platform import Platform
from resources.scorer_outcome import arguments, outcome_of
from resources.scorer_source import DeclaredScorer, declared_scorers, load_declared

LEVELS = {
    "trace": "looks at sessions (parameter 'session'): declare level: session, or take a trace, inputs or outputs",
    "session": "is declared with level: session, but takes no parameter 'session': declare level: trace",
}
"""Declared level to what is wrong with a scorer of the other one."""


def try_scorers(request: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild each scorer from what MLflow would store of it, and run the copy once beside the original.

    `request`: `spec` and `folder` of the agent, `scorers` (declared names), `trace_id` (empty: a synthetic trace).
    Answer: `faults`, name to a sentence, for copies that cannot work; `notes`, name to a sentence, for what may be
    the trace's doing. A copy is at fault when it lacks a name or a module, or fails or says nothing where the
    original answers. Built-in scorers and judges are rebuilt but not run: a call may cost money.
    """
    agent = rebuild_agent(request)
    platform = Platform.from_env()
    mlflow = open_mlflow(platform)
    trace = mlflow.get_trace(request["trace_id"]) if request["trace_id"] else None
    kind = "the sample trace" if trace else "a synthetic trace"
    trace = trace or synthetic_trace(agent)
    faults, notes = {}, {}
    for declared in declared_scorers(agent, platform.environment):
        if declared.name not in request["scorers"]:
            continue
        print(f"progress: trying scorer {declared.name} alone on {kind}", flush=True)
        try:
            fault, note = _try_one(agent, declared, trace, kind)
        except Refused as refusal:
            fault, note = str(refusal), ""
        faults.update({declared.name: fault} if fault else {})
        notes.update({declared.name: note} if note else {})
    return {"faults": faults, "notes": notes}


def _try_one(agent: Agent, declared: DeclaredScorer, trace: Any, kind: str) -> tuple[str, str]:
    """Fault and note of one scorer, empty when there is none."""
    from mlflow.genai.scorers import Scorer

    original = load_declared(agent, declared)
    if original.is_session_level_scorer != (declared.spec.level == "session"):
        return f"{declared.name} {LEVELS[declared.spec.level]}.", ""
    try:
        copy = Scorer.model_validate(json.loads(json.dumps(original.model_dump())))
    except Exception as error:  # noqa: BLE001 - rebuilding runs the scorer's source
        fault = f"{declared.name} cannot be rebuilt from what MLflow stores of it ({error!s:.300}); "
        return fault + "keep parameter defaults to plain numbers and strings.", ""
    return fault_of_copy(declared, original, copy, trace, kind)


def fault_of_copy(declared: DeclaredScorer, original: Any, copy: Any, trace: Any, kind: str) -> tuple[str, str]:
    """Fault and note of a rebuilt copy, called once beside the original on `trace`, which `kind` names.

    Both are empty when there is nothing to say, as for built-in scorers and judges: a call may cost money.
    """
    source = declared.spec.source
    if isinstance(source, Builtin | Judge):
        return "", ""
    expected, _ = _attempt(original, trace)
    found, error = _attempt(copy, trace)
    if isinstance(error, NameError):
        return (
            f"{declared.name} needs the name '{error.name}' of its module; define or import it inside the function.",
            "",
        )
    if isinstance(error, ImportError):
        return f"{declared.name} cannot import {error.name or 'a module'} ({error}); install it, or do without.", ""
    if not expected.error and found.error:
        return f"{declared.name} works in {source}, but its registered copy fails on {kind}: {found.error}", ""
    if expected.value is not None and found.value is None:
        return f"{declared.name} answers in {source}, but its registered copy answers nothing on {kind}.", ""
    return "", f"{declared.name} fails on {kind}: {found.error}" if found.error else ""


def _attempt(scorer: Any, trace: Any) -> tuple[Outcome, Exception | None]:
    try:
        given = {"session": [trace]} if scorer.is_session_level_scorer else {"trace": trace, **arguments(trace)}
        return outcome_of(scorer.run(**given)), None
    except Exception as error:  # noqa: BLE001 - the scorer is the user's code: its fault is a result
        return Outcome(error=f"{type(error).__name__}: {error!s:.300}"), error


def synthetic_trace(agent: Agent) -> Any:
    """A finished trace of one root span, made in memory: the declared input example, answered with one sentence."""
    from mlflow.entities import Trace

    trace_id, started = os.urandom(16), 1_700_000_000_000_000_000
    answer = {
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]}]
    }
    span = {
        "trace_id": base64.b64encode(trace_id).decode(),
        "span_id": base64.b64encode(os.urandom(8)).decode(),
        "parent_span_id": None,
        "name": "predict",
        "start_time_unix_nano": started,
        "end_time_unix_nano": started + 10_000_000,
        "events": [],
        "links": [],
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": {
            "mlflow.traceRequestId": json.dumps(f"tr-{trace_id.hex()}"),
            "mlflow.spanType": json.dumps("AGENT"),
            "mlflow.spanInputs": json.dumps({"request": agent.spec.agent.input_example}),
            "mlflow.spanOutputs": json.dumps(answer),
        },
    }
    info = {
        "trace_id": f"tr-{trace_id.hex()}",
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}},
        "request_time": "2023-11-14T22:13:20Z",
        "execution_duration_ms": 10,
        "state": "OK",
        "trace_metadata": {"mlflow.trace_schema.version": "3"},
        "tags": {},
        "request_preview": json.dumps(agent.spec.agent.input_example)[:1000],
        "response_preview": "Yes.",
    }
    return Trace.from_dict({"info": info, "data": {"spans": [span]}})
