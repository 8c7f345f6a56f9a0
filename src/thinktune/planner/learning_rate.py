"""The peak learning rate that `train.learning_rate: auto` stands for.

Method `sft`: 5e-5 x 17 for an adapter x (2000 / hidden size)^P, with P = 0.0775 for Qwen and 0.781 for Llama, whatever
the rank and the batch. 5e-5 and P are those of get_lr in tinker-cookbook (https://github.com/thinking-machines-lab/
tinker-cookbook, hyperparam_utils.py), for alpha 32 with scale alpha / r as in "LoRA Without Regret" (Schulman et al.
2025, https://thinkingmachines.ai/blog/lora/); 17, there 10, is fitted to rates that were best on the built-in model.
The rates of `dpo` and `grpo` go with the square root of the batch (Shallue et al. 2018,
https://arxiv.org/abs/1811.03600). docs/recipes.md has where each constant comes from, and how it was fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from thinktune.config import Config, Lora
from thinktune.planner.model_shape import ModelShape
from thinktune.planner.pack_lengths import PackLengths

_HIDDEN = 2000
"""Hidden size at which the base rates hold."""
_ALPHA = 32
_EXPONENTS = {"qwen": 0.0775, "llama": 0.781}
"""Of the hidden size, by the beginning of the model type. Other families take the first one: their rate stays near that
of a hidden size of 2,000."""


@dataclass(frozen=True)
class _Batch:
    """A number of rows a step, called `name`, at which a rate holds; beyond `fewest` and `most` it stays as there."""

    size: int
    fewest: int
    most: int
    name: str


@dataclass(frozen=True)
class _Rule:
    """The rate of a method.

    Attributes:
        base: of full fine-tuning at a hidden size of 2,000.
        adapter: an adapter takes so many times that.
        exponent: of the hidden size; None: that of the family.
        batch: with whose square root the rate goes; None: with none.
    """

    base: float
    adapter: int
    exponent: float | None = None
    batch: _Batch | None = None


_RULES = {
    "sft": _Rule(5e-5, 17),
    "dpo": _Rule(1e-6, 10, batch=_Batch(128, 32, 512, "pairs")),
    "grpo": _Rule(7.5e-6, 10, exponent=1.2, batch=_Batch(512, 128, 512, "completions")),
}


@dataclass(frozen=True)
class LearningRate:
    """A peak learning rate; `rule`: how it was computed; None: the config has the number."""

    value: float
    rule: str | None = None

    def line(self) -> str:
        return f"learning rate {self.value:g}" + (f" (auto): {self.rule}" if self.rule else "")


def learning_rate(config: Config, shape: ModelShape, packs: PackLengths) -> LearningRate:
    """Return the config's rate, or compute that of `auto` to two digits, with its rule in words."""
    asked = config.train.learning_rate
    if not isinstance(asked, str):
        return LearningRate(asked)
    rule = _RULES[config.method]
    factors = [*_of_adapter(rule, config.lora), _of_size(rule, shape)]
    if rule.batch is not None:
        factors.append(_of_batch(rule.batch, config, packs))
    value = math.prod((rule.base, *(factor for factor, _ in factors)))
    return LearningRate(float(f"{value:.1e}"), " x ".join([f"{rule.base:g}", *(words for _, words in factors)]))


def _of_adapter(rule: _Rule, lora: Lora | None) -> list[tuple[float, str]]:
    """Adam's steps are of one size whatever the adapter's scale: the product of both grows with alpha x rate."""
    if lora is None:
        return []
    factors: list[tuple[float, str]] = [(rule.adapter, f"{rule.adapter} for an adapter")]
    alpha = lora.alpha * (math.sqrt(lora.r) if lora.use_rslora else 1)
    if alpha != _ALPHA:
        factors.append((_ALPHA / alpha, f"{_ALPHA}/{alpha:.4g} for its alpha"))
    return factors


def _of_size(rule: _Rule, shape: ModelShape) -> tuple[float, str]:
    family = next((name for name in _EXPONENTS if shape.model_type.startswith(name)), None)
    exponent, whose = rule.exponent, ""
    if exponent is None:
        exponent = _EXPONENTS[family or "qwen"]
        whose = f" of {family or 'qwen'}" + ("" if family else f", as none is known of {shape.model_type}")
    return (_HIDDEN / shape.hidden) ** exponent, f"({_HIDDEN}/{shape.hidden})^{exponent:g}{whose}"


def _of_batch(batch: _Batch, config: Config, packs: PackLengths) -> tuple[float, str]:
    known = True
    if config.method == "grpo":
        rows: float = config.rl.prompts * config.rl.num_generations
    else:
        known = packs.documents is not None
        rows = config.train.batch_size * config.train.accumulation * (packs.documents or 1) / config.documents
    counted = min(max(rows, batch.fewest), batch.most)
    words = f"sqrt({counted:.3g}/{batch.size}) for {rows:.3g} {batch.name} a step"
    words += "" if known else " or more: the data is not read"
    return math.sqrt(counted / batch.size), words
