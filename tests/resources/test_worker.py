"""The worker: answers, refusals, crashes.

Lives here: what a caller of `run_worker` sees.
Add here: a way a worker can end.
Not here: what the actions do, or the death of the parent (`test_model_registry.py`, `test_evaluator.py`).
"""

import pytest

from lifecycle_assets.refused import Refused
from resources.platform import Platform
from resources.worker import WorkerFailed, run_worker


def quiet(_: str) -> None:
    """Takes progress and shows none."""


def test_a_refusal_keeps_its_sentence_and_its_check(platform: Platform) -> None:
    request = {"model_uri": "models:/main.agents.absent/1", "input": {}}
    with pytest.raises(Refused, match=r"models:/main\.agents\.absent/1 does not load") as refused:
        run_worker("predict", request, platform=platform, progress=quiet)
    assert refused.value.check == "loads_back"


def test_a_crash_carries_its_traceback(platform: Platform) -> None:
    with pytest.raises(WorkerFailed, match="KeyError: 'no such action'"):
        run_worker("no such action", {}, platform=platform, progress=quiet)


def test_a_large_request_to_a_worker_that_ends_at_once_is_no_broken_pipe(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(WorkerFailed, match="ended with code"):
        run_worker("predict", {"input": "x" * 10_000_000}, platform=platform, progress=quiet)
