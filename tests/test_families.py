"""Every row of the table of families: train, resume, merge, verify and answer, against transformers' own model.

The reference is always the model as transformers loads it, with eager attention, one document at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from families import FAMILIES, MOST_USED, Outcome, make_model
from thinktune.config import QUESTIONS, Config, Load, Sampling
from thinktune.errors import ModelError
from thinktune.export.merge import merge
from thinktune.export.verify import verify
from thinktune.inference.engines import EngineSettings, open_engine
from thinktune.inference.engines.base import Request
from thinktune.training.adapter import adapter_to_train
from thinktune.training.base_model_cache import BaseModelCache
from thinktune.training.collator import PackedCollator
from thinktune.training.fused.packed_attention import NAME, packed_documents
from thinktune.training.model_with_loss import ModelWithLoss
from training import adapter_of, make_config, quietly

CPU = Load(device="cpu", dtype="float32")
ENGINE = EngineSettings("transformers", CPU, batch_tokens=1000)
ALONE = {"packing": False, "batch_size": 1, "accumulation": 6}
PROMPTS = [*QUESTIONS, "x", "小明有三个苹果", "Hello " * 30]

pytestmark = pytest.mark.families


def rows(*outcomes: str) -> list[Any]:
    """The families of these outcomes, those that CI has time for marked `slow`."""
    names = [name for name, row in FAMILIES.items() if row.outcome in outcomes]
    return [pytest.param(name, marks=[pytest.mark.slow] if name in MOST_USED else []) for name in names]


def config_of(model: Path, run: Path, **train: Any) -> Config:
    data = {"sample": 6, "max_length": 1000, "eval_fraction": 0}
    train = {"max_steps": 4, "save_every": 2, "pack_length": 1000, "warmup_steps": 0, **train}
    return make_config(model, run, data=data, lora={"targets": "auto"}, train=train)


@pytest.mark.parametrize("family", rows("works", "slower"))
def test_a_family_is_the_same_model_in_every_verb(family: str, tmp_path: Path) -> None:
    row, base, run = FAMILIES[family], make_model(family, tmp_path / "base"), tmp_path / "run"
    config = config_of(base, run)
    quietly(config)
    losses_and_gradients_are_the_models_own(config, run, row.outcome)
    a_resumed_training_is_the_same(config, run)
    the_merged_model_is_the_adapted_one(base, run)
    answers_are_the_models_own(run / "merged")


@pytest.mark.parametrize("family", rows("refused"))
def test_a_family_that_is_not_understood_is_refused_before_training(family: str, tmp_path: Path) -> None:
    base, run = make_model(family, tmp_path / "base"), tmp_path / "run"
    for train in ({}, ALONE):
        with pytest.raises(ModelError, match=FAMILIES[family].says):
            quietly(config_of(base, run, **train))
    assert not (run / "config.yaml").exists()


def plain(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    is_text = type(AutoConfig.from_pretrained(folder)) in AutoModelForCausalLM._model_mapping
    kind = AutoModelForCausalLM if is_text else AutoModelForImageTextToText
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.requires_grad_(False).eval()


def adapted(base: Path, adapter: Path) -> Any:
    """The base with an adapter, put on by PEFT; weights by their names as saved, which PEFT may take for old ones."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    model = get_peft_model(plain(base), LoraConfig.from_pretrained(adapter)).eval()
    trained = {name.replace(".default", ""): weight for name, weight in model.named_parameters() if "lora_" in name}
    saved = load_file(adapter / "adapter_model.safetensors")
    assert saved.keys() == trained.keys()
    for name, weight in trained.items():
        weight.data = saved[name]
        weight.requires_grad_(True)
    return model


def losses_and_gradients_are_the_models_own(config: Config, run: Path, outcome: Outcome) -> None:
    """Loss and gradient of all examples, as they are packed in training: within 1e-5."""
    assert config.lora is not None
    trained = config.model_copy(update={"lora": config.lora.model_copy(update={"init": str(run)})})
    loaded, prepared = BaseModelCache().take(config)
    collate = PackedCollator(prepared.train)
    with adapter_to_train(loaded, trained) as model, packed_documents(loaded.model) as attention:
        assert (attention == NAME) == (outcome == "works")
        model.eval()
        with_loss = ModelWithLoss(model)
        ours = total(with_loss(**collate([{"documents": pack}])) for pack in prepared.packs)
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    own = adapted(Path(config.model), run / "adapter")
    theirs = total(loss_of(own, document) for document in prepared.train)
    assert ours == pytest.approx(theirs, rel=1e-5)
    expected = {name: weight.grad for name, weight in own.named_parameters() if weight.grad is not None}
    assert gradients.keys() == expected.keys()
    apart = sum((gradients[name] - expected[name]).square().sum() for name in expected) ** 0.5
    assert apart <= 1e-5 * sum(gradient.square().sum() for gradient in expected.values()) ** 0.5


def total(losses: Iterator[torch.Tensor]) -> float:
    """Sum losses, and take the gradient of each."""
    found = 0.0
    for loss in losses:
        loss.backward()
        found += float(loss.detach())
    return found


def loss_of(model: Any, document: Any) -> torch.Tensor:
    ids = torch.tensor(document.input_ids)
    logits = model(input_ids=ids[None], use_cache=False).logits[0, document.context - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[document.context :], reduction="sum")


def a_resumed_training_is_the_same(config: Config, run: Path) -> None:
    before = adapter_of(run)
    shutil.rmtree(run / "adapter")
    (run / "run.json").unlink()
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    quietly(config, resume=True)
    after = adapter_of(run)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def the_merged_model_is_the_adapted_one(base: Path, run: Path) -> None:
    """Logits within 1e-4 of their size, the weights of the base and no others, and `verify` says so too."""
    merge(run, load=CPU, max_tokens=2)
    ids = torch.arange(3, 93)[None]
    with torch.no_grad():
        expected, found = adapted(base, run / "adapter")(ids).logits, plain(run / "merged")(ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert names_in(run / "merged") == names_in(base)
    with open_engine(run, ENGINE) as opened:
        assert verify(opened, run, prompts=2, max_tokens=4).agrees


def names_in(folder: Path) -> set[str]:
    from safetensors import safe_open

    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            found |= set(stored.keys())
    return found


def answers_are_the_models_own(folder: Path) -> None:
    """Greedy answers in one batch to prompts of different lengths: each token is the model's own choice, ties apart."""
    with open_engine(folder, ENGINE) as opened:
        prompts = [opened.chat.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
        requests = [
            Request(str(at), ids, Sampling(temperature=0, max_tokens=12 + 4 * (at % 3), stop=()))
            for at, ids in enumerate(prompts)
        ]
        completions = {completion.request_id: completion for completion in opened.engine.generate(requests)}
    own = plain(folder)
    for request in requests:
        completion = completions[request.id]
        if "leaves no room" in (completion.error or ""):
            continue  # longrope: the engine keeps to positions that need no other frequencies
        assert completion.error is None
        answer = torch.tensor(completion.token_ids)
        with torch.no_grad():
            logits = own(torch.tensor([[*request.prompt_ids, *completion.token_ids[:-1]]])).logits[0]
        scores = logits[len(request.prompt_ids) - 1 :].log_softmax(-1)
        chosen = scores.gather(1, answer[:, None])[:, 0]
        assert float((scores.max(-1).values - chosen).max()) < 1e-3
        assert len(answer) == request.sampling.max_tokens or int(answer[-1]) == 2
