"""The group `candidate`: source, dataset, logged model, evaluation.

Lives here: the assets up to the gate's verdict, and the plain steps under them.
Add here: what must be known about a model before it is registered.
Not here: the verdict's rules (`gate.py`), anything that moves an alias (`release.py`).
"""

import warnings

import dagster as dg

from lifecycle_assets.edges import RECORD_KEY, lifecycle_asset, result, upstream
from lifecycle_assets.spec_file import Agent
from resources.needs import Evaluator, ModelRegistry, Tracing

GROUP = "candidate"


def candidate_assets(agent: Agent) -> list[dg.AssetsDefinition | dg.SourceAsset]:
    """The assets of this group for one agent."""
    return [agent_source(agent), eval_dataset(agent), logged_model(agent), eval_results(agent)]


def agent_source(agent: Agent) -> dg.SourceAsset:
    """Declare `<agent>/agent_source`."""
    with warnings.catch_warnings():
        # The only way to make an asset observable; marked beta since 1.8 and unchanged since. The pin holds it.
        warnings.simplefilter("ignore", dg.BetaWarning)

        @dg.observable_source_asset(
            key=dg.AssetKey([agent.name, "agent_source"]),
            group_name=GROUP,
            description=f"The agent's own code, config and requirements in {agent.folder.name}/, as a digest, and its "
            "git commit. Observe it to see whether the logged model is behind the source.",
            tags={"dagster/kind/python": ""},
        )
        def observed_source() -> dg.ObserveResult:
            from lifecycle_assets.candidate.source import observe_source

            source = observe_source(agent)
            return dg.ObserveResult(
                data_version=dg.DataVersion(source.digest),
                metadata={
                    "digest": source.digest,
                    "git_commit": source.git_commit or "not in a git checkout",
                    RECORD_KEY: dg.MetadataValue.json(source.to_json()),
                },
            )

    return observed_source


def eval_dataset(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/eval_dataset`."""

    @lifecycle_asset(agent.name, group=GROUP, kinds={"mlflow"}, pool=f"{agent.name}_dataset")
    def eval_dataset(evaluator: dg.ResourceParam[Evaluator]) -> dg.MaterializeResult:
        """The MLflow evaluation dataset: the declared records, and what reviewers have added since.

        Materialize it after editing the dataset file. Records removed from the file leave the dataset; records of
        reviewers stay. Safe to run again: an unchanged dataset is not written, its digest stays.
        """
        dataset = evaluator.ensure_dataset(agent)
        return result(
            dataset,
            data_version=dataset.digest,
            metadata={"mlflow/dataset": dataset.name, "digest": dataset.digest, "dagster/row_count": dataset.rows},
        )

    return eval_dataset


def logged_model(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/logged_model`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["agent_source"],
        kinds={"mlflow"},
        blocking={
            "set_model_present": "The agent's file calls mlflow.models.set_model.",
            "smoke_prediction": "The model, loaded afresh, answers the input example.",
        },
        checks={
            "resources_declared": "Everything the agent reaches at inference time is declared.",
            "requirements_pinned": "Every requirement is pinned with ==.",
            "signature_present": "The model has a signature with inputs and outputs.",
        },
        pool=f"{agent.name}_model",
    )
    def logged_model(
        context: dg.AssetExecutionContext,
        registry: dg.ResourceParam[ModelRegistry],
        tracing: dg.ResourceParam[Tracing],
    ) -> dg.MaterializeResult:
        """The agent as an MLflow logged model: code, pinned requirements, resources, signature, config snapshot.

        Logged in a process of its own, so that no other agent's code can leak in, and asked the input example before
        it counts. Safe to run again: the same source digest gives the same logged model, and a model whose logging
        was interrupted is never used.
        """
        from lifecycle_assets.candidate.judging import model_checks
        from lifecycle_assets.candidate.source import observe_source
        from lifecycle_assets.records import ModelRecord
        from lifecycle_assets.text import literal

        source = observe_source(agent)
        kept = tracing.ensure(agent, progress=context.log.info)
        logged = registry.log(agent, source, progress=context.log.info, dagster_run_id=context.run.run_id)
        return result(
            ModelRecord(logged.model_id, logged.run_id, logged.experiment_id, source.digest, source.git_commit),
            data_version=logged.model_id,
            metadata={
                "mlflow/model_id": logged.model_id,
                "mlflow/run_id": logged.run_id,
                "source_digest": source.digest,
                "git_commit": source.git_commit or "not in a git checkout",
                "created": logged.created,
                "smoke_prediction": literal(logged.answer),
                "smoke_seconds": logged.smoke_seconds,
                "traces_are_kept_in": ", ".join(kept.tables) or f"experiment {agent.spec.experiment}",
                **({"mlflow/model_url": dg.MetadataValue.url(logged.url)} if logged.url else {}),
            },
            checks=model_checks(agent, logged),
        )

    return logged_model


def eval_results(agent: Agent) -> dg.AssetsDefinition:
    """Declare `<agent>/eval_results`."""

    @lifecycle_asset(
        agent.name,
        group=GROUP,
        deps=["logged_model", "eval_dataset"],
        kinds={"mlflow"},
        blocking={
            "gate": "The evaluation reaches every declared threshold and, record by record, is not worse than the "
            "champion.",
            "scorers_ran": "Every scorer answered every row, and the agent failed on none beyond the allowed rate.",
        },
        pool=f"{agent.name}_evaluation",
    )
    def eval_results(
        context: dg.AssetExecutionContext,
        evaluator: dg.ResourceParam[Evaluator],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.MaterializeResult:
        """`mlflow.genai.evaluate` of the logged model on the dataset, and the gate's verdict on it.

        The champion is evaluated on the same dataset with the same scorers when that has not been done, and the two
        are compared record by record. The whole decision is kept on the evaluation's MLflow run. Safe to run again: a
        finished evaluation of the same model, dataset digest and scorers is read back, an interrupted one is started
        over.
        """
        from lifecycle_assets.candidate.judging import eval_checks, eval_record, evaluate_champion
        from lifecycle_assets.gate import judge
        from lifecycle_assets.records import DatasetRecord, ModelRecord
        from lifecycle_assets.text import table

        model = upstream(context, "logged_model", ModelRecord)
        dataset = upstream(context, "eval_dataset", DatasetRecord)
        evaluated = evaluator.evaluate(
            agent, model.model_id, dataset, progress=context.log.info, dagster_run_id=context.run.run_id
        )
        incumbent = evaluate_champion(agent, model.model_id, dataset, registry, evaluator, progress=context.log.info)
        verdict = judge(evaluated.evidence, agent.spec.eval.gate, incumbent.evidence if incumbent else None)
        record = eval_record(
            model,
            dataset,
            evaluated,
            incumbent,
            verdict,
            agent.spec.eval.gate,
            actor=context.run.tags.get("user", "dagster"),
            dagster_run_id=context.run.run_id,
        )
        evaluator.keep_decision(record)
        return result(
            record,
            data_version=evaluated.run_id,
            metadata={
                "verdict": verdict.verdict,
                "comparison": verdict.comparison.replace("_", " "),
                "mlflow/run_id": evaluated.run_id,
                "mlflow/model_id": model.model_id,
                "dataset_digest": dataset.digest,
                "dagster/row_count": evaluated.evidence.rows,
                "reused": evaluated.reused,
                "metrics": table(["metric", "value"], sorted(record.metrics.items())),
                **({"mlflow/run_url": dg.MetadataValue.url(evaluated.url)} if evaluated.url else {}),
            },
            checks=eval_checks(verdict, evaluated, agent.spec.eval.gate),
        )

    return eval_results
