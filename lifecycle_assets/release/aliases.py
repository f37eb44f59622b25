"""The aliases of a registered model that this graph keeps.

Lives here: their names and what they mean.
Add here: an alias people may rely on.
Not here: moving one (`moves.py`), when one may move (`decision.py`).
"""

CHAMPION = "champion"
"""The version users meet."""

PREVIOUS = "previous"
"""Who was champion before: every move of `champion` sets it, and it has no row of its own in `promotions`."""

CHALLENGER = "challenger"
"""The version that passed its gate and waits for a person's approval."""
