"""The policy loss: equal to TRL's for the same completions, in value and gradient."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import make_tiny_model, make_tiny_tokenizer
from thinktune.config import Rl
from thinktune.data import Example, Tokens
from thinktune.models import load_model
from thinktune.models.untouched import untouched
from thinktune.training.adapter import adapter_to_train
from thinktune.training.fused.packed_attention import packed_documents
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.reinforce.objective import Fact, Objective, advantages
from thinktune.training.reinforce.rollout_batches import RolloutBatch, rollout_batches
from thinktune.training.reinforce.rollouts import Drawn, Group, Rollout
from training import make_config

LIMIT = 16
PROMPTS = [[5, 9, 30, 31, 32], [7, 8, 9], [40, 41, 42, 43, 44, 45, 46]]
EXAMPLE = Example((), "", "", 1, "test")
PREPARED = [Tokens(array("i", ids), len(ids), EXAMPLE) for ids in PROMPTS]


def drawn_rollouts() -> Drawn:
    """Three groups of three completions of different lengths, with rewards that differ."""
    torch.manual_seed(1)
    groups = []
    for problem in range(3):
        rewards = torch.rand(3).tolist()
        ids = [torch.randint(3, 300, (1 + 3 * problem + at,)).tolist() for at in range(3)]  # one of one token
        gains = advantages(Rl(), [rewards])[0]
        rollouts = [
            Rollout(each, [-5.5 - 0.1 * at for at in range(len(each))], "", "stop", "wrong", {}, reward, False, 0, gain)
            for each, reward, gain in zip(ids, rewards, gains, strict=True)
        ]
        groups.append(Group(problem, problem, 1, "", tuple(rollouts)))
    return Drawn(1, groups, [], 3)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelWithLoss]:
    folder = tmp_path_factory.mktemp("policy")
    config = make_config(make_tiny_model(folder / "tiny"), folder / "run")
    loaded = load_model(config.model, load=config.load)
    torch.manual_seed(3)
    with adapter_to_train(loaded, config) as model, packed_documents(loaded.model):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.1)
        yield ModelWithLoss(model)


def logprobs(policy: ModelWithLoss, batch: RolloutBatch, rl: Rl) -> torch.Tensor:
    return -policy(**batch.inputs, reduction="none", temperature=rl.temperature)


def old_logprobs(batches: list[RolloutBatch], policy: ModelWithLoss, rl: Rl) -> list[torch.Tensor]:
    """A policy of some steps ago: ratios on both sides of the clipping."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        now = [logprobs(policy, batch, rl) for batch in batches]
    return [each + 0.4 * torch.randn(len(each), generator=generator) for each in now]


def ours(policy: ModelWithLoss, rl: Rl, *, shared: bool) -> tuple[float, list[torch.Tensor], dict[str, Any]]:
    """Loss, gradients, and what TRL has to be given for the same."""
    drawn = drawn_rollouts()
    batches = rollout_batches(drawn, PREPARED, rl, 60, shared=shared)
    old = old_logprobs(batches, policy, rl)
    policy.zero_grad()
    loss = 0.0
    rows: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    for batch, before in zip(batches, old, strict=True):
        batch.facts[Fact.OLD] = before
        batch.facts[Fact.SAMPLED] = before + torch.linspace(-1.5, 0.4, len(before))
        batch.facts[Fact.REFERENCE] = before - 0.2
        part = Objective(rl)(logprobs(policy, batch, rl), batch.facts)
        part.backward()
        loss += float(part.detach())
        facts = [batch.facts[row].split(batch.lengths) for row in (Fact.OLD, Fact.SAMPLED, Fact.REFERENCE)]
        rows |= {index: (facts[0][at], facts[1][at], facts[2][at]) for at, index in enumerate(batch.members)}
    gradients = [parameter.grad.clone() for parameter in policy.trained if parameter.grad is not None]
    return loss, gradients, given_to_trl(drawn, rows, rl)


def given_to_trl(drawn: Drawn, rows: dict[int, Any], rl: Rl) -> dict[str, Any]:
    pairs = drawn.rollouts()
    longest, widest = max(map(len, PROMPTS)), max(len(rollout.ids) for _, rollout in pairs)

    def right(values: Any) -> torch.Tensor:
        return torch.nn.functional.pad(torch.as_tensor(values), (0, widest - len(values)))

    def left(values: list[int]) -> torch.Tensor:
        return torch.nn.functional.pad(torch.tensor(values), (longest - len(values), 0))

    old, sampled, reference = (torch.stack([right(rows[at][n]) for at in range(len(pairs))]) for n in range(3))
    prompts = [PROMPTS[group.problem] for group, _ in pairs]
    return {
        "prompt_ids": torch.stack([left(prompt) for prompt in prompts]),
        "prompt_mask": torch.stack([left([1] * len(prompt)) for prompt in prompts]),
        "completion_ids": torch.stack([right(list(rollout.ids)) for _, rollout in pairs]),
        "completion_mask": torch.stack([right([1] * len(rollout.ids)) for _, rollout in pairs]),
        "advantages": torch.tensor([rollout.advantage for _, rollout in pairs]),
        "num_items_in_batch": torch.tensor(sum(len(rollout.ids) for _, rollout in pairs)),
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "importance_sampling_ratio": (old - sampled).exp().clamp(max=rl.importance_sampling_clip_max),
    }


