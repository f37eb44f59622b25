"""`lifecycle bundle`: what it writes, what it does not overwrite, schedules as Quartz says them."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from databricks.sdk.service.jobs import JobSettings

from lifecycle_assets.quartz import quartz
from lifecycle_assets.refused import Refused
from tests.cli.conftest import Run


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def job(files: dict[str, bytes], name: str) -> dict[str, Any]:
    return yaml.safe_load(files[f"resources/tiny_{name}.yml"])["resources"]["jobs"][f"tiny_{name}"]


def test_the_bundle_holds_jobs_the_api_knows_and_the_wheel_they_run(fresh: Path, run: Run) -> None:
    result = run("bundle", "tiny", "--out", str(fresh / "out"), "--json")
    assert result.exit_code == 0, result.output
    said, files = json.loads(result.stdout), written(fresh / "out")
    assert said["files"] == sorted(files)
    assert "databricks bundle deploy" in said["next"]
    (wheel,) = [name for name in files if name.endswith(".whl")]
    for name in ("monitor", "labeling", "scorer_backfill"):
        declared = job(files, name)
        assert JobSettings.from_dict(declared).as_dict() == declared, "a field the Jobs API does not know"
        assert f"../{wheel}" in declared["environments"][0]["spec"]["dependencies"]
    assert job(files, "monitor")["schedule"]["quartz_cron_expression"] == "0 5 * * * ?"
    assert job(files, "labeling")["schedule"]["quartz_cron_expression"] == "0 0 7 ? * MON"
    assert "schedule" not in job(files, "scorer_backfill")
    top = yaml.safe_load(files["databricks.yml"])
    assert set(top) == {"bundle", "include", "variables", "workspace", "targets"}
    assert {name: target["mode"] for name, target in top["targets"].items()} == {
        "dev": "development",
        "prod": "production",
    }
    with zipfile.ZipFile(io.BytesIO(files[wheel])) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert "lifecycle_assets/defs/tiny/agent.py" in names
    assert not [name for name in names if "defs/docs_agent" in name], "another agent travels along"


def test_the_same_agent_gives_the_same_bytes_and_hidden_files_stay_at_home(fresh: Path, run: Run) -> None:
    (fresh / "defs" / "tiny" / ".env").write_text("API_KEY=secret")
    for folder in ("one", "two", "one"):
        assert run("bundle", "tiny", "--out", str(fresh / folder)).exit_code == 0
    assert written(fresh / "one") == written(fresh / "two")
    assert not [name for name, data in written(fresh / "one").items() if b"API_KEY" in data]
    scorers = fresh / "defs" / "tiny" / "scorers.py"
    scorers.write_text(scorers.read_text() + "# changed\n")
    assert run("bundle", "tiny", "--out", str(fresh / "three")).exit_code == 0
    wheels = {name for folder in ("one", "three") for name in written(fresh / folder) if name.endswith(".whl")}
    assert len(wheels) == 2, "changed code under a name an environment may have cached"


def test_files_of_others_are_not_overwritten_and_nothing_is_written_then(fresh: Path, run: Run) -> None:
    (fresh / "out" / "resources").mkdir(parents=True)
    (fresh / "out" / "resources" / "tiny_monitor.yml").write_text("mine: true\n")
    result = run("bundle", "tiny", "--out", str(fresh / "out"))
    assert result.exit_code == 1
    assert "was not written by lifecycle bundle" in result.stderr
    assert written(fresh / "out") == {"resources/tiny_monitor.yml": b"mine: true\n"}


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("5 * * * *", "0 5 * * * ?"),
        ("0 7 * * 1", "0 0 7 ? * MON"),
        ("0 7 * * 7", "0 0 7 ? * SUN"),
        ("0 7 * * 1-5", "0 0 7 ? * MON,TUE,WED,THU,FRI"),
        ("0 7 * * fri-mon", "0 0 7 ? * SUN,MON,FRI,SAT"),
        ("0 7 * * */3", "0 0 7 ? * SUN,WED,SAT"),
        ("*/15 0-6 1,15 2 *", "0 */15 0-6 1,15 2 ?"),
        ("@weekly", "0 0 0 ? * SUN"),
    ],
)
def test_cron_becomes_quartz(cron: str, expected: str) -> None:
    assert quartz(cron) == expected


@pytest.mark.parametrize("cron", ["0 7 1 * 1", "0 7 * *", "0 7 * * 9", "0 7 * * someday"])
def test_what_quartz_cannot_say_is_refused(cron: str) -> None:
    with pytest.raises(Refused, match=r"write|use one"):
        quartz(cron)
