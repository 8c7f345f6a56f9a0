"""GGUF files, read back by transformers and by llama.cpp, and Ollama's Modelfile."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import CHAT_TEMPLATE, CORPUS, make_tiny_model, make_tiny_tokenizer
from test_fidelity import make_family
from thinktune.cli import app
from thinktune.config import Load, Sampling
from thinktune.errors import ModelError, UsageError
from thinktune.export.gguf import export, ollama_modelfile
from thinktune.export.gguf_types import PRECISIONS, Precision, quantize, tensor_type
from thinktune.inference.engines import EngineSettings, Request, open_engine
from thinktune.models import Chat, load_model, load_tokenizer

FLOAT32 = Load(dtype="float32")


@pytest.mark.parametrize("precision", ["f16", "q8_0"])
def test_a_file_reads_back_as_the_model(tiny_model: Path, tmp_path: Path, precision: Precision) -> None:
    import torch

    exported = export(tiny_model, tmp_path / "tiny.gguf", precision, load=FLOAT32)
    assert exported.file.stat().st_size == exported.size
    before, after = (load_model(each, load=FLOAT32) for each in (tiny_model, exported.file))
    ids = torch.tensor([before.chat.prompt_ids([{"role": "user", "content": "3 + 4?"}])])
    with torch.inference_mode():
        difference = (before.model(ids).logits - after.model(ids).logits).abs().max()
    assert 0 < difference < (0.002 if precision == "f16" else 0.02)
    assert after.chat.prompt_ids([{"role": "user", "content": "3 + 4?"}]) == ids[0].tolist()
    assert after.chat.end_of_turn_id == before.chat.end_of_turn_id


K_QUANTS = [each for each in PRECISIONS if "_k" in each]


@pytest.mark.parametrize("precision", K_QUANTS)
def test_a_mixture_of_k_quants_reads_back_as_the_model(tmp_path: Path, precision: Precision) -> None:
    pytest.importorskip("xllamacpp", reason="no wheel of llama.cpp for this machine")
    import gguf

    model = make_tiny_model(tmp_path / "m", hidden_size=256, intermediate_size=256)
    exported = export(model, tmp_path / "m.gguf", precision, load=FLOAT32)
    found = {tensor.tensor_type.name for tensor in gguf.GGUFReader(exported.file).tensors}
    assert (
        found
        == {"q6_k": {"F32", "Q6_K"}, "q5_k_m": {"F32", "Q5_K", "Q6_K"}, "q4_k_m": {"F32", "Q4_K", "Q6_K"}}[precision]
    )


@pytest.mark.parametrize(
    ("name", "most"), [("Q6_K", 0.03), ("Q5_K", 0.06), ("Q4_K", 0.12), ("Q5_0", 0.1), ("Q8_0", 0.01)]
)
def test_weights_in_each_format_are_near_what_they_were(name: str, most: float) -> None:
    pytest.importorskip("xllamacpp", reason="no wheel of llama.cpp for this machine")
    import gguf
    import numpy as np

    values = np.random.default_rng(0).standard_normal((3, 512), np.float32)
    kind = gguf.GGMLQuantizationType[name]
    again = gguf.quants.dequantize(quantize(values, kind), kind)
    assert 0 < np.abs(again - values).mean() < most


def test_rows_that_no_k_quant_fits_get_the_format_that_llama_cpp_takes() -> None:
    def chosen(name: str, columns: int, precision: Precision = "q4_k_m", *, tied: bool = True) -> str:
        return str(tensor_type(name, (8, columns), precision, 32, tied=tied).name)

    assert [chosen("blk.9.attn_q.weight", columns) for columns in (512, 576, 40)] == ["Q4_K", "Q5_0", "F16"]
    assert [chosen(f"blk.{layer}.ffn_down.weight", 512) for layer in (0, 4, 6, 31)] == ["Q6_K", "Q4_K", "Q6_K", "Q6_K"]
    assert [chosen("token_embd.weight", 512, tied=tied) for tied in (True, False)] == ["Q6_K", "Q4_K"]


def test_grouped_heads_and_an_own_output_layer_keep_their_places(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "m", seed=3, tie_word_embeddings=False, head_dim=16)
    assert export(model, tmp_path / "m.gguf", "f16", load=FLOAT32).agreement == 1.0


def test_qwen_models_are_known(tmp_path: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tiny_tokenizer()
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer) + 12,  # padded, as Qwen's own are
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
        )
    )
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    assert export(tmp_path / "m", tmp_path / "m.gguf", "f16", load=FLOAT32).agreement == 1.0


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def logits_of(reference: Path, length: int) -> Any:
    import torch

    ids = torch.arange(3, 3 + length)[None]
    with torch.inference_mode():
        return load_model(reference, load=FLOAT32).model(ids).logits


@pytest.mark.parametrize("original", [64, 8192], ids=["a rule of its own", "the published one"])
def test_scaled_positions_of_llama_3_are_written_and_read_back(tmp_path: Path, original: int) -> None:
    rule = {**LLAMA3, "original_max_position_embeddings": original}
    model = make_family(tmp_path / "m", "Llama", rope_parameters=rule)
    file = export(model, tmp_path / "m.gguf", "f16", load=FLOAT32).file
    assert (logits_of(model, 200) - logits_of(file, 200)).abs().max() < 0.05
    plain = make_family(tmp_path / "p", "Llama", rope_parameters={**PLAIN, "rope_theta": 500000.0})
    assert (logits_of(model, 200) - logits_of(plain, 200)).abs().max() > 0.05
    assert load_model(file, load=FLOAT32).model.config.rope_parameters["factor"] == 8.0


def test_a_file_that_scales_positions_by_an_unknown_rule_is_refused(tmp_path: Path) -> None:
    model = make_family(tmp_path / "m", "Llama", rope_parameters=LLAMA3)
    file = export(model, tmp_path / "m.gguf", "f16", load=FLOAT32).file
    file.write_bytes(file.read_bytes().replace(b"thinktune.rope_parameters", b"somewhere.rope_parameters"))
    with pytest.raises(ModelError, match=r"scales its positions in a way .*rope_freqs"):
        load_model(file, load=FLOAT32)


LONG = {
    "original_max_position_embeddings": 512,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 512,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0],
    },
}  # fmt: skip
DELTA_RULE = {
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "head_dim": 32,
}  # fmt: skip
GEMMA3 = {
    "num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"], "sliding_window": 24,
    "hidden_size": 64, "head_dim": 16, "query_pre_attn_scalar": 16,
}  # fmt: skip
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param("Mistral", {"sliding_window": None}, marks=pytest.mark.slow),
        pytest.param("Phi3", {"sliding_window": None}, marks=pytest.mark.slow),
        ("Phi3", {"sliding_window": None, "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}),
        ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "sliding_window": None}),
        pytest.param("Olmo2", {}, marks=pytest.mark.slow),
        ("Olmo3", {**WINDOWS, "rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}}),
        pytest.param("Phi3", {"sliding_window": None, **LONG}, marks=pytest.mark.slow, id="Phi3-longrope"),
        pytest.param("Qwen3_5", DELTA_RULE, marks=pytest.mark.slow),
        pytest.param("Qwen3_5", {**DELTA_RULE, "linear_num_key_heads": 4}, marks=pytest.mark.slow),
    ],
)
def test_other_families_read_back_by_transformers_or_llama_cpp(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    pytest.importorskip("xllamacpp", reason="no wheel of llama.cpp for this machine")
    model = make_family(tmp_path / "m", kind, **{"hidden_size": 64, "head_dim": 16, **settings})
    exported = export(model, tmp_path / "m.gguf", "f16", load=FLOAT32)
    assert exported.agreement >= 0.95
    assert exported.tokens > 30


def sentencepiece_like(*, whole: bool = True) -> Any:
    """A tokenizer as those made from SentencePiece: spaces are pieces, and each pair that makes a piece is a merge."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    space = normalizers.Replace(" ", "▁")
    trained = Tokenizer(models.BPE())
    trained.normalizer = space
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
    learned = sorted(trained.get_vocab().items(), key=lambda each: each[1])
    pieces = marks + [f"<0x{byte:02X}>" for byte in range(256)] + [piece for piece, _ in learned]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [
        (piece[:at], piece[at:])
        for piece, _ in learned
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges[: None if whole else -1], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = space
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=marks[1], eos_token=marks[2], pad_token=marks[0], unk_token=marks[3],
        chat_template=CHAT_TEMPLATE, model_max_length=2048,
    )  # fmt: skip


