"""What a tick opens, and only when it needs it: Dagster's instance, and the platform's gateways.

Lives here: opening them. Add here: another thing that costs more to open than a tick to ask.
Not here: what is asked of them, which class a gateway is (`resources/gateways.py`).

Dagster opens the instance anew for each tick: it reads its own migrations three times over, 40 to 50 ms of CPU, where
a tick without news takes 5. So one instance is opened for all ticks of a code server, as the daemon has one for all
of its own. A sensor that declares resources has the instance opened before it is called, so none does: it asks for its
gateways here, behind its cheap look.
"""

import threading
from typing import Any

import dagster as dg

_opening = threading.Lock()
_opened: list[tuple[Any, dg.DagsterInstance]] = []
"""The settings of the instance that was opened last, and the instance. It stays open: other ticks may be using it."""


def instance_of(context: dg.SensorEvaluationContext) -> dg.DagsterInstance:
    """The tick's instance: the one of its context, opened once for all ticks of this process."""
    settings = context.instance_ref
    if settings is None:  # Given to the context, as in tests and by commands.
        return context.instance
    with _opening:
        if not _opened or _opened[0][0] != settings:
            _opened[:] = [(settings, dg.DagsterInstance.from_ref(settings))]
        return _opened[0][1]


def gateway(context: dg.SensorEvaluationContext, key: str) -> Any:
    """The gateway of that resource key, on this process's platform."""
    from resources.gateways import GATEWAYS

    with dg.build_resources({key: GATEWAYS[key]}, instance=instance_of(context)) as made:
        return getattr(made, key)
