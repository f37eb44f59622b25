"""Asking for a backfill of scorers, in a process of its own.

Lives here: `ask_backfill`, which the worker runs: databricks-agents has no time limit and changes global state.
Not here: finding and following the job (`backfill.py`), deciding what is owed (`scoring.py`).
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from lifecycle_assets.refused import Refused
from resources.databricks.busy import status_of, when_free
from resources.databricks.faults import message
from resources.databricks.scoring.scheduled_scorers import broken_sentence, rebuilt, scheduled_scorers
from resources.explain import explain
from resources.mlflow_store import open_client, open_mlflow
from resources.platform import Platform


def ask_backfill(request: Mapping[str, Any]) -> dict[str, Any]:
    """Ask once for one window and some scorers.

    `request`: `experiment_id`, `rates` (registered name to rate), `start_ms` and `end_ms` (epoch milliseconds), and
    optionally `note`, name and value of the experiment's tag that is set first.
    Answer: `job_id`; or `running`, true when another backfill was there first; or `lost`, true when the connection
    broke, so that nobody knows whether it was accepted; or `impossible`, a sentence. `sending` is said before the
    client is called: what fails later may have been accepted. The client verifies neither names,
    nor rates, nor the window: that is done here.
    """
    platform, experiment = Platform.from_env(), request["experiment_id"]
    open_mlflow(platform)
    there = scheduled_scorers(platform, experiment)
    scorers = {}
    for name, rate in request["rates"].items():
        if name not in there or there[name].sample_rate == 0 or not 0 < rate <= 1:
            raise Refused(f"{name} does not run in the workspace; materialize registered_scorers, then run this again.")
        scorers[name] = rebuilt(there[name])
        if scorers[name].name != name:
            raise Refused(f"{name} is stored under another name; materialize registered_scorers to register it again.")
    start, end = (datetime.fromtimestamp(request[key] / 1000, UTC) for key in ("start_ms", "end_ms"))
    if not start < end or not scorers:
        raise Refused(f"There is nothing to backfill from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC.")
    import requests
    from databricks.agents.scorers import BackfillScorerConfig, backfill_scorers

    configs = [BackfillScorerConfig(scorer=scorers[name], sample_rate=rate) for name, rate in request["rates"].items()]
    if note := request.get("note"):
        open_client(platform).set_experiment_tag(experiment, *note)
    print("progress: sending", flush=True)
    try:
        # Only what was refused for sure is asked again: two backfills would cost twice.
        job_id = when_free(
            lambda: _job_of(
                experiment,
                request,
                lambda: backfill_scorers(experiment_id=experiment, scorers=configs, start_time=start, end_time=end),
            ),
            busy=(429,),
        )
    except requests.HTTPError as error:
        if getattr(error.response, "status_code", 0) == 409 or "already" in message(error).lower():
            return {"running": True}
        if status_of(error) in (502, 503, 504):
            return {"lost": True}
        known = explain(error, platform.tracking_uri)
        return {"impossible": known or f"The workspace refuses the backfill ({message(error)[:300]})."}
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, ValueError) as error:
        if "No monitors found" in str(error):
            told = "has no monitor yet, so there is no backfill; materialize registered_scorers, then run this again."
            return {"impossible": f"experiment {experiment} {told}"}
        return {"lost": True}
    return {"job_id": str(job_id)} if job_id else {"lost": True}


def _job_of(experiment: str, request: Mapping[str, Any], ask: Callable[[], Any]) -> Any:
    """The job's id. `backfill_scorers` rebuilds every scorer of the experiment, also those it is not asked for.

    When one of others cannot be rebuilt, it is named, and the request is made by the client that function stands on.
    """
    from databricks.rag_eval.clients.managedevals.managed_evals_client import ManagedEvalsClient
    from databricks.rag_eval.utils.scheduled_scorer_errors import AtLeastOneUndeserializableScorerError

    try:
        return ask()
    except AtLeastOneUndeserializableScorerError as error:
        for one in error.errors:
            reason = " ".join(str(one.error).split())[:200]
            print(f"progress: note: {broken_sentence(one.scorer_name, reason, experiment)}", flush=True)
    return (
        ManagedEvalsClient()
        .run_metric_backfill(
            experiment_id=experiment,
            scorer_sample_rates=dict(request["rates"]),
            start_timestamp_ms=request["start_ms"],
            end_timestamp_ms=request["end_ms"],
        )
        .get("job_id")
    )
