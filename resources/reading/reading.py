"""Which reader reads the production traces of an experiment.

Lives here: picking the reader, and saying once why it is not the fast one.
Add here: a further kind of store that is read without MLflow's API.
Not here: the readers (`database_reader.py`, `public_reader.py`), what they answer (`trace_reader.py`).
"""

from lifecycle_assets.refused import Refused
from resources.explain import without_password
from resources.platform import Platform
from resources.reading.database import KNOWN_REVISIONS, database_of
from resources.reading.trace_reader import TraceReader
from resources.worker import Progress


def open_reader(platform: Platform, experiment_id: str, progress: Progress) -> TraceReader:
    """The database's reader where its schema is one we tested, else that of MLflow's API; `progress` hears why.

    Both give the same rows. Raises `Refused` when the database cannot be read.
    """
    if not experiment_id.isdecimal():
        raise Refused(f"experiment id {experiment_id[:40]!r} is none of MLflow's: it is a number.")
    database = database_of(platform)
    if database is not None:
        revision = database.revision()
        if revision in KNOWN_REVISIONS:
            from resources.reading.database_reader import DatabaseReader

            return DatabaseReader(platform, database, experiment_id, revision)
        _say_once(progress, _why_not(platform, revision))
    from resources.reading.public_reader import PublicReader

    return PublicReader(platform, experiment_id)


def _why_not(platform: Platform, revision: str) -> str:
    where = without_password(platform.tracking_uri)
    return (
        f"{where}: its schema {revision[:40] or '(none)'} is not one we tested ({', '.join(KNOWN_REVISIONS)}), so "
        "traces are read by MLflow's API, which gives the same rows more slowly."
    )


_said: set[str] = set()


def _say_once(progress: Progress, sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        progress(sentence)
