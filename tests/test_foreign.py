"""Models that name programs: nothing of theirs runs, and what is left out is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from thinktune.config import Load
from thinktune.errors import ModelError
from thinktune.models import load_tokenizer
from thinktune.models.foreign import check_foreign_code


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """One with a module beside it that leaves a trace when it is run."""
    folder = shutil.copytree(tiny_model, tmp_path / "m")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: pass\n")
    return folder


def change(folder: Path, file: str, values: dict[str, Any]) -> None:
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"_attn_implementation": "kernels-community/flash-attn2"},
        {"attn_implementation": "owner/name@main:function"},
        {"attn_implementation": "paged|owner/name"},
        {"attn_implementation": {"": "owner/name"}},
        {"_attn_implementation_internal": "owner/name"},
        {"experts_implementation": "owner/name"},
        {"text_config": {"_experts_implementation": "owner/name"}},
        {"quantization_config": {"quant_method": "x", "kernel": "owner/name"}},
        {"layers": [{"attn_implementation": "owner/name"}]},
        {"attn_implementation": 5},
    ],
)
def test_a_kernel_of_a_hub_is_refused_by_name(model: Path, values: dict[str, Any]) -> None:
    change(model, "config.json", values)
    with pytest.raises(ModelError, match=r"config\.json wants a program from a hub: .* is ") as raised:
        load_tokenizer(model)
    assert "load.trust_remote_code=true allows it" in str(raised.value)


@pytest.mark.parametrize("name", ["eager", "sdpa", "flash_attention_2", None])
def test_what_transformers_has_itself_is_taken(model: Path, name: str | None) -> None:
    change(model, "config.json", {"_attn_implementation": name})
    assert load_tokenizer(model)


@pytest.mark.parametrize("where", ["own.Own", "owner/name--own.Own"])
def test_a_model_that_only_its_own_code_knows_is_refused(model: Path, tmp_path: Path, where: str) -> None:
    change(model, "config.json", {"model_type": "unheard_of", "auto_map": {"AutoConfig": where}})
    with pytest.raises(ModelError, match="model type 'unheard_of' is none of transformers'"):
        load_tokenizer(model)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", ["own.Own", "owner/name--own.Own"])
def test_a_tokenizer_that_only_its_own_code_knows_is_refused(model: Path, tmp_path: Path, where: str) -> None:
    change(model, "tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [where, None]}})
    with pytest.raises(ModelError, match="needs code of its own"):
        load_tokenizer(model)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "own.Own"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}}),
        ("generation_config.json", {"custom_generate": "owner/name"}),
    ],
)
def test_code_that_is_not_needed_is_left_out_and_named(
    model: Path, tmp_path: Path, file: str, values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    change(model, file, values)
    load_tokenizer(model)
    assert [line for line in caplog.messages if f"{file} names code ({next(iter(values))}), which is not run" in line]
    assert not (tmp_path / "ran").exists()


def test_who_trusts_a_model_is_not_asked(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(model, "config.json", {"attn_implementation": "owner/name"})
    check_foreign_code([model], Load(trust_remote_code=True))
    assert not caplog.messages
