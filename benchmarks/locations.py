"""Code locations to compare with: an empty one, and seven assets that do nothing but import mlflow.

Lives here: what the benchmarks load. Add here: another thing to compare with. Not here: measuring (`run.py`).
"""

import dagster as dg

STEPS = 7
"""As many as a release has."""


def empty() -> dg.Definitions:
    """A code location with nothing in it."""
    return dg.Definitions()


def _chain() -> list[dg.AssetsDefinition]:
    assets: list[dg.AssetsDefinition] = []
    for number in range(STEPS):

        @dg.asset(name=f"step_{number}", deps=assets[-1:])
        def step() -> None:
            import mlflow  # noqa: F401 what a step of a release costs at the least

        assets.append(step)
    return assets


def release() -> dg.Definitions:
    """The release half as no-ops, once for each executor."""
    assets = _chain()
    jobs = [
        dg.define_asset_job("in_process", executor_def=dg.in_process_executor),
        dg.define_asset_job("multiprocess", executor_def=dg.multiprocess_executor),
    ]
    return dg.Definitions(assets=assets, jobs=jobs)
