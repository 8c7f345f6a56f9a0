"""The transformers engine on a real tiny model, against `generate()` of transformers and against itself."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripted import GENERATION_PROMPT, ScriptedModel
from thinktune.config import Sampling
from thinktune.errors import GenerationError, OutOfMemory
from thinktune.inference.engines.base import Completion, Request
from thinktune.inference.engines.hf.cuda_graph import Recorder
from thinktune.inference.engines.hf.decoder import Decoder
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.hf.sampler import Sampler
from thinktune.models.device import multiplies_bfloat16

GREEDY = Sampling(max_tokens=12, stop=())
DRAWN = Sampling(max_tokens=12, stop=(), temperature=1.0, seed=7)
REPLY = "<think>3 and 4 make 7.</think> <answer>7</answer>"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    # A wide initialisation, so that greedy decoding does not repeat one token.
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def engine(model: Any, tokenizer: Any) -> TransformersEngine:
    return TransformersEngine(model, tokenizer, [2])


def make_requests(count: int, sampling: Sampling) -> list[Request]:
    noise = random.Random(0)
    prompts = [[noise.randrange(3, 380) for _ in range(noise.randrange(1, 40))] for _ in range(count)]
    return [Request(f"r{index}", prompt, sampling) for index, prompt in enumerate(prompts)]


def answers(completions: Iterable[Completion]) -> dict[tuple[str, int], Sequence[int]]:
    found = {(each.request_id, each.index): each.token_ids for each in completions}
    assert all(found.values())
    return found


def generate_with_transformers(model: Any, request: Request, **settings: Any) -> list[int]:
    ids = torch.tensor([request.prompt_ids])
    settings |= {
        "max_new_tokens": request.sampling.max_tokens,
        "do_sample": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return [int(token) for token in out[0, len(request.prompt_ids) :]]


def scripted(tokenizer: Any, reply: Any, **settings: Any) -> tuple[ScriptedModel, TransformersEngine]:
    model = ScriptedModel(tokenizer, reply if callable(reply) else lambda prompt: reply)
    return model, TransformersEngine(model, tokenizer, [tokenizer.eos_token_id], **settings)


def ask_all(tokenizer: Any, questions: Iterable[str], sampling: Sampling) -> list[Request]:
    return [Request(text, tokenizer(text + GENERATION_PROMPT).input_ids, sampling) for text in questions]


def test_greedy_decoding_equals_generate_of_transformers_alone_and_batched(
    model: Any, engine: TransformersEngine
) -> None:
    requests = make_requests(20, GREEDY)
    batched = answers(engine.generate(requests))
    for request in requests:
        expected = generate_with_transformers(model, request)
        assert list(batched[request.id, 0]) == expected
        assert list(answers(engine.generate([request]))[request.id, 0]) == expected
    assert len({tuple(ids) for ids in batched.values()}) > 10


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2}]
)
def test_penalties_equal_those_of_transformers(
    model: Any, engine: TransformersEngine, settings: dict[str, Any]
) -> None:
    plain = make_requests(8, GREEDY)
    requests = [replace(each, sampling=GREEDY.model_copy(update=settings)) for each in plain]
    found = answers(engine.generate(requests))
    for request in requests:
        assert list(found[request.id, 0]) == generate_with_transformers(model, request, **settings)
    assert found != answers(engine.generate(plain))


def test_a_sliding_window_model_decodes_like_generate(tiny_model: Path, tokenizer: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(3)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, sliding_window=8, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    beginning = list(range(5, 25))
    requests = [replace(each, prompt_ids=[*beginning, *each.prompt_ids]) for each in make_requests(6, GREEDY)]
    found = answers(TransformersEngine(model, tokenizer, [2]).generate(requests))
    for request in requests:
        assert list(found[request.id, 0]) == generate_with_transformers(model, request)


def test_a_model_that_brings_its_own_attention_decodes_like_generate(tokenizer: Any) -> None:
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    config = FalconConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1,
        eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    falcon = FalconForCausalLM(config).eval()
    requests = make_requests(8, GREEDY)
    found = answers(TransformersEngine(falcon, tokenizer, [2]).generate(requests))
    for request in requests:
        assert list(found[request.id, 0]) == generate_with_transformers(falcon, request)


def test_a_model_whose_rotary_frequencies_change_with_the_longest_row_is_kept_to_one_kind(tokenizer: Any) -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = Phi3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rope_parameters=rope, original_max_position_embeddings=64, max_position_embeddings=256,
        initializer_range=0.3, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    engine = TransformersEngine(Phi3ForCausalLM(config).eval(), tokenizer, [2])
    assert engine.context_length == 64
    short, long = (Request(name, list(range(3, 3 + length)), GREEDY) for name, length in (("s", 9), ("l", 60)))
    alone = answers(engine.generate([short]))
    assert answers(engine.generate([short, long]))["s", 0] == alone["s", 0]
    (refused,) = engine.generate([Request("x", list(range(3, 103)), GREEDY)])
    assert "64" in (refused.error or "")


def test_a_request_is_answered_the_same_in_any_company_and_order(engine: TransformersEngine) -> None:
    requests = make_requests(24, DRAWN)
    expected = {key: ids for request in requests for key, ids in answers(engine.generate([request])).items()}
    assert answers(engine.generate(requests)) == expected
    assert answers(engine.generate(reversed(requests))) == expected


@pytest.mark.parametrize("own", [(1, 9, 30), (0, 4), (5, 5, 5)])
def test_what_all_prompts_begin_with_is_read_once_and_changes_no_answer(
    engine: TransformersEngine, own: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = random.Random(1)
    beginning = [noise.randrange(3, 380) for _ in range(20)]
    prompts = [beginning + [noise.randrange(3, 380) for _ in range(length)] for length in own]
    requests = [Request(f"r{index}", prompt, GREEDY) for index, prompt in enumerate(prompts)]
    alone = {key: ids for request in requests for key, ids in answers(engine.generate([request])).items()}
    read: list[int] = []
    original = Decoder.forward

    def forward(self: Decoder, ids: torch.Tensor, *args: Any) -> torch.Tensor:
        read.append(ids.numel())
        return original(self, ids, *args)

    monkeypatch.setattr(Decoder, "forward", forward)
    assert answers(engine.generate(requests)) == alone
    shared = min(20, 20 + max(own) - 1)
    assert read[:2] == [shared, len(own) * (20 + max(own) - shared)]


def test_rows_sent_back_for_want_of_room_go_on_as_if_nothing_had_been(
    model: Any, tokenizer: Any, engine: TransformersEngine
) -> None:
    requests = make_requests(9, DRAWN.model_copy(update={"max_tokens": 150, "no_repeat_ngram_size": 3}))
    small = TransformersEngine(model, tokenizer, [], max_batch_tokens=600)
    assert answers(small.generate(requests)) == answers(TransformersEngine(model, tokenizer, []).generate(requests))


@pytest.mark.slow
def test_no_row_is_lost_whichever_change_of_the_batch_fails(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = TransformersEngine(model, tokenizer, [], max_batch_tokens=400)
    requests = make_requests(5, DRAWN.changed(max_tokens=100))
    expected = answers(small.generate(requests))
    made: list[int] = []
    fatal: list[int] = []

    def make(rows: Sequence[Any], *rest: Any) -> Sampler:
        made.append(len(rows))
        if len(made) in fatal and len(rows) > 1:
            raise RuntimeError("no room for the sampler")
        return Sampler(rows, *rest)

    monkeypatch.setattr("thinktune.inference.engines.hf.batch.Sampler", make)
    answers(small.generate(requests))
    for number in range(1, len(made) + 1):
        made.clear()
        fatal[:] = [number]
        assert answers(small.generate(requests)) == expected


def test_samples_differ_by_index_and_seed_and_repeat_themselves(engine: TransformersEngine) -> None:
    request = make_requests(1, DRAWN.model_copy(update={"n": 5}))[0]
    first = answers(engine.generate([request]))
    assert sorted(first) == [("r0", index) for index in range(5)]
    assert len({tuple(ids) for ids in first.values()}) == 5
    assert answers(engine.generate([request])) == first
    other = replace(request, sampling=request.sampling.model_copy(update={"seed": 8}))
    assert answers(engine.generate([other])) != first
    fewer = replace(request, sampling=request.sampling.model_copy(update={"n": 2}))
    assert answers(engine.generate([fewer])).items() <= first.items()


def test_settings_of_one_request_leave_its_neighbours_alone(engine: TransformersEngine) -> None:
    longer = GREEDY.model_copy(update={"max_tokens": 60})
    greedy = make_requests(6, longer)
    alone = answers(engine.generate(greedy))
    changes: list[dict[str, float]] = [
        {"temperature": 2.0},
        {"repetition_penalty": 0.1},
        {"no_repeat_ngram_size": 1},
        {"max_tokens": 3},
    ]
    mixed = [
        replace(request, id=f"x{index}", sampling=longer.model_copy(update=change))
        for index, change in enumerate(changes)
        for request in greedy[:1]
    ]
    found = answers(engine.generate([*mixed, *greedy]))
    assert alone.items() <= found.items()
    assert len({tuple(found[request.id, 0]) for request in [*mixed, greedy[0]]}) == 5


def test_steps_of_fixed_shape_that_a_gpu_records_give_the_same_tokens(model: Any, engine: TransformersEngine) -> None:
    class NotRecorded(Recorder):
        calls = 0

        def record(self, forward: Any, keep: Any = (), *, warm_up: bool = False) -> None:
            self.calls += 1

    fixed, recorder = copy.copy(engine), NotRecorded(torch.device("cpu"))
    fixed._decoder = replace(engine._decoder, recorder=recorder)
    longer = Sampling(max_tokens=90, stop=(), repetition_penalty=1.3)  # than the cache has room for at first
    requests = [*make_requests(12, longer), *make_requests(8, GREEDY)]
    requests = [replace(request, id=str(at)) for at, request in enumerate(requests)]
    assert answers(fixed.generate(requests)) == answers(engine.generate(requests))
    assert recorder.calls >= 80


def test_every_prompt_gets_its_own_answer_through_changing_batches(tokenizer: Any) -> None:
    def reply(prompt: str) -> str:
        number = int(prompt.split()[0])
        return f"<think>{'so ' * (number % 23)}</think> <answer>{number}</answer>"

    model, engine = scripted(tokenizer, reply, max_batch_tokens=1200)
    questions = [f"{number} " + "word " * (number % 7) for number in range(60)]
    found = {each.request_id: each for each in engine.generate(ask_all(tokenizer, questions, Sampling(max_tokens=99)))}
    assert {text: each.text for text, each in found.items()} == {text: reply(text) for text in questions}
    assert {each.finish_reason for each in found.values()} == {"stop"}
    assert max(model.batches) < 20


def test_text_ends_right_after_the_stop_string_wherever_tokens_end(tokenizer: Any) -> None:
    _, engine = scripted(tokenizer, REPLY + "\nand on and on")
    for stop in ("</answer>", "make", "4 ma", " <", "7."):
        request = ask_all(tokenizer, ["q"], Sampling(max_tokens=200, stop=("never", stop)))[0]
        (completion,) = engine.generate([request])
        assert completion.text == REPLY[: REPLY.index(stop) + len(stop)]
        assert completion.finish_reason == "stop"
        assert "".join(engine.stream(request)) == completion.text


def test_a_tokenizer_with_tokens_for_bytes_needs_no_stop_string() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    plain.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", unk_token="<unk>")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(pieces), **sizes))
    for stop in ((), ("",), ("b",)):
        (completion,) = TransformersEngine(model, tokenizer, [2]).generate(
            [Request("r", [1, 259], DRAWN.changed(stop=stop))]
        )
        assert completion.error is None
        assert completion.token_ids


def test_the_first_of_several_stop_strings_counts(tokenizer: Any) -> None:
    _, engine = scripted(tokenizer, REPLY)
    (completion,) = engine.generate(ask_all(tokenizer, ["q"], Sampling(max_tokens=200, stop=("make", "and"))))
    assert completion.text == "<think>3 and"


def test_streamed_pieces_are_whole_characters_and_join_to_the_text(tokenizer: Any) -> None:
    said = "小明有三个🍎苹果 <|im_start|> é"
    _, engine = scripted(tokenizer, said)
    request = ask_all(tokenizer, ["q"], Sampling(max_tokens=200, stop=("苹果",)))[0]
    pieces = list(engine.stream(request))
    assert "".join(pieces) == "小明有三个🍎苹果"
    assert not any("\ufffd" in piece for piece in pieces)
    (completion,) = engine.generate([replace(request, sampling=Sampling(max_tokens=200, stop=()))])
    assert completion.text == "小明有三个🍎苹果  é"  # the special token is no text


def test_a_character_cut_in_half_by_the_limit_is_left_off(tokenizer: Any) -> None:
    _, engine = scripted(tokenizer, "ab🍎")
    tokens = len(tokenizer("ab🍎").input_ids)
    request = ask_all(tokenizer, ["q"], Sampling(max_tokens=tokens - 1, stop=()))[0]
    (completion,) = engine.generate([request])
    assert (completion.text, completion.finish_reason) == ("ab", "length")
    assert "".join(engine.stream(request)) == "ab"


def test_prompts_that_cannot_be_answered_get_errors_and_the_others_answers(tokenizer: Any) -> None:
    _, engine = scripted(tokenizer, REPLY)
    good = ask_all(tokenizer, ["good"], Sampling(max_tokens=100))
    bad = [
        Request("long", [5] * 512, Sampling(n=2)),
        Request("strange", [5, 100_000], Sampling()),
        Request("negative", [-1, 5], Sampling()),
        Request("empty", [], Sampling()),
    ]
    found = {(each.request_id, each.index): each for each in engine.generate([*bad, *good])}
    assert len(found) == 6
    assert found["good", 0].text == REPLY
    assert "512 tokens" in (found["long", 1].error or "")
    assert "context of 512" in (found["long", 0].error or "")
    assert all(found[name, 0].finish_reason == "error" for name in ("strange", "negative", "empty"))
    with pytest.raises(GenerationError, match="512 tokens"):
        list(engine.stream(bad[0]))


def test_max_tokens_is_clamped_to_the_room_in_the_context(tokenizer: Any) -> None:
    _, engine = scripted(tokenizer, "on " * 600)
    (request,) = ask_all(tokenizer, ["q " * 100], Sampling(max_tokens=1000))
    (completion,) = engine.generate([request])
    assert len(request.prompt_ids) + len(completion.token_ids) == engine.context_length == 512
    assert completion.finish_reason == "length"


def test_a_batch_that_fails_is_halved_until_the_guilty_row_is_found(tokenizer: Any) -> None:
    class Fragile(ScriptedModel):
        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            if (input_ids == poison).any():
                raise ValueError("cannot swallow this")
            return super().forward(input_ids, **kwargs)

    poison = tokenizer("%").input_ids[0]
    model = Fragile(tokenizer, lambda prompt: "ab%cd" if "writes" in prompt else REPLY)
    engine = TransformersEngine(model, tokenizer, [2])
    questions = [f"q{number}" for number in range(13)] + ["reads % it", "writes it"]
    found = {each.request_id: each for each in engine.generate(ask_all(tokenizer, questions, Sampling(max_tokens=99)))}
    assert len(found) == 15
    for name in ("reads % it", "writes it"):
        assert "cannot swallow this" in (found.pop(name).error or "")
    assert {each.text for each in found.values()} == {REPLY}


def test_logits_that_are_no_numbers_fail_their_row_only(tokenizer: Any) -> None:
    class Overflowing(ScriptedModel):
        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            out = super().forward(input_ids, **kwargs)
            out.logits[(input_ids == poison).any(dim=1)] = float("nan")
            return out

    poison = tokenizer("%").input_ids[0]
    engine = TransformersEngine(Overflowing(tokenizer, lambda prompt: REPLY), tokenizer, [2])
    sampling = Sampling(max_tokens=99, temperature=0.1, top_p=0.9)
    found = {each.request_id: each for each in engine.generate(ask_all(tokenizer, ["a", "b %", "c"], sampling))}
    assert "not a number" in (found["b %"].error or "")
    assert found["a"].text == found["c"].text == REPLY


def test_out_of_memory_halves_the_batch_and_nothing_is_lost(tokenizer: Any) -> None:
    class Small(ScriptedModel):
        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            if len(input_ids) > 3 or "huge" in self.tokenizer.decode(input_ids[0]):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(input_ids, **kwargs)

    model = Small(tokenizer, lambda prompt: REPLY)
    engine = TransformersEngine(model, tokenizer, [2])
    questions = [f"q{number}" for number in range(16)]
    found = list(engine.generate(ask_all(tokenizer, [*questions, "huge"], Sampling(max_tokens=99))))
    assert sorted(each.request_id for each in found if each.text == REPLY) == sorted(questions)
    assert ["out of memory" in (each.error or "") for each in found].count(True) == 1
    with pytest.raises(OutOfMemory, match="alone"):
        list(engine.generate(ask_all(tokenizer, ["huge"], Sampling(max_tokens=99))))


def test_a_model_in_training_is_left_as_it_was(tiny_model: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    engine = TransformersEngine(model, tokenizer, [2])
    attention, random_state = model.config._attn_implementation, torch.get_rng_state()
    stopped_early: Iterator[str] = engine.stream(make_requests(1, GREEDY)[0])
    next(stopped_early)
    del stopped_early
    list(engine.generate(make_requests(3, GREEDY)))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), random_state)
    loss = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
    loss.backward()
    assert model.model.embed_tokens.weight.grad is not None


def test_logprobs_are_those_of_a_plain_forward(model: Any, engine: TransformersEngine) -> None:
    prompt, continuation = [5, 6, 7, 8], [9, 10, 11]
    with torch.no_grad():
        scores = model(torch.tensor([prompt + continuation])).logits[0].log_softmax(-1)
    expected = [float(scores[3 + at, token]) for at, token in enumerate(continuation)]
    assert engine.logprobs(prompt, continuation) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(GenerationError, match="context"):
        engine.logprobs([5] * 3000, [5])


def test_an_unmerged_adapter_is_used(tiny_model: Path, tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    model.eval()
    requests = make_requests(4, GREEDY)
    found = answers(TransformersEngine(model, tokenizer, [2]).generate(requests))
    for request in requests:
        assert list(found[request.id, 0]) == generate_with_transformers(model, request)
    with model.disable_adapter():
        assert answers(TransformersEngine(model, tokenizer, [2]).generate(requests)) != found


@pytest.mark.skipif(not multiplies_bfloat16(torch.device("cpu")), reason="this CPU does not multiply bfloat16")
def test_packed_weights_change_no_result_and_are_gone_afterwards(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = copy.deepcopy(model).bfloat16()
    engine = TransformersEngine(half, tokenizer, [2])
    requests = make_requests(6, GREEDY)
    packed = answers(engine.generate(requests))
    assert not any("forward" in vars(module) for module in half.modules())
    monkeypatch.setattr("thinktune.inference.engines.hf.packed_linear._SHARE_OF_MEMORY", 0)
    assert answers(engine.generate(requests)) == packed
