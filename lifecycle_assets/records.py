"""The records that travel along the edges of the graph.

Lives here: small frozen values (ids, digests, verdicts), each naming the evidence it rests on, and their JSON form.
Add here: a record when an asset gains a consumer that needs more than "it was materialized".
Not here: rows of data (they are in the tables), reading records from Dagster (`edges.py`), anything with behaviour.

A record is read back by `from_json` with every field required: a record written by another release that
lacks a field is refused rather than completed with guesses.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


def digest(value: object, *, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Record:
    """What every record can do: go to JSON and come back."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, readable in the metadata of a materialization."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The record of `value`. Raises `ValueError` naming the fields that are missing."""
        names = {field.name for field in fields(cls)}
        missing = sorted(names - set(value))
        if missing:
            raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}")
        return cls(**{name: value[name] for name in names})


@dataclass(frozen=True)
class SourceRecord(Record):
    """The agent's source as observed: a digest over code, config and requirements, and the git commit."""

    digest: str
    git_commit: str


@dataclass(frozen=True)
class DatasetRecord(Record):
    """The evaluation dataset: MLflow id and name, digest over its records, number of records."""

    dataset_id: str
    name: str
    digest: str
    rows: int


@dataclass(frozen=True)
class ModelRecord(Record):
    """A logged model, the run that logged it and the source digest it was logged from."""

    model_id: str
    run_id: str
    experiment_id: str
    source_digest: str
    git_commit: str


NOT_EVIDENCE = (
    "run_id",
    "git_commit",
    "at",
    "actor",
    "dagster_run_id",
    "incumbent_run_id",
    "incumbent_model_id",
    "incumbent_rows_digest",
    "findings",
    "comparison",
    "reasons",
)
"""Fields of an evaluation's record that its evidence digest leaves out."""


@dataclass(frozen=True)
class EvalRecord(Record):
    """A decision of the gate on one logged model, and all it rests on.

    `scorers` maps scorer name to the digest of its source; `metrics` maps `<scorer>/<aggregation>` to its value;
    `verdict` is `passed`, `failed`, `dry_run` or `ungated`; `reasons` are sentences; `at` is when the evaluation
    started, UTC ISO 8601. `findings` holds, for each threshold, what `gate.Finding` says, the paired comparison
    included; `comparison` is its outcome over all metrics: `none` (nobody to compare with), `better`, `not_worse`,
    `worse` or `unsure`. `rows_digest` names the outcomes of all rows as MLflow keeps them, `incumbent_rows_digest`
    those of the champion. `source_digest` and `git_commit` name the code; `actor` and `dagster_run_id` who decided.
    """

    run_id: str
    model_id: str
    source_digest: str
    git_commit: str
    dataset_name: str
    dataset_digest: str
    scorers: dict[str, str]
    rows: int
    rows_digest: str
    errors: int
    metrics: dict[str, float]
    verdict: str
    reasons: list[str]
    findings: list[dict[str, Any]]
    comparison: str
    incumbent_run_id: str
    incumbent_model_id: str
    incumbent_rows_digest: str
    gate_digest: str
    at: str
    actor: str
    dagster_run_id: str

    @property
    def evidence_digest(self) -> str:
        """Names this evidence: changes when the model, the dataset, a scorer, a score, the gate or the verdict does.

        Not part of it: when it was taken, by whom, in which run and at which commit of the same source, so that taking
        it again with the same scores makes nothing new of it; and the champion it was compared with, so that reading
        a finished evaluation back after its model became champion gives the same digest.
        """
        return digest({key: value for key, value in self.to_json().items() if key not in NOT_EVIDENCE})

    @property
    def decision_digest(self) -> str:
        """Names the whole decision, the comparison included; who took it when is left out."""
        about = {k: v for k, v in self.to_json().items() if k not in ("at", "actor", "dagster_run_id")}
        return digest(about)


