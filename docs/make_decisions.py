"""`docs/decisions.md`, by running the gate and the decision: `python -m docs.make_decisions`.

Lives here: the cases, and their grouping into rows. `tests/test_docs.py` holds the page against the code.
Add here: another thing a decision depends on.
Not here: what decides (`lifecycle_assets/gate.py`, `lifecycle_assets/release/decision.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import product
from pathlib import Path

from lifecycle_assets.candidate.judging import eval_record
from lifecycle_assets.gate import Evidence, Outcome, judge
from lifecycle_assets.records import DatasetRecord, EvalRecord, ModelRecord
from lifecycle_assets.release.approval import Approval
from lifecycle_assets.release.decision import decide
from lifecycle_assets.spec_release import Gate
from resources.evaluator import Evaluated

PAGE = Path(__file__).resolve().parent / "decisions.md"
NOW = datetime(2026, 11, 20, tzinfo=UTC)
ROWS = 40
GOOD = [1.0] * ROWS

DIMENSIONS: Mapping[str, Sequence[str]] = {
    "evidence": ("fresh", "expired"),
    "mode": ("enforce", "dry_run", "disabled"),
    "threshold": ("reached", "missed", "no value"),
    "comparison": ("nobody is champion", "better", "not worse", "worse", "unsure, allow", "unsure, block"),
    "approval": (
        "not required",
        "nothing said",
        "approved",
        "rejected",
        "approved, expired",
        "approved, other evidence",
        "approved, other champion",
    ),
}
"""What a decision depends on, and the values it is run with."""

CHAMPIONS: Mapping[str, Sequence[float]] = {
    "better": [0.0] * 20 + [1.0] * 20,
    "not worse": GOOD,
    "worse": [2.0] * ROWS,
    "unsure, allow": [1.4, 0.7] * (ROWS // 2),
    "unsure, block": [1.4, 0.7] * (ROWS // 2),
}
"""What the champion scored on the rows on which the candidate scored 1, for each outcome of the comparison."""

OUTCOMES = {
    "promote": "becomes champion",
    "wait": "waits as challenger",
    "reject": "rejected; champion stays",
    "refuse": "refused; nothing moves",
}

Case = tuple[str, ...]
Group = tuple[tuple[str, ...], ...]


def outcome(case: Case) -> str:
    """What happens in a case: evaluated, judged and decided by the code that does it in a release."""
    said = dict(zip(DIMENSIONS, case, strict=True))
    gate = declared(said["mode"], said["threshold"], said["comparison"], said["approval"])
    age = gate.longest_age * 2 if said["evidence"] == "expired" else timedelta(hours=1)
    evaluation = evaluated(said["mode"], said["threshold"], said["comparison"])
    champion = said["comparison"] in CHAMPIONS
    decided = decide(
        replace(evaluation, at=(NOW - age).isoformat()),
        version="2",
        model_id="m-2",
        gate=gate,
        approval=approval(said["approval"], evaluation.evidence_digest),
        champion="1" if champion else "",
        champion_model_id="m-1" if champion else "",
        taken_back=(),
        now=NOW,
        waited_on="other" if said["approval"].endswith("other champion") else evaluation.decision_digest,
    )
    return OUTCOMES[decided.action]


def declared(mode: str, threshold: str, comparison: str, approval: str = "not required") -> Gate:
    """The gate of a case."""
    return Gate.model_validate(
        {
            "mode": mode,
            "thresholds": [{"metric": "score/mean", "at_least": 1.5 if threshold == "missed" else 0.5}],
            "incumbent": {"unsure": "allow" if comparison.endswith("allow") else "block"},
            "approval": "none" if approval == "not required" else "required",
        }
    )


@cache
def evaluated(mode: str, threshold: str, comparison: str) -> EvalRecord:
    """The decision of the gate on an evaluation of now, compared with a champion as `comparison` says."""
    gate = declared(mode, threshold, comparison)
    candidate = _run("m-2", [None] * ROWS if threshold == "no value" else GOOD)
    champion = _run("m-1", CHAMPIONS[comparison]) if comparison in CHAMPIONS and mode != "disabled" else None
    verdict = judge(candidate.evidence, gate, champion.evidence if champion else None)
    model = ModelRecord("m-2", "run", "experiment", "source", "commit")
    dataset = DatasetRecord("d", "questions", "digest", ROWS)
    return eval_record(model, dataset, candidate, champion, verdict, gate, actor="dagster", dagster_run_id="run")


def _run(model_id: str, values: Sequence[float | None]) -> Evaluated:
    keys = [f"row {number}" for number in range(len(values))]
    outcomes = {"score": [Outcome(value) for value in values]}
    evidence = Evidence(model_id, "digest", {"score": "1"}, len(values), outcomes, keys)
    return Evaluated(f"run of {model_id}", evidence, 0, reused=False, at=NOW.isoformat())


def approval(said: str, evidence: str) -> Approval:
    """What a person said, and of which evidence."""
    decision, _, what = said.partition(", ")
    if decision not in ("approved", "rejected"):
        return Approval()
    at = NOW - timedelta(days=300 if what == "expired" else 1)
    return Approval(decision, "ann", "why", at.isoformat(), "other" if what == "other evidence" else evidence)


def groups() -> Iterator[tuple[Group, str]]:
    """Cases with the same outcome put together, dimension by dimension, so that each case is in one row."""
    found: dict[str, set[Group]] = {}
    for case in product(*DIMENSIONS.values()):
        found.setdefault(outcome(case), set()).add(tuple((value,) for value in case))
    for number, values in reversed([*enumerate(DIMENSIONS.values())]):
        found = {result: _merged(some, number, values) for result, some in found.items()}
    for result in OUTCOMES.values():
        yield from ((group, result) for group in sorted(found[result], key=_place))


def _merged(some: set[Group], number: int, values: Sequence[str]) -> set[Group]:
    """Groups that differ in one dimension only, as one."""
    alike: dict[Group, set[str]] = {}
    for group in some:
        alike.setdefault((*group[:number], *group[number + 1 :]), set()).update(group[number])
    return {
        (*rest[:number], tuple(value for value in values if value in held), *rest[number:])
        for rest, held in alike.items()
    }


def _place(group: Group) -> list[list[int]]:
    return [[values.index(one) for one in held] for held, values in zip(group, DIMENSIONS.values(), strict=True)]


def render() -> str:
    """The whole page."""
    lines = [
        "# What is decided\n",
        "Made by `python -m docs.make_decisions`: every combination below was evaluated, judged and decided by the "
        "code that does it in a release, and those with the same outcome are one row. Every case is in exactly one "
        "row.\n",
        "- **evidence**: younger than `gate.max_age`, or older.",
        "- **mode**, **approval**: as `gate.mode` and `gate.approval` in `defs.yaml`; the gate's mode says what "
        "numbers may stop, so approval is asked for in every mode.",
        "- **threshold**: reached, missed, or the metric has no value.",
        "- **comparison**: with the champion on the same rows; *unsure* is too few rows to tell, with `unsure: allow` "
        "or `unsure: block`.",
        "- An approval counts for the evidence it was given for, for the decision the version waited on (with the "
        "champion of that time) and for `gate.approval_max_age`; one that does not count is taken back, and the "
        "version waits for a new one.\n",
        f"| {' | '.join(DIMENSIONS)} | outcome |",
        "|" + " --- |" * (len(DIMENSIONS) + 1),
    ]
    for group, result in groups():
        cells = [_cell(held, values) for held, values in zip(group, DIMENSIONS.values(), strict=True)]
        lines.append(f"| {' | '.join(cells)} | {result} |")
    lines.append(
        "\nBesides: evidence about another model, evidence held against another gate than `defs.yaml` declares now, a "
        "version that was not compared with the present champion, rows that were changed after the verdict, and "
        "evidence on which a champion was taken back by a rollback are refused in every mode, whatever was approved. "
        "A version that is champion already stays, and is not asked to be approved again."
    )
    return "\n".join(lines) + "\n"


def _cell(held: Sequence[str], values: Sequence[str]) -> str:
    if len(held) == len(values):
        return "any"
    missing = [value for value in values if value not in held]
    if len(missing) == 1 and len(values) > 3:
        return f"any but *{missing[0]}*"
    return " / ".join(f"*{one}*" for one in held)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"{PAGE.name}: {len(PAGE.read_text(encoding='utf-8').splitlines())} lines")
