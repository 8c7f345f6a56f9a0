"""A model in vLLM's terms: what its engine is asked to run, and the environment of its process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thinktune.config import Vllm
from thinktune.errors import ModelError
from thinktune.models.adapters import touches_embeddings
from thinktune.models.folder import ADAPTER_CONFIG, check_adapter_folder, read_json
from thinktune.network import SILENT

OWN = "(own)"
"""Name of the adapter that is part of the model which was asked for."""
_NOT_BESIDE = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "rank_pattern",  # vLLM scales every layer by the one alpha and the one rank
    "alpha_pattern",
)
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices for max_lora_rank
_NEWER_RUNNER = {"llama", "qwen2", "qwen3"}  # model types
# vLLM captures one CUDA graph for each of 67 batch sizes otherwise, most of the time that a second start takes.
_GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512)


@dataclass(frozen=True)
class VllmModel:
    """A model in vLLM's terms.

    Attributes:
        folder: of the model, in safetensors.
        tokenizer_folder: of the tokenizer that belongs to it.
        tokenizer: the same, loaded.
        stop_ids: token ids that end a completion.
        dtype: bfloat16 or float32.
        device: cuda, cuda:N, or cpu for vLLM's CPU build.
        adapters: folders of unmerged adapters by the name that requests use. A request that names none gets the one
            called `OWN`, if there is one, else the model itself.
    """

    folder: Path
    tokenizer_folder: Path
    tokenizer: Any
    stop_ids: frozenset[int]
    dtype: str
    device: str
    adapters: Mapping[str, Path] = field(default_factory=dict)


def engine_arguments(model: VllmModel, settings: Vllm) -> dict[str, Any]:
    """Return the arguments of vLLM's EngineArgs, by the settings and by the model.

    Raises:
        ModelError: an adapter that vLLM cannot run.
    """
    on_gpu = model.device != "cpu"
    eager = (not on_gpu) if settings.enforce_eager is None else settings.enforce_eager
    arguments: dict[str, Any] = {
        "model": str(model.folder),
        "tokenizer": str(model.tokenizer_folder),
        "dtype": model.dtype,
        "max_model_len": settings.max_model_len or -1,  # -1: the model's, or as much as fits in memory
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "enforce_eager": eager,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # the model's own sampling defaults are not ours
        "disable_log_stats": True,
    }
    if on_gpu:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    if on_gpu and not eager:
        sizes = [size for size in _GRAPH_SIZES if size <= settings.max_num_seqs]
        arguments["cudagraph_capture_sizes"] = sizes
    if model.adapters:
        if on_gpu and model.dtype == "float32":
            raise ModelError(
                "vLLM runs adapters on a GPU in 16 bits only",
                hint="load.dtype=bfloat16, or merge first: thinktune merge",
            )
        rank = max(map(lora_rank, model.adapters.values()))
        arguments |= {"enable_lora": True, "max_loras": len(model.adapters), "max_lora_rank": rank}
    return arguments


def lora_rank(folder: Path) -> int:
    """Return the smallest of vLLM's ranks that holds an adapter.

    Raises:
        ModelError: it is not whole, or of a kind that vLLM does not run beside its base.
    """
    check_adapter_folder(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    strange = [name for name in _NOT_BESIDE if config.get(name)]
    strange += ["bias"] if config.get("bias", "none") != "none" else []
    strange += [f"low-rank updates of {name}" for name in touches_embeddings(folder)]
    rank = int(config["r"])
    if rank > _RANKS[-1]:
        strange.append(f"rank {rank}")
    if strange:
        raise ModelError(
            f"vLLM cannot run the adapter {folder} beside its base: it has {', '.join(strange)}",
            hint="merge it first: thinktune merge",
        )
    return next(known for known in _RANKS if known >= rank)


def vllm_environment(model: VllmModel) -> dict[str, str]:
    """Make the environment for a process of vLLM that runs `model`: its switches, where the person has not set them."""
    switches = {
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it compiles itself at first use, and hangs where there is no network
        "TOKENIZERS_PARALLELISM": "false",
    }
    if model.device == "cpu":
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        switches["VLLM_CPU_KVCACHE_SPACE"] = str(min(4, max(1, free // 4 // 2**30)))  # GiB
        switches["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process starts in half the time
    elif not model.adapters and read_json(model.folder / "config.json").get("model_type") in _NEWER_RUNNER:
        # Later versions choose it themselves. 0.21 has it, half again as fast, but it refuses some other models there,
        # and dies of adapters in its CUDA graphs.
        switches["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    environment = {**switches, **os.environ, **SILENT, "HF_HUB_OFFLINE": "1"}  # all it needs is in local folders
    if model.device.startswith("cuda:"):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        number = int(model.device.removeprefix("cuda:"))
        environment["CUDA_VISIBLE_DEVICES"] = visible[number] if any(visible) else str(number)
    return environment
