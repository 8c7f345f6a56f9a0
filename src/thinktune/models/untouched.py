"""The reference model: transformers' own forwards, eager attention, no dropout.

All fast paths of thinktune (its attention, fused layers and heads, packed weights, batches) must compute the same as
this model, one document at a time; they are never compared with one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch

from thinktune.models.fp8_linear import has_quantised_weights

_OURS = __name__.partition(".")[0]
_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""The unit in the last place of numbers from 1/2 to 1."""


def inner_model(model: Any) -> Any:
    """Return the transformers model below a PeftModel, whose layers carry the adapter; else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Hold every module in eval mode within the block: no dropout, no recomputation; then restore the mode of each."""
    with _eval_mode(model.modules()):
        yield


@contextmanager
def _eval_mode(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def gpus_of(model: torch.nn.Module) -> list[int]:
    """List the numbers of the GPUs that a model is on: others are not ours to touch."""
    return _gpus_of(model.modules())


def _gpus_of(modules: Iterable[torch.nn.Module]) -> list[int]:
    # A model has thousands of modules, and its own iterator looks at each parameter's name.
    tensors = (tensor for module in modules for tensor in module._parameters.values() if tensor is not None)
    return sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})


@contextmanager
def at_rest(model: torch.nn.Module) -> Iterator[None]:
    """Hold every module in eval mode within the block, and restore modes, buffers and random state afterwards."""
    modules = list(model.modules())  # once: in a model with an adapter, there are thousands
    buffers = [(module, dict(module._buffers)) for module in modules if module._buffers]
    contents = [(tensor, tensor.clone()) for _, named in buffers for tensor in named.values() if tensor is not None]
    # Rotary frequencies that follow the longest sequence remember it beside their buffer.
    lengths = [
        (module, name, value) for module, _ in buffers for name, value in vars(module).items() if _remembers(name)
    ]
    with torch.random.fork_rng(_gpus_of(modules)), _eval_mode(modules):
        try:
            yield
        finally:
            for module, named in buffers:
                module._buffers.update(named)
            with torch.no_grad():
                for tensor, content in contents:
                    if not torch.equal(tensor, content):
                        tensor.copy_(content)
            for module, name, value in lengths:
                setattr(module, name, value)


def _remembers(name: str) -> bool:
    return name.endswith("max_seq_len_cached")


@contextmanager
def untouched(model: Any) -> Iterator[Any]:
    """Yield the model that is in `model`, adapters included, with its own forwards and eager attention, at rest.

    Weights are shared. Classes that choose their attention when they are made (Falcon) are made anew around them.
    """
    inner = inner_model(model)
    with ExitStack() as stack:
        stack.enter_context(at_rest(model))
        stack.enter_context(_forwards_set_aside(model))
        if inner._can_set_attn_implementation():
            stack.enter_context(_attention_set(inner, "eager"))
            yield inner
        else:
            yield _made_anew(inner)


@contextmanager
def _forwards_set_aside(model: torch.nn.Module) -> Iterator[None]:
    """Remove the forwards that thinktune put in within the block; those of other libraries (placement) stay."""
    ours = [(module, vars(module)["forward"]) for module in model.modules() if _is_ours(vars(module).get("forward"))]
    for module, _ in ours:
        del module.forward
    try:
        yield
    finally:
        for module, forward in ours:
            module.forward = forward


def _is_ours(forward: Any) -> bool:
    if forward is None:
        return False
    function = getattr(forward, "__func__", forward)
    where = getattr(function, "__module__", None) or type(function).__module__
    return str(where).partition(".")[0] == _OURS


@contextmanager
def _attention_set(model: Any, name: str) -> Iterator[None]:
    """Give the model and the models in it (a vision tower, say) the attention called `name` within the block."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for config in list(configs.values()):
        for part in getattr(config, "sub_configs", None) or ():
            if (inner := getattr(config, part, None)) is not None:
                configs[id(inner)] = inner
    before = [(config, config._attn_implementation) for config in configs.values() if _names_attention(config)]
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        for config, attention in before:
            config._attn_implementation_internal = attention


def _names_attention(config: Any) -> bool:
    return hasattr(config, "_attn_implementation_internal")


def _made_anew(model: Any) -> Any:
    """Build another model of the class, for eager attention, over the same weights and adapters."""
    config = deepcopy(model.config)
    with torch.device("meta"):
        twin = type(model)._from_config(config, attn_implementation="eager", dtype=model.dtype)
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        if any(is_whole(model.get_submodule(above)) for above in _above(name)):
            continue
        if is_whole(module):
            setattr(twin.get_submodule(parent), name.rpartition(".")[2], module)
        else:
            place = twin.get_submodule(name)
            place._parameters.update(module._parameters)
            place._buffers.update({key: value for key, value in module._buffers.items() if key in place._buffers})
    return twin.eval()


def is_whole(module: Any) -> bool:
    """Return whether a module has no parts, or is a layer under an adapter: the units that are replaced as a whole."""
    return not any(True for _ in module.children()) or hasattr(module, "base_layer")


def _above(name: str) -> Iterator[str]:
    while name:
        name = name.rpartition(".")[0]
        if name:
            yield name


@contextmanager
def rounded_otherwise(model: torch.nn.Module, dtype: torch.dtype, seed: int = 0) -> Iterator[None]:
    """Perturb the output of every linear layer within the block, at random, by up to a unit in its last place.

    The change of a result bounds the gap between two correct ways to compute it. `dtype` is what results are rounded
    to; in float32 nothing is changed. Outputs are rounded already: a part of a number just above a power of two,
    instead of that unit, would always be rounded away.
    """
    width = _ROUNDING.get(dtype)
    if width is None:
        yield
        return
    linears = [module for module in model.modules() if _is_linear(module)]
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)

    def disturb(_: Any, __: Any, output: Any) -> Any:
        if not torch.is_tensor(output):
            return output
        noise = torch.rand(output.shape, generator=generator, device=output.device, dtype=torch.float32)
        mantissa = torch.frexp(output.detach().float()).mantissa.abs().clamp(min=0.5)
        return (output.float() * (1 + width / mantissa * (2 * noise - 1))).to(output.dtype)

    handles = [module.register_forward_hook(disturb) for module in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_coarse(model: torch.nn.Module) -> bool:
    """Return whether a model rounds activations to int8, but for columns with a large value in any row: the other rows
    of a batch then change every result a little, by design."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


def computes_in(model: torch.nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that results are rounded to: products over packed weights are always in 16 bits."""
    packed = has_quantised_weights(model)
    return torch.bfloat16 if packed and dtype == torch.float32 else dtype


def _is_linear(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        torch.is_tensor(weight)
        and not isinstance(module, torch.nn.Embedding)
        and ("Linear" in type(module).__name__ or "Conv1D" in type(module).__name__)
        and not hasattr(module, "base_layer")
    )


def size_widened(model: torch.nn.Module) -> int:
    """Return the bytes that `widened` takes on top; 0 if nothing is to be widened, as with packed weights."""
    narrow = {id(tensor): tensor for _, tensor in _floats(model)}
    return sum(4 * tensor.numel() for tensor in narrow.values())


@contextmanager
def widened(model: torch.nn.Module) -> Iterator[None]:
    """Hold all floating-point weights and buffers in float32 within the block, and put the originals back."""
    kept = []
    try:
        for _, tensor in _floats(model):
            if tensor.dtype != torch.float32:  # tied ones come twice
                kept.append((tensor, tensor.data))
                tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


def _floats(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dtype in (torch.bfloat16, torch.float16):
            yield name, tensor