@pytest.mark.slow
def test_an_abort_of_llama_cpp_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="no wheel of llama.cpp for this machine")
    model = make_family(
        tmp_path / "m", "Qwen3_5", **{**DELTA_RULE, "head_dim": 16}
    )  # narrower than its rotary sections
    with pytest.raises(ModelError, match=r"llama\.cpp does not read the file: .*ASSERT"):
        export(model, tmp_path / "out" / "m.gguf", "f16", load=FLOAT32)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("vision", [False, True], ids=["text", "the text half of a model with vision"])
def test_gemma_3_and_its_tokenizer_read_back(tmp_path: Path, vision: bool) -> None:
    pytest.importorskip("xllamacpp", reason="no wheel of llama.cpp for this machine")
    tokenizer = sentencepiece_like()
    model = make_family(tmp_path / "m", "Gemma3", **GEMMA3, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(model)
    if vision:
        inside_a_model_with_vision(model)
    exported = export(model, tmp_path / "m.gguf", "f16", load=FLOAT32)
    assert exported.agreement >= 0.95
    assert exported.tokens > 30


def inside_a_model_with_vision(folder: Path) -> None:
    from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration
    from transformers import Gemma3ForCausalLM as TextModel

    text = TextModel.from_pretrained(folder, dtype="float32")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}
    config = AutoConfig.from_pretrained(folder).to_dict()
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=config, vision_config=vision, mm_tokens_per_image=1)
    )
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.save_pretrained(folder)


