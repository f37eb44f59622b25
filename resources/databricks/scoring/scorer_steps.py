"""Registering scorers in a workspace, in a process of its own.

Lives here: `register_scorers`, which the worker runs: rebuilding runs stored code, and the client keeps global state.
Add here: a setting of production monitoring that is written with the scorers.
Not here: what is noted of a registered scorer (`scorer_registry.py`), backfills (`backfill_steps.py`).

Every write of the workspace's API replaces the whole list, so of two writers at once one loses. A Dagster pool keeps
ours apart. For others the list is read back after the writes: what was there and is not is put back, what is not as
declared is written again, a bounded number of times. Only an entry written between the reading and the writing of one
of the client's own requests, and never seen by us, cannot be missed. Everything compares before it writes, so a step
that was killed and runs again writes what is missing.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec import MAX_SCORERS
from lifecycle_assets.spec_file import Agent
from resources.databricks.busy import when_free
from resources.databricks.faults import message
from resources.databricks.scoring.scheduled_scorers import (
    Scheduled,
    broken,
    broken_sentence,
    put_back,
    rebuilt,
    scheduled_scorers,
)
from resources.mlflow_store import open_mlflow
from resources.model_steps import rebuild_agent
from resources.platform import Platform
from resources.scorer_registry import stored_form
from resources.scorer_source import DeclaredScorer, declared_scorers, load_declared
from resources.scorer_steps import fault_of_copy, synthetic_trace

ATTEMPTS = 4
"""How often the list is brought up to the declaration before other writers are said to win."""

SETTLE_SECONDS = 1.0
"""Before the list is read back: another writer who has read it before us has written it by then."""

_AGAIN = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "ALREADY_EXISTS", "RESOURCE_ALREADY_EXISTS", "RESOURCE_CONFLICT"}
_REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_EXHAUSTED", "RESOURCE_LIMIT_EXCEEDED"}


class _Overwritten(Exception):  # noqa: N818 - it reads as what happened
    """Another writer's list took the place of ours."""

    error_code = "RESOURCE_CONFLICT"


