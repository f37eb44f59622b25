"""The emulator's jobs, volumes and DBFS, through the unmodified SDK."""

import io
import time

import pytest
from databricks.sdk.errors import DatabricksError, NotFound
from databricks.sdk.service.catalog import VolumeType
from databricks.sdk.service.jobs import JobEnvironment, SparkPythonTask, SubmitTask

from resources.databricks.workspace import open_workspace
from resources.platform import Platform
from tests.workspace.jobs import Jobs
from tests.workspace.server import client_environment, served_workspace

SCRIPT = b"""
import pathlib, sys
pathlib.Path('/Volumes/main/agents/box/said.txt').write_text(' '.join(sys.argv[1:]))
raise SystemExit('it did not work')
"""


def test_files_processes_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with served_workspace() as workspace:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow leaves it behind in a process that used it.
        for name, value in client_environment(workspace).items():
            monkeypatch.setenv(name, value)
        client, workspace.page_size = open_workspace(Platform.from_env()), 1
        with pytest.raises(NotFound):
            client.files.create_directory("/Volumes/main/agents/box/a")
        client.volumes.create("main", "agents", "box", VolumeType.MANAGED)
        with pytest.raises(NotFound):
            client.files.upload("/Volumes/main/agents/box/a/step.py", io.BytesIO(SCRIPT))
        client.files.create_directory("/Volumes/main/agents/box/a")
        for name in ("step.py", "x+y.txt"):
            client.files.upload(f"/Volumes/main/agents/box/a/{name}", io.BytesIO(SCRIPT))
        with pytest.raises(DatabricksError, match="already exists"):
            client.files.upload("/Volumes/main/agents/box/a/step.py", io.BytesIO(b""), overwrite=False)
        listed = client.files.list_directory_contents("/Volumes/main/agents/box/a")
        assert [one.name for one in listed] == ["step.py", "x+y.txt"], "pages of one are followed"
        with pytest.raises(DatabricksError, match="not empty"):
            client.files.delete_directory("/Volumes/main/agents/box/a")

        task = SubmitTask(
            "main",
            environment_key="e",
            spark_python_task=SparkPythonTask("/Volumes/main/agents/box/a/step.py", parameters=["it", "ran"]),
        )
        run_id = client.jobs.submit(run_name="once", tasks=[task], environments=[JobEnvironment("e")]).bind()["run_id"]
        until = time.monotonic() + 30
        while workspace[Jobs].runs[run_id]["state"]["life_cycle_state"] != "TERMINATED" and time.monotonic() < until:
            client.jobs.get_run(run_id)
            time.sleep(0.05)
        run = client.jobs.get_run(run_id)
        assert run.tasks
        assert client.jobs.get_run_output(run.tasks[0].run_id or 0).error == "it did not work"
        contents = client.files.download("/Volumes/main/agents/box/said.txt").contents
        assert contents
        assert contents.read() == b"it ran"
        with pytest.raises(DatabricksError, match="environment key"):
            client.jobs.submit(run_name="none", tasks=[task])

        done: list[str] = []
        job_id = workspace[Jobs].add_job({"name": "work of another part"})
        for number in range(2):
            workspace[Jobs].start_external_run(job_id, lambda n=number: done.append(str(n)))
        assert len(list(client.jobs.list_runs(job_id=job_id, active_only=True))) == 2
        workspace.tick(2)
        assert done == ["0", "1"]
        assert not list(client.jobs.list_runs(job_id=job_id, active_only=True))

        client.dbfs.mkdirs("/tmp/box")
        client.dbfs.upload("/tmp/box/a.txt", io.BytesIO(b"x" * 1_500_000))
        assert len(client.dbfs.download("/tmp/box/a.txt").read()) == 1_500_000, "in blocks of a megabyte"
        assert [one.path for one in client.dbfs.list("/tmp/box")] == ["/tmp/box/a.txt"]
        client.dbfs.delete("/tmp/box", recursive=True)
        assert not client.dbfs.exists("/tmp/box")
        assert workspace.unknown == []