def test_a_tokenizer_whose_merges_llama_cpp_would_add_to_is_refused(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like(whole=False)
    model = make_family(tmp_path / "m", "Gemma3", **GEMMA3, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(model)
    with pytest.raises(ModelError, match="splits text in a way that is not known here"):
        export(model, tmp_path / "m.gguf", "f16", load=FLOAT32)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("Mistral", {"sliding_window": 64}, "a sliding window of 64 tokens"),
        ("SmolLM3", {"no_rope_layers": [0, 1]}, "in every 4th layer only"),
        ("Gemma", {}, "it is a gemma model; known for GGUF are gemma3"),
        ("Gemma3", {**GEMMA3, "layer_types": ["full_attention"] * 6}, "with full attention in every 6th layer only"),
        ("Gemma3", {**GEMMA3, "query_pre_attn_scalar": 8}, "scaled by the size of a head only"),
    ],
)
def test_models_that_llama_cpp_has_no_place_for_are_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any], message: str
) -> None:
    model = make_family(tmp_path / "m", kind, **settings)
    with pytest.raises(ModelError, match=message):
        export(model, tmp_path / "m.gguf", "f16", load=FLOAT32)
    assert not (tmp_path / "m.gguf").exists()


def test_the_system_text_that_was_trained_is_in_the_file(tiny_model: Path, tmp_path: Path) -> None:
    from thinktune.models import write_settings

    model = shutil.copytree(tiny_model, tmp_path / "m")
    write_settings(model, {"base_model": "x", "system": 'Be "brief"\nand kind. 小'})
    exported = export(model, tmp_path / "m.gguf", "f16", load=FLOAT32)
    rendered = load_tokenizer(exported.file).apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert rendered.startswith('<|im_start|>system\nBe "brief"\nand kind. 小<|im_end|>')
    assert 'SYSTEM """Be "brief"\nand kind. 小"""' in exported.modelfile.read_text(encoding="utf-8")


def test_a_system_text_that_a_modelfile_cannot_hold_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from thinktune.models import write_settings

    model = shutil.copytree(tiny_model, tmp_path / "m")
    write_settings(model, {"base_model": "x", "system": 'Write """docstrings""".'})
    with pytest.raises(ModelError, match="three double quotes"):
        export(model, tmp_path / "m.gguf", "f16", load=FLOAT32)
    assert not (tmp_path / "m.gguf").exists()


