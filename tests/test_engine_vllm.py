"""The vLLM engine: its process and protocol against a stand-in for the package vllm, in milliseconds. The real one
runs in test_vllm.py."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import make_tiny_tokenizer
from thinktune.config import Sampling, Vllm
from thinktune.errors import GenerationError, MissingExtra, ModelError, UsageError
from thinktune.inference.engines import EngineSettings, Request, open_engine
from thinktune.inference.engines.base import RequestSource
from thinktune.inference.engines.detokenizer import Detokenizer
from thinktune.inference.engines.vllm.engine import VllmEngine
from thinktune.inference.engines.vllm.model import OWN, VllmModel, engine_arguments, lora_rank, vllm_environment
from thinktune.inference.engines.vllm.process import PYTHON

FAKE = Path(__file__).with_name("fake_vllm")
KILLER, RAISER, REFUSED, COUNTER = 66, 67, 68, 69


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.setenv(PYTHON, sys.executable)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def make_model(**changes: Any) -> VllmModel:
    tokenizer = make_tiny_tokenizer()
    settings: dict[str, Any] = {
        "folder": Path("model"),
        "tokenizer_folder": Path("model"),
        "tokenizer": tokenizer,
        "stop_ids": frozenset({2}),
        "dtype": "float32",
        "device": "cpu",
    }
    return VllmModel(**{**settings, **changes})


@pytest.fixture
def engine(fake_vllm: None) -> Iterator[VllmEngine]:
    with closing(VllmEngine(make_model(), Vllm(max_num_seqs=4))) as engine:
        yield engine


def ask(*ids: int, name: str = "a", **sampling: Any) -> Request:
    return Request(name, ids, Sampling(**{"max_tokens": 100, "stop": (), **sampling}))


def worker_process(engine: VllmEngine) -> psutil.Process:
    assert engine._process is not None
    return psutil.Process(engine._process._process.pid)


def test_every_sample_of_every_request_comes_back_once(engine: VllmEngine) -> None:
    requests = [ask(10 + at, 11, 12, name=str(at), n=3) for at in range(40)]
    completions = list(engine.generate(iter(requests)))
    assert sorted((int(each.request_id), each.index) for each in completions) == [
        (at, index) for at in range(40) for index in range(3)
    ]
    assert all(each.token_ids == (10 + int(each.request_id), 11, 12) for each in completions)
    assert {each.finish_reason for each in completions} == {"stop"}


def test_short_requests_come_back_before_long_ones_have_finished(engine: VllmEngine) -> None:
    with closing(engine.generate([ask(*range(10, 60), name="long"), ask(10, name="short")])) as completions:
        assert next(completions).request_id == "short"


def test_requests_are_taken_as_there_is_room_for_them(engine: VllmEngine) -> None:
    taken: list[int] = []

    def requests() -> Iterator[Request]:
        for at in range(1000):
            taken.append(at)
            yield ask(10, 11, name=str(at))

    with closing(engine.generate(requests())) as completions:
        next(completions)
        assert len(taken) == 8  # twice max_num_seqs


def test_all_requests_of_a_batch_are_there_when_vllm_begins_with_the_first(fake_vllm: None) -> None:
    requests = [ask(COUNTER, name="counter"), *(ask(10, name=str(at)) for at in range(299))]
    with closing(VllmEngine(make_model(), Vllm(max_num_seqs=300))) as engine:
        counts = [each.token_ids for each in engine.generate(requests) if each.request_id == "counter"]
    assert counts == [(300,)]


def test_requests_that_come_while_others_are_answered_join_them(engine: VllmEngine) -> None:
    waiting = deque([ask(10, name="0")])

    class Source(RequestSource):
        def poll(self) -> Request | None:
            return waiting.popleft() if waiting else None

        @property
        def done(self) -> bool:
            return False

    found = []
    for completion in engine.generate(Source()):
        found.append(int(completion.request_id))
        if found[-1] < 3:
            waiting.append(ask(10, name=str(found[-1] + 1)))
    assert found == [0, 1, 2, 3]


def test_text_ends_with_the_stop_string_and_without_the_stop_token(engine: VllmEngine) -> None:
    tokenizer = make_tiny_tokenizer()
    ids = tokenizer("<answer>47</answer>", add_special_tokens=False).input_ids
    (completion,) = engine.generate([ask(*ids, 2, stop=("</answer>",))])
    assert completion.text == "<answer>47</answer>"
    assert "".join(engine.stream(ask(*ids, 2, stop=("</answer>",)))) == "<answer>47</answer>"


def test_completions_that_come_together_have_the_texts_that_each_has_alone() -> None:
    tokenizer = make_tiny_tokenizer()
    stops = [(), ("</answer>",), ("a", "e")]
    draw = random.Random(0)
    rows = [([draw.randrange(len(tokenizer)) for _ in range(at)] + [2] * (at % 2), stops[at % 3]) for at in range(60)]
    detokenizer = Detokenizer(tokenizer, frozenset({2}), len(tokenizer))
    texts = [detokenizer.final_text(ids, stop) for ids, stop in rows]
    assert detokenizer.final_texts(rows) == texts
    assert len(set(texts)) > 50

    class Loud(type(tokenizer)):  # type: ignore[misc]
        def _decode(self, *args: Any, **kwargs: Any) -> str:
            return str(super()._decode(*args, **kwargs)).upper()

    tokenizer.__class__ = Loud
    loud = Detokenizer(tokenizer, frozenset({2}), len(tokenizer)).final_texts([(ids, ()) for ids, _ in rows])
    assert loud == [detokenizer.final_text(ids, ()) for ids, _ in rows]
    assert any(any(letter.isupper() for letter in text) for text in loud)
    assert not any(any(letter.islower() for letter in text) for text in loud)


def test_unsuitable_prompts_are_errors_of_their_own(engine: VllmEngine) -> None:
    requests = [
        ask(name="empty"),
        ask(*[5] * 2048, name="long"),
        ask(400, name="foreign"),
        ask(REFUSED, name="refused"),
        Request("adapter", (10,), Sampling(), adapter="b"),
        ask(10, name="fine"),
    ]
    found = {each.request_id: each.error for each in engine.generate(requests)}
    assert found["fine"] is None
    assert found["empty"] == "the prompt is empty"
    assert found["long"] is not None
    assert "2048 tokens" in found["long"]
    assert found["foreign"] is not None
    assert "vocabulary of 400" in found["foreign"]
    assert found["refused"] == "this prompt is not to its taste"
    assert found["adapter"] == "there is no adapter 'b' in this engine"


def test_max_tokens_is_clamped_to_the_room_in_the_context(engine: VllmEngine) -> None:
    (completion,) = engine.generate([ask(*[5] * 2000, max_tokens=5000)])
    assert len(completion.token_ids) == 48
    assert completion.finish_reason == "length"


@pytest.mark.parametrize("culprit", [KILLER, RAISER])
def test_the_request_that_ends_vllm_is_found_and_the_others_are_answered(engine: VllmEngine, culprit: int) -> None:
    requests = [ask(10 + at, name=str(at)) for at in range(7)]
    requests.insert(3, ask(culprit, name="culprit"))
    found = {each.request_id: each for each in engine.generate(requests)}
    assert len(found) == 8
    error = found.pop("culprit").error
    assert error is not None
    assert error.startswith("vLLM ended at this request: ")
    assert ("killed by SIGKILL" if culprit == KILLER else "illegal memory access") in error
    assert all(each.error is None for each in found.values())


def test_none_is_lost_where_vllm_is_killed_between_two_answers(engine: VllmEngine) -> None:
    with closing(engine.generate(ask(100 + at, name=str(at)) for at in range(60))) as completions:
        found = [next(completions)]
        worker_process(engine).kill()
        found += completions
    assert sorted(int(each.request_id) for each in found) == list(range(60))
    assert {each.error for each in found} == {None}


def test_one_that_ends_again_and_again_is_given_up(engine: VllmEngine) -> None:
    with pytest.raises(GenerationError, match="vLLM ended 13 times"):
        list(engine.generate([ask(KILLER, name=str(at)) for at in range(40)]))


def test_a_crash_while_streaming_or_scoring_is_an_error_and_the_next_question_is_answered(engine: VllmEngine) -> None:
    with pytest.raises(GenerationError, match="killed by SIGKILL"):
        list(engine.stream(ask(KILLER)))
    assert "".join(engine.stream(ask(40, 41))) == make_tiny_tokenizer().decode([40, 41])
    with pytest.raises(GenerationError, match="illegal memory access"):
        engine.logprobs([RAISER], [1])
    assert engine.logprobs([10, 11], [12, 13]) == [-12.0, -13.0]


def test_a_start_that_fails_says_why_and_what_to_set(fake_vllm: None) -> None:
    with pytest.raises(GenerationError, match="No available memory for the cache blocks") as caught:
        VllmEngine(make_model(), Vllm.model_construct(**{**Vllm().model_dump(), "max_model_len": 13}))
    assert "gpu_memory_utilization" in caught.value.hint
    assert ".log" in caught.value.hint


def test_leaving_early_calls_back_what_is_in_flight(engine: VllmEngine) -> None:
    with closing(engine.generate([ask(*[5] * 100, name=str(at)) for at in range(8)])) as completions:
        next(completions)
    # Answers of the abandoned call must not be taken for those of the next one.
    assert [each.token_ids for each in engine.generate([ask(7, 8)])] == [(7, 8)]


def test_calls_that_overlap_get_their_own_answers(engine: VllmEngine) -> None:
    with closing(engine.generate([ask(5, 6, name="first"), ask(5, 6, 7, name="second")])) as completions:
        first = next(completions)
        assert engine.logprobs([10], [11]) == [-11.0]
        assert {first.request_id, next(completions).request_id} == {"first", "second"}


def test_closing_leaves_no_process_and_no_log(engine: VllmEngine, tmp_path: Path) -> None:
    process = worker_process(engine)
    engine.close()
    engine.close()
    assert not process.is_running()
    assert not list(tmp_path.glob("thinktune-vllm-*"))


@pytest.mark.slow
def test_the_worker_ends_when_its_owner_is_killed(fake_vllm: None, tmp_path: Path) -> None:
    script = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_engine_vllm import make_model
from thinktune.config import Vllm
from thinktune.inference.engines.vllm.engine import VllmEngine
engine = VllmEngine(make_model(), Vllm())
print(engine._process._process.pid, flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(FAKE), *sys.path])},
    )
    assert owner.stdout is not None
    worker = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.communicate()
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running()


def test_noise_belongs_to_seed_id_and_sample(engine: VllmEngine) -> None:
    sent: list[Any] = []
    assert engine._process is not None
    send = engine._process.send

    def noting(message: Any) -> None:
        sent.append(json.loads(json.dumps(message)))
        send(message)

    engine._process.send = noting  # type: ignore[method-assign]
    list(engine.generate([ask(5, temperature=1.0, seed=1, n=2), ask(5, name="b", temperature=1.0, seed=1)]))
    list(engine.generate([ask(5, temperature=1.0, seed=1, n=2), ask(5, temperature=0.0, name="b", seed=1)]))
    seeds = [request["sampling"]["seed"] for message in sent for request in message.get("add", ())]
    assert len(set(seeds[:3])) == 3
    assert seeds[3:] == [*seeds[:2], None]  # nothing is drawn where nothing is left to chance


def test_requests_choose_among_the_adapters_of_one_engine(fake_vllm: None, tiny_adapter: Path) -> None:
    model = make_model(adapters={OWN: tiny_adapter, "other": tiny_adapter})
    with closing(VllmEngine(model, Vllm())) as engine:
        own, other = engine.generate([ask(5), Request("b", (5,), Sampling(stop=()), adapter="other")])
        assert (own.token_ids, other.token_ids) == ((5, 1), (5, 2))


@pytest.fixture
def tiny_adapter(tmp_path: Path, tiny_model: Path) -> Path:
    return make_adapter(tiny_model, tmp_path / "adapter")


def make_adapter(model: Path, folder: Path, **changes: Any) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 12, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**{**settings, **changes}))
    wrapped.save_pretrained(folder)
    return folder


def test_ranks_are_those_that_vllm_has(tmp_path: Path, tiny_model: Path, tiny_adapter: Path) -> None:
    assert lora_rank(tiny_adapter) == 16
    assert lora_rank(make_adapter(tiny_model, tmp_path / "b", r=40)) == 64


def test_adapters_of_other_kinds_are_refused_by_name(tmp_path: Path, tiny_model: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "dora", use_dora=True, modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match="it has use_dora, modules_to_save") as caught:
        lora_rank(folder)
    assert "thinktune merge" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rank_pattern": {"layers.0.self_attn.q_proj": 40}}, "rank_pattern"),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 40}}, "alpha_pattern"),
        ({"target_modules": ["q_proj", "lm_head"]}, "low-rank updates of lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "low-rank updates of embed_tokens"),
    ],
)
def test_adapters_that_vllm_would_scale_or_place_otherwise_are_refused(
    tmp_path: Path, tiny_model: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=f"it has {told}"):
        lora_rank(make_adapter(tiny_model, tmp_path / "adapter", **changes))


def test_settings_reach_vllm() -> None:
    settings = Vllm(enforce_eager=True, max_model_len=2048, gpu_memory_utilization=0.8)
    arguments = engine_arguments(make_model(device="cuda"), settings)
    assert (arguments["enforce_eager"], arguments["max_model_len"], arguments["gpu_memory_utilization"]) == (
        True,
        2048,
        0.8,
    )
    assert "cudagraph_capture_sizes" not in arguments
    graphs = engine_arguments(make_model(device="cuda"), Vllm(max_num_seqs=8))
    assert graphs["cudagraph_capture_sizes"] == [1, 2, 4, 8]
    assert engine_arguments(make_model(), Vllm())["enforce_eager"] is True


def test_vllm_gets_the_gpu_that_was_chosen_and_switches_that_are_not_set(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def switches(device: str = "cuda", folder: Path = tiny_model, **changes: Any) -> dict[str, str]:
        return vllm_environment(make_model(device=device, folder=folder, **changes))

    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    assert switches()["VLLM_USE_FLASHINFER_SAMPLER"] == "1"
    assert switches()["VLLM_NO_USAGE_STATS"] == "1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert switches("cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert switches("cuda:1")["CUDA_VISIBLE_DEVICES"] == "6"
    newer = "VLLM_USE_V2_MODEL_RUNNER"
    assert switches()[newer] == "1"
    assert newer not in switches("cpu")
    assert newer not in switches(adapters={OWN: tiny_adapter})
    (tmp_path / "config.json").write_text('{"model_type": "mamba2"}')
    assert newer not in switches(folder=tmp_path)
    monkeypatch.setenv(newer, "0")
    assert switches()[newer] == "0"


def test_adapters_in_float32_are_refused_on_a_gpu(tiny_adapter: Path) -> None:
    beside = {"a": tiny_adapter}
    assert engine_arguments(make_model(adapters=beside), Vllm())["enable_lora"]
    with pytest.raises(ModelError, match="16 bits only"):
        engine_arguments(make_model(device="cuda", adapters=beside), Vllm())
    assert engine_arguments(make_model(device="cuda", dtype="bfloat16", adapters=beside), Vllm())["enable_lora"]


def test_a_field_that_vllm_cannot_honour_is_named(fake_vllm: None, tiny_model: Path) -> None:
    with (
        open_engine(tiny_model, EngineSettings("vllm")) as opened,
        pytest.raises(UsageError, match="no_repeat_ngram_size"),
    ):
        opened.engine.require_supported(Sampling(no_repeat_ngram_size=3))


def test_a_missing_engine_says_how_to_install_it(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    monkeypatch.setattr("thinktune.inference.engines.vllm.process.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="vLLM is not installed") as caught:
        open_engine(tiny_model, EngineSettings("vllm"))
    assert "thinktune[vllm]" in caught.value.hint
    monkeypatch.setenv(PYTHON, "/no/such/python")
    with pytest.raises(UsageError, match="/no/such/python"):
        open_engine(tiny_model, EngineSettings("vllm"))


def test_without_a_gpu_auto_is_transformers(fake_vllm: None, tiny_model: Path) -> None:
    with open_engine(tiny_model, EngineSettings("auto")) as opened:
        assert "no_repeat_ngram_size" not in opened.engine.unsupported


def test_a_budget_for_thinking_works_over_vllm(fake_vllm: None, tiny_model: Path) -> None:
    with open_engine(tiny_model, EngineSettings("vllm")) as opened:
        sampling = Sampling(max_tokens=32, think_budget=8, n=2)
        request = Request("a", opened.chat.prompt_ids([{"role": "user", "content": "2 + 2?"}]), sampling)
        texts = [each.text for each in opened.engine.generate([request])]
    assert len(texts) == 2
    assert all(text.startswith("<think>") and text.endswith("</answer>") for text in texts)


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "worker.py" in " ".join(child.cmdline())]


def test_vllm_is_imported_before_the_first_request_and_that_process_answers_it(
    fake_vllm: None, tiny_model: Path
) -> None:
    with open_engine(tiny_model, EngineSettings("vllm")) as opened:
        (begun,) = workers()
        (completion,) = opened.engine.generate([ask(10, 11)])
        assert completion.error is None
        assert workers() == [begun]
    assert not workers()


def test_a_model_that_is_asked_nothing_leaves_no_process(fake_vllm: None, tiny_model: Path, tmp_path: Path) -> None:
    with open_engine(tiny_model, EngineSettings("vllm")):
        pass
    assert not workers()
    assert not list(tmp_path.glob("thinktune-vllm-*"))


def test_a_tokenizer_that_cannot_be_read_leaves_no_process(fake_vllm: None, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        open_engine(folder, EngineSettings("vllm"))
    assert not workers()


def test_quantised_models_are_not_for_vllm(fake_vllm: None, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="quantize: int8 is for the transformers engine"):
        open_engine(tiny_model, EngineSettings("vllm", quantize="int8"))


def test_an_interrupt_while_vllm_starts_leaves_no_process(fake_vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "thinktune.inference.engines.vllm.process.json.loads", lambda line: signal.raise_signal(signal.SIGINT)
    )
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt):
        VllmEngine(make_model(), Vllm())
    time.sleep(0.1)
    assert {child.pid for child in psutil.Process().children()} == before


def test_an_interrupt_in_the_middle_of_a_request_spoils_none_that_follows(fake_vllm: None) -> None:
    with closing(VllmEngine(make_model(), Vllm(max_num_seqs=64))) as engine:
        worker = worker_process(engine)

        def interrupt(*_: object) -> None:
            worker.resume()
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        worker.suspend()  # so that the socket fills up
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt):
                list(engine.generate(ask(*[100] * 2000, name=str(at)) for at in range(128)))
            signal.alarm(30)  # rather than hang
            assert [each.token_ids for each in engine.generate([ask(10, 11)])] == [(10, 11)]
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
