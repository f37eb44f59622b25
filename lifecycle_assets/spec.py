"""What a `defs.yaml` may say about one agent.

Lives here: the pydantic models of `attributes`, with every field described and bounded.
Add here: a field when a user must decide something; give it a description and a default that is safe.
Not here: what a release must reach (`spec_release.py`), production (`spec_monitoring.py`), where it runs
(`spec_runtime.py`), reading files and turning errors into sentences (`spec_file.py`).
"""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lifecycle_assets.spec_base import Line, Name, Strict
from lifecycle_assets.spec_monitoring import Anomalies, ArchivePolicy, BackfillPolicy, Monitoring
from lifecycle_assets.spec_release import AGGREGATIONS, Gate, Rollback, Shadow
from lifecycle_assets.spec_runtime import Compute, Deployment, Tracing

MAX_SCORERS = 20
"""Scorers an experiment may hold: the limit Databricks documents for production monitoring."""

TRACE_NUMBERS = ("latency", "input_tokens", "output_tokens", "cost_usd")
"""What begins the daily numbers of traces themselves: no scorer's name."""

DAILY_NUMBERS = (
    *("traces", "error_rate", "feedback", "positive_rate", "negative_feedback_rate"),
    *(f"{name}/{what}" for name in TRACE_NUMBERS for what in ("p50", "p95", "p99")),
    *(f"{name}/{what}" for name in TRACE_NUMBERS[1:] for what in ("mean", "sum")),
)
"""The daily numbers that no scorer makes."""

_OF_A_SCORER = ("mean", "error_rate")


class Resource(Strict):
    """Something the agent needs at inference time; becomes a resource of the logged model."""

    type: Literal[
        "serving_endpoint",
        "vector_search_index",
        "function",
        "table",
        "genie_space",
        "uc_connection",
        "app",
        "lakebase",
    ] = Field(description="Kind of the resource, as Databricks grants access to it.")
    name: str = Field(min_length=1, description="Name of the endpoint, index, function, table, space, connection, app.")


class AgentCode(Strict):
    """The agent's code and what it needs to run."""

    path: str = Field(description="Models-from-code file, relative to defs.yaml; ends with mlflow.models.set_model.")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Prompts, tool list and flags: handed to the agent as its ModelConfig, kept as agent_config.json.",
    )
    pip_requirements: list[str] = Field(min_length=1, description="Requirements of the agent, each pinned with ==.")
    resources: list[Resource] = Field(default_factory=list, description="What the agent reaches at inference time.")
    input_example: dict[str, Any] = Field(description="One request; also the request of the smoke prediction.")
    code_paths: list[str] = Field(
        default_factory=list, description="Files and folders logged beside the agent, relative to defs.yaml."
    )


class Evaluation(Strict):
    """Offline evaluation of a candidate."""

    dataset: str = Field(description="A .jsonl file relative to defs.yaml, or the name of an MLflow dataset.")
    scorers: list[Name] = Field(default_factory=list, description="Scorers that run; empty means all that are active.")
    gate: Gate = Field(description="What the result must reach.")


class Builtin(Strict):
    """A scorer MLflow ships."""

    builtin: str = Field(pattern=r"^[A-Z][A-Za-z]*$", description="Class name in mlflow.genai.scorers, such as Safety.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of that class.")


class Judge(Strict):
    """A scorer in words: an LLM reads the trace and answers."""

    judge: str = Field(
        min_length=20, description="Instructions with {{ inputs }}, {{ outputs }} or {{ trace }}; a yes-or-no question."
    )


class Scorer(Strict):
    """One scorer, the same offline and in production."""

    name: Name = Field(description="Short name; the registered name adds environment and agent.")
    source: str | Builtin | Judge = Field(description="scorers.py:function, {builtin: ...} or {judge: ...}.")
    sample_rate: float = Field(default=1.0, ge=0, le=1, description="Share of production traces it scores, 0..1.")
    filter: str = Field(default="", description="MLflow trace filter; only matching traces are scored.")
    cost_per_call: float = Field(default=0.0, ge=0, description="USD one call costs; used by backfill budgets.")
    level: Literal["trace", "session"] = Field(
        default="trace", description="What one call looks at: a trace, or a whole session once it is complete."
    )
    timeout_seconds: float = Field(
        default=60, gt=0, le=3600, description="Seconds one call may take in production; then it counts as failed."
    )
    requires: str = Field(
        default="",
        description="Environment variable without which the scorer is left out, such as LIFECYCLE_JUDGE_MODEL.",
    )


