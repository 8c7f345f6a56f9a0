"""Engines by name: a user's own, those that are not there, and which of them "auto" takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from test_models_loading import make_adapter
from thinktune.cli import app
from thinktune.config import Sampling, parse_config
from thinktune.errors import ConfigError, UsageError
from thinktune.inference.engines import Completion, Engine, EngineSettings, Request, open_engine
from thinktune.inference.engines.lazy import Candidate, EngineOnDemand

OWN = """
from thinktune.inference.engines import Completion, Engine

class Length(Engine):
    context_length = 1000
    unsupported = Engine.unsupported | {"min_p"}

    def __init__(self, model):
        self.name = model.resolved.folder.name

    def generate(self, requests):
        for request in requests:
            for index in range(request.sampling.n):
                text = f"<think>{self.name}</think> <answer>{len(request.prompt_ids)}</answer>"
                yield Completion(request.id, index, text, (1,), "stop")

    def stream(self, request):
        yield from (each.text for each in self.generate([request]))

    def logprobs(self, prompt_ids, continuation_ids):
        return [0.0] * len(continuation_ids)

def opened(model):
    return Length(model)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_engines.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_engines", raising=False)
    return tmp_path


@pytest.mark.parametrize("engine", ["my_engines:Length", "my_engines:opened"])
def test_an_engine_of_the_users_own_answers_a_batch_file_and_thinks_within_a_budget(
    own: Path, tiny_model: Path, engine: str
) -> None:
    lines = [
        {"id": "a", "type": "math", "prompt": "q", "sampling": {"n": 2}},
        {"id": "b", "type": "math", "prompt": "r"},
    ]
    (own / "A1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call = ["infer", str(tiny_model), "A1.jsonl", "-o", "res.json", "--engine", engine]
    assert CliRunner().invoke(app, call).exit_code == 0
    results = json.loads((own / "res.json").read_text())["result"]["results"]
    assert [len(results[0]["content"]), results[1]["content"][:18]] == [2, "<think>tiny</think>"[:18]]
    with open_engine(tiny_model, EngineSettings(engine)) as opened:
        budgeted = Sampling(max_tokens=20, think_budget=8)
        (completion,) = opened.engine.generate([Request("a", [5, 6], budgeted)])
        assert completion.text.startswith("<think>tiny</think>")


@pytest.mark.usefixtures("own")
def test_what_an_engine_of_the_users_own_cannot_honour_is_named(tiny_model: Path) -> None:
    with (
        open_engine(tiny_model, EngineSettings("my_engines:Length")) as opened,
        pytest.raises(UsageError, match="min_p"),
    ):
        opened.engine.require_supported(Sampling(min_p=0.1, think_budget=3))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("engine", "told"),
    [("vlm", "no engine 'vlm'"), ("my_engines:none", "has no attribute"), ("nowhere:f", "cannot import")],
)
def test_an_engine_that_does_not_exist_is_told_before_the_model_is_looked_for(engine: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_engine("no/such/model", EngineSettings(engine))


def test_a_config_takes_an_engine_by_name_or_function_and_nothing_else() -> None:
    for engine in ("auto", "vllm", "my.engines:make"):
        assert parse_config({"infer": {"engine": engine}}).infer.engine == engine
    for engine in ("vlm", "my.engines:", "a b:c", ":f"):
        with pytest.raises(ConfigError, match=r"infer\.engine: should be auto, transformers, vllm or module:function"):
            parse_config({"infer": {"engine": engine}})


def test_a_key_under_its_former_name_is_taken_and_the_new_one_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = parse_config({"infer": {"vllm": {"item_noise": False}}})
    assert config.infer.vllm.per_request_seed is False
    assert "item_noise is called per_request_seed now" in caplog.text
    with pytest.raises(ConfigError, match="former name"):
        parse_config({"infer": {"vllm": {"item_noise": False, "per_request_seed": True}}})


def test_a_key_that_does_nothing_any_more_is_passed_over_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_config({"train": {"fold_accumulation": False}}) == parse_config({})
    assert "fold_accumulation has no effect any more" in caplog.text


class Named(Engine):
    context_length = 100

    def __init__(self, name: str, unsupported: frozenset[str] = Engine.unsupported) -> None:
        self.name, self.unsupported = name, unsupported

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        for request in requests:
            yield Completion(request.id, 0, self.name, (), "stop")

    def stream(self, request: Request) -> Generator[str, None, None]:
        yield self.name

    def logprobs(self, prompt_ids: object, continuation_ids: object) -> list[float]:
        return []


def test_of_several_engines_the_first_that_honours_all_that_is_asked_is_started() -> None:
    def candidates() -> EngineOnDemand:
        less = Engine.unsupported | {"no_repeat_ngram_size"}
        first = Candidate(lambda: Named("first", less), less, context_setting=50)
        return EngineOnDemand(first, Candidate(lambda: Named("second")))

    plain, blocked = Sampling(), Sampling(no_repeat_ngram_size=3)
    engine = candidates()
    engine.require_supported(plain)
    assert ("".join(engine.stream(Request("a", [1], plain))), engine.context_setting) == ("first", 50)
    with pytest.raises(UsageError, match="no_repeat_ngram_size"):  # too late: it runs
        engine.require_supported(blocked)
    engine = candidates()
    engine.require_supported(blocked)
    engine.require_supported(plain)
    assert ("".join(engine.stream(Request("a", [1], plain))), engine.context_setting) == ("second", None)


def test_several_adapters_beside_a_base_are_for_vllm(tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "a")
    with pytest.raises(UsageError, match="one adapter at a time") as caught:
        open_engine(tiny_model, EngineSettings("transformers"), adapters={"a": adapter})
    assert caught.value.hint == "use --engine vllm"
