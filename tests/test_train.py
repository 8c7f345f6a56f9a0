"""Training, on a real tiny model: what it writes, that it learns, and that nothing is lost when it is stopped."""

from __future__ import annotations

import io
import json
import shutil
import signal
import time
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from conftest import make_tiny_model, make_tiny_tokenizer
from test_graphed_passes import tokens_of
from thinktune.config import Load
from thinktune.data import Tokens, prepare
from thinktune.data.examples import Example
from thinktune.errors import ConfigError, DiskFull, Diverged, ModelError, OutOfMemory, RunFolderError
from thinktune.files import write_json_lines
from thinktune.models import load_model, load_tokenizer, make_chat, read_settings
from thinktune.run_folder import RunFolder
from thinktune.training.base_model_cache import BaseModelCache
from thinktune.training.checkpoints import whole_checkpoints
from thinktune.training.collator import PackedCollator
from thinktune.training.methods.sft import SFT
from thinktune.training.out_of_memory import warm_up_step
from thinktune.training.train import train
from thinktune.training.trainer import ThinkTrainer
from training import (
    adapter_of,
    assert_same_outcome,
    make_config,
    metrics_of,
    quietly,
    start_in_background,
    wait_for_lines,
)


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted. Read-only."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    quietly(make_config(tiny_model, run, train={"epochs": 4}))
    return run


def test_a_run_folder_holds_adapter_record_metrics_report_plot_and_config(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "data_report.json",
        "loss.png",
        "adapter",
        "checkpoints",
    } <= names
    settings = json.loads((finished / "adapter" / "thinktune.json").read_text())
    assert settings["system"] == "You are a tiny model."
    assert (finished / "adapter" / "chat_template.jinja").exists()
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((finished / "run.json").read_text())
    assert record["tokens"] > record["trained_tokens"] > 0
    assert record["versions"]["torch"] == torch.__version__


def test_training_learns(finished: Path) -> None:
    lines = metrics_of(finished)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.08  # far more than its noise; a tiny frozen random base allows no more
    assert [line["step"] for line in lines if "eval_loss" in line] == [lines[-1]["step"]]


def test_the_adapter_gives_the_same_logits_through_plain_peft(finished: Path, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 60)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    plain = base(ids).logits
    tuned = PeftModel.from_pretrained(base, finished / "adapter")(ids).logits
    merged = load_model(finished, load=Load(dtype="float32", device="cpu")).model(ids).logits
    torch.testing.assert_close(tuned, merged, atol=1e-4, rtol=1e-4)
    assert (tuned - plain).abs().max() > 0.1


