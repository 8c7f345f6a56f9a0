"""From a model reference to a model on a device, with its tokenizer and its chat."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune.config import Load, Quantize
from thinktune.errors import MissingExtra, ModelError, OutOfMemory, UsageError
from thinktune.imports import import_bitsandbytes
from thinktune.models.adapters import put_adapter
from thinktune.models.auto_class import auto_class
from thinktune.models.chat import Chat, recorded_date
from thinktune.models.device import LOADING, choose_device, choose_dtype, describe
from thinktune.models.folder import check_model_folder, read_json
from thinktune.models.gguf_rope import restore_rope
from thinktune.models.quantised import dequantised_method, dequantising, forget_scales, require_shapes
from thinktune.models.references import Resolved, resolve
from thinktune.models.tokenizer import read_tokenizer, require_gguf

if TYPE_CHECKING:
    import torch

    from thinktune.models.sharded_base import ShardedBase

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = (
    "use a smaller model, quantize: int8 or nf4, load.dtype: bfloat16, or free memory that other programs hold"
)


@dataclass
class Loaded:
    """A model, ready to be trained or asked.

    Attributes:
        model: a transformers model, or a PeftModel where an adapter was left unmerged; in eval mode.
        tokenizer: with a pad token that does not end a turn.
        chat: renders conversations with the system text that the model was trained with.
        reference: as it was given.
        base: reference of the untuned model underneath.
        adapter: folder of the adapter in use, merged or not; None for plain and for merged models.
        tuned: whether thinktune (or an adapter) has changed the model.
        settings: the contents of thinktune.json.
    """

    model: Any
    tokenizer: Any
    chat: Chat
    device: torch.device
    dtype: torch.dtype
    reference: str
    base: str
    adapter: Path | None
    tuned: bool
    settings: dict[str, Any]


def load_model(
    reference: str | Path,
    *,
    load: Load | None = None,
    quantize: Quantize = "none",
    merge_adapter: bool = True,
    into: ShardedBase | None = None,
) -> Loaded:
    """Load the model of a reference.

    Args:
        reference: see `models.references`.
        load: device, dtype and the like. None: the defaults.
        quantize: number format of the base weights. With any but `none` an adapter stays unmerged.
        merge_adapter: merge adapters in memory (fast to run), or keep the outermost as a PeftModel.
        into: the sharded base that takes the weights of the layers; None: they are all here.

    Raises:
        ModelError, DownloadError, MissingExtra, DeviceError, OutOfMemory: see `resolve` and `load_weights`.
    """
    load = load or Load()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at import, and at every int8 product
    device = choose_device(load.device)
    dtype = choose_dtype(device, load.dtype)
    whole = merge_adapter and quantize == "none"
    resolved = resolve(reference, load, prefer_merged=whole)
    tokenizer = read_tokenizer(resolved, load)
    logger.info(f"loading {reference} on {describe(device, dtype)}" + ("" if quantize == "none" else f", {quantize}"))
    if into is not None:
        _require_shardable(resolved, quantize)
    model = load_base(resolved, load, device, dtype, quantize, into)
    if resolved.adapter is not None:
        model = put_adapter(model, resolved.adapter, merge=whole)
    return _finish(model, tokenizer, resolved, device, dtype)


def load_tokenizer(reference: str | Path, *, load: Load | None = None) -> Any:
    """Load the tokenizer of a model reference, without its weights. Raises as `load_model` does."""
    load = load or Load()
    return read_tokenizer(resolve(reference, load, weights=False), load)


def make_chat(
    tokenizer: Any, settings: dict[str, Any], *, stop_ids: frozenset[int] = frozenset(), now: datetime | None = None
) -> Chat:
    """Make the chat of a model: with the system text and the date that its training recorded, else with the template's
    own text and with `now` (None: the present) for a template that reads the clock."""
    system = (settings["system"] or "") if "system" in settings else None
    return Chat(tokenizer, system, stop_ids=stop_ids, now=recorded_date(settings) or now)


def _require_shardable(resolved: Resolved, quantize: Quantize) -> None:
    """Refuse weights that are not read one by one in their last form (UsageError)."""
    changed = {
        "an adapter would have to be merged into it": bool(resolved.adapters),
        "it is a GGUF file": bool(resolved.gguf),
        "its weights are stored quantised": not resolved.gguf and dequantised_method(resolved.folder) is not None,
        "quantize is int8": quantize == "int8",
    }
    for why, holds in changed.items():
        if holds:
            raise UsageError(
                f"{resolved.reference} cannot be spread over GPUs: {why}",
                hint="train.shard_base=false; or a base in 16 bits, with quantize: none, fp8 or nf4",
            )


def load_base(
    resolved: Resolved,
    load: Load,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize = "none",
    into: ShardedBase | None = None,
) -> Any:
    """Load the model that the outermost adapter was trained on: the base with all earlier adapters merged.

    Raises:
        ModelError, OutOfMemory: see `load_weights` and `put_adapter`.
    """
    model = load_weights(resolved, load, device, dtype, quantize, into)
    for adapter in resolved.adapters[:-1]:
        model = put_adapter(model, adapter, merge=True)
    return model


def load_weights(
    resolved: Resolved,
    load: Load,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize,
    into: ShardedBase | None = None,
) -> Any:
    """Load the base model of a resolved reference, without its adapters.

    Raises:
        ModelError: weights that do not fill the model that its config describes.
        OutOfMemory: it does not fit.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from thinktune.models.fp8_linear import quantise_to_fp8

    arguments: dict[str, Any] = {
        "dtype": dtype,
        "local_files_only": True,
        "trust_remote_code": load.trust_remote_code,
        "output_loading_info": True,
        **_placement(resolved, load, device, quantize),
    }
    keeping: AbstractContextManager[None] = nullcontext()
    if into is not None:
        from thinktune.models.sharded_loading import ShardedConfig, loading_into

        arguments["device_map"] = {"": str(device)}
        if quantize == "none":
            arguments["quantization_config"] = ShardedConfig()
        keeping = loading_into(into)
    elif quantize != "none" and device.type == "cuda":
        from thinktune.models.reading_ahead import reading_ahead

        keeping = reading_ahead()
    kind = None if resolved.gguf else read_json(resolved.folder / "config.json").get("model_type")
    disable_progress_bar()  # loading is announced, and takes seconds
    if device.index is not None:
        torch.cuda.set_device(device)  # kernels of Triton are launched there, and new tensors of ours made
    try:
        with LOADING, keeping:
            model, info = auto_class(kind).from_pretrained(resolved.folder, **arguments)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise out_of_memory(f"loading {resolved.reference}", device) from error
    # An ImportError is a package that trusted code needs.
    except (RuntimeError, ValueError, OSError, KeyError, ImportError) as error:
        if "alloc" in str(error).lower() or "dispatched on the CPU" in str(error):
            raise out_of_memory(f"loading {resolved.reference}", device) from error
        raise ModelError(
            f"{resolved.folder} cannot be loaded: {str(error).strip().splitlines()[0]}",
            hint="the folder is broken, or its architecture is newer than the transformers installed here",
        ) from error
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise ModelError(
            f"{resolved.folder} lacks {len(names)} of its model's weights, among them {names[0]}",
            hint="its config.json and its weights do not belong together, or the folder is half downloaded",
        )
    if resolved.gguf:
        restore_rope(model, resolved.folder / resolved.gguf)
    elif dequantised_method(resolved.folder) is not None:
        forget_scales(model, dtype)
    if quantize in ("int8", "nf4"):
        require_shapes(model)
    if quantize == "fp8":
        quantise_to_fp8(model)  # what was not as it was read: GGUF, and weights that are made of others
    for module in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes repacks 4-bit weights at the first forward pass without gradients, and
        # products with those have no derivative: training after an evaluation would silently learn nothing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if into is not None:
        into.attach(model)
    return model


