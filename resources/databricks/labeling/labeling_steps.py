"""The worker's side of the labeling desk: making the questions and the session, adding traces.

Lives here: what needs databricks-agents, which sets global state and has no time limit: in a process that is killed.
Add here: a write to the review app. Not here: reading it (`labeling_items.py`), choosing traces.

Everything may be killed and repeated. Questions are compared before they are written, a session is found by its name, a
trace is claimed by its tag before it is added. A write whose answer was lost is looked for before it is made again.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import LabelSchema
from resources.databricks.busy import pause_of
from resources.databricks.faults import message
from resources.databricks.labeling.labeling_items import SOURCE_TAG, LabelingItems
from resources.databricks.tracing.trace_store import SOURCE_RUN, DatabricksTraceStore
from resources.label_answers import pass_fail_options
from resources.labeling_desk import ADDING, QUEUED_TAG
from resources.mlflow_store import open_client, open_mlflow
from resources.platform import Platform

_TRIES = 5
_CHUNK = 50  # Traces with their spans in memory, and items of one request.
_AGAIN = (409, 429, 500, 502, 503, 504)
_SETTINGS = {
    "MLFLOW_TRACE_SAMPLING_RATIO": "1",  # A copy that is sampled away would be an item without a trace.
}


def open_labeling(request: Mapping[str, Any]) -> dict[str, Any]:
    """The session `{session_id, name, created, url}` of that name, with the traces that may be added to it."""
    os.environ.update(_SETTINGS)
    os.environ.pop("MLFLOW_TRACING_DESTINATION", None)
    platform = Platform.from_env()
    profile = platform.tracking_uri.partition("://")[2]
    if profile:
        os.environ["DATABRICKS_CONFIG_PROFILE"] = profile  # databricks-agents opens clients without naming one.
    mlflow = open_mlflow(platform)
    # The functions of labeling know only the active experiment.
    mlflow.set_experiment(experiment_id=request["experiment_id"])
    _ensure_schemas(request)
    session, created = _session(request)
    # A copy must not go where production traces go, or it would be one. The functions above choose that place anew.
    from mlflow.entities.trace_location import MlflowExperimentLocation

    mlflow.tracing.set_destination(MlflowExperimentLocation(experiment_id=request["experiment_id"]))
    session_id = f"{session.review_app_id}/{session.labeling_session_id}"
    _fill(platform, session, session_id, request["trace_ids"])
    return {"session_id": session_id, "name": session.name, "created": created, "url": session.url or ""}


def _ensure_schemas(request: Mapping[str, Any]) -> None:
    """Make or correct the declared questions of the experiment's review app; others stay."""
    from mlflow.genai import label_schemas, labeling

    wanted = [LabelSchema(**schema) for schema in request["schemas"]]
    for last in _tries():
        where = f"{request['file']}: attributes.labeling.schemas"
        try:
            held = {one.name: one for one in labeling.get_review_app(request["experiment_id"]).label_schemas}
            for schema in wanted:
                there, where = held.get(schema.name), f"{request['file']}: attributes.labeling.schemas '{schema.name}'"
                if there is not None and str(there.type) != schema.type:
                    raise Refused(
                        f"{where}: the experiment has it as {there.type}; give the {schema.type} another name."
                    )
                if there is None or _form(there) != _form_of(schema):
                    label_schemas.create_label_schema(
                        schema.name,
                        type=schema.type,
                        title=_title(schema),
                        input=_input(label_schemas, schema),
                        instruction=schema.instruction,
                        enable_comment=True,
                        overwrite=there is not None,
                    )
            return
        except Exception as error:
            if last or not _lost(error):
                raise _refused(where, error) from error


def _session(request: Mapping[str, Any]) -> tuple[Any, bool]:
    """The session of that name and whether it was made now; of several with the name, always the same one."""
    from mlflow.genai import labeling

    where, made = f"{request['agent']}: labeling session '{request['name']}'", False
    for last in _tries():
        try:
            found = [one for one in labeling.get_labeling_sessions() if one.name == request["name"]]
            if found:
                return min(found, key=lambda one: one.labeling_session_id), made
            made = True
            session = labeling.create_labeling_session(
                request["name"],
                assigned_users=list(request["reviewers"]),
                label_schemas=[schema["name"] for schema in request["schemas"]],
            )
            return session, True
        except Exception as error:
            if last or not _lost(error):
                raise _refused(where, error) from error
    raise AssertionError  # The last try returned or raised.