class LabelSchema(Strict):
    """One question put to a reviewer."""

    name: Name = Field(description="Name of the assessment the answer becomes.")
    type: Literal["feedback", "expectation"] = Field(description="An opinion, or what should have been said.")
    input: Literal["pass_fail", "categorical", "numeric", "text"] = Field(description="How it is answered.")
    instruction: str = Field(min_length=1, description="The question, in words.")
    options: list[str] = Field(default_factory=list, description="Choices of a categorical question.")
    judges: Name | None = Field(default=None, description="The scorer this answer is the truth for.")
    judge_passes_at: float = Field(default=0.5, description="A scorer's number from here on means yes.")


class LabelRules(Strict):
    """Which traces people should look at."""

    negative_feedback: int = Field(default=5, ge=0, description="Thumbs-down traces that open a session; 0 is never.")
    low_scores: dict[str, float] = Field(default_factory=dict, description="Scorer: traces scored below the value.")
    random: int = Field(default=0, ge=0, description="Traces chosen at random besides, in the weekly session.")


class Labeling(Strict):
    """How people review production traces."""

    reviewers: list[str] = Field(default_factory=list, max_length=10, description="User names, 10 at most (MLflow).")
    schemas: list[LabelSchema] = Field(min_length=1, description="The questions.")
    rules: LabelRules = Field(default_factory=LabelRules, description="How traces are chosen.")
    max_items: int = Field(default=20, ge=1, le=500, description="Traces in one session at most.")
    cadence: str = Field(default="0 7 * * 1", description="Cron of the regular session, UTC.")
    min_kappa: float = Field(default=0.4, ge=-1, le=1, description="Agreement a judge must reach with people.")

    @field_validator("schemas")
    @classmethod
    def _distinct(cls, value: list[LabelSchema]) -> list[LabelSchema]:
        names = [schema.name for schema in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"label schema '{name}' is declared twice")
        return value


class AlertRule(Line):
    """A number to watch by day: breached when `k` of the last `n` days lie beyond the line, the last one included."""

    name: Name = Field(description="Name of the asset check on quality_metrics.")
    metric: str = Field(description="Metric in quality_metrics, such as grounded/mean, latency/p95, error_rate.")
    k: int = Field(default=1, ge=1, description="Days that must breach.")
    n: int = Field(default=1, ge=1, le=90, description="Days looked at.")

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.k > self.n:
            raise ValueError("k must not exceed n")
        return self


class Alerts(Strict):
    """What people are told about, and where."""

    rules: list[AlertRule] = Field(default_factory=list, description="Rules over the daily numbers.")
    webhook_env: str = Field(
        default="LIFECYCLE_ALERT_WEBHOOK",
        pattern=r"^[A-Z][A-Z0-9_]*$",
        description="Environment variable that holds the webhook's URL.",
    )