def out_of_memory(doing: str, device: torch.device) -> OutOfMemory:
    """Make the error for memory that ran out while doing something with a model."""
    return OutOfMemory(f"out of memory on {device} while {doing}", hint=_OUT_OF_MEMORY)


def _placement(resolved: Resolved, load: Load, device: torch.device, quantize: Quantize) -> dict[str, Any]:
    """Return arguments of from_pretrained for the placement and the quantisation of the weights."""
    import torch

    if resolved.gguf:
        from transformers.utils.quantization_config import GgufConfig

        require_gguf()
        if quantize not in ("none", "fp8"):
            raise UsageError(
                f"{resolved.reference} is quantised already",
                hint="set quantize: none or fp8; GGUF is dequantised at loading",
            )
        return {
            "gguf_file": resolved.gguf,
            "quantization_config": GgufConfig(dequantize=True),
            "device_map": {"": str(device)},
        }
    check_model_folder(resolved.folder)
    if quantize == "none":
        placed: dict[str, Any] = {"device_map": {"": str(device)}} if device.type == "cuda" else {}
        if (method := dequantised_method(resolved.folder)) is not None:
            logger.info(f"its weights are stored in {method}, and dequantised")
            placed["quantization_config"] = dequantising(method)
        return placed
    if "quantization_config" in read_json(resolved.folder / "config.json"):
        raise UsageError(f"{resolved.reference} is quantised already", hint="set quantize: none")
    if quantize == "fp8":
        from thinktune.models.fp8_loading import Fp8Config

        return {"quantization_config": Fp8Config(), "device_map": {"": str(device)}}
    if device.type == "cpu":
        return {"quantization_config": _bitsandbytes(quantize), "device_map": {"": "cpu"}}
    # One process, one GPU (several are for torchrun); a model too large for its share is refused, not offloaded.
    share = int(torch.cuda.get_device_properties(device).total_memory * load.max_memory)
    return {
        "quantization_config": _bitsandbytes(quantize),
        "device_map": "auto",
        "max_memory": {device.index: share},
    }


def _bitsandbytes(quantize: Quantize) -> Any:
    from importlib.util import find_spec

    import torch
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise MissingExtra(f"quantize: {quantize} needs bitsandbytes", hint="pip install 'thinktune[quant]'")
    import_bitsandbytes()
    if quantize == "int8":
        from thinktune.models.int8_loading import quantise_where_weights_are

        quantise_where_weights_are()
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _finish(model: Any, tokenizer: Any, resolved: Resolved, device: torch.device, dtype: torch.dtype) -> Loaded:
    generation = model.generation_config
    ends = generation.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    model.config.pad_token_id = generation.pad_token_id = tokenizer.pad_token_id
    model.eval()
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        chat=make_chat(tokenizer, resolved.settings, stop_ids=frozenset(ends)),
        device=device,
        dtype=dtype,
        reference=resolved.reference,
        base=resolved.base,
        adapter=resolved.adapter,
        tuned=bool(resolved.adapters or resolved.settings),
        settings=resolved.settings,
    )