def _fill(platform: Platform, session: Any, session_id: str, trace_ids: Sequence[str]) -> None:
    """Claim each trace by its tag, add the claimed ones, then settle the tags; see `resources/labeling_desk.py`."""
    items, client, claim = LabelingItems(platform), open_client(platform), ADDING + session_id
    for start in range(0, len(trace_ids), _CHUNK):
        infos = items.infos(trace_ids[start : start + _CHUNK])
        tags = {trace_id: info.tags.get(QUEUED_TAG, "") for trace_id, info in infos.items()}
        adding = [trace_id for trace_id, tag in tags.items() if tag in ("", claim)]
        for trace_id in adding:
            if not tags[trace_id]:
                client.set_trace_tag(trace_id, QUEUED_TAG, claim)
        if adding:
            _add(platform, items, session, session_id, {trace_id: infos[trace_id] for trace_id in adding})
        for trace_id in adding:
            client.set_trace_tag(trace_id, QUEUED_TAG, session_id)
        print(f"progress: {min(start + _CHUNK, len(trace_ids))} of {len(trace_ids)} traces", flush=True)


def _add(platform: Platform, items: LabelingItems, session: Any, session_id: str, adding: Mapping[str, Any]) -> None:
    """Make the traces (id to trace info) items of the session; those that are stay as they are."""
    from mlflow.entities import Trace, TraceData

    store = DatabricksTraceStore(platform)
    for last in _tries():
        present = {entry.original for entry in items.entries(session_id)}
        left = {trace_id: info for trace_id, info in adding.items() if trace_id not in present}
        here = [Trace(info, TraceData(spans=[])) for info in left.values() if not _away(info, session)]
        away = [trace_id for trace_id, info in left.items() if _away(info, session)]
        # Of a trace without spans no copy can be made: a process died while it was written.
        traces = [*here, *(_to_copy(trace, session) for trace in store.read(away) if trace.data.spans)]
        if not traces:
            return
        try:
            session.add_traces(traces)
            break
        except Exception as error:
            if last or not _lost(error):
                raise _refused(f"labeling session '{session.name}'", error) from error
    there = {entry.original for entry in items.entries(session_id)}
    missing = [trace.info.trace_id for trace in traces if trace.info.trace_id not in there]
    if missing:
        raise Refused(
            f"Databricks did not keep {len(missing)} of {len(traces)} traces as items of labeling session "
            f"'{session.name}', the first is {missing[0]}: run the step again."
        )


def _away(info: Any, session: Any) -> bool:
    """Whether a trace lives outside of the session's experiment, so that the session takes a copy."""
    place = info.trace_location.mlflow_experiment if info.trace_location else None
    return place is None or place.experiment_id != session.experiment_id


def _to_copy(trace: Any, session: Any) -> Any:
    """The trace as it is handed over, so that its copy names its source and counts as the session's run's."""
    copy = trace.from_dict(trace.to_dict())
    kept = {key: value for key, value in copy.info.tags.items() if key != QUEUED_TAG}
    copy.info.tags = {**kept, SOURCE_TAG: trace.info.trace_id}
    copy.info.trace_metadata = {**copy.info.trace_metadata, SOURCE_RUN: session.mlflow_run_id}
    return copy


def _input(label_schemas: Any, schema: LabelSchema) -> Any:
    """How the review app asks the question; it has no pass-or-fail, so that is a choice of its two words."""
    if schema.input in ("pass_fail", "categorical"):
        return label_schemas.InputCategorical(options=list(_options(schema)))
    return label_schemas.InputNumeric() if schema.input == "numeric" else label_schemas.InputText()


def _options(schema: LabelSchema) -> Sequence[str]:
    return pass_fail_options(schema) if schema.input == "pass_fail" else schema.options


def _title(schema: LabelSchema) -> str:
    return schema.name.replace("_", " ").capitalize()


def _form_of(schema: LabelSchema) -> tuple[Any, ...]:
    """A declared question as `_form` gives one that is there."""
    kind = {"numeric": "InputNumeric", "text": "InputText"}.get(schema.input, "InputCategorical")
    options = list(_options(schema)) if kind == "InputCategorical" else []
    return (_title(schema), schema.instruction, True, kind, options)


def _form(held: Any) -> tuple[Any, ...]:
    asked = held.input
    kind = type(asked).__name__
    return (held.title, held.instruction, bool(held.enable_comment), kind, list(getattr(asked, "options", None) or []))


def _tries() -> list[bool]:
    """One entry a try, saying whether it is the last."""
    return [number == _TRIES - 1 for number in range(_TRIES)]


def _lost(error: Exception) -> bool:
    """Whether to look again: the request may have been done although no answer came, or another was faster.

    A workspace that is busy is waited for.
    """
    import requests

    if isinstance(error, requests.HTTPError):
        again = error.response is not None and error.response.status_code in _AGAIN
        if again and error.response.status_code != 409:
            time.sleep(pause_of(error))
        return again
    return isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError | requests.Timeout)


def _refused(where: str, error: Exception) -> Exception:
    """A refusal for what the declaration can mend, else the error itself."""
    response = getattr(error, "response", None)
    refused = getattr(response, "status_code", 0) in (400, 409, 422) or type(error) is ValueError
    codes = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
    if not isinstance(error, Refused) and (refused or getattr(error, "error_code", "") in codes):
        return Refused(f"{where}: Databricks refuses it ({message(error)[:300]}); correct it, then run again.")
    return error
