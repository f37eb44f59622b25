"""Being inside a job of the workspace.

Lives here: what a process there sets up before it talks to the workspace.
Add here: a difference between a job's process and any other.
Not here: what the job does.
"""

import os
import tempfile
from collections.abc import Mapping

from resources.databricks.workspace import open_workspace
from resources.platform import Platform


def enter_job(env: Mapping[str, str]) -> Platform:
    """The platform inside a job, after `env` was put into this process's environment.

    State that must be on a disk goes to a temporary folder. Workers started by a step have no session of the runtime
    to sign in with, so they are given host and token of this one, which end with the job.
    """
    os.environ.update(env)
    os.environ.setdefault("LIFECYCLE_HOME", os.path.join(tempfile.gettempdir(), "lifecycle"))  # noqa: PTH118
    platform = Platform.from_env().prepare()
    config = open_workspace(platform).config
    scheme, _, token = config.authenticate().get("Authorization", "").partition(" ")
    if config.auth_type != "pat" and scheme == "Bearer":
        os.environ.setdefault("DATABRICKS_HOST", config.host)
        os.environ.setdefault("DATABRICKS_TOKEN", token)
    return platform
