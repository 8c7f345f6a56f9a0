"""PEFT adapters: put on a model, refused if they do not fit it, and summed into its weights.

Embeddings tied to the head (`tie_word_embeddings`) are the trap here: an adapter belongs to one of the two, and a sum
written into the shared weight would change the other as well. `merge_adapter` gives every weight memory of its own
first, and ties the two again only where they came out equal.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune.config import Load
from thinktune.errors import ModelError
from thinktune.models.auto_class import auto_class
from thinktune.models.device import LOADING
from thinktune.models.folder import ADAPTER_CONFIG, check_adapter_folder, read_json

if TYPE_CHECKING:
    from thinktune.models.references import Resolved

_OTHER_MODEL = "it was trained on another model; base_model in its thinktune.json says which"

_NO_SUMS = {"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CARTRIDGE", "ADAPTION_PROMPT"}


def put_adapter(model: Any, adapter: Path, *, merge: bool, name: str = "default", trainable: bool = False) -> Any:
    """Put a PEFT adapter on a model, as a PeftModel or merged into its weights.

    On a PeftModel it joins the adapters that are there, under its own name; `set_adapter` switches.

    The adapter is held in float32, so that a merge computes in float32 and rounds once, to the dtype of the weights.

    Raises:
        ModelError: the adapter was made for another model, or is of a kind that is no sum with the weights.
    """
    from peft import PeftModel

    require_known_kind(adapter)
    with _told_of(adapter):
        if isinstance(model, PeftModel):
            result = model.load_adapter(adapter, name, torch_device=str(model.device))
        else:
            model, result = _wrap(model, adapter, name, trainable)
    problems = [
        f"{problem} {_first(keys, name)}"
        for problem, keys in (("it lacks", result.missing_keys), ("the base has no place for", result.unexpected_keys))
        if keys
    ]
    if problems and not take_by_name(model, adapter, name):
        raise ModelError(f"the adapter {adapter} does not fit its base model: {'; '.join(problems)}", hint=_OTHER_MODEL)
    return merge_adapter(model, adapter) if merge else model


def take_by_name(tuned: Any, adapter: Path, name: str) -> bool:
    """Copy the weights of an adapter folder to a PeftModel's of the same names; False: the names differ.

    PEFT renames weights as transformers does those of old checkpoints, also where they have the new names already:
    `mlp.shared_experts.` of Laguna matches the old `mlp.shared_expert.` with a wildcard at its end.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(check_adapter_folder(adapter))
    own = get_peft_model_state_dict(tuned, adapter_name=name)
    if saved.keys() != own.keys() or any(saved[key].shape != own[key].shape for key in own):
        return False
    with torch.no_grad():
        for key, weight in own.items():
            weight.copy_(saved[key])
    return True


