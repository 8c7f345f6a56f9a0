"""The fidelity check: loss and gradient as trained, against the model's own untouched forward, before a step.

Our way packs documents, has an attention of its own and may have fused layers and a fused head. Each of them is right
for the families it was written for and may be silently wrong for the next one; so nothing is concluded from a name.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from peft import PeftModel

from thinktune.data import Tokens
from thinktune.errors import ModelError, ThinktuneError
from thinktune.models.device import free_memory
from thinktune.models.fp8_linear import has_quantised_weights
from thinktune.models.layer_sizes import layer_sizes
from thinktune.models.sharded_base import sharded_base_of
from thinktune.models.untouched import (
    at_rest,
    computes_in,
    inner_model,
    is_coarse,
    rounded_otherwise,
    size_widened,
    untouched,
    widened,
)
from thinktune.training.collator import PackedCollator
from thinktune.training.fused.packed_attention import packed_documents
from thinktune.training.gap import Gap, Seen
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.ranks import agree

_NOISE_OF_STATES = 2.0
"""The same of the states of a document, of one try."""
_TRIES = 4
_TOKENS = {"cuda": 2048, "cpu": 1024}
"""The longest document is cut to as many, on both sides, …"""
_SHARE_OF_MEMORY = 0.3
"""… or to as many as the model's own forward pass has room for in this part of the free memory."""
_SHARE_FOR_WIDE = 0.3
"""Of the free memory may go into float32 weights for the time of the check."""
_FIRST = 16
"""Tokens of a document that show best whether it sees the one before it: a layer with a state disturbs these most."""
_FEWEST = 16

Result = TypeVar("Result")


def examine_in_float32(
    with_loss: ModelWithLoss, examples: Sequence[Tokens], dtype: torch.dtype, *, packs: bool
) -> bool:
    """Check a training in 16 bits against the model itself in float32, if there is room for that.

    In 16 bits, rounding hides much of an attention that leaves something out. Weights are widened for a moment; packed
    ones (int8, nf4, fp8), and models too large for it, are examined as they are set up, alone.

    Args:
        packs: whether examples are to share a sequence.

    Returns:
        Whether documents are kept apart in a pack, as far as was seen.

    Raises:
        ModelError: loss or gradient is not the model's own.
    """
    model = with_loss.model
    room = size_widened(model) <= _SHARE_FOR_WIDE * free_memory(model.device)
    if dtype == torch.float32 or not room or not _is_plain(model):
        return True
    try:
        with widened(model), packed_documents(inner_model(model)):
            apart: bool = documents_are_isolated(model, examples)
            require_faithful(with_loss, examples, torch.float32, together=packs and apart)
    except (torch.OutOfMemoryError, MemoryError):
        return True
    return apart


def examine_as_set_up(
    with_loss: ModelWithLoss, examples: Sequence[Tokens], dtype: torch.dtype, *, packs: bool, apart: bool
) -> bool:
    """Check the model as it is set up, in the dtype of the training; `apart`: the outcome of the first check."""
    apart = apart and documents_are_isolated(with_loss.model, examples)
    require_faithful(with_loss, examples, computes_in(with_loss.model, dtype), together=packs and apart)
    return apart


def _is_plain(model: PeftModel) -> bool:
    """Tell whether no weight is packed, and all of them are here: then they can be widened."""
    return not has_quantised_weights(inner_model(model)) and sharded_base_of(model) is None


def require_faithful(
    with_loss: ModelWithLoss, examples: Sequence[Tokens], dtype: torch.dtype, *, together: bool
) -> None:
    """Check loss and gradient of the shortest and of the longest example against the model's own.

    Both are computed the way training will, in one pack if they may be `together`. Nothing of it stays: no gradient,
    and random numbers, modes and buffers are as they were. On a GPU too small for it, the longest example is cut.

    Raises:
        ModelError: they differ by more than rounding can explain.
    """
    model, known = with_loss.model, _Known()
    for pack in _packs(model, examples, together):
        if sharded_base_of(model) is None:
            problem = _with_room(pack, lambda documents: measure(with_loss, documents, dtype, known).problem(dtype))
        else:  # other ranks wait, and would not halve their documents
            problem = measure(with_loss, pack, dtype, known).problem(dtype)
        if problem is not None:
            lengths = " and ".join(f"{len(document):,}" for document in pack)
            raise ModelError(
                f"training would not be this model's: on {_kind(pack)} of {lengths} tokens, {problem}, held against "
                f"its own forward pass with eager attention ({_family(model)})",
                hint=_hint(pack),
            )