def test_a_killed_training_resumes_to_the_same_adapter_metrics_and_counters(
    finished: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    config = make_config(tiny_model, run, train={"epochs": 4})
    process = start_in_background(config, tmp_path)
    wait_for_lines(run / "metrics.jsonl", 6, process)
    process.kill()
    process.wait()
    assert not (run / "run.json").exists()
    quietly(config, resume=True)
    assert_same_outcome(run, finished)


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_says_how_to_go_on_and_loses_no_step(
    finished: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "stopped"
    config = make_config(tiny_model, run, train={"epochs": 4})
    process = start_in_background(config, tmp_path)
    wait_for_lines(run / "metrics.jsonl", 5, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "--resume" in errors
    assert "Traceback" not in errors
    steps = [line["step"] for line in metrics_of(run)]
    assert whole_checkpoints(run / "checkpoints")[-1][0] == steps[-1]
    quietly(config, resume=True)
    assert_same_outcome(run, finished)


def test_a_half_written_checkpoint_is_not_resumed_from(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "half"
    config = make_config(tiny_model, run, train={"epochs": 4})
    quietly(config)
    (run / "run.json").unlink()
    (_, older), (_, newest) = whole_checkpoints(run / "checkpoints")
    (newest / "whole.json").unlink()
    (newest / "optimizer.pt").write_bytes(b"half")
    assert whole_checkpoints(run / "checkpoints")[-1][1] == older
    quietly(config, resume=True)
    assert_same_outcome(run, finished)


@pytest.mark.parametrize(
    "length",
    [
        {"max_steps": 6},
        pytest.param({"epochs": 1.5}, marks=pytest.mark.slow),
        pytest.param({"epochs": 1}, marks=pytest.mark.slow),
    ],
)
def test_a_training_that_was_killed_behind_its_last_step_does_no_other_one(
    tiny_model: Path, tmp_path: Path, length: dict[str, Any]
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for run in (whole, resumed):
        quietly(make_config(tiny_model, run, train={**length, "scheduler": "constant"}))
    (resumed / "run.json").unlink()
    shutil.rmtree(resumed / "adapter")
    quietly(make_config(tiny_model, resumed, train={**length, "scheduler": "constant"}), resume=True)
    assert_same_outcome(resumed, whole)


@pytest.mark.slow
def test_a_training_goes_on_with_the_date_that_it_began_with(tiny_model: Path, tmp_path: Path) -> None:
    model, run = shutil.copytree(tiny_model, tmp_path / "m"), tmp_path / "run"
    template = (model / "chat_template.jinja").read_text().replace("a tiny model.", "asked {{ strftime_now('%X') }}.")
    (model / "chat_template.jinja").write_text(template)
    config = make_config(model, run, train={"max_steps": 2, "save_every": 1})
    began = quietly(config)["now"]
    (run / "run.json").unlink()
    shutil.rmtree(run / "adapter")
    time.sleep(1.1)
    assert quietly(config, resume=True)["now"] == began
    chat = make_chat(load_tokenizer(run), read_settings(run / "adapter"))
    assert chat.system_text == f"You are asked {began[-8:]}."


def test_the_questions_after_training_are_answered_within_their_think_budget(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = {"max_tokens": 12, "think_budget": 4}
    config = make_config(tiny_model, tmp_path / "run", ask={"questions": ["2 + 2?"], "sampling": sampling})
    quietly(config)
    assert "the answer has no" not in capsys.readouterr().err


@pytest.mark.slow
def test_questions_that_cannot_be_answered_end_no_training(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", max_position_embeddings=64)
    config = make_config(model, tmp_path / "run", train={"max_steps": 2}, ask={"questions": ["2 + 2? " * 60, "2 + 2?"]})
    said = io.StringIO()
    assert train(config, console=Console(file=said, width=200))["steps"] == 2
    assert said.getvalue().count("no answer: ") == 1


def test_a_folder_in_which_another_process_trains_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = make_config(tiny_model, run, train={"max_steps": 2})
    with RunFolder(run).held(), pytest.raises(RunFolderError, match="another process trains in"):
        quietly(config)
    assert list(run.iterdir()) == []
    assert quietly(config, overwrite=True)["steps"] == 2


def test_a_training_whose_loss_is_no_number_any_more_ends_before_its_weights_are_saved(
    tiny_model: Path, tmp_path: Path
) -> None:
    train = {"learning_rate": 1e30, "max_steps": 6, "save_every": 1}
    with pytest.raises(Diverged, match=r"in step \d the (loss|grad_norm) is (nan|inf)"):
        quietly(make_config(tiny_model, tmp_path / "run", train=train))
    steps = [line["step"] for line in metrics_of(tmp_path / "run")]
    assert [step for step, _ in whole_checkpoints(tmp_path / "run" / "checkpoints")] == steps[-2:]
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_how_often_it_saves_may_change_when_a_training_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quietly(make_config(tiny_model, run, train={"max_steps": 2}))
    (run / "run.json").unlink()
    quietly(make_config(tiny_model, run, train={"max_steps": 2, "save_every": 7, "keep_checkpoints": 1}), resume=True)
    (run / "run.json").unlink()
    with pytest.raises(RunFolderError, match="other settings of train"):
        quietly(make_config(tiny_model, run, train={"max_steps": 3}), resume=True)


def test_a_training_is_not_resumed_on_data_that_has_changed(tiny_model: Path, tmp_path: Path) -> None:
    row = {"prompt": "1 + 1?", "completion": "<think>It is 2.</think> <answer>2</answer>"}
    rows = [{**row, "prompt": f"{number} + 1 - {number - 1}?"} for number in range(20)]
    file, run = tmp_path / "rows.jsonl", tmp_path / "run"
    config = make_config(tiny_model, run, data={"source": str(file), "sample": None}, train={"packing": False})
    write_json_lines(file, rows)
    quietly(config)
    (run / "run.json").unlink()
    write_json_lines(file, rows[1:])
    with pytest.raises(RunFolderError, match="other data"):
        quietly(config, resume=True)
    write_json_lines(file, rows)
    assert quietly(config, resume=True)["steps"] == 18


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
@pytest.mark.parametrize("part", ["tokenizer", "weights"])
def test_a_disk_that_is_full_for_a_checkpoint_is_told_with_the_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def save(*_: Any, **__: Any) -> None:
        if part == "tokenizer":
            make_tiny_tokenizer().backend_tokenizer.save("/dev/full")
        else:
            torch.save(torch.zeros(100_000), "/dev/full")

    monkeypatch.setattr("transformers.Trainer._save_checkpoint", save)
    with pytest.raises(DiskFull, match="no space left") as raised:
        quietly(make_config(tiny_model, tmp_path / "run"))
    assert str(tmp_path / "run" / "checkpoints") in raised.value.message


def test_only_so_many_checkpoints_are_kept(finished: Path) -> None:
    assert len(whole_checkpoints(finished / "checkpoints")) == 2


@pytest.mark.slow
def test_lines_that_span_a_checkpoint_are_the_same_after_resuming(tiny_model: Path, tmp_path: Path) -> None:
    every = {"epochs": 4, "log_every": 5, "save_every": 4}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    quietly(make_config(tiny_model, whole, train=every))
    quietly(make_config(tiny_model, resumed, train=every))
    (resumed / "run.json").unlink()
    newest = whole_checkpoints(resumed / "checkpoints")[-1][1]
    (newest / "whole.json").unlink()
    quietly(make_config(tiny_model, resumed, train=every), resume=True)
    assert_same_outcome(resumed, whole)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"batch_size": 1, "accumulation": 4}, marks=pytest.mark.slow),
        {"batch_size": 2, "accumulation": 2},
        pytest.param({"batch_size": 4, "gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_how_rows_are_spread_over_batches_changes_no_gradient(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    common = {"packing": False, "max_steps": 6, "memory": 0.01}  # GiB: too little to fold an accumulation
    quietly(make_config(tiny_model, tmp_path / "at-once", train={**common, "batch_size": 4}))
    quietly(make_config(tiny_model, tmp_path / "spread", train={**common, **settings}))
    expected, actual = metrics_of(tmp_path / "at-once"), metrics_of(tmp_path / "spread")
    assert len(actual) == len(expected) == 7
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_packed_batch_has_the_token_weighted_mean_loss_of_its_documents(tiny_model: Path, tmp_path: Path) -> None:
    config = make_config(tiny_model, tmp_path / "run", train={"packing": False, "max_steps": 1, "learning_rate": 1e-9})
    loaded = load_model(tiny_model, load=config.load)
    prepared = prepare(config, loaded.chat)
    quietly(config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 36})}))
    sums = [separate_loss(loaded.model, document) for document in prepared.train]
    tokens = sum(count for _, count, _ in sums)
    assert len(sums) == 36
    first = metrics_of(tmp_path / "run")[0]
    assert first["loss"] == pytest.approx(sum(loss for loss, *_ in sums) / tokens, abs=1e-5)
    assert first["token_accuracy"] == pytest.approx(sum(right for *_, right in sums) / tokens, abs=1e-9)


def test_the_held_out_loss_and_token_accuracy_are_means_over_tokens(tiny_model: Path, tmp_path: Path) -> None:
    config = make_config(tiny_model, tmp_path / "run", train={"max_steps": 1, "learning_rate": 1e-9})
    loaded = load_model(tiny_model, load=config.load)
    prepared = prepare(config, loaded.chat)
    record = quietly(config)
    sums = [separate_loss(loaded.model, document) for document in prepared.held_out]
    tokens = sum(count for _, count, _ in sums)
    assert record["final_loss"] == pytest.approx(sum(loss for loss, *_ in sums) / tokens, abs=1e-5)
    assert record["final_token_accuracy"] == pytest.approx(sum(right for *_, right in sums) / tokens, abs=1e-6)


def separate_loss(model: Any, document: Tokens) -> tuple[float, int, int]:
    """Summed loss of one document run alone through transformers, its trained tokens, and those that argmax gives."""
    with torch.no_grad():
        logits = model(torch.tensor([document.input_ids])).logits[0, :-1]
    targets = torch.tensor(document.labels[1:])
    loss = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum", ignore_index=-100)
    return float(loss), document.trained, int((logits.argmax(-1) == targets).sum())


def test_positions_start_anew_and_targets_stay_inside_each_document(tiny_model: Path, tmp_path: Path) -> None:
    config = make_config(tiny_model, tmp_path / "run")
    documents = prepare(config, load_model(tiny_model, load=config.load).chat).train[:3]
    batch = PackedCollator(documents)([{"documents": [0, 2]}, {"documents": [1]}])
    order = [documents[0], documents[2], documents[1]]
    assert batch["document_lengths"] == [len(document) for document in order]
    assert batch["position_ids"][0].tolist() == [place for document in order for place in range(len(document))]
    assert batch["targets"].tolist() == [label for document in order for label in document.labels if label != -100]
    assert torch.equal(batch["input_ids"][0, batch["positions"] + 1], batch["targets"])


def test_a_batch_repeats_where_all_lengths_in_it_and_in_the_one_before_are_one() -> None:
    nobody = Example(messages=(), think="", answer="", row=1, source="")
    collate = PackedCollator([Tokens(array("i", [5] * length), 1, nobody) for length in (8, 8, 8, 8, 9)])
    batches = [[0], [1], [2, 3], [0, 1], [0, 4], [0, 4], [0]]
    assert [collate([{"documents": batch}])["repeats"] for batch in batches] == [0, 1, 0, 1, 0, 0, 0]


def test_a_run_folder_that_exists_is_refused_unless_resumed_or_overwritten(finished: Path, tiny_model: Path) -> None:
    config = make_config(tiny_model, finished, train={"epochs": 4})
    with pytest.raises(RunFolderError, match="holds a finished run") as refused:
        quietly(config)
    assert "--resume" not in refused.value.hint  # which would be refused
    with pytest.raises(RunFolderError, match="trained to its end"):
        quietly(config, resume=True)
    with pytest.raises(RunFolderError, match="other settings of lora"):
        quietly(make_config(tiny_model, finished, train={"epochs": 4}, lora={"r": 8}), resume=True)


def test_a_folder_that_is_no_run_is_never_overwritten(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="not a run folder"):
        quietly(make_config(tiny_model, tmp_path), overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_training_goes_on_from_the_adapter_of_lora_init(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "continued"
    quietly(make_config(tiny_model, run, train={"max_steps": 1}, lora={"init": str(finished)}))
    assert metrics_of(run)[0]["loss"] < metrics_of(finished)[0]["loss"] - 0.08
    assert RunFolder(run).is_trained


def test_an_adapter_of_another_model_is_not_continued(finished: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", hidden_size=64)
    with pytest.raises(ModelError, match="does not fit"):
        quietly(make_config(other, tmp_path / "run", lora={"init": str(finished)}))


@pytest.mark.slow
def test_the_layers_of_a_gpt2_are_trained_too(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tiny_tokenizer()
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=2)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    config = make_config(tmp_path / "gpt2", tmp_path / "run", lora={"targets": ["c_attn", "c_fc"]}, train={"epochs": 2})
    quietly(config)
    losses = [line["loss"] for line in metrics_of(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0] - 0.08


@pytest.mark.parametrize("target", ["qkv_proj", "mlp.q_proj", "lm_head"])
def test_a_target_the_layers_lack_is_refused_with_those_they_have(
    tiny_model: Path, tmp_path: Path, target: str
) -> None:
    with pytest.raises(ConfigError, match=f"no {target}") as raised:
        quietly(make_config(tiny_model, tmp_path / "run", lora={"targets": ["v_proj", target]}))
    assert "q_proj" in raised.value.hint
    assert "lm_head" not in raised.value.hint
    assert not (tmp_path / "run").exists()  # the corrected config may have the folder


def test_a_trainer_field_that_training_arguments_lack_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no field adam_betta2") as raised:
        quietly(make_config(tiny_model, tmp_path / "run", train={"trainer": {"adam_betta2": 0.9}}))
    assert raised.value.hint == "did you mean adam_beta2?"
    with pytest.raises(ConfigError, match="adam_beta2: 'high': Input should be a valid number"):
        quietly(make_config(tiny_model, tmp_path / "run", train={"trainer": {"adam_beta2": "high"}}))
    assert not (tmp_path / "run").exists()  # the corrected config may have the folder


def test_dropout_above_zero_trains_through_plain_peft(tiny_model: Path, tmp_path: Path) -> None:
    record = quietly(make_config(tiny_model, tmp_path / "run", lora={"dropout": 0.1}, train={"epochs": 2}))
    lines = metrics_of(tmp_path / "run")
    assert record["steps"] > 2
    assert lines[-2]["loss"] < lines[0]["loss"]


@pytest.mark.slow
def test_the_weights_of_a_method_reach_the_gradient(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {}
    for weight in (None, 1.0, 0.0):
        if weight is not None:
            monkeypatch.setattr(SFT, "weights", lambda _, batch, w=weight: torch.full(batch["targets"].shape, w))
        quietly(make_config(tiny_model, tmp_path / str(weight), train={"max_steps": 2}))
        trained[weight] = adapter_of(tmp_path / str(weight))
    assert all(torch.equal(trained[None][name], trained[1.0][name]) for name in trained[None])
    assert all(not trained[0.0][name].any() for name in trained[0.0] if "lora_B" in name)


def test_every_module_trains_in_training_mode_also_after_an_evaluation(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    original = ThinkTrainer.compute_loss

    def compute_loss(self: ThinkTrainer, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        modes.append(all(module.training for module in model.modules()))
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(ThinkTrainer, "compute_loss", compute_loss)
    train = {"max_steps": 3, "eval_every": 1}
    quietly(make_config(tiny_model, tmp_path / "run", data={"eval_fraction": 0.2}, train=train))
    assert modes == [True] * 3


@pytest.mark.slow
def test_a_model_that_mixes_along_the_sequence_is_trained_on_packs_all_the_same(tmp_path: Path) -> None:
    model = make_tiny_mamba(tmp_path / "mamba")
    settings = {"lora": {"targets": ["in_proj", "x_proj"]}, "train": {"max_steps": 2, "accumulation": 2}}
    record = quietly(make_config(model, tmp_path / "run", **settings))  # its documents are held apart, or it is refused
    assert record["steps"] == 2
    assert len(metrics_of(tmp_path / "run")) >= 2


def test_settings_that_do_nothing_and_examples_beyond_the_models_context_are_pointed_out(
    tiny_model: Path, tmp_path: Path
) -> None:
    idle = {"max_steps": 1, "eval_every": 1, "offload_checkpoints": True}
    config = make_config(tiny_model, tmp_path / "run", data={"eval_fraction": 0.0}, train=idle)
    bench, said = BaseModelCache(), io.StringIO()
    bench.take_model(config).model.config.max_position_embeddings = 20
    train(config, console=Console(file=said, width=1000), bench=bench)
    for warning in ("eval_every does nothing", "offload_checkpoints does nothing", "more than the 20 that"):
        assert warning in said.getvalue()


def make_tiny_mamba(folder: Path) -> Path:
    """A state space model: it reads a row from left to right, whatever attention is told."""
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = make_tiny_tokenizer()
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=2, pad_token_id=0
    )
    MambaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_running_out_of_memory_says_what_to_change(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ThinkTrainer, "training_step", run_out)
    with pytest.raises(OutOfMemory) as raised:
        quietly(make_config(tiny_model, tmp_path / "odd", train={"batch_size": 5}))
    assert "train.batch_size=1 train.accumulation=5 (the same step)" in raised.value.hint
    with pytest.raises(OutOfMemory) as raised:
        quietly(make_config(tiny_model, tmp_path / "run", train={"batch_size": 4, "accumulation": 2}))
    assert "train.batch_size=2 train.accumulation=4" in raised.value.hint
    assert "train.gradient_checkpointing=true" in raised.value.hint
    assert "train.on_oom=retry" in raised.value.hint


@pytest.mark.slow
def test_a_folded_accumulation_takes_the_same_rows_in_the_same_steps(tiny_model: Path, tmp_path: Path) -> None:
    common = {"packing": False, "epochs": 2, "save_every": 100}  # 36 examples: the last step of an epoch has 4
    folded, spread, at_once = tmp_path / "folded", tmp_path / "spread", tmp_path / "at-once"
    record = quietly(make_config(tiny_model, folded, train={**common, "accumulation": 8}))
    quietly(make_config(tiny_model, spread, train={**common, "accumulation": 8, "memory": 0.01}))
    quietly(make_config(tiny_model, at_once, train={**common, "batch_size": 8}))
    assert record["setup"].startswith("8 packs at once x 1,")
    assert json.loads((spread / "run.json").read_text())["setup"].startswith("1 pack at once x 8,")
    for ours, expected in zip(metrics_of(folded), metrics_of(at_once), strict=True):
        # Evaluation takes rows as `batch_size` has them, and a processor may add up eight otherwise than one.
        assert ours.pop("eval_loss", 0) == pytest.approx(expected.pop("eval_loss", 0), rel=1e-6)
        assert ours == expected
    assert all(map(torch.equal, adapter_of(folded).values(), adapter_of(at_once).values()))
    theirs = metrics_of(spread)
    assert len(theirs) == 11
    for ours, expected in zip(metrics_of(folded), theirs, strict=True):
        assert ours.get("tokens") == expected.get("tokens")
        del ours["epoch"], expected["epoch"]  # Trainer counts it in batches, and the last ones of an epoch are fewer
        assert ours == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_a_folded_training_resumes_as_it_began(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"packing": False, "epochs": 2, "accumulation": 8, "save_every": 3}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for run in (whole, resumed):
        quietly(make_config(tiny_model, run, train=settings))
    (resumed / "run.json").unlink()
    (whole_checkpoints(resumed / "checkpoints")[-1][1] / "whole.json").unlink()
    less = {**settings, "memory": None, "on_oom": "retry"}  # how, not what: no reason to refuse
    quietly(make_config(tiny_model, resumed, train=less), resume=True)
    assert_same_outcome(resumed, whole)


def run_with_little_memory(model: Path, run: Path, most_tokens: int, **settings: Any) -> tuple[dict[str, Any], str]:
    """Train where a layer has room for so many tokens and keeps none of them, else memory runs out in earnest.

    Until the third optimizer step there is room for everything.
    """
    config = make_config(model, run, train=settings)
    bench, calls, console = BaseModelCache(), [0], Console(file=io.StringIO(), width=200)
    layer = bench.take_model(config).model.model.layers[1]

    def need_memory(module: Any, inputs: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            calls[0] += 1
            if calls[0] > 3 and (inputs[0].shape[1] > most_tokens or not module.gradient_checkpointing):
                raise torch.OutOfMemoryError("CUDA out of memory")

    hook = layer.register_forward_hook(need_memory)
    try:
        record = train(config, console=console, bench=bench)
    finally:
        hook.remove()
    return record, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_out_of_memory_is_retried_from_the_last_checkpoint_with_the_same_steps(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = {"packing": False, "batch_size": 4, "save_every": 2, "on_oom": "retry"}
    record, said = run_with_little_memory(tiny_model, tmp_path / "retried", 300, **settings)
    assert "were predicted" in said
    assert "going on from the checkpoint of step 2 with the same optimizer steps: 4 packs at once x 1, recomp" in said
    assert "2 packs at once x 2, recomputing 2 of 2 layers" in said
    assert record["setup"].startswith(("2 packs at once x 2, recomputing 2", "1 pack at once x 4, recomputing 2"))
    plain = quietly(make_config(tiny_model, tmp_path / "plain", train=settings))
    assert record["steps"] == plain["steps"] == 9
    for ours, expected in zip(metrics_of(tmp_path / "retried"), metrics_of(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_out_of_memory_before_the_first_checkpoint_begins_anew(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"packing": False, "batch_size": 4, "max_steps": 5, "on_oom": "retry"}
    record, said = run_with_little_memory(tiny_model, tmp_path / "retried", 10_000, **settings)
    assert "going on from the start" in said
    assert record["setup"].endswith("recomputing 2 of 2 layers")
    assert [line["step"] for line in metrics_of(tmp_path / "retried") if "loss" in line] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_when_nothing_is_left_to_give_up_the_shortage_is_told(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="GiB were predicted") as raised:
        run_with_little_memory(tiny_model, tmp_path / "run", 1, packing=False, batch_size=2, on_oom="retry")
    assert "quantize=nf4" in raised.value.hint


@pytest.mark.slow
def test_the_proof_leaves_no_trace(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"lora": {"dropout": 0.1}, "train": {"gradient_checkpointing": True, "max_steps": 3}}
    quietly(make_config(tiny_model, tmp_path / "plain", **settings))
    proved = []

    def train_after_proof(trainer: Any, **arguments: Any) -> Any:
        proved.append(warm_up_step(trainer, tokens_of([40, 20], 3)))
        assert all(parameter.grad is None for parameter in trainer.model.parameters())
        return original(trainer, **arguments)

    original = ThinkTrainer.train
    monkeypatch.setattr(ThinkTrainer, "train", train_after_proof)
    quietly(make_config(tiny_model, tmp_path / "proved", **settings))
    assert proved[0] > 0
    assert_same_outcome(tmp_path / "proved", tmp_path / "plain")