def test_the_modelfile_says_how_to_ask(tmp_path: Path) -> None:
    text = ollama_modelfile("m.gguf", Chat(make_tiny_tokenizer()))
    assert text.startswith("FROM ./m.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "You are a tiny model." in text
    assert rendered_by_go(text, [("user", "a"), ("assistant", "b"), ("user", "c")]) == (
        "<|im_start|>system\nYou are a tiny model.<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        "<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered_by_go(text, [("system", "s"), ("user", "c")]) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


def rendered_by_go(modelfile: str, turns: list[tuple[str, str]]) -> str:
    """What the template gives, for the few words of Go's language that it is written in."""
    import json
    import re

    template = modelfile.partition('TEMPLATE """')[2].partition('"""')[0]
    loop = re.fullmatch(r"\{\{ range \$at, \$_ := \.Messages \}\}(.*)\{\{ end \}\}", template, re.DOTALL)
    assert loop is not None
    first = re.match(r'\{\{ if and \(eq \$at 0\) \(eq \.Role "user"\) \}\}(.*?)\{\{ end \}\}', loop[1], re.DOTALL)
    assert first is not None
    parts = re.split(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}', loop[1][first.end() :].removesuffix("{{ end }}"))
    branches = dict(zip(parts[1::2], parts[2::2], strict=True))

    def fill(text: str, content: str) -> str:
        pieces = re.findall(r"\{\{ (.*?) \}\}", text)
        return "".join(content if piece == ".Content" else json.loads(piece) for piece in pieces)

    opening = fill(first[1], "") if turns[0][0] == "user" else ""
    return opening + "".join(fill(branches[role], content) for role, content in turns)


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
SYSTEM_IN_THE_USERS_TURN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ '[INST] ' + m.content + '\n\n' }}"
    "{% elif m.role == 'user' %}{{ ('' if not loop.first and messages[0].role == 'system' and loop.index0 == 1 "
    "else '[INST] ') + m.content + ' [/INST]' }}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)
SYSTEM_IN_THE_LAST_TURN = (
    "{{ bos_token }}{% set s = messages[0].content + '\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (s if loop.last else '') + m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)
FIRST_TURN_DIFFERS = CHAT_TEMPLATE.replace("+ '<|im_end|>'", "+ ('!' if loop.first else '') + '<|im_end|>'")
CONVERSATION = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]


def with_template(template: str) -> Any:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def said_by(chat: Chat, turns: list[tuple[str, str]]) -> str:
    text: str = chat.tokenizer.decode(chat.prompt_ids([{"role": role, "content": text} for role, text in turns]))
    return text


@pytest.mark.parametrize(
    ("template", "takes_system"),
    [
        (CHAT_TEMPLATE, True),
        (NO_SYSTEM, False),
        (SYSTEM_IN_THE_USERS_TURN, True),
        ("{{ bos_token }}" + CHAT_TEMPLATE, True),
        (
            CHAT_TEMPLATE.replace("'<|im_end|>' + '", "'<|im_end|>小🙂' + '"),
            True,
        ),  # Go does not read JSON's spelling
    ],
)
def test_the_modelfile_asks_in_the_words_of_the_template(template: str, takes_system: bool) -> None:
    chat = Chat(with_template(template))
    text = ollama_modelfile("m.gguf", chat)
    for turns in ([("user", "a")], CONVERSATION[:3], CONVERSATION):
        assert rendered_by_go(text, turns) == said_by(chat, turns)
    assert ('"system"' in text) == takes_system
    if takes_system:
        assert rendered_by_go(text, [("system", "s"), ("user", "a")]) == said_by(chat, [("system", "s"), ("user", "a")])
    assert "\\u" not in text


@pytest.mark.parametrize("template", [SYSTEM_IN_THE_LAST_TURN, FIRST_TURN_DIFFERS, NO_SYSTEM.replace("% 2", "% 9")])
def test_what_no_modelfile_can_say_is_refused_before_anything_is_written(
    tiny_model: Path, tmp_path: Path, template: str
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "m")
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    out = tmp_path / "out" / "m.gguf"
    if template is SYSTEM_IN_THE_LAST_TURN:  # without its system text it can be said
        assert '"system"' not in export(model, out, "f16", load=FLOAT32).modelfile.read_text()
        return
    with pytest.raises(ModelError, match="chat template"):
        export(model, out, "f16", load=FLOAT32)
    assert not out.parent.exists()


