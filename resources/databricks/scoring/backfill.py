"""Backfills of scorers: asked for once, found again, followed to their end.

Lives here: what is remembered of a backfill, and finding and following the job that does it.
Add here: a way in which a workspace tells which job it is.
Not here: asking (`backfill_steps.py`, a process of its own), deciding what is owed (`scoring.py`).

Of the last backfill of each day one tag of the experiment is kept, `lifecycle.backfill.<environment>_<agent>.<day>`:
written as `asking` before the request and as `running`, with the job's id, after its answer. So a rerun knows that
there may be a job of which nobody got the id: the workspace's monitor names the running one, and the list of runs
those that have ended. What cannot be found is not asked for again for half an hour.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from lifecycle_assets.refused import Refused
from resources.databricks.workspace import open_workspace, wait_for
from resources.mlflow_store import open_client
from resources.platform import Platform
from resources.worker import Progress, WorkerFailed, run_worker

TAG = "lifecycle.backfill."
ASK_SECONDS = 180.0
"""How long asking may take: some ten requests, of which the client bounds none."""
JOB_SECONDS = 2 * 3600.0
"""How long a backfill is followed in all; it goes on in the workspace afterwards, and the next run finds it."""
POLL_SECONDS = 10.0
LOST_MS = 30 * 60_000
"""So long a backfill that may have been accepted, and cannot be found, is not asked for again."""
MAX_RUNS = 200
LOOKS = 3
"""A job that has no run after so many looks, and that no monitor names as running, is gone."""

_ENDED = {"TERMINATED", "SKIPPED", "INTERNAL_ERROR"}


@dataclass(frozen=True)
class Backfill:
    """A backfill as it is remembered; times in epoch milliseconds.

    `state` is asking, running, done, failed, or gone: it ended, nobody can tell how. `rates` and `versions` are by
    registered name. `due_ms` is until when traces had ended that coverage was measured of. `seen` tells of every
    backfill of the day that was done: registered name to version and `due_ms`.
    """

    state: str
    job_id: str
    start_ms: int
    end_ms: int
    rates: dict[str, float]
    versions: dict[str, str]
    due_ms: int
    at_ms: int
    seen: dict[str, tuple[str, int]]

    def ended(self, state: str) -> "Backfill":
        """Ended in that state: what a finished one has seen counts from then on, whom it was for is forgotten."""
        new = {name: (version, self.due_ms) for name, version in self.versions.items()} if state == "done" else {}
        return replace(self, state=state, seen={**self.seen, **new}, rates={}, versions={})

    def seen_until(self, name: str, version: str) -> int:
        """Until when traces had ended that finished backfills of that version have seen; 0 when there was none."""
        known, until = self.seen.get(name, ("", 0))
        return until if known == version else 0


class Backfills:
    """The backfills of one experiment. `key` is `<environment>_<agent>.<day>`."""

    def __init__(
        self, platform: Platform, experiment: str, *, ask_seconds: float, job_seconds: float, poll_seconds: float
    ) -> None:
        self._platform = platform
        self._experiment = experiment
        self._ask_seconds = ask_seconds
        self._job_seconds = job_seconds
        self._poll_seconds = poll_seconds

    def last(self, key: str) -> Backfill | None:
        """The last one of that key; None when there was none."""
        value = open_client(self._platform).get_experiment(self._experiment).tags.get(TAG + key)
        if not value:
            return None
        held: dict[str, Any] = json.loads(value)
        seen = {name: (version, until) for name, (version, until) in held.pop("seen").items()}
        return Backfill(**held, seen=seen)

    def note(self, key: str, backfill: Backfill) -> Backfill:
        """Remember it."""
        open_client(self._platform).set_experiment_tag(self._experiment, TAG + key, _text(backfill))
        return backfill

    def settled(self, key: str, progress: Progress) -> Backfill | None:
        """The last one, followed to its end if it has not been seen to end; `asking` when its job cannot be found.

        Raises `Refused` when its job failed, or goes on for too long.
        """
        last = self.last(key)
        if last is None or last.state not in ("asking", "running"):
            return last
        job = last.job_id or self._found(last.at_ms)
        if not job:
            return last
        return self._followed(key, replace(last, state="running", job_id=job), progress, ours=bool(last.job_id))

    def ask(self, key: str, wanted: Backfill, progress: Progress) -> Backfill | None:
        """Ask for it and follow it to its end; None when another backfill of the experiment had to be awaited.

        Raises `Refused` when the job failed, goes on for too long, or cannot be asked for.
        """
        other = self._running()
        # A monitor may go on naming one that has ended.
        if other and _state(self._newest_run(other))[0] not in ("", *_ENDED):
            self._await_other(other, progress)
            return None
        names = ", ".join(sorted(wanted.rates))
        progress(f"asking for a backfill of {names} from {_utc(wanted.start_ms)} to {_utc(wanted.end_ms)}")
        answer = self._answer(key, wanted, progress)
        if "job_id" not in answer:
            job = self._found(wanted.at_ms)
            if answer.get("running"):
                self.note(key, wanted.ended("failed"))
                self._await_other(job, progress)
                return None
            if job is None:
                return wanted
            return self._followed(key, replace(wanted, state="running", job_id=job), progress, ours=False)
        return self._followed(key, replace(wanted, state="running", job_id=answer["job_id"]), progress, ours=True)

    def _answer(self, key: str, wanted: Backfill, progress: Progress) -> Mapping[str, Any]:
        """What the worker says, which notes the backfill right before it sends.

        Killed before that, nothing is noted and it is asked for at once; what was never sent is forgotten.
        """
        request = {
            "experiment_id": self._experiment,
            "rates": wanted.rates,
            "start_ms": wanted.start_ms,
            "end_ms": wanted.end_ms,
            "note": [TAG + key, _text(wanted)],
        }
        sent: list[str] = []

        def heard(line: str) -> None:
            sent.append(line) if line == "sending" else progress(line)

        try:
            answer = run_worker(
                "ask_backfill", request, platform=self._platform, progress=heard, timeout_seconds=self._ask_seconds
            )
        except (Refused, WorkerFailed):
            if not sent:
                self.note(key, wanted.ended("failed"))
                raise
            return {"lost": True}
        if "impossible" in answer:
            self.note(key, wanted.ended("failed"))
            raise Refused(answer["impossible"])
        return answer

    def _followed(self, key: str, backfill: Backfill, progress: Progress, *, ours: bool) -> Backfill:
        """The backfill at its end. One that was found by its looks (not `ours` for certain) has proven nothing."""
        if ours:
            self.note(key, backfill)
        run = self._end_of(backfill.job_id, progress)
        if run is None:
            return self.note(key, backfill.ended("gone"))
        result = _state(run)[1]
        if result in ("SUCCESS", "SUCCESS_WITH_FAILURES"):
            return self.note(key, backfill.ended("done" if ours else "gone"))
        self.note(key, backfill.ended("failed"))
        details = getattr(run.status, "termination_details", None)
        told = getattr(run.state, "state_message", "") or getattr(details, "message", "") or result or "no message"
        said = " ".join(told.split())[:300].rstrip(". ")
        raise Refused(
            f"The backfill of {', '.join(sorted(backfill.rates))} failed in the workspace ({said}); see "
            f"{run.run_page_url or 'job ' + backfill.job_id}, mend what it says, then run this again."
        )

    def _await_other(self, job: str | None, progress: Progress) -> None:
        """Another backfill of the experiment first; how it ends is not ours."""
        progress(f"another backfill runs in experiment {self._experiment}: waiting for it")
        if job:
            self._end_of(job, progress)
        else:
            time.sleep(min(6 * self._poll_seconds, 60.0))

    def _end_of(self, job_id: str, progress: Progress) -> Any:
        """The job's newest run once it has ended; None when the job is gone."""
        looks = 0

        def look() -> tuple[Any] | None:
            nonlocal looks
            run = self._newest_run(job_id)
            if run is None:
                looks += 1
                return (None,) if looks >= LOOKS and self._running() != job_id else None
            return (run,) if _state(run)[0] in _ENDED else None

        (run,) = wait_for(
            f"backfill job {job_id}", look, seconds=self._job_seconds, progress=progress, every=self._poll_seconds
        )
        return run

    def _newest_run(self, job_id: str) -> Any:
        """The job's newest run as it is now; None when the job has none, or is not there (any more)."""
        from databricks.sdk.errors import InvalidParameterValue, NotFound

        jobs = open_workspace(self._platform).jobs
        if not job_id.isdigit():
            return None
        try:
            run = next(iter(jobs.list_runs(job_id=int(job_id), limit=1)), None)
            return jobs.get_run(run.run_id or 0) if run else None
        except (NotFound, InvalidParameterValue):
            return None

    def _running(self) -> str | None:
        """The job a monitor of the experiment names as its running backfill."""
        client = open_workspace(self._platform).api_client
        answer: Any = client.do("POST", "/api/2.0/managed-evals/monitors", body={"experiment_id": self._experiment})
        named = [info.get("current_backfill_job_id") for info in answer.get("monitor_infos") or []]
        return next((str(job) for job in named if job), None)

    def _found(self, since_ms: int) -> str | None:
        """The job of a backfill asked for at `since_ms` whose answer was lost; None when it cannot be told."""
        tags = open_client(self._platform).get_experiment(self._experiment).tags
        known = {json.loads(value)["job_id"] for key, value in tags.items() if key.startswith(TAG)}
        running = self._running()
        if running and running not in known:
            return running
        runs = open_workspace(self._platform).jobs.list_runs(start_time_from=since_ms - 60_000)
        mine = re.compile(rf"(?i)backfill.*(?<!\d){re.escape(self._experiment)}(?!\d)")
        found = {str(run.job_id) for run in islice(runs, MAX_RUNS) if mine.search(run.run_name or "")} - known
        return found.pop() if len(found) == 1 else None


def _text(backfill: Backfill) -> str:
    return json.dumps(asdict(backfill), sort_keys=True)


def _state(run: Any) -> tuple[str, str]:
    """Life cycle and result of a run as texts; the newer `status` counts where `state` is not told any more."""
    state, status = getattr(run, "state", None), getattr(run, "status", None)
    life = getattr(state, "life_cycle_state", None) or getattr(status, "state", None)
    ended = getattr(status, "termination_details", None)
    result = getattr(state, "result_state", None) or getattr(ended, "code", None)
    return getattr(life, "value", ""), getattr(result, "value", "")


def _utc(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(ms / 1000))
