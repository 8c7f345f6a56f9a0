"""GGUF files, read back by transformers and by llama.cpp, and Ollama's Modelfile."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import make_tiny_model, make_tiny_tokenizer
from thinktune.cli import app
from thinktune.config import Load, Sampling
from thinktune.engines import Request, open_engine
from thinktune.errors import ModelError, UsageError
from thinktune.export import export, ollama_modelfile
from thinktune.models import Chat, load_model, load_tokenizer
from thinktune.models.gguf import Precision

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
def test_llama_cpp_answers_as_the_model_does(tmp_path: Path) -> None:
    xllamacpp: Any = pytest.importorskip("xllamacpp", reason="no wheel of llama.cpp for this machine")
    exported = export("builtin:smollm2", tmp_path / "smol.gguf", "f16", load=FLOAT32)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(exported.file)
    settings.n_ctx = 512
    settings.n_parallel = 1
    settings.warmup = False
    server = xllamacpp.Server(settings)
    with open_engine("builtin:smollm2", engine="transformers", load=FLOAT32) as opened:
        for question in ("What is the capital of France?", "What is 2 plus 3?"):
            turns = [{"role": "user", "content": question}]
            ids = opened.chat.prompt_ids(turns)
            (ours,) = opened.engine.generate([Request("a", ids, Sampling(max_tokens=24, stop=()))])
            theirs = server.handle_chat_completions({"messages": turns, "temperature": 0, "max_tokens": 24})
            assert theirs["choices"][0]["message"]["content"] == ours.text
            assert theirs["choices"][0]["finish_reason"] == ours.finish_reason
            assert theirs["usage"]["prompt_tokens"] == len(ids)