@dataclass(frozen=True)
class VersionRecord(Record):
    """A registered version and the evidence it was registered on."""

    name: str
    version: str
    model_id: str
    eval_run_id: str
    dataset_digest: str
    evidence_digest: str


@dataclass(frozen=True)
class ChampionRecord(Record):
    """Who is champion, who was before, and who waits for approval (each empty when nobody is)."""

    name: str
    version: str
    model_id: str
    previous: str
    challenger: str
    evidence_digest: str
    promoted_at: str


@dataclass(frozen=True)
class AliasMove(Record):
    """One change of aliases, written down before it is carried out.

    `before` and `after` map alias to version for the aliases this is about; the empty version in `after` removes the
    alias. `at` is UTC ISO 8601 with microseconds and names the move; `decision` is `passed`, `dry_run`, `ungated`,
    `waiting`, `approved`, `rejected` or `rolled_back`; `reason` is one sentence of at most `REASON_CHARACTERS`.
    `model_id`, `eval_run_id` and the digests name the evidence of the version the move is about.
    """

    at: str
    decision: str
    before: dict[str, str]
    after: dict[str, str]
    model_id: str
    eval_run_id: str
    evidence_digest: str
    decision_digest: str
    actor: str
    reason: str
    dagster_run_id: str


REASON_CHARACTERS = 500
"""Characters of a reason: a move has to fit into one parameter of an MLflow run (6000 characters)."""


@dataclass(frozen=True)
class DeploymentRecord(Record):
    """What was handed to the runtime: target, place of the hand-off, version and model."""

    target: str
    location: str
    version: str
    model_id: str
    handed_at: str


@dataclass(frozen=True)
class ScorerVersion(Record):
    """A registered scorer: declared name, registered name, version, digest of its source, rate, filter, level."""

    name: str
    registered_name: str
    version: str
    digest: str
    sample_rate: float
    filter: str
    level: str
    cost_per_call: float


@dataclass(frozen=True)
class ScorersRecord(Record):
    """The registered set, and the champion's model it was registered under."""

    digest: str
    model_id: str
    scorers: list[dict[str, Any]]

    @property
    def versions(self) -> list[ScorerVersion]:
        """The scorers as records."""
        return [ScorerVersion.from_json(scorer) for scorer in self.scorers]


@dataclass(frozen=True)
class ScoresRecord(Record):
    """Coverage of one day, per registered scorer name: `{version, sampled, scored, errored, waiting, on_time, due}`.

    In traces (sessions for a session scorer), see `monitoring/coverage.py`; with the `rate` and `filter` of then.
    """

    day: str
    scorers_digest: str
    traces: int
    coverage: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ArchiveRecord(Record):
    """What the tables hold of one day: rows, and the newest trace seen (epoch milliseconds)."""

    day: str
    traces: int
    spans: int
    assessments: int
    watermark_ms: int


@dataclass(frozen=True)
class UpkeepRecord(Record):
    """One upkeep of the tables: files they have now, days rewritten, files deleted, rows removed as too old.

    And of MLflow's own store: traces that left it, and days that were due and have to wait.
    """

    files: int
    rewritten_days: int
    deleted_files: int
    removed_rows: int
    released_traces: int
    waiting_days: int


@dataclass(frozen=True)
class ArchivedUntil(Record):
    """When a day was archived last, epoch milliseconds; traces that had settled by then are in the tables."""

    at_ms: int


@dataclass(frozen=True)
class SessionRecord(Record):
    """A labeling session: id, name, its traces, the champion version it was opened under, and why."""

    session_id: str
    name: str
    trace_ids: list[str]
    champion_version: str
    reason: str
    opened_at: str


@dataclass(frozen=True)
class LabelsRecord(Record):
    """Labels as synced: completed items, labels, and the dataset they were merged into.

    `completions` is a digest of the completed items of the newest sessions: the sensor compares it with what is there.
    """

    session_id: str
    completions: str
    completed: int
    labels: int
    merged: int
    dataset_digest: str
