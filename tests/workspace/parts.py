"""Which parts make up the workspace.

Lives here: the list. Add here: a part. Not here: anything else.
"""

from tests.workspace.agents import AgentEvents
from tests.workspace.apps import Apps
from tests.workspace.archival import Archival
from tests.workspace.artifacts import Artifacts, Storage
from tests.workspace.assessments import Assessments
from tests.workspace.datasets import Datasets
from tests.workspace.files import Files
from tests.workspace.jobs import Jobs
from tests.workspace.lake import Lake
from tests.workspace.logged_models import LoggedModels
from tests.workspace.monitoring_job import MonitoringJob
from tests.workspace.otlp import UcTraces
from tests.workspace.review_apps import ReviewApps
from tests.workspace.runs import Runs
from tests.workspace.scorers import Scorers
from tests.workspace.serving import Serving
from tests.workspace.statements import Statements
from tests.workspace.trace_locations import TraceLocations
from tests.workspace.trace_search import TraceSearch
from tests.workspace.traces import Traces
from tests.workspace.tracking import Tracking
from tests.workspace.unity import Unity
from tests.workspace.unity_models import UnityModels
from tests.workspace.workspace_files import WorkspaceFiles

PARTS: tuple[type, ...] = (
    Tracking,
    Lake,
    Unity,
    Statements,
    Runs,
    LoggedModels,
    Artifacts,
    Storage,
    AgentEvents,
    UnityModels,
    Scorers,
    MonitoringJob,
    Files,
    Jobs,
    Archival,
    Assessments,
    TraceLocations,
    UcTraces,
    TraceSearch,
    Traces,
    Serving,
    WorkspaceFiles,
    Apps,
    ReviewApps,
    Datasets,
)
"""Every part, in the order their routes are tried."""
