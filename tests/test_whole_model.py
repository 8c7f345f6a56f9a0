"""Full fine-tuning (`lora: null`): gradients, resuming, the saved model, and the verbs after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from test_ranks import train_until
from thinktune.cli import app
from thinktune.config import Config, load_config, parse_config
from thinktune.data import prepare
from thinktune.errors import ConfigError, ModelError, OutOfMemory, ThinktuneError, UsageError
from thinktune.export.merge import merge
from thinktune.export.model_card import write_cards
from thinktune.models import load_model, resolve
from thinktune.models.folder import read_json
from thinktune.planner.plan_config import plan_config
from thinktune.run_folder import RunFolder
from thinktune.training.collator import PackedCollator
from thinktune.training.fused.chunked_loss import Head, trained_head_loss
from thinktune.training.fused.packed_attention import packed_documents
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.whole_model import whole_model_to_train
from training import make_config, metrics_of, quietly


def whole(model: Path, output: Path, **settings: Any) -> Config:
    train = {"max_steps": 6, "learning_rate": 1e-3, "save_every": 2, **settings.pop("train", {})}
    config = make_config(model, output, train=train, **settings)
    return config.model_copy(update={"lora": None})


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of full fine-tuning. Read-only."""
    run = tmp_path_factory.mktemp("whole") / "run"
    quietly(whole(tiny_model, run))
    return run


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(run / "merged" / "model.safetensors")
    return tensors


def test_lora_null_is_no_adapter_and_an_empty_section_the_default_one(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    found = {}
    for name, text in {"null": "lora: null\n", "tilde": "lora: ~\n", "empty": "lora:\n  # r: 8\nseed: 1\n"}.items():
        file.write_text(text)
        found[name] = load_config(file).lora
    assert (found["null"], found["tilde"]) == (None, None)
    assert found["empty"] == Config().lora is not None
    assert load_config(file, ["lora=null"]).lora is None
    file.write_text("lora: null\n")
    lora = load_config(file, ["lora.r=4"]).lora
    assert lora is not None
    assert lora.r == 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quantize": "nf4"}, "quantize: nf4 freezes them"),
        ({"method": "dpo"}, "method: dpo needs an adapter"),
        ({"method": "grpo"}, "method: grpo needs an adapter"),
    ],
)
def test_what_full_fine_tuning_cannot_be_is_refused_by_name(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config({"lora": None, **settings})


def test_a_trained_head_gets_the_gradient_of_plain_cross_entropy() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(30, 8, generator=draw), torch.randn(50, 8, generator=draw)
    targets, weights = torch.randint(0, 50, (30,), generator=draw), torch.randn(30, generator=draw)
    hidden.requires_grad_()
    weight.requires_grad_()
    logits = hidden @ weight.t()
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    for given, expected in ((None, losses.sum()), (weights, (losses * weights).sum())):
        total, right = trained_head_loss(hidden, Head(weight), targets, given, chunk_bytes=4 * 50 * 28)
        torch.testing.assert_close(total, expected)
        assert right == (logits.argmax(-1) == targets).sum()
        ours = torch.autograd.grad(total, [hidden, weight])
        theirs = torch.autograd.grad(expected, [hidden, weight], retain_graph=True)
        torch.testing.assert_close(ours, theirs)


def test_the_gradient_of_a_pack_is_that_of_plain_transformers(tiny_model: Path, tmp_path: Path) -> None:
    config = whole(tiny_model, tmp_path / "run")
    loaded = load_model(tiny_model, load=config.load)
    examples = prepare(config, loaded.chat).train[:3]
    with whole_model_to_train(loaded, config) as model:
        with_loss = ModelWithLoss(model)
        with packed_documents(model):
            loss = with_loss(**PackedCollator(examples)([{"documents": [0, 1, 2]}]))
        ours = torch.autograd.grad(loss, with_loss.trained)
        plain = sum(
            torch.nn.functional.cross_entropy(
                model(torch.tensor([example.input_ids])).logits[0, :-1],
                torch.tensor(example.labels[1:]),
                reduction="sum",
            )
            for example in examples
        )
        assert len(with_loss.trained) == len(list(model.parameters()))
        theirs = torch.autograd.grad(plain, with_loss.trained)
    torch.testing.assert_close(loss, plain)
    for name, one, other in zip(dict(model.named_parameters()), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()), msg=name)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_the_saved_model_is_the_trained_one_and_all_of_it_has_changed(finished: Path, tiny_model: Path) -> None:
    saved, base = weights_of(finished), load_file(tiny_model / "model.safetensors")
    assert saved.keys() == base.keys()
    assert not any(torch.equal(saved[name], base[name]) for name in base)
    newest = load_file(finished / "checkpoints" / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(saved[name], newest[name]) for name in saved)
    losses = [line["loss"] for line in metrics_of(finished) if "loss" in line]
    assert losses[-1] < losses[0]
    record = read_json(finished / "run.json")
    assert record["trainable_parameters"] == record["parameters"] == sum(map(torch.numel, base.values()))
    assert not (finished / "adapter").exists()


