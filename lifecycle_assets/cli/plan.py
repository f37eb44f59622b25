"""`lifecycle plan`: declared against actual, and what would change.

Lives here: one function a thing that is declared, each giving the differences it sees.
Add here: a thing that is declared and can differ.
Not here: changing anything; where stages stand (`status.py`), versions, aliases and deployment (`plan_release.py`).
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from lifecycle_assets.candidate.source import observe_source
from lifecycle_assets.cli.agents import one_agent
from lifecycle_assets.cli.differences import BARRED, STANDS, UNCHANGED, Difference
from lifecycle_assets.cli.output import json_option, mark, print_json, print_line
from lifecycle_assets.cli.plan_release import (
    alias_differences,
    deployment_differences,
    scorer_drifts,
    version_differences,
)
from lifecycle_assets.cli.sources import Sources, guarded
from lifecycle_assets.records import DatasetRecord, ModelRecord, ScorerVersion, SourceRecord
from lifecycle_assets.spec_file import Agent, dataset_rows
from resources.dataset_rows import canonical, rows_of
from resources.eval_dataset import find_dataset
from resources.platform import Platform
from resources.scorer_source import DeclaredScorer, declared_scorers
from resources.tables import LOCAL, TABLES

LATER = frozenset({"quarantine"})
"""Tables that are made only when something goes wrong."""


def agent_plan(agent: Agent, sources: Sources) -> dict[str, dict[str, Any]]:
    """By thing: `state`, and `differences` when it could be read."""

    def facts(read: Callable[[Agent, Sources], list[Difference]]) -> dict[str, Any]:
        found = read(agent, sources)
        changes = any(one.change not in (UNCHANGED, BARRED) for one in found)
        return {"differences": [asdict(one) for one in found], **({"state": "differs"} if changes else {})}

    return {thing: guarded(sources, partial(facts, read)) for thing, read in THINGS.items()}


def _model(agent: Agent, sources: Sources) -> list[Difference]:
    return [
        model_difference(
            agent.name,
            observe_source(agent),
            *(r.record for r in sources.records(agent, "logged_model", ModelRecord, limit=1)),
        )
    ]


def model_difference(name: str, source: SourceRecord, model: ModelRecord | None = None) -> Difference:
    """The source against the newest logged model."""
    job = f"{name}_release"
    if model is None:
        return Difference("logged_model", "new", f"No model was logged; the source {source.digest} would be.", job)
    if model.source_digest != source.digest:
        text = (
            f"The source is {source.digest}, {model.model_id} was logged from {model.source_digest}: "
            "a new model would be logged."
        )
        return Difference("logged_model", "changed", text, job)
    return Difference("logged_model", UNCHANGED, f"{model.model_id} is of this source.")


def _dataset(agent: Agent, sources: Sources) -> list[Difference]:
    declared = agent.spec.eval.dataset
    job = f"{agent.name}_release"
    recorded = sources.latest(agent, "eval_dataset", DatasetRecord)
    experiment = sources.experiment(agent)
    if not declared.endswith(".jsonl"):
        found = find_dataset(sources.platform, declared) if experiment else None
        if found is None:
            return [
                Difference(
                    declared, "missing", f"MLflow has no dataset '{declared}': create it, or name a .jsonl file.", job
                )
            ]
        return [Difference(declared, UNCHANGED, f"{len(rows_of(found))} records in MLflow.")]
    wanted = {canonical(row["inputs"]): row["expectations"] for row in dataset_rows(agent.path(declared))}
    dataset = find_dataset(sources.platform, recorded.record.name, experiment) if experiment and recorded else None
    if dataset is None:
        return [Difference(declared, "new", f"{len(wanted)} records would be written to MLflow.", job)]
    held = {row.key: row for row in rows_of(dataset)}
    added = sum(1 for key in wanted if key not in held)
    changed = sum(1 for key, row in held.items() if key in wanted and row.declared != wanted[key])
    gone = sum(1 for key, row in held.items() if key not in wanted and row.declared is not None)
    reviewed = sum(1 for row in held.values() if row.declared is None)
    if added or changed or gone:
        text = f"{added} records would be added, {changed} changed, {gone} removed; {len(held)} are in MLflow."
        return [Difference(declared, "changed", text, job)]
    return [
        Difference(
            declared, UNCHANGED, f"{len(wanted)} records of the file are in MLflow, {reviewed} more from reviewers."
        )
    ]


def _scorers(agent: Agent, sources: Sources) -> list[Difference]:
    declared = declared_scorers(agent, sources.platform.environment)
    registered = sources.scorers.registered(agent) if sources.experiment(agent) else []
    active = {scorer.name for scorer in declared}
    waiting = [scorer for scorer in agent.spec.scorers if scorer.name not in active]
    return [
        *scorer_drifts(agent, sources, registered),
        *scorer_differences(agent.name, declared, registered),
        *(
            Difference(one.name, UNCHANGED, f"Left out: the environment variable {one.requires} is not set.")
            for one in waiting
            if one.name not in {scorer.name for scorer in registered}
        ),
    ]


def scorer_differences(name: str, declared: list[DeclaredScorer], registered: list[ScorerVersion]) -> list[Difference]:
    """Each declared scorer against the registered copy, then the registered ones that would be stopped."""
    job, known = f"{name}_scorer_backfill", {scorer.registered_name: scorer for scorer in registered}
    found = [_scorer(scorer, known.get(scorer.registered_name), job) for scorer in declared]
    for scorer in registered:
        if scorer.registered_name not in {one.registered_name for one in declared}:
            found.append(
                Difference(
                    scorer.name, "stopped", f"{scorer.registered_name} is not declared: it would be stopped.", job
                )
            )
    return found


def _scorer(declared: DeclaredScorer, known: ScorerVersion | None, job: str) -> Difference:
    spec = declared.spec
    if known is None:
        text = f"{declared.registered_name} would be registered with rate {spec.sample_rate:g}."
        return Difference(declared.name, "new", text, job)
    changes = []
    if known.digest != declared.digest:
        changes.append("the code changed: a new version would be registered, and its scores backfilled")
    if known.sample_rate != spec.sample_rate:
        changes.append(f"the rate would go from {known.sample_rate:g} to {spec.sample_rate:g}, the version stays")
    if known.filter != spec.filter:
        changes.append(f"the filter would go from '{known.filter}' to '{spec.filter}', the version stays")
    if known.cost_per_call != spec.cost_per_call:
        changes.append(f"the cost a call would go from {known.cost_per_call:g} to {spec.cost_per_call:g} USD")
    if changes:
        sentence = "; ".join(changes)
        return Difference(declared.name, "changed", f"{declared.registered_name}: {sentence}.", job)
    return Difference(
        declared.name, UNCHANGED, f"{declared.registered_name} version {known.version}, rate {known.sample_rate:g}."
    )


def _tables(agent: Agent, sources: Sources) -> list[Difference]:
    prefix = agent.spec.table_prefix
    job_of = {"promotions": f"{agent.name}_release"}
    found = []
    for table in TABLES:
        version = sources.archive.version(prefix, table)
        if version < 0 and (table in LATER or (sources.platform.is_databricks and table in LOCAL)):
            found.append(Difference(table, UNCHANGED, f"{prefix}{table} is not there, and nothing needs it."))
        elif version < 0:
            text = f"{prefix}{table} is not there; the first rows would make it."
            found.append(Difference(table, "missing", text, job_of.get(table, f"{agent.name}_monitor")))
        else:
            found.append(Difference(table, UNCHANGED, f"{prefix}{table} is there, Delta version {version}."))
    return found


def _grants(agent: Agent, sources: Sources) -> list[Difference]:
    missing = sources.tracing.missing_grants(agent)
    if missing:
        return [Difference("grants", "missing", f"An owner has to run: {statement}") for statement in missing]
    if missing is not None:
        return [Difference("grants", UNCHANGED, "Every grant that is needed is held.")]
    count = len(agent.spec.agent.resources)
    text = f"The platform '{sources.platform.name}' grants nothing; {count} declared resources are noted on the model."
    return [Difference("grants", UNCHANGED, text)]


THINGS: dict[str, Callable[[Agent, Sources], list[Difference]]] = {
    "logged_model": _model,
    "eval_dataset": _dataset,
    "versions": version_differences,
    "aliases": alias_differences,
    "deployment": deployment_differences,
    "scorers": _scorers,
    "tables": _tables,
    "grants": _grants,
}
"""Thing to its reader, in the order of the lifecycle."""


@click.command()
@click.argument("agent")
@json_option
def plan(agent: str, as_json: bool) -> int:
    """Declared against actual; changes nothing."""
    found = agent_plan(one_agent(agent), Sources(Platform.from_env()))
    differences = [
        one for thing in found.values() for one in thing.get("differences", []) if one["change"] not in STANDS
    ]
    if as_json:
        print_json({"agent": agent, "changes": len(differences), "things": found})
    else:
        for name, thing in found.items():
            click.echo(f"{name}: {mark(thing['state'])}")
            if "why" in thing:
                print_line(f"  {thing['why']}")
            for one in thing.get("differences", []):
                print_line(
                    f"  {one['change']:<12}{one['what']}: {one['text']}"
                    + (f" [job {one['job']}]" if one["job"] else "")
                )
        print_line(f"{len(differences)} would change; nothing was changed.")
    return 1 if any(thing["state"] == "could not read" for thing in found.values()) else 0