def measure(
    with_loss: ModelWithLoss, documents: Sequence[Tokens], dtype: torch.dtype, known: _Known | None = None
) -> Gap:
    """Measure how far loss and gradient of a pack are from those of its documents alone, in the untouched model, of
    which some may be `known`, and others become so.

    Rounding gets several tries to explain a gap: in mixtures of experts, it may send a token to other experts in one
    and not in the next.
    """
    model = with_loss.model
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = list(trained.values())
    ours = Seen(*_ours(with_loss, documents, parameters))
    own = (known or _Known()).of(model, documents, parameters)
    if not math.isfinite(own.loss):  # of weights that are no numbers, training itself tells
        return Gap(0.0, 0.0, 0.0, 0.0, "")
    parts = [float((one - other).norm()) for one, other in zip(ours.gradients, own.gradients, strict=True)]
    worst = list(trained)[max(range(len(parts)), key=parts.__getitem__)]
    module = worst.replace("base_model.model.", "").partition(".lora_")[0]
    coarse = is_coarse(model)
    gap = Gap(own.loss_gap(ours), own.gradient_gap(ours), 0.0, 0.0, module, coarse)
    for seed in range(_TRIES if dtype != torch.float32 else 0):
        if not _on_any(model, gap.problem(dtype) is not None, max):
            break
        noise = Seen(*_own(model, documents, parameters, rounded=dtype, seed=seed))
        gap = replace(
            gap,
            loss_noise=max(gap.loss_noise, own.loss_gap(noise)),
            gradient_noise=max(gap.gradient_noise, own.gradient_gap(noise)),
        )
    return gap


class _Known:
    """Loss and gradients of documents in the untouched model: the shortest one is held against twice."""

    def __init__(self) -> None:
        self._first: tuple[Tokens, Seen] | None = None

    def of(self, model: PeftModel, documents: Sequence[Tokens], parameters: list[Any]) -> Seen:
        """Return those of a pack: its first document's as they were if that is the one of the last time."""
        first, *rest = documents
        if self._first is None or self._first[0] is not first:
            self._first = None
            self._first = first, Seen(*_own(model, [first], parameters))
        seen = self._first[1]
        if not rest:
            return seen
        more = Seen(*_own(model, rest, parameters))
        sums = [one.add_(other) for one, other in zip(more.gradients, seen.gradients, strict=True)]
        return Seen(seen.loss + more.loss, sums)


def _ours(
    with_loss: ModelWithLoss, documents: Sequence[Tokens], parameters: list[Any]
) -> tuple[float, list[torch.Tensor]]:
    model = with_loss.model
    inputs = batch_of(model, documents)
    with _failing_as_told(model, "as it is trained here"), exact(model), torch.enable_grad():
        loss = with_loss(**inputs)
        return float(loss.detach()), _gradients(loss, parameters)


@contextmanager
def exact(model: PeftModel) -> Iterator[None]:
    """Put the model at rest, with no rounding but that of its dtype, within the block."""
    layers = [vars(module)["fused"] for module in model.modules() if "fused" in vars(module)]
    with at_rest(model), ExitStack() as stack:
        if layers:
            from thinktune.training.fused.decoder_layer import without_fp8_products  # needs Triton

            stack.enter_context(without_fp8_products(layers))
        yield


