"""Until when a day is kept, in the tables and in MLflow.

Lives here: arithmetic on the declared policy, the same for what removes days and for what must not bring them back.
Add here: another limit that is a number of days.
Not here: removing anything (`resources/upkeep/upkeep.py`), the policy's fields (`spec_monitoring.py`).
"""

from datetime import UTC, date, datetime, timedelta

from lifecycle_assets.spec_monitoring import ArchivePolicy


def today() -> date:
    """The present day, UTC."""
    return datetime.now(UTC).date()


def oldest_kept(policy: ArchivePolicy, now: date) -> date:
    """The oldest day the tables keep on the day `now`; every day when no retention is declared.

    Days before it are removed by the upkeep, and are neither archived nor scored again while MLflow still has them.
    """
    return date.min if policy.retention_days is None else now - timedelta(days=policy.retention_days)


def is_expired(policy: ArchivePolicy, day: date, now: date) -> bool:
    """Whether the tables no longer keep `day`."""
    return day < oldest_kept(policy, now)


def oldest_open(policy: ArchivePolicy, now: date) -> date:
    """The oldest day in which late assessments are looked for; days before it are closed."""
    return now - timedelta(days=policy.late_days)


def leaves_store_before(policy: ArchivePolicy, now: date) -> date:
    """Days before this one may leave MLflow's own store; none when no such retention is declared.

    A whole day leaves, so its youngest trace is `after_days` old.
    """
    return date.min if policy.store_retention is None else now - timedelta(days=policy.store_retention.after_days)


def oldest_scored(policy: ArchivePolicy, now: date) -> date:
    """The oldest day that is scored: older traces have left the tables, or were deleted from MLflow.

    A score of such a day would be called for again and again, or bring a removed day back.
    """
    deletes = policy.store_retention is not None and policy.store_retention.how == "delete"
    return max(oldest_kept(policy, now), leaves_store_before(policy, now) if deletes else date.min)
