"""The agent the jobs work for: the sample agent on the corpus' experiment, without redaction.

Lives here: its declaration as a job needs it. Add here: a change of the declaration several jobs need.
Not here: jobs.

The baselines redact nothing, so ours redacts nothing either; what a rule costs is a row of its own (`archive.py`).
"""

from typing import Any

from benchmarks.job import Turn
from lifecycle_assets.spec import AgentSpec
from lifecycle_assets.spec_file import DEFS_FOLDER, Agent, read_agent


def sample_agent(turn: Turn, **archive: Any) -> Agent:
    """docs_agent with the corpus' experiment; `archive` replaces fields of its archive policy."""
    agent = read_agent(DEFS_FOLDER / "docs_agent" / "defs.yaml")
    declared = agent.spec.model_dump(mode="json", exclude_unset=True)
    policy = {**declared["archive"], "redact": [], "start_date": "2025-01-01", **archive}
    return Agent(AgentSpec.model_validate({**declared, "experiment": turn.experiment, "archive": policy}), agent.folder)