@pytest.mark.parametrize("adds", [True, False], ids=["the tokenizer adds one", "it does not"])
@pytest.mark.parametrize("writes", [True, False], ids=["the template writes one", "it does not"])
def test_a_conversation_begins_as_it_was_trained_and_once(tmp_path: Path, adds: bool, writes: bool) -> None:
    from gguf import GGUFReader
    from tokenizers.processors import TemplateProcessing

    tokenizer = with_template(("{{ bos_token }}" if writes else "") + CHAT_TEMPLATE)
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    bos = ("<|bos|>", tokenizer.bos_token_id)
    if adds:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[bos])
    model = make_tiny_model(tmp_path / "m", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(model)
    exported = export(model, tmp_path / "m.gguf", "f16", load=FLOAT32)
    assert GGUFReader(exported.file).fields["tokenizer.ggml.add_bos_token"].contents() is False
    asked = rendered_by_go(exported.modelfile.read_text(encoding="utf-8"), [("user", "a")])
    chat = Chat(load_tokenizer(model))
    assert asked == said_by(chat, [("user", "a")])
    assert asked.count("<|bos|>") == chat.prompt_ids([{"role": "user", "content": "a"}]).count(bos[1]) == writes


def test_tags_that_are_special_tokens_are_printed_by_other_programs(tmp_path: Path) -> None:
    from gguf import GGUFReader, TokenType

    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</answer>", "<|tool|>"]})
    model = make_tiny_model(tmp_path / "m", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(model)
    fields = GGUFReader(export(model, tmp_path / "m.gguf", "f16", load=FLOAT32).file).fields
    kinds = dict(zip(*(fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type")), strict=True))
    assert kinds["<think>"] == kinds["</answer>"] == TokenType.USER_DEFINED
    assert kinds["<|tool|>"] == kinds["<|im_end|>"] == TokenType.CONTROL


def test_what_would_come_out_wrong_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"should be called \*\.gguf"):
        export(tiny_model, tmp_path / "m.bin", "f16")
    stretched = make_tiny_model(
        tmp_path / "s", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    )
    with pytest.raises(ModelError, match=r"scales its positions \(linear\)"):
        export(stretched, tmp_path / "s.gguf", "f16")
    assert not list(tmp_path.glob("*.gguf*"))
    assert not list(tmp_path.glob(".*"))


def test_the_verb_writes_both_files(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.gguf"
    for arguments in ([], ["--overwrite"]):
        result = CliRunner().invoke(app, ["export", str(tiny_model), "--gguf", "f16", "-o", str(out), *arguments])
        assert result.exit_code == 0, result.output
    assert "ollama create" in result.output
    assert isinstance(CliRunner().invoke(app, ["export", str(tiny_model), "-o", str(out)]).exception, UsageError)


@pytest.mark.slow
@pytest.mark.usefixtures("_builtin_model")
def test_llama_cpp_answers_as_the_model_does(tmp_path: Path) -> None:
    xllamacpp: Any = pytest.importorskip("xllamacpp", reason="no wheel of llama.cpp for this machine")
    exported = export("builtin:smollm2", tmp_path / "smol.gguf", "f16", load=FLOAT32)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(exported.file)
    settings.n_ctx = 512
    settings.n_parallel = 1
    settings.warmup = False
    server = xllamacpp.Server(settings)
    with open_engine("builtin:smollm2", EngineSettings("transformers", FLOAT32)) as opened:
        for question in ("What is the capital of France?", "What is 2 plus 3?"):
            turns = [{"role": "user", "content": question}]
            ids = opened.chat.prompt_ids(turns)
            (ours,) = opened.engine.generate([Request("a", ids, Sampling(max_tokens=24, stop=()))])
            theirs = server.handle_chat_completions({"messages": turns, "temperature": 0, "max_tokens": 24})
            assert theirs["choices"][0]["message"]["content"] == ours.text
            assert theirs["choices"][0]["finish_reason"] == ours.finish_reason
            assert theirs["usage"]["prompt_tokens"] == len(ids)