SETTINGS: list[dict[str, Any]] = [
    {"loss_type": "dapo"},
    {"loss_type": "bnpo"},
    {"loss_type": "grpo"},
    {"loss_type": "dr_grpo"},
    {"loss_type": "cispo", "epsilon_high": 1.2},
    {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.04},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05},
    {"loss_type": "dapo", "importance_sampling_level": "sequence", "beta": 0.04},
]


@pytest.fixture(scope="module")
def trl_trainer(policy: ModelWithLoss, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

    arguments = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        use_cpu=True,
        bf16=False,
        max_completion_length=LIMIT,
        per_device_train_batch_size=9,
        num_generations=3,
        report_to="none",
        gradient_checkpointing=False,
    )
    return GRPOTrainer(
        policy.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=make_tiny_tokenizer(),
    )


@pytest.mark.slow  # TRL's import takes seconds
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared prompts"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(map(str, settings.values())))
def test_loss_and_gradient_are_those_of_trl(
    policy: ModelWithLoss, trl_trainer: Any, settings: dict[str, Any], *, shared: bool
) -> None:
    rl = Rl(max_completion_length=LIMIT, num_generations=3, **settings)
    found, gradients, given = ours(policy, rl, shared=shared)
    trainer = trl_trainer
    trainer.loss_type, trainer.beta = rl.loss_type, rl.beta
    trainer.args.use_bias_correction_kl = True
    trainer.importance_sampling_level = rl.importance_sampling_level
    trainer.epsilon_low, trainer.epsilon_high = rl.epsilon, rl.epsilon_high or rl.epsilon
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True  # so that it weighs by the mismatch
    trainer.current_gradient_accumulation_steps = 1
    policy.zero_grad()
    with untouched(policy.model) as own:
        loss = trainer._compute_loss(own, given)
        loss.backward()
    assert found == pytest.approx(float(loss), rel=1e-5, abs=1e-6)
    for one, parameter in zip(gradients, policy.trained, strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-5 * float(parameter.grad.abs().max()))


@pytest.mark.parametrize(
    ("capacity", "shared"), [(1000, False), (1000, True), (40, True)], ids=["packed", "shared", "groups in two packs"]
)
def test_the_packing_changes_neither_loss_nor_gradient(policy: ModelWithLoss, capacity: int, *, shared: bool) -> None:
    rl = Rl(max_completion_length=LIMIT, beta=0.1)
    one = on_policy(policy, rl, capacity, shared=shared)
    two = on_policy(policy, rl, 0, shared=False)
    assert one[0] == pytest.approx(two[0], abs=1e-6)
    for a, b in zip(one[1], two[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def on_policy(policy: ModelWithLoss, rl: Rl, capacity: int, *, shared: bool) -> tuple[float, list[torch.Tensor]]:
    policy.zero_grad()
    loss = 0.0
    for batch in rollout_batches(drawn_rollouts(), PREPARED, rl, capacity, shared=shared):
        batch.facts[Fact.REFERENCE] = batch.facts[Fact.SAMPLED]
        part = Objective(rl)(logprobs(policy, batch, rl), batch.facts)
        part.backward()
        loss += float(part.detach())
    return loss, [parameter.grad.clone() for parameter in policy.trained if parameter.grad is not None]


def test_log_probabilities_are_of_logits_divided_by_the_temperature(policy: ModelWithLoss) -> None:
    (batch,) = rollout_batches(drawn_rollouts(), PREPARED, Rl(), 1000)
    inputs = batch.inputs
    hidden = {name: value for name, value in inputs.items() if name not in ("positions", "targets", "labels")}
    with torch.no_grad():
        logits = policy.model.get_base_model()(**hidden, use_cache=False).logits[0, inputs["positions"]]
        found = logprobs(policy, batch, Rl(temperature=0.5))
    expected = (logits / 0.5).log_softmax(-1).gather(1, inputs["targets"][:, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_completion_that_was_cut_off_has_no_part_in_the_loss_if_that_is_wanted() -> None:
    drawn = drawn_rollouts()
    group = drawn.groups[0]
    cut = replace(group.rollouts[1], finish_reason="length")
    drawn.groups[0] = replace(group, rollouts=(group.rollouts[0], cut, group.rollouts[2]))
    rl = Rl(max_completion_length=LIMIT, mask_truncated_completions=True)
    (batch,) = rollout_batches(drawn, PREPARED, rl, 1000)
    shares = dict(zip(batch.members, batch.facts[Fact.SHARE].split(batch.lengths), strict=True))
    assert not shares[1].any()
    others = sum(float(share.sum()) for share in shares.values())
    assert others == pytest.approx(1.0)  # the mean is over the rest


def test_a_group_without_difference_has_no_advantage_and_half_right_ones_are_opposite() -> None:
    equal, split = advantages(Rl(), [[1.0, 1.0], [1.0, 0.0]])
    assert equal == [0.0, 0.0]
    assert split[0] == -split[1] > 0.7
    assert advantages(Rl(scale_rewards="none"), [[1.0, 0.0]]) == [[0.5, -0.5]]
