"""When a production trace is taken.

Lives here: the completion buffer as a moment. Add here: another rule of time on traces. Not here: reading them.
"""

import time

from lifecycle_assets.spec_file import Agent


def settled_before_ms(agent: Agent) -> int:
    """Epoch milliseconds before which a trace must have ended to be taken."""
    return int((time.time() - agent.spec.archive.settle_minutes * 60) * 1000)