def require_fit(resolved: Resolved, adapter: Path, load: Load) -> None:
    """Make sure that an adapter fits a base, without loading the weights of either: for engines that load by
    themselves, and ignore a mismatch.

    Raises:
        ModelError: it does not fit, as `put_adapter` says.
    """
    import torch
    from transformers import AutoConfig

    trust = {"trust_remote_code": load.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(resolved.folder, local_files_only=True, **trust)
        with LOADING, torch.device("meta"):
            model = auto_class(config.model_type).from_config(config, **trust)
    except (RuntimeError, ValueError, OSError, KeyError):
        return  # the engine knows this architecture, transformers does not: the engine's own checks hold
    put_adapter(model, adapter, merge=False)


def require_known_kind(adapter: Path) -> None:
    """Raise ModelError for adapters that are no sum with the weights of their model."""
    told = read_json(adapter / ADAPTER_CONFIG)
    kind = told.get("peft_type", "LORA")
    if kind in _NO_SUMS:
        raise ModelError(f"{adapter} is of PEFT's kind {kind}, which is no change of weights", hint="use LoRA")


def changes_base(adapter: Path) -> bool:
    """Return whether putting the adapter on a model changes the model itself, so that no other can be put beside it."""
    return bool(read_json(adapter / ADAPTER_CONFIG).get("bias", "none") != "none")


def touches_embeddings(adapter: Path) -> list[str]:
    """Return those of input embeddings and head, by their last name, that the adapter has a low-rank update of."""
    from thinktune.models.folder import read_safetensors_header

    keys = read_safetensors_header(check_adapter_folder(adapter))
    heads = {".lm_head.lora_", ".lm_head.base_layer."}
    return [
        *(["lm_head"] if any(part in key for key in keys for part in heads) else []),
        *(["embed_tokens"] if any("lora_embedding_" in key for key in keys) else []),
    ]


def merge_adapter(tuned: Any, adapter: Path) -> Any:
    """Return the model under a PeftModel with the active adapter summed into its weights: in float32, rounded once.

    Input embeddings and head that were tied are so afterwards only where the adapter did the same to both; the config
    of the model says which.

    Raises:
        ModelError: PEFT cannot merge this adapter.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in tuned.modules() if isinstance(module, LoraLayer)]
    owners = Counter(weight.data_ptr() for _, weight in tuned.named_parameters(remove_duplicate=False))
    tied = bool(getattr(tuned.config.get_text_config(), "tie_word_embeddings", False))
    with _told_of(adapter, "cannot be merged"):
        for layer in layers:
            _merge_layer(layer, owners)
        model = tuned.merge_and_unload()
    if tied:
        _tie_where_equal(model)
    return model


def _wrap(model: Any, adapter: Path, name: str, trainable: bool) -> tuple[Any, Any]:
    """Do as PeftModel.from_pretrained, but report the keys that found no place."""
    from accelerate.hooks import remove_hook_from_submodules
    from peft import PeftConfig, PeftModelForCausalLM

    config = PeftConfig.from_pretrained(str(adapter))
    config.inference_mode = not trainable
    if {"cpu", "disk"} & {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}:
        remove_hook_from_submodules(model)
    on_meta = model.device.type == "meta"
    mapping = getattr(model, "_checkpoint_conversion_mapping", {})
    tuned = PeftModelForCausalLM(model, config, name, low_cpu_mem_usage=on_meta)
    result = tuned.load_adapter(
        adapter,
        name,
        torch_device="cpu" if on_meta else str(model.device),
        is_trainable=trainable,
        low_cpu_mem_usage=on_meta,
        key_mapping=mapping,
    )
    return tuned, result


@contextmanager
def _told_of(adapter: Path, problem: str = "does not fit its base model") -> Iterator[None]:
    """Turn errors of PEFT within the block into a ModelError that names the adapter; its warnings are ours to give."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"the adapter {adapter} {problem}: {lines[-1].strip()}", hint=_OTHER_MODEL) from error


def _merge_layer(layer: Any, owners: Counter[int]) -> None:
    weight = base_weight(layer)
    if weight is None or not weight.is_floating_point() or not hasattr(layer, "merge"):
        return  # quantised layers: PEFT's own way
    import torch

    shared = owners[weight.data_ptr()] > 1
    wide = torch.nn.Parameter(weight.detach().to(torch.float32, copy=shared), requires_grad=weight.requires_grad)
    setattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"), wide)
    layer.merge()
    wide.data = wide.data.to(weight.dtype)


def base_weight(layer: Any) -> Any:
    """Return the parameter that a layer of an adapter adds to: one of experts, or the weight of its layer; None: of a
    layer without one."""
    return getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"), None)


def _tie_where_equal(model: Any) -> None:
    """Tie embeddings and head again if both came out the same; else set the config to untied."""
    import torch

    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    equal = torch.equal(head.weight, embeddings.weight)
    if equal:
        head.weight = embeddings.weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = equal


def _first(keys: Sequence[str], name: str) -> str:
    """Name the first of the weights, and count the rest."""
    first = min(keys).removeprefix("base_model.model.").replace(f".{name}", "")
    return first + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
