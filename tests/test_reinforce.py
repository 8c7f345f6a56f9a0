"""Reinforcement of a tiny model: rollouts, their journal, and a training that goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from in_ranks import in_ranks
from thinktune.config import Config, Rl, parse_config
from thinktune.errors import ConfigError, DataError, RunFolderError
from thinktune.planner.pack_lengths import rollout_packs
from thinktune.training.reinforce import reinforce_trainer, watch
from thinktune.training.reinforce.drawing import RolloutSampler
from thinktune.training.reinforce.reinforce_trainer import ReinforceTrainer
from thinktune.training.reinforce.rollouts import RolloutJournal
from training import adapter_of, assert_same_outcome, make_config, metrics_of, quietly

# A random model ends a turn in one of some 400 tokens: some groups have a completion that does, and most have none.
LENGTH = {"prompts": 2, "num_generations": 8, "max_completion_length": 16, "oversampling": 20}
REWARDS = {"rewards": {"length": 1.0, "answer": 1.0}, "length_buffer": 16}


def reinforced(model: Path, output: Path, *, steps: int = 3, load: dict[str, str] | None = None, **rl: Any) -> Config:
    return make_config(
        model,
        output,
        method="grpo",
        load=load or {},
        data={"sample": 30, "eval_fraction": 0},
        train={"max_steps": steps, "save_every": 2, "learning_rate": 1e-3, "warmup_steps": 0, "pack_length": None},
        rl={**LENGTH, **REWARDS, **rl},
    )


def test_a_reinforcement_is_a_run_and_trains_no_group_without_a_signal(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reinforce_trainer, "_WATCHED_STEPS", 2)
    record = quietly(reinforced(tiny_model, tmp_path / "run"))
    assert record["steps"] == 3
    assert any(tensor.any() for name, tensor in adapter_of(tmp_path / "run").items() if "lora_B" in name)
    lines = metrics_of(tmp_path / "run")
    assert all(line["rl/groups"] == 2 for line in lines)
    assert max(line["rl/drawn"] for line in lines) > 2
    assert all(0 < line["rl/entropy"] < 7 and line["rl/mismatch"] < 1e-4 for line in lines)
    assert lines[0]["rl/divergence"] == 0 < lines[2]["rl/divergence"]
    assert "rl/divergence" not in lines[1]
    journal = RolloutJournal(tmp_path / "run" / "rollouts")
    assert journal.steps() == [1, 2, 3]
    for step in journal.steps():
        drawn = journal.read(step)
        assert drawn is not None
        for group in drawn.groups:
            assert group.prompt
            assert len({rollout.reward for rollout in group.rollouts}) > 1
            assert sum(rollout.advantage for rollout in group.rollouts) == pytest.approx(0, abs=1e-9)
            assert [len(each.ids) for each in group.rollouts] == [len(each.logprobs) for each in group.rollouts]


MANNERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several updates a batch, from the middle of one": {"num_iterations": 3, "beta": 0.1},
    "groups that wait": {"max_staleness": 2, "loss_type": "grpo"},
}
MOMENTS = {
    "while rollouts are drawn": (RolloutSampler, "submit", 5),
    "after they are journaled": (ReinforceTrainer, "_batches", 2),
    "in the update": (ReinforceTrainer, "_backward", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("manner", MANNERS, ids=str)
def test_a_stopped_reinforcement_goes_on_to_the_same_adapter(
    manner: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reinforced(tiny_model, tmp_path / "whole", steps=4, **MANNERS[manner])
    quietly(whole)
    parts = reinforced(tiny_model, tmp_path / "parts", steps=4, **MANNERS[manner])
    for at, (kind, name, calls) in enumerate(MOMENTS.values()):
        with monkeypatch.context() as patched:
            patched.setattr(kind, name, failing_after(calls, getattr(kind, name)))
            with pytest.raises(ZeroDivisionError):
                quietly(parts, resume=at > 0)
    quietly(parts, resume=True)
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("manner", MANNERS, ids=str)
def test_several_processes_draw_and_learn_what_one_does(manner: str, tiny_model: Path, tmp_path: Path) -> None:
    alone, several = tmp_path / "alone", tmp_path / "several"
    quietly(reinforced(tiny_model, alone, **MANNERS[manner]))
    outcomes = in_ranks(2, quietly, reinforced(tiny_model, several, **MANNERS[manner]))
    assert [outcome.error for outcome in outcomes] == [None, None]
    for line, other in zip(metrics_of(several), metrics_of(alone), strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-6)
    ours, theirs = adapter_of(several), adapter_of(alone)
    assert all((ours[name] - theirs[name]).norm() <= 1e-4 * theirs[name].norm() for name in theirs)
    steps = RolloutJournal(alone / "rollouts").steps()
    assert steps
    for step in steps:
        ids = []
        for run in (several, alone):
            drawn = RolloutJournal(run / "rollouts").read(step)
            assert drawn is not None
            ids.append([each.ids for _, each in drawn.rollouts()])
        assert ids[0] == ids[1]


def without_groups(config: Config, step: int) -> None:
    """Train, with no group that is worth training in one step."""
    usual = ReinforceTrainer._batches

    def none_in_it(self: ReinforceTrainer, drawn: Any) -> Any:
        return usual(self, drawn) if drawn.step != step else []

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ReinforceTrainer, "_batches", none_in_it)
        quietly(config)


@pytest.mark.slow
def test_a_step_without_groups_leaves_the_adapter_where_it_is_on_several_processes_too(
    tiny_model: Path, tmp_path: Path
) -> None:
    alone, several = tmp_path / "alone", tmp_path / "several"
    without_groups(reinforced(tiny_model, alone), 2)
    outcomes = in_ranks(2, without_groups, reinforced(tiny_model, several), 2)
    assert [outcome.error for outcome in outcomes] == [None, None]
    ours, theirs = adapter_of(several), adapter_of(alone)
    assert all((ours[name] - theirs[name]).norm() <= 1e-4 * theirs[name].norm() for name in theirs)


def failing_after(calls: int, function: Any) -> Any:
    left = [calls]

    def fail_in_the_end(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise ZeroDivisionError
        return function(*args, **kwargs)

    return fail_in_the_end


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    journal = RolloutJournal(tmp_path)
    assert journal.read(1) is None
    journal.file(1).write_text('{"step": 1}\n')
    with pytest.raises(RunFolderError, match=r"step-000001\.jsonl is damaged"):
        journal.read(1)


def test_a_prompt_without_room_for_a_completion_is_dropped_or_an_error(tiny_model: Path, tmp_path: Path) -> None:
    config = reinforced(tiny_model, tmp_path / "run", max_completion_length=500, length_buffer=10)
    with pytest.raises(DataError, match="no problem leaves room for 500 tokens"):
        quietly(config)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"data": {"eval_fraction": 0.1}}, "data.eval_fraction"),
        ({"train": {"accumulation": 4}}, "rl.prompts"),
        ({"data": {"overlong": "cut"}}, "data.overlong"),
        ({"rl": {"loss_type": "cispo"}}, "epsilon_high"),
        ({"rl": {"rewards": {"anwser": 1}}}, "anwser"),
    ],
)
def test_settings_that_a_reinforcement_cannot_follow_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_config({"method": "grpo", **settings})


@pytest.mark.parametrize(("prompts", "completions", "length"), [(32, 16, 200), (32, 8, 512), (3, 5, 16), (1, 2, 4000)])
def test_the_packs_of_a_step_have_room_for_all_its_completions(prompts: int, completions: int, length: int) -> None:
    rl = {"prompts": prompts, "num_generations": completions, "max_completion_length": length}
    packs, count = rollout_packs(parse_config({"method": "grpo", "rl": rl, "data": {"max_length": 8192}}), 100)
    (pack,) = packs.packs
    assert count & (count - 1) == 0
    assert count * pack.tokens >= prompts * completions * (100 + length)
    assert pack.tokens >= 4096 or count == 1


def lines_of(count: int, **values: float) -> list[dict[str, float]]:
    healthy = {"reward": 0.5, "entropy": 0.5, "tokens": 50, "truncated": 0, "no_signal": 0.5, "format_rate": 0.9}
    return [{f"rl/{name}": value for name, value in {**healthy, **values}.items()}] * count


@pytest.mark.parametrize(
    ("sign", "said"),
    [
        ({"entropy": 0.001}, "the entropy is gone"),
        ({"tokens": 200, "truncated": 0.4}, "completions grow"),
        ({"no_signal": 1.0}, "all equal"),
        ({"format_rate": 0.1}, "well-formed completions fall"),
        ({"reward": 0.1}, "the reward falls"),
        ({"truncated_weights": 0.2}, "engine and trainer disagree"),
    ],
)
def test_a_degenerating_training_is_warned_of_once(sign: dict[str, float], said: str) -> None:
    lines = lines_of(8)
    warnings = watch.Warnings(Rl(), lines)
    assert list(warnings.after_step()) == []
    lines += lines_of(5, **sign)
    (warning,) = warnings.after_step()
    assert said in warning
    assert list(warnings.after_step()) == []


def test_old_rollouts_keep_their_texts_alone(tiny_model: Path, tmp_path: Path) -> None:
    quietly(reinforced(tiny_model, tmp_path / "run", steps=1))
    journal = RolloutJournal(tmp_path / "run" / "rollouts")
    before = journal.file(1).stat().st_size
    journal.shorten(2)
    drawn = journal.read(1)
    assert drawn is not None
    assert drawn.rollouts()
    assert all(not rollout.ids and not rollout.logprobs for _, rollout in drawn.rollouts())
    assert journal.file(1).stat().st_size < before
    head = json.loads(journal.file(1).read_text().split("\n")[0])
    assert head["facts"]["drawn"] >= len(drawn.groups)
