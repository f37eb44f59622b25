"""Builders for tests: a small real agent on disk, and what it needs to run.

Lives here: code that writes an agent's folder, real traces and records.
Add here: a builder a second test module needs.
Not here: fixtures (`conftest.py`), assertions.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

from lifecycle_assets.spec_file import Agent, read_agent

AGENT_PY = '''
"""A small agent: repeats the question in upper case, and refuses what it is told to refuse."""

import mlflow
from mlflow.pyfunc import ResponsesAgent
from mlflow.types.responses import ResponsesAgentRequest, ResponsesAgentResponse

CONFIG = mlflow.models.ModelConfig(development_config={"greeting": "hello"})


class TinyAgent(ResponsesAgent):
    def predict(self, request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        question = request.input[-1].content
        if "explode" in question:
            raise RuntimeError("the agent exploded")
        answer = self.answer(question)
        if request.context and request.context.conversation_id:
            mlflow.update_current_trace(
                metadata={
                    "mlflow.trace.session": request.context.conversation_id,
                    "mlflow.trace.user": request.context.user_id or "",
                }
            )
        return ResponsesAgentResponse(output=[self.create_text_output_item(text=answer, id="1")])

    @mlflow.trace(name="answer", span_type="CHAIN")
    def answer(self, question: str) -> str:
        return f"{CONFIG.get('greeting')} {question.upper()}"


mlflow.models.set_model(TinyAgent())
'''

SCORERS_PY = '''
"""Scorers of the small agent."""

from mlflow.genai.scorers import scorer


@scorer
def shouted(trace):
    spans = trace.search_spans(name="answer")
    if not spans:
        return None
    return spans[0].outputs == spans[0].outputs.lower() or "HELLO" in spans[0].outputs.upper()


@scorer
def length(trace):
    spans = trace.search_spans(name="answer")
    return float(len(spans[0].outputs)) if spans else None
'''

ATTRIBUTES: dict[str, Any] = {
    "name": "tiny",
    "model_name": "main.agents.tiny",
    "experiment": "/agents/tiny",
    "agent": {
        "path": "agent.py",
        "config": {"greeting": "hello"},
        "pip_requirements": ["mlflow==3.17.2"],
        "input_example": {"input": [{"role": "user", "content": "are you there?"}]},
    },
    "eval": {
        "dataset": "eval_dataset.jsonl",
        "gate": {"thresholds": [{"metric": "shouted/mean", "at_least": 0.5, "min_rows": 2}]},
    },
    "scorers": [
        {"name": "shouted", "source": "scorers.py:shouted"},
        {"name": "length", "source": "scorers.py:length", "sample_rate": 0.5},
    ],
    "archive": {"settle_minutes": 0},
    "labeling": {
        "schemas": [
            {
                "name": "correct",
                "type": "feedback",
                "input": "pass_fail",
                "instruction": "Is the answer correct?",
                "judges": "shouted",
            }
        ],
        "rules": {"negative_feedback": 2},
    },
}
"""A valid declaration; copy it and change what the test is about."""

DATASET = "\n".join(
    f'{{"inputs": {{"input": [{{"role": "user", "content": "question {i}"}}]}}, "expectations": {{}}}}'
    for i in range(3)
)


def write_agent(
    folder: Path,
    name: str = "tiny",
    *,
    attributes: dict[str, Any] | None = None,
    agent_py: str = AGENT_PY,
    scorers_py: str = SCORERS_PY,
    dataset: str = DATASET,
) -> Path:
    """Write an agent's folder below `folder` and return its `defs.yaml`. `attributes` replace top-level fields."""
    declared = copy.deepcopy(ATTRIBUTES)
    declared.update(name=name, model_name=f"main.agents.{name}", experiment=f"/agents/{name}")
    declared.update(attributes or {})
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "agent.py").write_text(agent_py)
    (home / "scorers.py").write_text(scorers_py)
    (home / "eval_dataset.jsonl").write_text(dataset + "\n")
    file = home / "defs.yaml"
    file.write_text(
        yaml.safe_dump({"type": "lifecycle_assets.component.AgentLifecycle", "attributes": declared}, sort_keys=False)
    )
    return file


def make_agent(folder: Path, name: str = "tiny", **changes: Any) -> Agent:
    """Write an agent and read it back."""
    return read_agent(write_agent(folder, name, **changes))
