"""`docs/databricks.md`: each capability with the requests it makes: `python -m docs.make_databricks`.

Lives here: the page around what `tests/databricks/life.py` saw. `tests/databricks/test_parity.py` holds the page
against a run.
Add here: something only a real workspace can settle, once it was found.
Not here: how to set a workspace up (`how-to/databricks.md`).
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parent / "databricks.md"

BY_TIME = "GET /api/2.0/sql/warehouses/{id}"
"""A request that is made or not by how long the steps before took."""

_HEAD = """# What is asked of a Databricks workspace

Made by `python -m docs.make_databricks` from one run of the whole life of a small agent, through the unmodified
clients, against the workspace emulated in `tests/workspace/`. Requests are shown by route, once each, sorted; how
often they are made depends on pages and polls. Not shown is `GET /api/2.0/sql/warehouses/{id}`: every step that reads
traces asks whether the warehouse runs, when that was last seen more than a minute ago. How to set a workspace up:
[how-to/databricks.md](how-to/databricks.md).
"""

_OPEN = """## What only a real workspace can settle

The emulator is written from the sources of the clients and the public documentation. It cannot say:

- exact error texts, and some codes (`RESOURCE_ALREADY_EXISTS` or `ALREADY_EXISTS`, the 409s of managed evals, the code
  of the limit of 20 scorers);
- the columns of the tables that Databricks fills: they are looked at with `DESCRIBE` before they are read, and a
  missing one is named;
- whether the monitoring job writes the scorer's version on its assessments, and how versions are counted: without a
  version the time of the assessment decides;
- whether registering a scorer creates the monitor that a backfill needs, and whether a second backfill is refused
  while one runs;
- whether adding items to a labeling session twice makes them twice, and what a cloned trace says of its origin;
- whether an experiment's search returns traces that live in Unity Catalog;
- that a parameter of a run is written once also when two processes write it in the same moment: it is documented, and
  the ledger of aliases rests on it;
- how many tags a model version may have, and who may see that a tag was set by whom;
- sign-in beyond a token (OAuth is the SDK's own), storage credentials of S3, ADLS and GCS, inference of a served
  model, Apps' own runtime, judges' answers.
"""


def render(requests: Mapping[str, Sequence[str]]) -> str:
    """The page: `requests` maps a step of the life to its `METHOD route`s in order."""
    lines = [_HEAD]
    for step, made in requests.items():
        lines.append(f"## {step}\n")
        shown = sorted({route(one) for one in made} - {BY_TIME}, key=lambda one: (one.split(" ")[1], one))
        lines += [f"- `{one}`" for one in shown] or ["No request."]
        lines.append("")
    return "\n".join([*lines, _OPEN])


def route(request: str) -> str:
    """`METHOD route` with short names for the long prefixes."""
    return re.sub(r"\{(\w+):path\}", r"{\1}", request)


def main() -> None:
    """Run the life and write the page."""
    from tests.databricks.life import on_a_new_workspace

    with tempfile.TemporaryDirectory() as folder:
        seen = on_a_new_workspace(Path(folder))
    failed = {step: seen.why[step] for step, well in seen.steps.items() if not well}
    if failed:
        raise SystemExit(f"The life did not succeed: {json.dumps(failed, indent=1)}")
    PAGE.write_text(render(seen.requests), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