def _own(
    model: PeftModel,
    documents: Sequence[Tokens],
    parameters: list[Any],
    rounded: torch.dtype | None = None,
    seed: int = 0,
) -> tuple[float, list[torch.Tensor]]:
    total, sums = 0.0, [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    failing = _failing_as_told(model, "with eager attention, which training is held against")
    with failing, untouched(model) as own, torch.enable_grad():
        for document in documents:
            ids = torch.tensor(document.input_ids, device=model.device)
            with rounded_otherwise(own, rounded, seed) if rounded else nullcontext():
                logits = own(input_ids=ids[None], use_cache=False).logits[0, document.context - 1 : -1].float()
                loss = F.cross_entropy(logits, ids[document.context :], reduction="sum")
                del logits
                for sum_, gradient in zip(sums, _gradients(loss, parameters), strict=True):
                    sum_ += gradient
            total += float(loss.detach())
    return total, sums


def _gradients(loss: torch.Tensor, parameters: list[Any]) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return [torch.zeros_like(part) if gradient is None else gradient.float() for gradient, part in pairs]


def batch_of(model: PeftModel, documents: Sequence[Tokens]) -> dict[str, Any]:
    batch = PackedCollator(documents)([{"documents": list(range(len(documents)))}])
    return {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}


@contextmanager
def _failing_as_told(model: PeftModel, how: str) -> Iterator[None]:
    """Turn exceptions of a model's own code into a ModelError; those of memory pass."""
    try:
        yield
    except (ThinktuneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        what = f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]
        raise ModelError(f"the forward pass of {_family(model)} fails {how}: {what}", hint=_hint([])) from error


def _packs(model: PeftModel, examples: Sequence[Tokens], together: bool) -> list[list[Tokens]]:
    shortest, longest = _ends(model, examples)
    return [[shortest], [shortest, longest]] if together else [[shortest], [longest]]


def _ends(model: PeftModel, examples: Sequence[Tokens]) -> tuple[Tokens, Tokens]:
    """Return the shortest and the longest example, cut to lengths that fit in memory on both sides."""
    limit = _longest_possible(model)
    by_length = sorted(examples, key=len)
    return cut(by_length[0], limit), cut(by_length[-1], limit)


def cut(example: Tokens, length: int) -> Tokens:
    if len(example) <= length:
        return example
    return replace(example.shorten(length), context=min(example.context, length // 2))


def _longest_possible(model: PeftModel) -> int:
    """Return the most tokens of a document of which all that the untouched model keeps for its backward pass fits in
    memory: attention scores, in float32 and the model's dtype, and the inputs and outputs of its linear layers."""
    width = model.dtype.itemsize
    scores = (8 + 2 * width) * sum(layer.heads for layer in layer_sizes(model.config.get_text_config()))
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    # Those that are trained keep their inputs, for which PEFT has them in float32.
    kept = sum(width * each.out_features + 4 * each.in_features * each.weight.requires_grad for each in linears)
    room = _SHARE_OF_MEMORY * free_memory(model.device)
    longest = _on_any(model, int((math.sqrt(kept**2 + 4 * scores * room) - kept) / (2 * scores)), min)
    return max(_FEWEST, min(_TOKENS.get(model.device.type, 1024), longest))


def _on_any(model: PeftModel, value: Result, choose: Callable[[list[Result]], Result]) -> Result:
    """Return a value that ranks agree on where each of their passes needs all of them."""
    return value if sharded_base_of(model) is None else agree(value, choose)


def _with_room(pack: list[Tokens], compute: Callable[[list[Tokens]], Result]) -> Result | None:
    """Compute the result for a pack, halving its documents until memory suffices; None: it never does."""
    while True:
        try:
            return compute(pack)
        except (torch.OutOfMemoryError, MemoryError):
            longest = max(map(len, pack))
            if longest <= _FEWEST:
                return None
            pack = [cut(document, longest // 2) for document in pack]
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


@torch.no_grad()
def documents_are_isolated(model: PeftModel, examples: Sequence[Tokens]) -> bool:
    """Tell whether a document gets the same hidden states behind any other one as it gets alone.

    The first tokens count: a leak through a layer with a state, or a convolution, is over soon, and drowns in a
    mean over a long document.
    """
    if len(examples) < 2:
        return True
    shortest, longest = _ends(model, examples)
    if len(longest) < 2:
        return True
    other = replace(shortest, ids=array("i", reversed(shortest.ids)))
    in_float32 = computes_in(model, model.dtype) == torch.float32
    with _failing_as_told(model, "over packed documents"), exact(model):
        alone = _hidden(model, [longest])
        packed = _hidden(model, [shortest, longest])[-len(alone) :]
        behind_another = _hidden(model, [other, longest])[-len(alone) :]
    if not torch.isfinite(alone).all():
        return True  # of weights that are no numbers, training itself tells
    seen, moved = _most(packed - behind_another, alone), _whole(packed - alone, alone)
    bound = 1e-3 if in_float32 else 0.05  # bf16 rounds in every layer
    if not _on_any(model, seen > bound or moved > bound, max):
        return True
    # Many layers may make much of a rounding that differs with the size of the batch. That of `seen` is the same on
    # both sides, but over int8, whose products depend a little on all rows of the batch, by design.
    states, noise = _rounding_of_states(model, longest)
    most = _NOISE_OF_STATES * _most(noise, states) if is_coarse(model) else 0.0
    return seen <= max(bound, most) and moved <= max(bound, _NOISE_OF_STATES * _whole(noise, states))


def _rounding_of_states(model: PeftModel, document: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the states of a document in the untouched model, whose every product can be reached, and what they change
    by if each is rounded otherwise."""
    ids = torch.tensor(document.input_ids, device=model.device)[None]
    with untouched(model) as own:
        states = _states(own, input_ids=ids)
        with rounded_otherwise(own, computes_in(model, model.dtype)):
            return states, _states(own, input_ids=ids) - states


def _most(change: torch.Tensor, states: torch.Tensor) -> float:
    """Return the largest relative change of the states of one of a document's first tokens."""
    first = slice(0, _FIRST)
    return float((change[first].norm(dim=-1) / states[first].norm(dim=-1)).max())


def _whole(change: torch.Tensor, states: torch.Tensor) -> float:
    return float(change.norm() / states.norm())


def _hidden(model: PeftModel, documents: Sequence[Tokens]) -> torch.Tensor:
    batch = batch_of(model, documents)
    for unused in ("positions", "targets", "labels"):
        del batch[unused]
    return _states(inner_model(model), **batch)


def _states(model: Any, **inputs: Any) -> torch.Tensor:
    out = model.base_model(**inputs, use_cache=False)
    states: torch.Tensor = (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0]
    return states.float()


def _kind(pack: Sequence[Tokens]) -> str:
    return "an example" if len(pack) == 1 else "a pack of examples"


def _family(model: PeftModel) -> str:
    return str(getattr(model.config, "model_type", type(inner_model(model)).__name__))


def _hint(pack: Sequence[Tokens]) -> str:
    alone = "train.packing=false train.batch_size=1 may help; else " if len(pack) > 1 else ""
    return f"{alone}models of this family cannot be trained here yet: choose another base model"
