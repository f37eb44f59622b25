"""A tick ends in time whatever the platform does."""

import threading
import time

import pytest

from lifecycle_assets.refused import Refused
from sensors.bounded import bounded


def test_a_hanging_tick_fails_with_a_sentence() -> None:
    release = threading.Event()
    began = time.monotonic()
    with pytest.raises(Refused, match=r"stopped after 0\.2 s.*lifecycle doctor"):
        bounded(lambda: release.wait(30), seconds=0.2)()
    assert time.monotonic() - began < 5
    release.set()


def test_results_and_errors_pass_through() -> None:
    def refuse() -> None:
        raise Refused("no")

    assert bounded(lambda x: x + 1)(1) == 2
    with pytest.raises(Refused, match=r"^no$") as refused:
        bounded(refuse)()
    assert refused.value.__cause__ is None, "a sentence, without the trace of what led to it"


def test_a_known_fault_is_a_sentence() -> None:
    def locked() -> None:
        raise OSError("database is locked")

    with pytest.raises(Refused, match="locked by another process"):
        bounded(locked)()
