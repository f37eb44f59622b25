"""One run over one day: what is owed within its caps, what came in, what landed, and what is told meanwhile.

Lives here: the books of a run, and the choice of what it may pay for.
Add here: something a run counts.
Not here: the order of things (`local_scoring.py`), what is owed at all (`units.py`).
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from lifecycle_assets.records import ScorerVersion
from resources.redaction import Redaction
from resources.scoring.crew import Crew
from resources.scoring.publisher import Publisher
from resources.scoring.score_claims import Claims
from resources.scoring.score_rows import Scored, rows_of
from resources.scoring.score_table import ScoreTable
from resources.scoring.scoring import ScoreLimits
from resources.scoring.tasks import Said, Task
from resources.scoring.units import Owing, Units
from resources.worker import Progress

COMMIT_PAIRS, COMMIT_SECONDS, PAID_SECONDS = 4_500, 2.0, 1.0
"""Answers that land in one commit, and how long the first of them waits for it; what was paid for waits less."""

PUBLISH_SECONDS = 15.0
"""Seconds between two times answers that come slowly are brought to MLflow."""

REPORT_SECONDS = 3.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Owed:
    """A trace or session with the scorers that owe it a score, and what is known of those scores."""

    key: int
    members: tuple[str, ...]
    calls: frozenset[int]
    about: Mapping[int, Owing]


@dataclass
class Run:
    """One run over one day: what came in, what landed, and what is to be told."""

    day: date
    scorers: Sequence[ScorerVersion]
    table: ScoreTable
    progress: Progress
    redact: Redaction = ()
    crew: Crew | None = None
    claims: Claims | None = None
    written: int = 0
    calls: int = 0
    seconds: float = 0.0
    left: Counter[str] = field(default_factory=Counter)
    there: dict[tuple[str, int], tuple[int | None, bool]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    _owed: list[Owed] = field(default_factory=list)
    _todo: int = 0
    _done: int = 0
    _errors: int = 0
    _spent: float = 0.0
    _begun: float = 0.0
    _told: float = 0.0
    _waiting: list[Scored] = field(default_factory=list)
    _since: float = 0.0
    _patience: float = COMMIT_SECONDS
    _published: float = 0.0
    _landed: list[Any] = field(default_factory=list)
    _sessions: dict[str, str] = field(default_factory=dict)

    def begin(self, owed: Sequence[Owed], *, paid: bool) -> None:
        """Work on these from here on."""
        self._patience = PAID_SECONDS if paid else COMMIT_SECONDS
        self._owed = [Owed(-1, (), frozenset(), {})] * (1 + max(one.key for one in owed))
        for one in owed:
            self._owed[one.key] = one
            if any(about.size for about in one.about.values()):
                self._sessions[one.members[0]] = next(about.unit for about in one.about.values() if about.size)
        self._todo, self._done = sum(len(one.calls) for one in owed), 0
        self._errors, self._spent = 0, 0.0
        self._begun = self._told = time.monotonic()

    def claimed(self, parts: Sequence[tuple[int, list[list[Task]]]], claims: Claims) -> Iterator[list[Task]]:
        """The blocks of the parts nobody else works on; those of others are looked at once more at the end."""
        self.claims, others = claims, []
        for part, blocks in parts:
            if not (yield from self._of_part(part, blocks, claims)):
                others.append((part, blocks))
        for part, blocks in others:
            yield from self._of_part(part, blocks, claims)

    def _of_part(self, part: int, blocks: list[list[Task]], claims: Claims) -> Generator[list[Task], None, bool]:
        if not claims.claim(part):
            return False
        for block in self.still_owed(blocks, seconds=0):
            if not claims.holds(part):  # This process stood still for long, and another took over: the rest is its.
                break
            yield block
        return True

    def still_owed(self, blocks: Sequence[list[Task]], *, seconds: float = 1) -> Iterator[list[Task]]:
        """The blocks without what another process has landed meanwhile; looked at every so many seconds."""
        done: set[tuple[str, str, str]] = set()
        looked = time.monotonic() if seconds else 0.0
        for block in blocks:
            if time.monotonic() - looked > seconds:
                looked = time.monotonic()
                if self.table.is_news(self.day):
                    scores = self.table.scores(self.day)
                    columns = (scores.column(name).to_pylist() for name in ("trace_id", "name", "scorer_version"))
                    done = set(zip(*columns, strict=True))
            kept = [self._without(task, done) for task in block] if done else block
            if left := [task for task in kept if task.calls]:
                yield left

    def _without(self, task: Task, done: set[tuple[str, str, str]]) -> Task:
        about = self._owed[task.key].about
        calls = tuple(
            call
            for call in task.calls
            # What is tried again, or has grown, is in the table already.
            if about[call].former
            or about[call].size
            or (task.trace_ids[0], self.scorers[call].registered_name, self.scorers[call].version) not in done
        )
        self._todo -= len(task.calls) - len(calls)
        return replace(task, calls=calls)

    def take(self, said: Said | None) -> None:
        """Keep an answer until the next commit, tell how it goes, and stay the holder of what is claimed."""
        now = time.monotonic()
        if self.claims is not None:
            self.claims.renew()
        if said is not None:
            owed = self._owed[said.key]
            trace_id = owed.members[0]
            if said.kind == "gone":
                self.gone.add(trace_id)
                self._done += len(owed.calls)
            else:
                self._done += 1
                about = owed.about[said.call]
                if said.kind == "there":
                    self.there[trace_id, said.call] = (about.ended_ms, said.answer.code == "error")
                else:
                    self.calls += 1
                    self._errors += bool(said.answer.code)
                    self._spent += self.scorers[said.call].cost_per_call
                    self._since = self._since if self._waiting else now
                    at_ms = int(time.time() * 1000)
                    self._waiting.append(Scored(trace_id, self.scorers[said.call], said.answer, about, at_ms))
        if now - self._told > REPORT_SECONDS:
            self._told, rate = now, self._done / (now - self._begun)
            self.progress(
                f"{self.day}: {self._done} of {self._todo} scores{self._so_far()}, {rate:.0f} a second, "
                f"{(self._todo - self._done) / rate if rate else 0:.0f} s left"
            )

    def _so_far(self) -> str:
        """Errors, and what calls have cost, in words; empty where there is neither."""
        errors = f", {self._errors} errors" if self._errors else ""
        return errors + (f", {self._spent:.4g} USD" if self._spent else "")

    def is_due(self) -> bool:
        """Whether answers have waited long enough for a commit."""
        return bool(self._waiting) and (
            len(self._waiting) >= COMMIT_PAIRS or time.monotonic() - self._since > self._patience
        )

    def land(self) -> None:
        """Commit what came in."""
        if self._waiting:
            landed = self.table.land(self.day, rows_of(self.day, self._waiting, self.redact))
            self._waiting = []
            self.written += landed.num_rows
            if landed.num_rows:
                self._landed.append(landed)

    def is_long(self) -> bool:
        """Whether it is a while since answers were brought to MLflow."""
        return time.monotonic() - max(self._published, self._begun) > PUBLISH_SECONDS

    def end(self) -> None:
        """No more answers come: commit the rest, let go of what was claimed, and say what was not answered."""
        self.land()
        if self.claims is not None:
            self.claims.release()
        self.seconds += time.monotonic() - self._begun
        for call in self.crew.broken if self.crew else ():
            self.progress(
                f"{self.day}: {self.scorers[call].name} gave no answer several times in a row: what it owes is left "
                "for the next run"
            )
        self.progress(f"{self.day}: {self._done} of {self._todo} scores landed{self._so_far()}")

    def publish(self, publisher: Publisher) -> None:
        """Bring to MLflow what this run has landed."""
        import pyarrow as pa

        self._published = time.monotonic()
        if self._landed:
            rows, self._landed = pa.concat_tables(self._landed), []
            publisher.publish(self.day, rows, self._sessions, self.progress)


def within(
    run: Run, owing: Sequence[Sequence[Owing]], units: Mapping[ScorerVersion, Units], limits: ScoreLimits
) -> list[Owed]:
    """What is owed and may be paid for, newest first; what a cap leaves is counted in `run.left`."""
    asked = [not limits.scorers or scorer.name in limits.scorers for scorer in run.scorers]
    by_unit: dict[tuple[int, str, str], dict[int, Owing]] = {}
    for index, found in enumerate(owing):
        for one in found:
            if one.is_owed and asked[index]:
                by_unit.setdefault((-one.ended_ms, one.trace_id, one.unit), {})[index] = one
    chosen: list[Owed] = []
    cost = 0.0
    for (_, trace_id, _), about in sorted(by_unit.items()):
        full = limits.max_traces and len(chosen) >= limits.max_traces
        calls = set()
        for index in about:
            price = run.scorers[index].cost_per_call
            # Cents add up with errors of 1e-15: a cap that is met exactly is not exceeded.
            if full or (limits.max_cost_usd and price and cost + price > limits.max_cost_usd + 1e-9):
                run.left[run.scorers[index].registered_name] += 1
            else:
                calls.add(index)
                cost += price
        if calls:
            session = next((units[run.scorers[i]].members[trace_id] for i in calls if about[i].size), (trace_id,))
            chosen.append(Owed(len(chosen), session, frozenset(calls), about))
    return chosen
