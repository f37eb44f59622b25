"""Progress of something long: one line that changes where there is a terminal, else a line now and then.

Lives here: showing lines of progress on standard error.
Add here: nothing. Not here: what is told (`lifecycle_assets/monitoring/listening.py`), tables (`output.py`).
"""

import shutil
import sys
import time
from contextlib import suppress
from typing import TextIO

from lifecycle_assets.cli.output import clean

PLAIN_SECONDS = 15.0
"""Seconds between two lines where every line stays, as in a file."""

_ERASE = "\r\x1b[2K"


class ProgressLine:
    """Shows the newest of some lines. `lasting` prints one that stays.

    Passing lines are told in the middle of work that may have been paid for: where nobody reads them any more, it goes
    on. Lasting ones are told in between.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._changes = self._stream.isatty()
        self._is_open = False
        self._shown = 0.0
        self._held = ""

    def passing(self, line: str) -> None:
        """Show a line until the next one comes; in a file, at most one each `PLAIN_SECONDS`."""
        with suppress(OSError):
            self._pass(line)

    def lasting(self, line: str) -> None:
        """Print a line that stays, after the last one that was told and not shown."""
        self.end()
        self._write(f"{clean(line)}\n")

    def end(self) -> None:
        """Have the newest line stay: something else is printed now."""
        if self._is_open:
            self._write("\n")
        elif self._held:
            self._write(f"  {clean(self._held)}\n")
        self._is_open, self._held, self._shown = False, "", 0.0

    def _pass(self, line: str) -> None:
        now = time.monotonic()
        if self._changes:
            wide = shutil.get_terminal_size().columns - 1
            self._write(_ERASE + "  " + clean(line)[: max(wide - 2, 1)])
            self._is_open = True
        elif not self._shown or now - self._shown >= PLAIN_SECONDS:
            self._shown, self._held = now, ""
            self._write(f"  {clean(line)}\n")
        else:
            self._held = line

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
