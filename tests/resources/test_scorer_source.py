"""Reading scorers as declared: which are active, what changes a digest, what a registered copy would miss."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lifecycle_assets.refused import Refused
from lifecycle_assets.spec_file import Agent
from resources.scorer_source import declared_scorers, free_names, is_stored_whole, load_declared
from tests.building import SCORERS_PY, make_agent

JUDGE = {"judge": "Is the answer in {{ outputs }} polite? Answer yes or no."}


def agent_with(tmp_path: Path, *scorers: dict[str, Any], scorers_py: str = SCORERS_PY) -> Agent:
    """The small agent with further scorers."""
    declared = [{"name": "shouted", "source": "scorers.py:shouted"}, *scorers]
    return make_agent(tmp_path, attributes={"scorers": declared}, scorers_py=scorers_py)


def digest_of(tmp_path: Path, scorers_py: str = SCORERS_PY, name: str = "shouted") -> str:
    return {s.name: s.digest for s in declared_scorers(agent_with(tmp_path, scorers_py=scorers_py), "prod")}[name]


class TestDeclared:
    def test_names_carry_environment_and_agent(self, tmp_path: Path):
        names = [s.registered_name for s in declared_scorers(make_agent(tmp_path), "prod")]
        assert names == ["prod_tiny_shouted", "prod_tiny_length"]

    def test_a_scorer_that_requires_a_variable_waits_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        agent = agent_with(tmp_path, {"name": "polite", "source": JUDGE, "requires": "LIFECYCLE_JUDGE_MODEL"})
        monkeypatch.delenv("LIFECYCLE_JUDGE_MODEL", raising=False)
        assert [s.name for s in declared_scorers(agent, "prod")] == ["shouted"]
        monkeypatch.setenv("LIFECYCLE_JUDGE_MODEL", "")
        assert [s.name for s in declared_scorers(agent, "prod")] == ["shouted"]
        monkeypatch.setenv("LIFECYCLE_JUDGE_MODEL", "openai:/gpt-5-mini")
        assert [s.name for s in declared_scorers(agent, "prod")] == ["shouted", "polite"]

    def test_neither_mlflow_nor_the_file_is_loaded(self, tmp_path: Path):
        marker = tmp_path / "ran"
        agent = agent_with(tmp_path, scorers_py=SCORERS_PY + f"\nopen({str(marker)!r}, 'w')\n")
        code = (
            "import sys; from pathlib import Path; from lifecycle_assets.spec_file import read_agent\n"
            "from resources.scorer_source import declared_scorers, free_names\n"
            "agent = read_agent(Path(sys.argv[1])); declared_scorers(agent, 'prod')\n"
            "free_names(agent.path('scorers.py'), 'shouted'); sys.exit('mlflow' in sys.modules)\n"
        )
        run = [sys.executable, "-c", code, str(agent.path("defs.yaml"))]
        assert subprocess.run(run, cwd=Path(__file__).parents[2], check=False).returncode == 0
        assert not marker.exists()


class TestDigest:
    @pytest.mark.parametrize(
        "change",
        [
            lambda text: "# A remark.\n" + text,
            lambda text: text.replace("    spans =", "\n    # A remark.\n    spans =", 1),
            lambda text: text.replace("def shouted(trace):", 'def shouted(trace):\n    """What it means."""'),
            lambda text: text.replace("float(len(", "2 * float(len("),
            lambda text: text.replace('"answer"', "'answer'", 1),
        ],
        ids=["remark above", "remark inside", "docstring", "another function", "other quotes"],
    )
    def test_is_kept_by(self, tmp_path: Path, change: Any):
        assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b", change(SCORERS_PY))

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text.replace("return None", "return 0", 1),
            lambda text: text.replace("@scorer", "@scorer(aggregations=['max'])", 1),
            lambda text: text.replace("def shouted(trace)", "def shouted(trace, outputs)"),
        ],
        ids=["body", "decorator", "parameters"],
    )
    def test_is_changed_by(self, tmp_path: Path, change: Any):
        assert digest_of(tmp_path / "a") != digest_of(tmp_path / "b", change(SCORERS_PY))

    def test_of_a_judge_covers_words_and_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        agent = agent_with(tmp_path, {"name": "polite", "source": JUDGE})
        other = agent_with(tmp_path / "b", {"name": "polite", "source": {"judge": JUDGE["judge"] + " Be strict."}})
        monkeypatch.setenv("LIFECYCLE_JUDGE_MODEL", "openai:/a")
        first, words = declared_scorers(agent, "prod")[1].digest, declared_scorers(other, "prod")[1].digest
        monkeypatch.setenv("LIFECYCLE_JUDGE_MODEL", "openai:/b")
        assert len({first, words, declared_scorers(agent, "prod")[1].digest}) == 3

    def test_of_a_builtin_covers_its_arguments(self, tmp_path: Path):
        made = [{"builtin": "RegexMatch", "arguments": {"pattern": p}} for p in ("a", "b", "a")]
        digests = [
            declared_scorers(agent_with(tmp_path / str(i), {"name": "matches", "source": m}), "prod")[1].digest
            for i, m in enumerate(made)
        ]
        assert digests[0] == digests[2] != digests[1]


class TestRefusals:
    @pytest.mark.parametrize(
        ("scorers_py", "sentence"),
        [
            ("def shouted(:\n", r"'scorers.py:shouted': scorers.py line 1 is not Python \(invalid syntax\)"),
            ("x = 1\0\n", r"scorers.py .*is not Python"),
            (
                "@scorer\ndef whispered(trace):\n    return 1\n",
                r"defines no function 'shouted' \(it defines whispered\)",
            ),
            ("def shouted(trace):\n    return 1\n", r"line 1: 'shouted' lacks the decorator @scorer; add it"),
            ("@scorer\nasync def shouted(trace):\n    return 1\n", r"scorers are not async"),
        ],
        ids=["syntax", "null byte", "no such function", "no decorator", "async"],
    )
    def test_names_file_field_and_remedy(self, tmp_path: Path, scorers_py: str, sentence: str):
        agent = agent_with(tmp_path, scorers_py=scorers_py)
        with pytest.raises(Refused, match=sentence) as refused:
            declared_scorers(agent, "prod")
        assert str(refused.value).startswith("tiny/defs.yaml: attributes.scorers[0].source 'scorers.py:shouted'")

    def test_a_file_that_went_away(self, tmp_path: Path):
        agent = agent_with(tmp_path)
        agent.path("scorers.py").unlink()
        with pytest.raises(Refused, match=r"scorers\.py is not there; create the file"):
            declared_scorers(agent, "prod")

    def test_a_judge_without_a_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("LIFECYCLE_JUDGE_MODEL", raising=False)
        agent = agent_with(tmp_path, {"name": "polite", "source": JUDGE})
        with pytest.raises(Refused, match=r"scorers\[1\].source: a judge needs a model; set LIFECYCLE_JUDGE_MODEL"):
            declared_scorers(agent, "prod")

    @pytest.mark.parametrize(
        "decorator",
        ["scorer", "scorer(name='x')", "mlflow.genai.scorers.scorer", "mlflow.genai.scorer()", "counted"],
    )
    def test_every_spelling_of_the_decorator_is_known(self, tmp_path: Path, decorator: str):
        imports = "import mlflow\nfrom mlflow.genai.scorers import scorer\nfrom mlflow.genai import scorer as counted\n"
        text = f"{imports}\n\n@{decorator}\ndef shouted(trace):\n    return 1\n"
        assert declared_scorers(agent_with(tmp_path, scorers_py=text), "prod")


FREE = '''
import re
from mlflow.entities import Feedback, Document
LIMIT = 3

def alone(trace: Document, of: int = LIMIT) -> Document:
    """Uses nothing of its module: annotations, defaults and decorators are not stored."""
    import json
    seen: Document = [json.dumps(span.name) for span in trace.data.spans if span]
    total = 0
    def inner(part: Document, *more, **named) -> Document:
        nonlocal total
        total += len(part) + of
        return lambda value: (value, part)
    class Local:
        size = total
        def grow(self):
            return self.size + total
    try:
        inner(seen)
    except ValueError as error:
        print(error)
    with open(__file__ if False else "x") as stream, stream as (a, *b):
        pass
    if (found := a):
        print(found, b)
    match seen:
        case [first, *rest]:
            print(first, rest)
        case {"k": value, **others}:
            print(value, others)
    del a
    return Feedback(value={key: item for key, item in zip(seen, Local().grow())})

def plain(outputs):
    return re.match("a", outputs) and len(outputs) < LIMIT

def nested(outputs):
    def inner(text=LIMIT):
        return re.escape(text)
    return [helper(x) for x in outputs if x in KNOWN] + [inner()]

def recursive(outputs):
    return recursive(outputs[1:]) if outputs else 0

def later(outputs):
    global COUNT
    COUNT = 1
    return COUNT

def one_line(outputs): return 1

def after_text(outputs): "Words."; return 1

def only_text(outputs):
    """Words."""

def whole(outputs):
    """Words."""
    return 1

def many_lines(
    outputs,
):
    return 1
'''


class TestStandingAlone:
    @pytest.mark.parametrize(
        ("function", "names"),
        [
            ("alone", ["__file__"]),
            ("plain", ["LIMIT", "re"]),
            ("nested", ["KNOWN", "LIMIT", "helper", "re"]),
            ("recursive", ["recursive"]),
            ("later", []),
        ],
    )
    def test_names_of_the_module_are_found(self, tmp_path: Path, function: str, names: list[str]):
        file = tmp_path / "scorers.py"
        file.write_text(FREE)
        assert free_names(file, function) == names

    @pytest.mark.parametrize(
        ("function", "whole"),
        [("one_line", False), ("after_text", False), ("only_text", False), ("whole", True), ("many_lines", True)],
    )
    def test_a_body_on_the_line_of_its_def_is_not_stored(self, tmp_path: Path, function: str, whole: bool):
        file = tmp_path / "scorers.py"
        file.write_text(FREE)
        assert is_stored_whole(file, function) is whole

    def test_the_scorers_we_ship_stand_alone(self):
        file = Path(__file__).parents[2] / "lifecycle_assets" / "defs" / "docs_agent" / "scorers.py"
        if not file.exists():
            pytest.skip("docs_agent has no scorers.py yet")
        import ast

        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                assert (free_names(file, node.name), is_stored_whole(file, node.name)) == ([], True)


class TestLoading:
    def test_a_function_keeps_its_declared_name_and_its_source(self, tmp_path: Path):
        agent = make_agent(
            tmp_path,
            attributes={"scorers": [{"name": "shouted", "source": "scorers.py:length"}]},
        )
        loaded = load_declared(agent, declared_scorers(agent, "prod")[0])
        assert loaded.name == "shouted"
        assert loaded.model_dump()["name"] == "shouted"
        assert "float(len(" in loaded.model_dump()["call_source"]
        assert not [name for name in sys.modules if name.startswith("lifecycle_scorers_")]

    def test_two_agents_files_do_not_meet(self, tmp_path: Path):
        text = "from mlflow.genai.scorers import scorer\n\n\n@scorer\ndef shouted(outputs):\n    return {}\n"
        agents = [agent_with(tmp_path / str(n), scorers_py=text.format(n)) for n in (1, 2)]
        loaded = [load_declared(agent, declared_scorers(agent, "prod")[0]) for agent in agents]
        assert [scorer.run(outputs="x") for scorer in loaded] == [1, 2]

    def test_a_builtin_and_a_judge(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("LIFECYCLE_JUDGE_MODEL", "openai:/gpt-5-mini")
        builtin = {"builtin": "RegexMatch", "arguments": {"pattern": "a+"}}
        agent = agent_with(tmp_path, {"name": "matches", "source": builtin}, {"name": "polite", "source": JUDGE})
        _, matches, polite = (load_declared(agent, declared) for declared in declared_scorers(agent, "prod"))
        assert (matches.name, type(matches).__name__) == ("matches", "RegexMatch")
        assert (polite.name, polite.model) == ("polite", "openai:/gpt-5-mini")

    @pytest.mark.parametrize(
        ("source", "sentence"),
        [
            ({"builtin": "NoSuchScorer"}, "mlflow.genai.scorers has no scorer 'NoSuchScorer'"),
            ({"builtin": "RegexMatch", "arguments": {"patern": "a"}}, "RegexMatch refuses source.arguments"),
            ({"judge": "Is this a good answer, yes or no?"}, "MLflow refuses source.judge"),
        ],
    )
    def test_a_source_mlflow_does_not_take_is_a_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any], sentence: str
    ):
        monkeypatch.setenv("LIFECYCLE_JUDGE_MODEL", "openai:/gpt-5-mini")
        agent = agent_with(tmp_path, {"name": "other", "source": source})
        with pytest.raises(Refused, match=sentence):
            load_declared(agent, declared_scorers(agent, "prod")[1])

    def test_a_file_that_raises_is_a_sentence(self, tmp_path: Path):
        agent = agent_with(tmp_path, scorers_py="import no_such_module\n" + SCORERS_PY)
        with pytest.raises(Refused, match=r"scorers.py does not run \(ModuleNotFoundError"):
            load_declared(agent, declared_scorers(agent, "prod")[0])
