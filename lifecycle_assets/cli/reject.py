"""`lifecycle reject`: a person says no to the version that waits.

Lives here: the command. Add here: nothing. Not here: what it does (`approve.py`).
"""

import click

from lifecycle_assets.cli.approve import options, run
from lifecycle_assets.release.approval import REJECTED


@click.command()
@options
def reject(agent: str, version: str, reason: str, by: str, as_json: bool) -> None:
    """Reject the version that waits as challenger, on the evidence it waits on.

    The champion stays, and the version does not wait any more. Repeating it changes nothing.
    """
    run(agent, version, REJECTED, by=by, reason=reason, as_json=as_json)