class AgentSpec(Strict):
    """Everything declared about one agent."""

    name: Name = Field(description="Agent name: prefix of every asset key, part of every table and scorer name.")
    model_name: str = Field(
        pattern=r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$",
        description="Three-level name catalog.schema.model, the same locally and in Unity Catalog.",
    )
    experiment: str = Field(min_length=1, description="MLflow experiment that holds runs, models and traces.")
    agent: AgentCode
    eval: Evaluation
    scorers: list[Scorer] = Field(min_length=1, max_length=MAX_SCORERS)
    archive: ArchivePolicy = Field(default_factory=ArchivePolicy)
    monitoring: Monitoring = Field(default_factory=Monitoring)
    backfill: BackfillPolicy = Field(default_factory=BackfillPolicy)
    labeling: Labeling
    deployment: Deployment = Field(default_factory=Deployment)
    rollback: Rollback = Field(default_factory=Rollback)
    shadow: Shadow = Field(default_factory=Shadow)
    tracing: Tracing = Field(default_factory=Tracing)
    compute: Compute = Field(default_factory=Compute)
    anomalies: Anomalies = Field(default_factory=Anomalies)
    alerts: Alerts = Field(default_factory=Alerts)

    @field_validator("scorers")
    @classmethod
    def _distinct(cls, value: list[Scorer]) -> list[Scorer]:
        names = [scorer.name for scorer in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"scorer '{name}' is declared twice")
            if name in TRACE_NUMBERS:
                raise ValueError(f"scorer '{name}' has the name of a number of traces, {name}/…; give it another one")
        return value

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        known = {scorer.name for scorer in self.scorers}
        for scorer in self.scorers:
            gated = [threshold.metric.rpartition("/")[0] for threshold in self.eval.gate.thresholds]
            if scorer.level == "session" and scorer.name in (*gated, *self.eval.scorers):
                raise ValueError(
                    f"scorer '{scorer.name}' looks at sessions, and an evaluation has none; "
                    "take it out of eval.scorers and of eval.gate.thresholds"
                )
        for index, threshold in enumerate(self.eval.gate.thresholds):
            scorer, _, aggregation = threshold.metric.rpartition("/")
            if scorer not in known or aggregation not in AGGREGATIONS:
                raise ValueError(
                    f"eval.gate.thresholds[{index}].metric: unknown metric '{threshold.metric}'; write "
                    f"<scorer>/<aggregation> with a scorer of {', '.join(sorted(known))} "
                    f"and an aggregation of {', '.join(AGGREGATIONS)}"
                )
        numbers = {"error_rate", "latency/p50", "latency/p95", *(f"{name}/mean" for name in known)}
        for index, rule in enumerate(self.rollback.rules):
            if rule.metric not in numbers:
                raise ValueError(
                    f"rollback.rules[{index}].metric: unknown metric '{rule.metric}'; write <scorer>/mean with a "
                    f"scorer of {', '.join(sorted(known))}, or error_rate, latency/p50 or latency/p95"
                )
        for index, rule in enumerate(self.alerts.rules):
            metric, brace, part = rule.metric.partition("{")
            if metric not in DAILY_NUMBERS and metric not in {f"{name}/{w}" for name in known for w in _OF_A_SCORER}:
                raise ValueError(
                    f"alerts.rules[{index}].metric: unknown metric '{rule.metric}'; write <scorer>/mean or "
                    f"<scorer>/error_rate with a scorer of {', '.join(sorted(known))}; or one of "
                    f"{', '.join(DAILY_NUMBERS[:5])}; or p50, p95, p99 of {', '.join(TRACE_NUMBERS)}, such as "
                    f"latency/p95; or mean and sum of {', '.join(TRACE_NUMBERS[1:])}"
                )
            tag, equals, value = part.removesuffix("}").partition("=")
            if brace and (tag not in self.monitoring.slices or not equals or not value or not part.endswith("}")):
                raise ValueError(
                    f"alerts.rules[{index}].metric: no slice is '{brace}{part}'; write {metric}{{tag=value}} with a "
                    f"tag that monitoring.slices declares ({', '.join(self.monitoring.slices) or 'none yet'})"
                )
        for where, names in {
            "eval.scorers": self.eval.scorers,
            "shadow.scorers": self.shadow.scorers,
            "labeling.rules.low_scores": self.labeling.rules.low_scores,
            "labeling.schemas.judges": [schema.judges for schema in self.labeling.schemas if schema.judges],
        }.items():
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"{where}: no scorer '{name}' is declared; declared are {', '.join(sorted(known))}"
                    )
        return self

    @property
    def catalog(self) -> str:
        """First level of the model name, and of the tables."""
        return self.model_name.split(".")[0]

    @property
    def schema_name(self) -> str:
        """Second level of the model name, and of the tables."""
        return self.model_name.split(".")[1]

    @property
    def trace_schema(self) -> str:
        """`catalog.schema` of the trace tables on Databricks."""
        return self.tracing.schema_path or f"{self.catalog}.{self.schema_name}"

    @property
    def trace_prefix(self) -> str:
        """What the names of the trace tables on Databricks begin with."""
        return self.tracing.table_prefix or self.name

    @property
    def volume(self) -> str:
        """`catalog.schema.volume` that jobs of a workspace take code from and write messages to."""
        return self.compute.volume or f"{self.catalog}.{self.schema_name}.lifecycle"

    @property
    def table_prefix(self) -> str:
        """`<catalog>.<schema>.<prefix>`, to which a table's name is appended."""
        return f"{self.catalog}.{self.schema_name}.{self.archive.table_prefix or self.name + '_'}"
