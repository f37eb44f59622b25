"""Jobs of the workspace and their runs.

Lives here: the Jobs API: job settings, runs with their life cycle, tokens that make a submission happen once.
Not here: a task's process (`job_process.py`), what a job of another part does (`start_external_run`).

A run is PENDING, then RUNNING, for `workspace.slow_states` looks each; a look is a GET of the run, or a tick.
"""

import json
import time
import weakref
from collections.abc import Callable
from typing import Any

from tests.workspace.app import Call, Failure, Route, Workspace
from tests.workspace.files import Files
from tests.workspace.job_process import TaskProcess

VERSIONS = ("2.0", "2.1", "2.2")
ACTIVE = ("QUEUED", "PENDING", "RUNNING", "TERMINATING")


class Jobs:
    """`jobs` by id: `{job_id, created_time, settings}`; `runs` by id as `runs/get` shows them.

    `env` is what every task's process has in its environment; `uninstallable` are packages no index has;
    `tells_state` off: a run has the newer `status` alone.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.jobs: dict[int, dict[str, Any]] = {}
        self.runs: dict[int, dict[str, Any]] = {}
        self.clusters = {"0101-120000-cluster1"}
        self.env: dict[str, str] = {}
        self.uninstallable: set[str] = set()
        self.tells_state = True
        self._tokens: dict[str, int] = {}
        self._looks: dict[int, int] = {}
        self._start: dict[int, Callable[[], Any]] = {}
        self._finish: dict[int, Callable[[], Any]] = {}
        self._processes: dict[int, TaskProcess] = {}
        self._output: dict[int, str] = {}
        weakref.finalize(self, _kill_all, self._processes)
        workspace.every_tick(lambda: [self.look(run_id) for run_id in list(self.runs)])

    def routes(self) -> list[Route]:
        """The routes of this part, for every version of the API the clients use."""
        found = [
            ("POST", "create", self.create),
            ("GET", "get", self.get),
            ("GET", "list", self.list),
            ("POST", "reset", self.reset),
            ("POST", "update", self.update),
            ("POST", "delete", self.delete),
            ("POST", "run-now", self.run_now),
            ("POST", "runs/submit", self.submit),
            ("GET", "runs/get", self.get_run),
            ("GET", "runs/get-output", self.get_output),
            ("POST", "runs/cancel", self.cancel),
            ("GET", "runs/list", self.list_runs),
        ]
        return [Route(method, f"/api/{v}/jobs/{path}", handler) for v in VERSIONS for method, path, handler in found]

    def add_job(self, settings: dict[str, Any]) -> int:
        """A job as if somebody had made it; returns its id."""
        job_id = 500_000_000_000_001 + len(self.jobs)
        self.jobs[job_id] = {"job_id": job_id, "created_time": _now(), "settings": settings, **_CREATOR}
        return job_id

    def start_external_run(self, job_id: int, finish: Callable[[], Any]) -> int:
        """A run of a job whose work another part does; returns its id.

        `finish` is called once when the run's time has come: a `Failure` raised by it fails the run with its message.
        """
        run_id = self._new_run(job_id, self.jobs[job_id]["settings"], "JOB_RUN")
        self._finish[run_id] = finish
        return run_id

    def look(self, run_id: int) -> None:
        """One look at a run: what it is doing may be over."""
        run = self.runs[run_id]
        if run["state"]["life_cycle_state"] not in ACTIVE:
            return
        self._looks[run_id] += 1
        if run["state"]["life_cycle_state"] == "PENDING":
            if self._looks[run_id] > self.workspace.slow_states:
                self._looks[run_id] = 0
                _become(run, "RUNNING")
                self._start.get(run_id, lambda: None)()
            return
        process = self._processes.get(run_id)
        code = process.code if process is not None else None
        if process is not None and code is not None:
            self._output[run_id] = self._processes.pop(run_id).close()
            _end(run, "FAILED" if code else "SUCCESS", _FAILED if code else "")
        elif process is None and self._looks[run_id] > self.workspace.slow_states:
            try:
                self._finish.get(run_id, lambda: None)()
                _end(run, "SUCCESS", "")
            except Failure as failure:
                self._output[run_id] = str(failure)
                _end(run, "FAILED", str(failure))

    def create(self, call: Call) -> dict[str, Any]:
        """POST jobs/create."""
        self._checked(call.json)
        return {"job_id": self.add_job(call.json)}

    def get(self, call: Call) -> dict[str, Any]:
        """GET jobs/get."""
        return self._job(call.query["job_id"])

    def list(self, call: Call) -> dict[str, Any]:
        """GET jobs/list, by exact name when one is given."""
        name = call.query.get("name", "").lower()
        found = [job for job in self.jobs.values() if not name or job["settings"].get("name", "").lower() == name]
        limit = min(int(call.query.get("limit", 20)), 100, self.workspace.page_size or 100)
        return _page("jobs", found[::-1], call, limit)

    def reset(self, call: Call) -> dict[str, Any]:
        """POST jobs/reset: all settings replaced."""
        self._checked(call.json["new_settings"])
        self._job(call.json["job_id"])["settings"] = call.json["new_settings"]
        return {}

    def update(self, call: Call) -> dict[str, Any]:
        """POST jobs/update: top-level fields replaced or removed."""
        settings = self._job(call.json["job_id"])["settings"]
        settings.update(call.json.get("new_settings", {}))
        for name in call.json.get("fields_to_remove", []):
            settings.pop(name, None)
        return {}

    def delete(self, call: Call) -> dict[str, Any]:
        """POST jobs/delete."""
        del self.jobs[self._job(call.json["job_id"])["job_id"]]
        return {}

    def run_now(self, call: Call) -> dict[str, Any]:
        """POST jobs/run-now; a known `idempotency_token` answers with the run it made."""
        job, token = self._job(call.json["job_id"]), call.json.get("idempotency_token", "")
        key = f"{job['job_id']}:{token}"
        if not token or key not in self._tokens:
            settings = job["settings"]
            run_id = self._new_run(job["job_id"], settings, "JOB_RUN", parameters=call.json)
            self._start[run_id] = lambda: self._run_tasks(run_id, settings, call.json)
            self._tokens[key] = run_id
        run_id = self._tokens[key]
        return {"run_id": run_id, "number_in_job": run_id}

    def submit(self, call: Call) -> dict[str, Any]:
        """POST jobs/runs/submit; a known `idempotency_token` answers with the run it made."""
        token = call.json.get("idempotency_token", "")
        if len(token) > 64:
            raise Failure(400, "INVALID_PARAMETER_VALUE", "idempotency_token must be at most 64 characters long.")
        if not token or token not in self._tokens:
            settings = self._checked(call.json)
            run_id = self._new_run(0, {"name": call.json.get("run_name", "Untitled"), **settings}, "SUBMIT_RUN")
            self._start[run_id] = lambda: self._run_tasks(run_id, settings, {})
            self._tokens[token or f"run-{run_id}"] = run_id
            return {"run_id": run_id}
        return {"run_id": self._tokens[token]}

    def get_run(self, call: Call) -> dict[str, Any]:
        """GET jobs/runs/get."""
        run = self._run(call.query["run_id"])
        self.look(run["run_id"])
        return self._shown(run)

    def get_output(self, call: Call) -> dict[str, Any]:
        """GET jobs/runs/get-output: of a task's run; a run of several tasks has none."""
        run, number = None, int(call.query["run_id"])
        for one in self.runs.values():
            if number in (one["run_id"], *(task["run_id"] for task in one["tasks"])):
                run = one
        if run is None:
            raise _no_run(number)
        if number == run["run_id"] and len(run["tasks"]) != 1:
            raise Failure(
                400,
                "INVALID_PARAMETER_VALUE",
                "Retrieving the output of runs with multiple tasks is not supported. Please retrieve the output of "
                "each individual task run instead.",
            )
        said = self._output.get(run["run_id"], "")
        failed = run["state"].get("result_state") == "FAILED"
        last = said.strip().rpartition("\n")[2]
        return {"metadata": run, "logs": said[-5000:], **({"error": last, "error_trace": said} if failed else {})}

    def cancel(self, call: Call) -> dict[str, Any]:
        """POST jobs/runs/cancel: TERMINATING at once, TERMINATED a look later; cancelling again is no error."""
        run = self._run(call.json["run_id"])
        if run["state"]["life_cycle_state"] in ACTIVE:
            if run["run_id"] in self._processes:
                self._output[run["run_id"]] = self._processes.pop(run["run_id"]).close()
            _end(run, "CANCELED", "Run cancelled.")
        return {}

    def list_runs(self, call: Call) -> dict[str, Any]:
        """GET jobs/runs/list, newest first."""
        query = call.query
        found = [
            run
            for run in reversed(self.runs.values())
            if (not query.get("job_id") or run["job_id"] == int(query["job_id"]))
            and (query.get("active_only") != "true" or run["state"]["life_cycle_state"] in ACTIVE)
            and (query.get("completed_only") != "true" or run["state"]["life_cycle_state"] not in ACTIVE)
            and (not query.get("run_type") or run["run_type"] == query["run_type"])
            and run["start_time"] >= int(query.get("start_time_from", 0))
            and run["start_time"] <= int(query.get("start_time_to", 2**62))
        ]
        expanded = query.get("expand_tasks") == "true"
        limit = min(int(query.get("limit", 20)) or 25, 25, self.workspace.page_size or 25)
        shown = [run if expanded else {key: run[key] for key in run if key != "tasks"} for run in found]
        shown = [self._shown(run) for run in shown]
        return _page("runs", shown, call, limit)

    def _shown(self, run: dict[str, Any]) -> dict[str, Any]:
        if self.tells_state:
            return run
        tasks = [{key: task[key] for key in task if key != "state"} for task in run.get("tasks", [])]
        return {key: run[key] for key in run if key != "state"} | ({"tasks": tasks} if "tasks" in run else {})

    def _new_run(
        self, job_id: int, settings: dict[str, Any], kind: str, *, parameters: dict[str, Any] | None = None
    ) -> int:
        run_id = 900_000_000_001 + 10 * len(self.runs)
        page = f"{self.workspace.url}/?o=1#job/{job_id or run_id}/run/{run_id}"
        tasks = settings.get("tasks") or [{"task_key": "main"}]
        self._looks[run_id] = 0
        self.runs[run_id] = {
            "run_id": run_id,
            "job_id": job_id,
            "job_run_id": run_id,
            "run_name": settings.get("name", "Untitled"),
            "run_type": kind,
            "run_page_url": page,
            "start_time": _now(),
            "end_time": 0,
            "trigger": "ONE_TIME",
            "format": "MULTI_TASK",
            **_CREATOR,
            "state": {"life_cycle_state": "PENDING", "state_message": ""},
            "status": {"state": "PENDING"},
            "tasks": [{**task, "run_id": run_id + 1 + n, "run_page_url": page} for n, task in enumerate(tasks)],
            **({"overriding_parameters": parameters} if parameters else {}),
            "job_parameters": _parameters(settings, parameters or {}),
        }
        return run_id

    def _run_tasks(self, run_id: int, settings: dict[str, Any], given: dict[str, Any]) -> None:
        """Start the process of the one task; a job without anything to run ends by itself."""
        tasks = settings.get("tasks") or []
        if not tasks:
            return
        task = {**tasks[0]}
        for kind, field in (("python_wheel_task", "python_params"), ("spark_python_task", "python_params")):
            if kind in task and given.get(field):
                task[kind] = {**task[kind], "parameters": given[field]}
        asked = {one["name"]: one.get("default", "") for one in settings.get("parameters", [])}
        asked |= given.get("job_parameters", {})
        for name, value in asked.items():
            task = json.loads(json.dumps(task).replace("{{job.parameters." + name + "}}", json.dumps(value)[1:-1]))
        environments = {one["environment_key"]: one.get("spec", {}) for one in settings.get("environments", [])}
        libraries = list(environments.get(task.get("environment_key", ""), {}).get("dependencies", []))
        libraries += [one["whl"] for one in task.get("libraries", []) if "whl" in one]
        libraries += [one["pypi"]["package"] for one in task.get("libraries", []) if "pypi" in one]
        libraries = [f"{one}+absent" if one.partition("==")[0] in self.uninstallable else one for one in libraries]
        env = {
            "DATABRICKS_HOST": self.workspace.url,
            "DATABRICKS_TOKEN": self.workspace.token,
            "DATABRICKS_CONFIG_FILE": "/dev/null",
            **self.env,
            **task.get("new_cluster", {}).get("spark_env_vars", {}),
        }
        self._processes[run_id] = TaskProcess(self.workspace[Files], task, libraries, env)

    def _checked(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings, as the server would refuse them."""
        environments = {one["environment_key"] for one in settings.get("environments", [])}
        clusters = {one["job_cluster_key"] for one in settings.get("job_clusters", [])}
        for task in settings.get("tasks", []):
            where = [key for key in ("existing_cluster_id", "new_cluster", "job_cluster_key") if task.get(key)]
            serverless = task.get("environment_key")
            if serverless and serverless not in environments:
                raise _invalid(f"The environment key '{serverless}' is not defined in the field 'environments'.")
            if serverless and (where or task.get("libraries")):
                raise _invalid(f"Task '{task['task_key']}': libraries and clusters are not supported on serverless.")
            if len(where) > 1:
                raise _invalid(f"Task '{task['task_key']}': only one cluster may be named.")
            if ("python_wheel_task" in task or "spark_python_task" in task) and not where and not serverless:
                raise _invalid(f"Task '{task['task_key']}' needs a cluster or an environment_key.")
            if task.get("job_cluster_key") and task["job_cluster_key"] not in clusters:
                raise _invalid(f"Job cluster '{task['job_cluster_key']}' is not defined in field 'job_clusters'.")
            if task.get("existing_cluster_id", next(iter(self.clusters))) not in self.clusters:
                raise _invalid(f"Cluster {task['existing_cluster_id']} does not exist")
        return settings

    def _job(self, job_id: Any) -> dict[str, Any]:
        if int(job_id) not in self.jobs:
            raise Failure(400, "INVALID_PARAMETER_VALUE", f"Job {job_id} does not exist.")
        return self.jobs[int(job_id)]

    def _run(self, run_id: Any) -> dict[str, Any]:
        if int(run_id) not in self.runs:
            raise _no_run(run_id)
        return self.runs[int(run_id)]


_CREATOR = {"creator_user_name": "someone@example.com"}
_FAILED = "Workload failed, see run output for details"
_TERMINATION = {"SUCCESS": "SUCCESS", "FAILED": "RUN_EXECUTION_ERROR", "CANCELED": "USER_CANCELED"}


def _become(run: dict[str, Any], state: str) -> None:
    for one in (run, *run["tasks"]):
        one["state"] = {"life_cycle_state": state, "state_message": ""}
        one["status"] = {"state": state}


def _end(run: dict[str, Any], result: str, message: str) -> None:
    for one in (run, *run["tasks"]):
        one["end_time"] = _now()
        one["state"] = {"life_cycle_state": "TERMINATED", "result_state": result, "state_message": message}
        one["status"] = {
            "state": "TERMINATED",
            "termination_details": {
                "code": _TERMINATION[result],
                "type": "SUCCESS" if result == "SUCCESS" else "CLIENT_ERROR",
                "message": message,
            },
        }


def _parameters(settings: dict[str, Any], given: dict[str, Any]) -> list[dict[str, str]]:
    """Job parameters as a run shows them: the job's own with their defaults, and what the request gave."""
    defaults = {one["name"]: one["default"] for one in settings.get("parameters", [])}
    values = {**defaults, **given.get("job_parameters", {})}
    return [{"name": name, "default": defaults.get(name, ""), "value": value} for name, value in values.items()]


def _page(field: str, found: list[Any], call: Call, limit: int) -> dict[str, Any]:
    start = int(call.query.get("page_token") or call.query.get("offset") or 0)
    more = start + limit < len(found)
    return {
        field: found[start : start + limit],
        "has_more": more,
        **({"next_page_token": str(start + limit)} if more else {}),
    }


def _kill_all(processes: dict[int, TaskProcess]) -> None:
    for process in processes.values():
        process.close()


def _now() -> int:
    return int(time.time() * 1000)


def _invalid(message: str) -> Failure:
    return Failure(400, "INVALID_PARAMETER_VALUE", message)


def _no_run(run_id: Any) -> Failure:
    return Failure(400, "INVALID_PARAMETER_VALUE", f"Run {run_id} does not exist.")
