"""The fresh adapter, saved and loaded once before a step: PEFT moves names, and skips what finds no place."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, get_peft_model_state_dict, set_peft_model_state_dict

from thinktune.errors import ModelError
from thinktune.models.auto_class import auto_class
from thinktune.models.device import LOADING

_HINT = "lora.targets without these layers; this is a fault of PEFT with models of this family"


def require_round_trip(model: PeftModel, *, trust_remote_code: bool = False) -> None:
    """Load what would be saved of an adapter into a twin of its base without weights, and back into itself.

    Raises:
        ModelError: a weight comes back under another name, with another value, or not at all.
    """
    kept = {name: weight.detach().clone() for name, weight in _adapter_weights(model).items()}
    saved = {name: weight.detach().clone() for name, weight in get_peft_model_state_dict(model).items()}
    with torch.random.fork_rng([]), torch.no_grad():
        twin = _twin(model, trust_remote_code)
        shapes = {name: weight.shape for name, weight in _adapter_weights(twin).items()}
        _require(shapes.keys() == kept.keys(), kept.keys() ^ shapes.keys(), "are not there when it is loaded")
        other = [name for name, weight in kept.items() if weight.shape != shapes[name]]
        _require(not other, other, "have other sizes when it is loaded")
        found = set_peft_model_state_dict(twin, {name: weight.to("meta") for name, weight in saved.items()})
        lost = [*found.unexpected_keys, *(name for name in found.missing_keys if name in kept)]
        if lost:  # then weights are taken by their names, see `models.adapters.take_by_name`
            by_name = get_peft_model_state_dict(twin).keys() == saved.keys()
            _require(by_name, lost, "find no place when it is loaded")
            return
        weights = _adapter_weights(model)
        for weight in weights.values():
            weight.fill_(torch.nan)
        set_peft_model_state_dict(model, saved)
        other = [name for name, weight in weights.items() if not torch.equal(weight, kept[name])]
        for name, weight in weights.items():
            weight.copy_(kept[name])
        _require(not other, other, "have other values when it is loaded")


def _twin(model: PeftModel, trust_remote_code: bool) -> PeftModel:
    with TemporaryDirectory() as folder:
        model.active_peft_config.save_pretrained(folder)
        config = PeftConfig.from_pretrained(folder)
    values = model.get_base_model().config
    plain = {name: value for name, value in values.to_dict().items() if name != "quantization_config"}
    with LOADING, torch.device("meta"):
        base = auto_class(values.model_type).from_config(
            type(values).from_dict(plain), trust_remote_code=trust_remote_code
        )
    with LOADING:
        return PeftModelForCausalLM(base, config, low_cpu_mem_usage=True)


def _adapter_weights(model: PeftModel) -> dict[str, Any]:
    return {name: weight for name, weight in model.named_parameters() if "lora_" in name}


def _require(holds: bool, names: Any, what: str) -> None:
    if not holds:
        first = min(names).removeprefix("base_model.model.").replace(".default", "")
        raise ModelError(
            f"the adapter cannot be saved and loaded: {len(names)} weights {what}, among them {first}", hint=_HINT
        )
