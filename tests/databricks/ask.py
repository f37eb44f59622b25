"""An application that answers users, as a process of its own: `python -m tests.databricks.ask` with JSON on stdin.

Lives here: real traces, at moments of the caller's choosing, sent by MLflow's own tracing to wherever the environment
says; and the thumbs of users. Prints the trace ids as JSON.
"""

import json
import os
import sys
from datetime import datetime
from typing import Any


def main() -> None:
    """Read `{experiment, destination, calls: [{question, at, model_id, up}]}` and trace each call."""
    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    if asked["destination"]:
        os.environ["MLFLOW_TRACING_DESTINATION"] = asked["destination"]
    from resources.mlflow_store import open_mlflow
    from resources.platform import Platform

    mlflow = open_mlflow(Platform.from_env())
    mlflow.set_experiment(asked["experiment"])
    ids = []
    for call in asked["calls"]:
        start = int(datetime.fromisoformat(call["at"]).timestamp() * 1000) * 10**6
        root = mlflow.start_span_no_context(
            "predict",
            span_type="AGENT",
            inputs={"request": {"input": [{"role": "user", "content": call["question"]}]}},
            start_time_ns=start,
            metadata={"mlflow.modelId": call["model_id"], "mlflow.trace.session": "s-1", "mlflow.trace.user": "u-1"},
        )
        answer = mlflow.start_span_no_context(
            "answer", parent_span=root, span_type="CHAIN", inputs={"question": call["question"]}, start_time_ns=start
        )
        answer.set_outputs(f"hello {call['question'].upper()}")
        answer.end(end_time_ns=start + 10**8)
        root.set_outputs({"output": f"hello {call['question'].upper()}"})
        root.end(end_time_ns=start + 2 * 10**8)
        ids.append(root.trace_id)
    mlflow.flush_trace_async_logging()
    for trace_id, call in zip(ids, asked["calls"], strict=True):
        if call.get("up") is not None:
            source = mlflow.entities.AssessmentSource(source_type="HUMAN", source_id="u-1")
            mlflow.log_feedback(trace_id=trace_id, name="user_feedback", value=call["up"], source=source)
    print(json.dumps(ids), flush=True)


if __name__ == "__main__":
    main()
