"""The group `release`: registered version, champion, deployment.

Lives here: the assets that decide what users meet, thin over `promotion.py`, `rollback.py` and the gateways.
Add here: a stage between a passed evaluation and the runtime.
Not here: the conditions of a move (`decision.py`), carrying it out (`moves.py`).
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from lifecycle_assets.edges import lifecycle_asset, result, upstream
from lifecycle_assets.refused import Refused
from lifecycle_assets.release.aliases import CHAMPION
from lifecycle_assets.release.deployment import deployment
from lifecycle_assets.spec_file import Agent
from lifecycle_assets.spec_release import Gate
from resources.needs import AliasLedger, Archive, Evaluator, ModelRegistry

if TYPE_CHECKING:
    from lifecycle_assets.records import AliasMove, EvalRecord
    from lifecycle_assets.release.moves import AliasMover, State

GROUP = "release"


class ChampionConfig(dg.Config):
    """What a run of `champion_alias` is about. Left empty, it decides on the version registered last."""

    rollback: bool = Field(default=False, description="Take the champion back instead of deciding on a version.")
    to: str = Field(
        default="",
        description="With rollback: the former champion to go back to, default the one before. Without: the waiting "
        "version to decide on, default the version registered last.",
    )
    reason: str = Field(default="", description="Why the champion is taken back; required with rollback.")
    taken_back: str = Field(
        default="", description="With rollback: the version that is meant; when another is champion by then, none is."
    )


def release_assets(agent: Agent) -> list[dg.AssetsDefinition]:
    """The assets of this group for one agent."""
    return [uc_model_version(agent), champion_alias(agent), deployment(agent)]


def uc_model_version(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/uc_model_version`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["logged_model", "eval_results"],
        kinds={"mlflow"},
        blocking={
            "loads_back": "The version, loaded from the registry in a process of its own, answers the input example.",
            "linked_to_logged_model": "The version names the logged model it was registered from.",
        },
        pool=f"{agent.name}_registry",
    )
    def uc_model_version(
        context: dg.AssetExecutionContext,
        registry: dg.ResourceParam[ModelRegistry],
        evaluator: dg.ResourceParam[Evaluator],
    ) -> dg.MaterializeResult:
        """The registered version of a logged model whose evaluation passed.

        The rows of the evaluation are read anew first: changed ones are refused. The version's tags name the model,
        the evaluation, the evidence, the dataset digest, the git commit and this run; an approval of other evidence
        is taken back. Safe to run again: one version a logged model, found by its tag; an interrupted registration is
        completed.
        """
        from lifecycle_assets.records import EvalRecord, ModelRecord, VersionRecord
        from lifecycle_assets.release.promotion import require_evidence, verify_evidence
        from lifecycle_assets.release.registration import load_back, register_version
        from lifecycle_assets.text import literal, table

        model = upstream(context, "logged_model", ModelRecord)
        evaluation = upstream(context, "eval_results", EvalRecord)
        require_evidence(evaluation, model.model_id, agent.spec.eval.gate, now=datetime.now(UTC))
        verify_evidence(evaluation, evaluator)
        version = register_version(agent, model, evaluation, registry=registry, dagster_run_id=context.run.run_id)
        answer = load_back(version, agent.spec.agent.input_example, registry=registry, progress=context.log.info)
        linked = version.model_id == model.model_id
        return result(
            VersionRecord(
                name=version.name,
                version=version.version,
                model_id=version.model_id,
                eval_run_id=evaluation.run_id,
                dataset_digest=evaluation.dataset_digest,
                evidence_digest=evaluation.evidence_digest,
            ),
            data_version=version.version,
            metadata={
                "mlflow/version": f"models:/{version.name}/{version.version}",
                "mlflow/model_id": version.model_id,
                "mlflow/eval_run_id": evaluation.run_id,
                "tags": table(["tag", "value"], sorted(version.tags.items())),
            },
            checks=[
                dg.AssetCheckResult(check_name="loads_back", passed=True, metadata={"answer": literal(answer)}),
                dg.AssetCheckResult(
                    check_name="linked_to_logged_model",
                    passed=linked,
                    description="" if linked else f"It names '{version.model_id}', not {model.model_id}.",
                ),
            ],
        )

    return uc_model_version


def champion_alias(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/champion_alias`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["uc_model_version", "eval_results"],
        kinds={"mlflow", "deltalake"},
        pool=f"{agent.name}_registry",
    )
    def champion_alias(
        context: dg.AssetExecutionContext,
        config: ChampionConfig,
        registry: dg.ResourceParam[ModelRegistry],
        evaluator: dg.ResourceParam[Evaluator],
        archive: dg.ResourceParam[Archive],
        ledger: dg.ResourceParam[AliasLedger],
    ) -> dg.MaterializeResult:
        """Who is `champion`, who was before (`previous`), and who waits for a person's approval (`challenger`).

        The alias moves only on the passed evaluation of its own version; the first champion is gated like any other.
        Where approval is required, a version that passed waits, the champion stays, and this ends well: the metadata
        say how to approve. Every move is claimed in a ledger and is a row of `promotions`. Safe to run again: a move
        that was begun is completed first, and nothing is moved twice.
        """
        from lifecycle_assets.release.moves import AliasMover
        from lifecycle_assets.release.promotion import release
        from lifecycle_assets.release.rollback import roll_back
        from lifecycle_assets.text import literal

        mover = AliasMover(
            agent, registry=registry, ledger=ledger, archive=archive, evaluator=evaluator, progress=context.log.info
        )
        actor, run_id = context.run.tags.get("user", "dagster"), context.run.run_id
        if config.rollback:
            done = roll_back(
                agent,
                to=config.to.strip(),
                reason=config.reason,
                taken_back=config.taken_back,
                actor=actor,
                dagster_run_id=run_id,
                mover=mover,
                evaluator=evaluator,
                ended_well=lambda run_id: _ended_well(context.instance, run_id),
            )
            return _stands(
                agent, done.state, None if done.repeated else done.move, {"decision": literal(done.move.reason, 1000)}
            )
        version, evaluation = _subject(context, config.to.strip(), agent.spec.eval.gate, mover, evaluator)
        released = release(
            agent,
            version,
            evaluation,
            mover=mover,
            registry=registry,
            evaluator=evaluator,
            actor=actor,
            dagster_run_id=run_id,
        )
        said = {"decision": literal(released.decision.sentence, 1000), "mlflow/eval_run_id": evaluation.run_id}
        if released.decision.action == "wait":
            said["waits_for"] = f"approval of version {version} on evidence {evaluation.evidence_digest}"
            said["next"] = f'lifecycle approve {agent.name} {version} --reason "..." (or lifecycle reject)'
        return _stands(agent, released.moved.state, released.moved.move, said)

    return champion_alias


def _subject(
    context: dg.AssetExecutionContext, asked: str, gate: Gate, mover: "AliasMover", evaluator: Evaluator
) -> "tuple[str, EvalRecord]":
    """The version to decide on and its evaluation: the one asked for and what it waits on, else those upstream.

    While a version waits, a later candidate may have been evaluated: the one that waits keeps its own evaluation.
    """
    from lifecycle_assets.records import EvalRecord, VersionRecord
    from lifecycle_assets.release.promotion import require_evidence, waiting_evaluation

    if asked:
        state = mover.settle()
        return asked, waiting_evaluation(asked, state.aliases, state.moves, evaluator)
    version = upstream(context, "uc_model_version", VersionRecord)
    evaluation = upstream(context, "eval_results", EvalRecord)
    require_evidence(evaluation, version.model_id, gate, now=datetime.now(UTC))
    registered_on, now = (version.evidence_digest, version.eval_run_id), (evaluation.evidence_digest, evaluation.run_id)
    if registered_on != now:
        raise Refused(
            f"Version {version.version} was registered on evidence {' of run '.join(registered_on)}, the evaluation is "
            f"now {' of run '.join(now)}: materialize uc_model_version first."
        )
    return version.version, evaluation


def _stands(agent: Agent, state: "State", move: "AliasMove | None", said: Mapping[str, Any]) -> dg.MaterializeResult:
    from lifecycle_assets.release.promotion import champion_record

    record = champion_record(agent.spec.model_name, state)
    moved = move is not None and CHAMPION in move.after and move.after[CHAMPION] != move.before.get(CHAMPION, "")
    return result(
        record,
        data_version=record.version or "none",
        metadata={
            "mlflow/champion": f"models:/{record.name}/{record.version}" if record.version else "nobody",
            "mlflow/model_id": record.model_id or "none",
            "previous": record.previous or "nobody",
            "challenger": record.challenger or "nobody",
            "moved": moved,
            **said,
        },
    )


def _ended_well(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and run.status == dg.DagsterRunStatus.SUCCESS


def points_at_gated_version(agent: Agent) -> dg.AssetChecksDefinition:
    """Declare the check that reads anew what the champion rests on; it changes nothing and may be run at any time."""

    @dg.asset_check(
        asset=dg.AssetKey([agent.name, "champion_alias"]),
        name="points_at_gated_version",
        description="The alias points at the version whose evaluation let it through, and that evaluation is still "
        "what it was: alias, ledger, version tags, decision and rows are read anew.",
    )
    def points_at_gated_version(
        registry: dg.ResourceParam[ModelRegistry],
        ledger: dg.ResourceParam[AliasLedger],
        evaluator: dg.ResourceParam[Evaluator],
    ) -> dg.AssetCheckResult:
        from lifecycle_assets.release.promotion import champion_fault
        from lifecycle_assets.text import plain

        fault = champion_fault(agent, registry=registry, ledger=ledger, evaluator=evaluator)
        return dg.AssetCheckResult(
            passed=not fault,
            severity=dg.AssetCheckSeverity.ERROR,
            description=plain(fault, 1000)
            or "The champion is what the ledger says, on the evidence it was promoted on.",
        )

    return points_at_gated_version
