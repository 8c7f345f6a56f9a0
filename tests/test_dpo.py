"""Preferences: pairs from many kinds of rows, their loss by its formula, and a training that learns them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainingArguments
from typer.testing import CliRunner

from conftest import make_tiny_tokenizer
from thinktune.cli import app
from thinktune.config import Config, Format
from thinktune.data import Prepared, Row, RowFault, prepare
from thinktune.data.pairs import to_pair
from thinktune.errors import ConfigError, DataError
from thinktune.evaluation.rated_pairs import write_rated_pairs
from thinktune.evaluation.ratings import Rating, Ratings
from thinktune.files import write_json_lines
from thinktune.models import Chat, load_model
from thinktune.training.adapter import adapter_to_train
from thinktune.training.checkpoints import whole_checkpoints
from thinktune.training.fused.packed_attention import packed_documents
from thinktune.training.methods.dpo import DPO
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.preference_trainer import PreferenceTrainer
from training import adapter_of, assert_same_outcome, make_config, metrics_of, quietly

GOOD, BAD = "<think>2 and 2.</think> <answer>4</answer>", "It is 5."
ASKED: dict[str, Any] = {"role": "user", "content": "2+2?"}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def pair_rows(count: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"What is {n} + {n}?",
            "chosen": f"<think>Twice {n}.</think> <answer>{2 * n}</answer>",
            "rejected": f"{'Who knows. ' * (n % 3)}<answer>{n}</answer>",
        }
        for n in range(count)
    ]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    write_json_lines(tmp_path / "pairs.jsonl", pair_rows())
    return tmp_path / "pairs.jsonl"


def dpo_config(model: Path, output: Path, pairs: Path, **settings: Any) -> Config:
    data = {"source": str(pairs), "sample": None, "eval_fraction": 0.0, "max_length": 128, **settings.pop("data", {})}
    train = {"pack_length": 512, "learning_rate": 1e-2, **settings.pop("train", {})}
    return make_config(model, output, method="dpo", data=data, train=train, **settings)


ROWS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "2+2?", "chosen": GOOD, "rejected": BAD},
    "turns": {"prompt": [ASKED], "chosen": [said(GOOD)], "rejected": [said(BAD)]},
    "text and turns": {"prompt": "2+2?", "chosen": [said(GOOD)], "rejected": [said(BAD)]},
    "turns and texts": {"prompt": [ASKED], "chosen": GOOD, "rejected": BAD},
    "implied": {"chosen": [ASKED, said(GOOD)], "rejected": [ASKED, said(BAD)]},
    "messages": {"messages": [ASKED], "chosen": said(GOOD), "rejected": said(BAD)},
    "conversations": {
        "conversations": [{"from": "human", "value": "2+2?"}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
    "thought apart": {
        "prompt": [ASKED],
        "chosen": [{**said("<answer>4</answer>"), "reasoning_content": "2 and 2."}],
        "rejected": [said(BAD)],
    },
}


@pytest.mark.parametrize("fields", ROWS.values(), ids=ROWS)
def test_pairs_are_read_from_rows_of_many_kinds(fields: dict[str, Any]) -> None:
    pair = to_pair(Row(1, {**fields, "provenance": {}}), "here", Format(), "drop")
    assert (pair.messages, pair.chosen, pair.rejected) == ((ASKED,), GOOD, BAD)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"prompt": "2+2?", "chosen": GOOD, "rejected": GOOD}, "chosen and rejected are the same"),
        ({"prompt": "2+2?", "chosen": GOOD, "rejected": " "}, "an empty reply"),
        ({"prompt": "2+2?", "chosen": GOOD, "rejected": None}, "no text in 'completion'"),
        ({"chosen": GOOD, "rejected": BAD}, "no prompt"),
        ({"prompt": " ", "chosen": GOOD, "rejected": BAD}, "empty prompt"),
        (
            {"chosen": [ASKED, said("so")], "rejected": [said("so"), said("so")]},
            "turns do not alternate between user and assistant",
        ),
        (
            {"chosen": [ASKED, said("so")], "rejected": [{**ASKED, "content": "3+3?"}, said("x")]},
            "chosen and rejected have different prompts",
        ),
        ({"prompt": "2+2?", "chosen": GOOD, "rejected": "\ud800"}, "not UTF-8"),
    ],
)
def test_a_pair_that_cannot_be_used_says_why(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(RowFault, match=fault):
        to_pair(Row(1, fields), "here", Format(), "drop")


def prepared(config: Config) -> Prepared:
    return prepare(config, Chat(make_tiny_tokenizer()))


def test_the_two_of_a_pair_stay_together_and_are_trained_as_they_are_written(tmp_path: Path, pairs: Path) -> None:
    data = prepared(dpo_config(Path("x"), tmp_path, pairs, data={"eval_fraction": 0.2}, train={"pack_length": 256}))
    tokenizer = make_tiny_tokenizer()
    texts = [tokenizer.decode(each.ids[each.context : -1]) for each in data.train]
    rows = {row["chosen"]: row["rejected"] for row in pair_rows()}
    assert all(rows[chosen] == rejected for chosen, rejected in zip(texts[::2], texts[1::2], strict=True))
    assert sorted(index for pack in data.packs for index in pack) == list(range(len(data.train)))
    assert all(
        pack[at + 1] == pack[at] + 1 and pack[at] % 2 == 0 for pack in data.packs for at in range(0, len(pack), 2)
    )
    assert max(len(pack) for pack in data.packs) > 2
    assert dpo_config(Path("x"), tmp_path, pairs, train={"pack_length": 20}).pack_length == 256
    assert (len(data.train), len(data.held_out), data.report.kept, data.report.held_out) == (20, 4, 12, 2)
    prompts = [{bytes(each.ids[: each.context]) for each in part} for part in (data.train, data.held_out)]
    assert not prompts[0] & prompts[1]


def test_a_pair_too_long_on_either_side_is_dropped_whole(tmp_path: Path) -> None:
    rows = pair_rows(3)
    rows[1]["rejected"] = "Who knows. " * 100
    write_json_lines(tmp_path / "pairs.jsonl", rows)
    data = prepared(dpo_config(Path("x"), tmp_path, tmp_path / "pairs.jsonl"))
    assert (len(data.train), data.report.dropped) == (4, {"too long": 1})


def test_rows_without_pairs_are_refused_with_the_formats_there_are(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match="unknown row format; keys seen: completion, prompt") as raised:
        prepared(dpo_config(Path("x"), tmp_path, tmp_path / "rows.jsonl"))
    assert "prompt/chosen/rejected" in raised.value.hint


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"data": {"overlong": "cut"}}, "halves of replies"),
        ({"data": {"deduplicate": True}}, "data.deduplicate has no meaning"),
        ({"dpo": {"beta": 0}}, "dpo.beta"),
    ],
)
def test_settings_that_make_no_sense_for_pairs_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        dpo_config(Path("x"), Path("y"), Path("z"), **settings)


def formula(
    loss_type: str, beta: float, gamma: float, policy: list[torch.Tensor], base: list[torch.Tensor]
) -> torch.Tensor:
    """The mean loss of pairs as TRL 1.16 computes it: of DPOTrainer and, for SimPO, of CPOTrainer.

    Args:
        policy, base: the log-probabilities of each document's tokens.
    """
    losses = []
    for chosen, rejected, base_chosen, base_rejected in zip(
        policy[::2], policy[1::2], base[::2], base[1::2], strict=True
    ):
        ratio_chosen, ratio_rejected = chosen.sum() - base_chosen.sum(), rejected.sum() - base_rejected.sum()
        if loss_type == "sigmoid":
            losses.append(-F.logsigmoid(beta * (ratio_chosen - ratio_rejected)))
        elif loss_type == "ipo":
            average = ratio_chosen / len(chosen) - ratio_rejected / len(rejected)
            losses.append((average - 1 / (2 * beta)) ** 2)
        else:
            average = chosen.mean() - rejected.mean()
            losses.append(-F.logsigmoid(beta * (average - gamma / beta)))
    return torch.stack(losses).mean()


def alone(model: Any, data: Prepared) -> list[torch.Tensor]:
    """The log-probabilities of the trained tokens of each document, run alone through transformers."""
    found = []
    for document in data.train:
        logits = model(torch.tensor([document.input_ids])).logits[0, :-1]
        every = logits.log_softmax(-1).gather(-1, torch.tensor(document.input_ids[1:])[:, None])[:, 0]
        found.append(every[document.context - 1 :])
    return found


@pytest.mark.parametrize(
    "loss", [{"loss_type": "sigmoid", "beta": 0.3}, {"loss_type": "ipo"}, {"loss_type": "simpo", "beta": 2.0}]
)
def test_loss_and_gradient_are_those_of_the_formula(
    tiny_model: Path, tmp_path: Path, pairs: Path, loss: dict[str, Any]
) -> None:
    config = dpo_config(tiny_model, tmp_path, pairs, dpo=loss)
    loaded = load_model(config.model, load=config.load)
    data = prepare(config, loaded.chat)
    arguments = TrainingArguments(str(tmp_path / "trainer"), use_cpu=True, report_to=[])
    torch.manual_seed(0)
    with adapter_to_train(loaded, config) as model:
        with_loss, method = ModelWithLoss(model), DPO(data.train, data.packs)
        with packed_documents(loaded.model):
            trainer = PreferenceTrainer(with_loss, method, arguments, settings=config.dpo, keep_checkpoints=1)
            for parameter in with_loss.trained:  # after the reference was taken
                parameter.data += 0.2 * torch.randn_like(parameter)
            batch = method.collate([{"documents": [*range(len(data.train))]}])
            ours = trainer.compute_loss(with_loss, batch, num_items_in_batch=len(data.train) // 2)
            ours.backward()
        gradients = [parameter.grad.clone() for parameter in with_loss.trained]
        with_loss.zero_grad()
        with torch.no_grad(), model.disable_adapter():
            base = alone(model, data)
        expected = formula(config.dpo.loss_type, config.dpo.beta, config.dpo.simpo_gamma, alone(model, data), base)
        expected.backward()
        assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        assert float(expected.detach()) != pytest.approx(0.693147, rel=1e-2)
        norm = torch.stack([parameter.grad.norm() for parameter in with_loss.trained]).norm()
        for parameter, gradient in zip(with_loss.trained, gradients, strict=True):
            assert float((parameter.grad - gradient).norm() / norm) < 1e-5


@pytest.mark.slow
def test_training_prefers_the_chosen_ones_and_a_run_goes_on_from_there(
    tiny_model: Path, tmp_path: Path, pairs: Path
) -> None:
    settings: dict[str, Any] = {
        "data": {"eval_fraction": 0.2},
        "train": {"epochs": 8, "save_every": 5, "pack_length": 256},
    }
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    record = quietly(dpo_config(tiny_model, whole, pairs, **settings))
    lines = metrics_of(whole)
    steps = [line for line in lines if "loss" in line]
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert (steps[0]["dpo/chosen"], steps[0]["dpo/rejected"]) == (0, 0)
    assert steps[-1]["loss"] < 0.5
    assert steps[-1]["dpo/preferred"] == 1
    assert lines[-1]["eval_preferred"] == 1
    assert record["final_loss"] == lines[-1]["eval_loss"]
    shutil.copytree(whole, resumed)
    (resumed / "run.json").unlink()
    shutil.rmtree(resumed / "adapter")
    shutil.rmtree(whole_checkpoints(resumed / "checkpoints")[-1][1])
    quietly(dpo_config(tiny_model, resumed, pairs, **settings), resume=True)
    assert_same_outcome(resumed, whole)
    further = tmp_path / "further"
    quietly(
        dpo_config(tiny_model, further, pairs, lora={"init": str(whole)}, train={"epochs": 1, "learning_rate": 1e-9})
    )
    assert next(line["loss"] for line in metrics_of(further) if "loss" in line) == pytest.approx(0.693147, abs=1e-5)
    assert adapter_of(further).keys() == adapter_of(whole).keys()


def test_what_collect_writes_is_trained(tmp_path: Path) -> None:
    row = {
        "prompt": [ASKED],
        "chosen": [said(GOOD)],
        "rejected": [said(BAD)],
        "provenance": {"model": "m"},
    }
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    report = prepared(dpo_config(Path("x"), tmp_path, tmp_path / "pairs.jsonl")).report
    assert (report.kept, "not used" in report.one_line()) == (1, False)


def test_pairs_come_from_the_ratings_of_a_study(tmp_path: Path) -> None:
    study = tmp_path / "study"
    answers = [
        {"id": f"q{n}", "prompt": f"{n}?", "answers": {"a": f"a{n}", "b": f"b{n}"}, "correct": {}} for n in range(4)
    ]
    answers[3]["answers"] = {"a": "same", "b": "same"}
    write_json_lines(study / "answers.jsonl", answers)
    ratings = Ratings(study / "ratings.sqlite")
    given = [("ann", "q0", "first"), ("bob", "q0", "both good"), ("ann", "q1", "second"), ("bob", "q1", "second")]
    given += [("ann", "q2", "first"), ("bob", "q2", "second"), ("ann", "q3", "first"), ("ann", "gone", "first")]
    for rater, item, verdict in given:
        ratings.add(Rating(rater, item, "a", "b", verdict))  # type: ignore[arg-type]
    ratings.add(Rating("eve", "q1", "a", "b", "first", display=None))
    result = CliRunner().invoke(app, ["pairs", str(study), "-o", str(tmp_path / "pairs.jsonl")], catch_exceptions=False)
    told = "2 pairs; 2 without a preference; 1 ratings left out: their texts were not shown as written"
    assert f"{told}; 1 ratings of answers that are not there" in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [("0?", "a0", "b0"), ("1?", "b1", "a1")]
    assert [row["provenance"]["preferred"] for row in rows] == [0.75, 1]
    assert len(prepared(dpo_config(Path("x"), tmp_path, tmp_path / "pairs.jsonl")).train) == 4
    with pytest.raises(DataError, match="is no study"):
        write_rated_pairs(tmp_path, tmp_path / "none.jsonl")
