"""Start-up: what loading the code location adds to `import dagster`.

Lives here: three processes: dagster alone, an empty code location, ours with the sample agent.
Add here: another way to start. Not here: which modules may be imported at load (`tests/test_startup.py`).

`load` compares with `import dagster` alone, which is the goal. `load_empty` compares with a code location that is
loaded the way Dagster documents (`load_from_defs_folder`) and has nothing in it: that price is Dagster's own.
"""

from benchmarks.job import Job, Turn


def dagster_alone(turn: Turn) -> None:
    """Only the import."""
    with turn.timed():
        import dagster  # noqa: F401 what is measured


def empty_location(turn: Turn) -> None:
    """A folder of definitions with nothing in it."""
    package = turn.folder / "empty_location"
    (package / "defs").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "defs" / "__init__.py").touch()
    (turn.folder / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "empty_location"\n'
    )
    import sys

    sys.path.insert(0, str(turn.folder))
    with turn.timed():
        import dagster as dg

        dg.load_from_defs_folder(path_within_project=package).get_repository_def()


def ours(turn: Turn) -> None:
    """The code location as it is shipped."""
    with turn.timed():
        import dagster  # noqa: F401 what is measured

        from lifecycle_assets.definitions import defs

        defs().get_repository_def()


JOBS = (
    Job(
        name="load",
        meaning="Loading the code location with docs_agent, against `import dagster` alone.",
        goal="adds at most 100 ms and 10 MB",
        baseline=dagster_alone,
        ours=ours,
        rounds=9,
        corpus=False,
    ),
    Job(
        name="load_empty",
        meaning="The same, against loading a code location with nothing in it.",
        goal="",
        baseline=empty_location,
        ours=ours,
        rounds=9,
        corpus=False,
    ),
)
