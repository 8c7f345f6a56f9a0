"""The import of `train`, without an optional package that the config at hand does not need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from thinktune.config import Config
from thinktune.imports import import_bitsandbytes, importing
from thinktune.models.folder import read_json
from thinktune.training.head_start import HeadStart


def import_train(config: Config) -> Callable[..., dict[str, Any]]:
    """Import `training.train.train`, and begin beside it what a GPU needs.

    PEFT imports bitsandbytes wherever it is installed: a second of every start.
    """
    wanted, head_start = _may_need_bitsandbytes(config), HeadStart(config.load.device)
    with importing(*() if wanted else ("bitsandbytes",)):
        import torch  # noqa: F401

        head_start.prepare_libraries()
        if wanted:
            import_bitsandbytes()  # before PEFT does
        from peft.import_utils import is_bnb_available

        from thinktune.training.train import train

        is_bnb_available()  # PEFT would ask at the first adapter, and imports it then
    return train


def _may_need_bitsandbytes(config: Config) -> bool:
    """Return whether weights or optimizer are bitsandbytes', as far as can be known without a download."""
    if config.quantize in ("int8", "nf4") or config.train.optimizer != "adamw":
        return True
    if config.model.startswith("builtin:") or config.model.endswith(".gguf"):
        return False
    file = _config_file(config)
    return file is None or "quantization_config" in read_json(file)


def _config_file(config: Config) -> Path | None:
    """Return the config.json of the base model, in its folder or in the hub's cache; None: it is not there."""
    folder = Path(config.model).expanduser()
    if folder.exists():
        return file if (file := folder / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(config.model, "config.json")
    except ValueError:  # no id of the hub
        return None
    return Path(cached) if isinstance(cached, str) else None
