"""The process that reads traces by MLflow's API beside the one that asked for them.

Lives here: `python -m resources.reading.public_child`: opening the store, reading pages, sending them.
Add here: nothing of which page is read by whom.
Not here: starting it (`public_pages.py`), reading (`public_reader.py`).

It ends when nobody asks or takes any more, and with a fault: the one that asked then reads that page itself.
"""

import json
import os
import re
import sys
from typing import IO

from resources.platform import Platform
from resources.reading.arrow_pipe import send
from resources.reading.few_collections import few_collections
from resources.reading.public_reader import PublicReader
from resources.redaction import Text

READY = b"ready\n"
_MANY = 1_000


def main(given: IO[bytes], said: IO[bytes]) -> None:
    """Answer requests, one a line: the first says of what, the others ids and starts of a page each."""
    asked = json.loads(given.readline())
    text = Text([(re.compile(pattern, flags), to) for pattern, flags, to in asked["redact"]])
    reader = PublicReader(Platform.from_env(), asked["experiment_id"])
    reader.list(0, 1, settled_before_ms=0)  # Imports MLflow and opens the store.
    said.write(READY)
    said.flush()
    with few_collections(_MANY):
        for line in given:
            page = reader.page(*json.loads(line), text)
            assert page.spans is not None
            lost = [[one.trace_id, one.request_ms, one.reason] for one in page.quarantined]
            send(said, {"quarantined": lost}, [page.traces, page.assessments, page.spans])


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints is no answer.
    try:
        main(sys.stdin.buffer, answers)
    except BrokenPipeError:
        sys.stderr.close()  # Nobody reads any more.
