"""What an application sends to MLflow when a user gives a thumb.

Lives here: the one call. Add here: another kind of feedback of users.
Not here: reviewers' answers (`labeling_desk.py`), scores (`trace_store.py`).
"""

from resources.explain import explained
from resources.mlflow_store import open_mlflow
from resources.platform import Platform

FEEDBACK_NAME = "user_feedback"
"""Assessment name under which end users' thumbs arrive: true is up, false is down."""


def send_feedback(platform: Platform, trace_id: str, *, up: bool, user: str, comment: str = "") -> None:
    """Log the user's thumb on a trace; a second thumb of the same call is a second assessment."""
    with explained(platform.tracking_uri):
        mlflow = open_mlflow(platform)
        source = mlflow.entities.AssessmentSource(source_type="HUMAN", source_id=user)
        mlflow.log_feedback(trace_id=trace_id, name=FEEDBACK_NAME, value=up, source=source, rationale=comment or None)