def register_scorers(request: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the workspace's list up to the declaration.

    `request`: `spec` and `folder` of the agent, `experiment_id`, `noted` (registered name to `version` and
    `registered_at_ms`), `stop` (registered names that are not declared any more), `settle_seconds` (optional).
    Answer: `versions`, registered name to `version` and `registered_at_ms` (when that definition came into effect).
    """
    agent = rebuild_agent(request)
    platform, experiment = Platform.from_env(), request["experiment_id"]
    open_mlflow(platform)
    declared = {one.registered_name: one for one in declared_scorers(agent, platform.environment)}
    made = {name: _made(agent, one) for name, one in declared.items()}
    at_ms = int(time.time() * 1000)
    seen: dict[str, Scheduled] = {}
    for _ in range(ATTEMPTS):
        there = scheduled_scorers(platform, experiment)
        seen |= {name: one for name, one in there.items() if name not in declared}
        _check_room(agent, declared, there, request["stop"])
        changing = _differing(declared, made, there, request["stop"])
        try:
            for name in changing:
                if name in declared:
                    _bring_up(agent, experiment, declared[name], made[name], there.get(name))
                else:
                    _stop(experiment, name, there.get(name))
        except Exception as error:
            if getattr(error, "error_code", "") not in _AGAIN:
                raise
            print(f"progress: the list of scorers changed meanwhile ({message(error)[:200]}); again", flush=True)
        if changing:
            time.sleep(request.get("settle_seconds", SETTLE_SECONDS))
        now = scheduled_scorers(platform, experiment)
        lost = [one for name, one in seen.items() if name not in now]
        if lost:
            names = ", ".join(sorted(one.name for one in lost))
            print(f"progress: another writer's list left out {names}; put back", flush=True)
            put_back(platform, experiment, now.values(), lost)
        elif not _differing(declared, made, now, request["stop"]):
            break
    else:
        raise Refused(
            f"experiment {agent.spec.experiment}: other writers changed the list of scorers {ATTEMPTS} times while "
            "ours were written; stop them, then materialize registered_scorers again."
        )
    foreign = [one for name, one in now.items() if name not in declared]
    for name, reason in broken(foreign).items():
        print(f"progress: note: {broken_sentence(name, reason, experiment)}", flush=True)
    _set_cadence(agent, experiment)
    return {"versions": {name: _version(one, now[name], request["noted"], at_ms) for name, one in declared.items()}}


def _made(agent: Agent, declared: DeclaredScorer) -> Any:
    scorer = load_declared(agent, declared)
    model = getattr(scorer, "model", None)
    if isinstance(model, str) and not model.startswith("databricks"):
        raise Refused(
            f"{declared.name}: its judge model is {model[:80]}, and Databricks runs judges by its own models; set "
            "LIFECYCLE_JUDGE_MODEL (or source.arguments.model) to databricks:/<serving endpoint>.",
            check="self_contained",
        )
    return scorer


def _check_room(
    agent: Agent, declared: Mapping[str, DeclaredScorer], there: Mapping[str, Scheduled], stop: Sequence[str]
) -> None:
    foreign = {name for name, one in there.items() if one.sample_rate > 0} - set(declared) - set(stop)
    if len(foreign) + len(declared) > MAX_SCORERS:
        raise Refused(
            f"experiment {agent.spec.experiment}: {len(foreign) + len(declared)} scorers would be active, "
            f"{MAX_SCORERS} are allowed; declare fewer, or stop others ({', '.join(sorted(foreign))}).",
            check="within_limits",
        )


def _bring_up(agent: Agent, experiment: str, declared: DeclaredScorer, made: Any, there: Scheduled | None) -> None:
    """Register the source if it differs, call the copy that is stored, then give it rate and filter."""
    from mlflow.genai.scorers import ScorerSamplingConfig

    name, spec = declared.registered_name, declared.spec
    rate, former = (there.sample_rate, there.filter) if there else (0.0, "")
    platform = Platform.from_env()
    try:
        if not _is_source(there, made):
            print(f"progress: registering {name}", flush=True)
            made.register(name=name, experiment_id=experiment)
            there = scheduled_scorers(platform, experiment).get(name)
            if there is None:
                raise _Overwritten(f"{name} is gone from the list it was written to")
            fault = _fault(agent, declared, made, there)
            if fault:
                _stop(experiment, name, there)
                raise Refused(fault, check="self_contained")
        if (rate, former) == (spec.sample_rate, spec.filter):
            return
        copy = rebuilt(there) if there else made
        # An empty filter takes one away that is there; None leaves it as it is.
        config = ScorerSamplingConfig(spec.sample_rate, spec.filter if spec.filter or former else None)
        move = copy.start if rate == 0 and spec.sample_rate > 0 else copy.update
        move(name=name, experiment_id=experiment, sampling_config=config)
    except Refused:
        raise
    except Exception as error:
        if getattr(error, "error_code", "") not in _REFUSED:
            raise
        raise Refused(
            f"{declared.name}: the workspace refuses the scorer ({message(error)[:300]}); correct it."
        ) from error


def _fault(agent: Agent, declared: DeclaredScorer, made: Any, there: Scheduled) -> str:
    """What is wrong with the stored copy, called once beside the original; empty when nothing is."""
    try:
        copy = rebuilt(there)
    except Exception as error:  # noqa: BLE001 - rebuilding runs the scorer's source
        return f"{declared.name} cannot be rebuilt from what the workspace stores of it ({error!s:.300}); simplify it."
    return fault_of_copy(declared, made, copy, synthetic_trace(agent), "a synthetic trace")[0]


def _stop(experiment: str, name: str, there: Scheduled | None) -> None:
    """Rate 0; nothing to do for what is stopped or gone. Works for a scorer that cannot be rebuilt."""
    if there is None or there.sample_rate == 0:
        return
    from mlflow.exceptions import MlflowException
    from mlflow.genai.scorers.registry import DatabricksStore

    uri = Platform.from_env().tracking_uri
    try:
        DatabricksStore(uri).update_registered_scorer(name=name, sample_rate=0.0, experiment_id=experiment)
    except MlflowException as error:
        # It was written before its copy was rebuilt; reading back tells.
        if "Failed to validate scorer" not in str(error) and "Invalid JSON" not in str(error):
            raise


def _is_source(there: Scheduled | None, made: Any) -> bool:
    if there is None:
        return False
    try:
        return stored_form(rebuilt(there)) == stored_form(made)
    except Exception:  # noqa: BLE001 - what cannot be rebuilt is not the source
        return False


def _differing(
    declared: Mapping[str, DeclaredScorer],
    made: Mapping[str, Any],
    now: Mapping[str, Scheduled],
    stop: Sequence[str],
) -> list[str]:
    """Names that are not as declared in the list."""
    wrong = [name for name in stop if name in now and now[name].sample_rate > 0]
    for name, one in declared.items():
        held = now.get(name)
        sampled = (held.sample_rate, held.filter) if held else None
        if not _is_source(held, made[name]) or sampled != (one.spec.sample_rate, one.spec.filter):
            wrong.append(name)
    return wrong


def _version(
    declared: DeclaredScorer, now: Scheduled, noted: Mapping[str, Mapping[str, Any]], at_ms: int
) -> dict[str, Any]:
    """Its number, or the digest of its source where the workspace numbers nothing, and since when."""
    version = declared.digest if now.version is None else str(now.version)
    known = noted.get(declared.registered_name, {})
    since = known.get("registered_at_ms") if known.get("version") == version else None
    return {"version": version, "registered_at_ms": since or at_ms}


def _set_cadence(agent: Agent, experiment: str) -> None:
    minutes = agent.spec.monitoring.every_minutes
    if minutes is None:
        return
    from databricks.agents.scorers import get_monitoring_configuration, set_monitoring_configuration

    if when_free(lambda: get_monitoring_configuration(experiment_id=experiment)).frequency_minutes != minutes:
        print(f"progress: production monitoring runs every {minutes} minutes", flush=True)
        when_free(lambda: set_monitoring_configuration(experiment_id=experiment, frequency_minutes=minutes))