@pytest.mark.slow
def test_a_training_that_was_stopped_ends_with_the_same_bits(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = whole(tiny_model, tmp_path / "run")
    train_until(config, 3)
    quietly(config, resume=True)
    ours, theirs = weights_of(tmp_path / "run"), weights_of(finished)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics_of(tmp_path / "run") == metrics_of(finished)


@pytest.mark.slow
def test_the_run_is_a_reference_of_its_model_with_nothing_to_merge(finished: Path, tiny_model: Path) -> None:
    load = make_config(tiny_model, finished).load
    found = resolve(finished, load)
    assert (found.folder, found.base, found.adapter) == (finished / "merged", str(tiny_model), None)
    loaded = load_model(finished, load=load)
    assert loaded.tuned
    assert loaded.chat.system_text == "You are a tiny model."
    with pytest.raises(ModelError, match="nothing to merge"):
        merge(finished, load=load)


@pytest.mark.slow
def test_its_card_says_that_all_weights_were_trained(finished: Path) -> None:
    write_cards(RunFolder(finished))
    card = (finished / "merged" / "README.md").read_text()
    assert "all of its weights fine-tuned" in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    (finished / "merged" / "README.md").unlink()


def test_the_plan_counts_weights_gradients_and_moments_and_training_refuses_what_does_not_fit(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = whole(tiny_model, tmp_path / "run")
    parts = plan_config(config).parts
    parameters = sum(map(torch.numel, load_file(tiny_model / "model.safetensors").values()))
    assert (parts["weights"], parts["adapter"], parts["optimizer"]) == tuple(each * parameters for each in (4, 4, 8))
    large = parse_config({"lora": None, "model": "Qwen/Qwen2.5-3B-Instruct"})
    plan = plan_config(large, gpu="rtx4090")
    assert not plan.fits
    assert plan.parts["weights"] + plan.parts["adapter"] + plan.parts["optimizer"] > 16 * 3e9
    with pytest.raises(UsageError, match="lora: null runs on one GPU"):
        plan_config(large, gpu="h100", gpus=2)
    with pytest.raises(OutOfMemory, match=r"full fine-tuning of .* takes .* GiB"):
        quietly(whole(tiny_model, tmp_path / "run", train={"memory": 0.01}))


@pytest.mark.slow
def test_every_verb_takes_the_run(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    cpu = ["--load", "device=cpu"]
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?", "answer": "4"}\n')
    items = tmp_path / "items.jsonl"
    items.write_text('{"id": "a", "type": "math", "prompt": "1 + 1?"}\n')
    calls = [
        ["ask", str(finished), "1 + 1?", "--max-tokens", "4", *cpu],
        ["infer", str(finished), str(items), "-o", str(tmp_path / "out.json"), "--engine", "transformers", *cpu],
        ["eval", str(finished), str(problems), "-o", str(tmp_path / "eval"), "--engine", "transformers", *cpu],
        ["report", str(finished)],
        ["export", str(finished), "-o", str(tmp_path / "model.gguf")],
        ["plan", str(finished / "config.yaml")],
    ]
    for call in calls:
        result = CliRunner().invoke(app, call)
        assert result.exit_code == 0, (call, result.output, result.exception)
    zh = (finished / "report.html").read_text(encoding="utf-8")
    assert "，全部权重，" in zh


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "says"),
    [
        (["merge", "RUN"], "nothing to merge: all weights of RUN were trained"),
        (["verify", "RUN/merged", "--load", "device=cpu"], "name the run: thinktune verify RUN"),
        (["train", "RUN/config.yaml", "lora.init=RUN", "output=NEW"], "RUN were trained: name it as the model"),
        (["train", "RUN/config.yaml", "output=NEW", "load.device=cpu", "--gpus", "2"], "lora: null runs on one GPU"),
        (["run", "RUN/config.yaml", "output=NEW", "--gpus", "all"], "lora: null runs on one GPU"),
    ],
)  # fmt: skip
def test_what_wants_an_adapter_or_several_gpus_says_what_to_do_instead(
    finished: Path, tmp_path: Path, call: list[str], says: str
) -> None:
    places = {"RUN": str(finished), "NEW": str(tmp_path / "new")}
    for name, place in places.items():
        call, says = [word.replace(name, place) for word in call], says.replace(name, place)
    refused = CliRunner().invoke(app, call)
    assert refused.exit_code == 1
    assert isinstance(refused.exception, ThinktuneError)
    assert says in f"{refused.exception.message} {refused.exception.hint}"
