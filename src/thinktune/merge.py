"""Adapter + original weights → merged model, checked before it appears.

    thinktune merge runs/quickstart

The adapter is always put on the base's own, unquantised weights, whatever it was trained on. The sum is computed in
float32 and rounded once, to the base's dtype. The saved folder is loaded again and compared with the adapter on a few
prompts; only then it takes its name. The comparison runs in float32 where that fits into memory: it then shows what
merging did, and not how bfloat16 rounds along two ways of computing the same.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune import tags
from thinktune.config import QUESTIONS, Load, Sampling
from thinktune.errors import ModelError, RunFolderError
from thinktune.files import replacing
from thinktune.models import Chat, Resolved, make_chat, read_settings, resolve, write_settings
from thinktune.models.cache import space_required
from thinktune.models.device import choose_device, choose_dtype, describe, free_memory
from thinktune.models.folder import adapter_sha256, check_model_folder, stored_dtype
from thinktune.models.loading import load_weights, put_adapter
from thinktune.models.tokenizer import read_tokenizer

if TYPE_CHECKING:
    import torch

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Merged:
    """What merging gave.

    Attributes:
        folder: the merged model.
        dtype: of its weights, the base's own.
        compared_in: the dtype of the comparison.
        max_difference, mean_difference: of the logits of adapter and merged model, absolute, over all positions and
            the whole vocabulary of the compared prompts.
        adapter_effect: the mean difference between adapter and base, to hold the other against.
        greedy_agreement: share of positions at which both would choose the same token.
        positions: how many were compared.
        question, answer: the smoke generation, by the merged model.
        well_formed: whether that answer has the tags right; one that hit the token limit has not.
        seconds: what merging took.
        skipped: True if a whole, up-to-date folder was there already.
    """

    folder: str
    dtype: str
    compared_in: str
    max_difference: float
    mean_difference: float
    adapter_effect: float
    greedy_agreement: float
    positions: int
    question: str
    answer: str
    well_formed: bool
    seconds: float
    skipped: bool = False

    def summary(self) -> str:
        """What a person wants to know of it, in a few lines."""
        tags_right = "well-formed" if self.well_formed else "not well-formed"
        return (
            f"{self.folder} ({self.dtype}, {self.seconds} s)\n"
            f"adapter against merged, in {self.compared_in} over {self.positions} positions: logits differ by "
            f"{self.mean_difference:.2g} on average and {self.max_difference:.2g} at most "
            f"(the adapter itself makes {self.adapter_effect:.2g}); "
            f"same next token at {self.greedy_agreement:.1%}\n"
            f"{self.question} → {tags_right}: {self.answer}"
        )


def merge(
    reference: str | Path,
    out: Path | None = None,
    *,
    load: Load | None = None,
    overwrite: bool = False,
    question: str = QUESTIONS[2],
    max_tokens: int | None = None,
    notify: Notify = lambda line: None,
) -> Merged:
    """Merge the adapter of a run or adapter folder into its base.

    Args:
        out: the folder to make; None: `merged/` in the run folder, or beside the adapter.
        overwrite: merge again even if a whole and up-to-date merged model is there.
        question: asked of the merged model at temperature 0.1.
        max_tokens: limit of that answer; None: 2,000 on a GPU, 64 on a CPU.

    Raises:
        ModelError: nothing to merge, an adapter of another model, or a base that is quantised itself.
        RunFolderError: `out` holds something that is no merged model of ours.
        DiskFull, OutOfMemory, DownloadError: see there.
    """
    from filelock import FileLock

    load = load or Load()
    resolved = resolve(reference, load, notify, prefer_merged=False)
    if resolved.adapter is None:
        raise ModelError(f"{reference} has no adapter to merge", hint="name a run folder or an adapter folder")
    out = (out or _default_folder(resolved.adapter)).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        for left_over in out.parent.glob(f".{out.name}.*.tmp"):
            shutil.rmtree(left_over)  # of a merge that was killed: we hold the lock
        _require_ours(out)
        if not overwrite and (done := _already_merged(out, resolved.adapter)):
            notify(f"{out} is there and up to date (--overwrite merges again)")
            return done
        return _merge(resolved, out, load, question, max_tokens, notify)


def _merge(resolved: Resolved, out: Path, load: Load, question: str, max_tokens: int | None, notify: Notify) -> Merged:
    start = time.perf_counter()
    device = choose_device(load.device)
    dtype = _base_dtype(resolved, notify)
    tokenizer = read_tokenizer(resolved, load, notify)
    chat = make_chat(tokenizer, resolved.settings)
    prompts = [chat.prompt_ids([_user(text)]) + chat.reply_ids(tags.render("So be it.", "42")) for text in QUESTIONS]

    wide = _comparison_dtype(resolved, device, dtype)
    notify(f"merging on {describe(device, dtype)}, compared in {_name(wide)}")
    model = load_weights(resolved, load, device, wide, "none")
    for adapter in resolved.adapters:
        model = put_adapter(model, adapter, merge=adapter != resolved.adapter)
    with model.disable_adapter():
        base_logits = _logits(model, prompts)
    logits = _logits(model, prompts)
    model = model.merge_and_unload()
    _cast_weights(model, dtype)
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    _end_with(model.generation_config, chat.stop_ids)
    with space_required(out.parent, int(1.05 * size), "the merged model"), replacing(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        del model
        gc.collect()
        merged = load_weights(Resolved(str(out), "folder", temporary, ""), load, device, wide, "none")
        differences = _compare(logits, _logits(merged, prompts))
        _cast_weights(merged, choose_dtype(device, load.dtype))
        answer = _answer(merged, tokenizer, chat, question, max_tokens or (2000 if device.type == "cuda" else 64))
        result = Merged(
            folder=str(out),
            dtype=_name(dtype),
            compared_in=_name(wide),
            adapter_effect=_compare(base_logits, logits)["mean_difference"],
            **differences,
            question=question,
            answer=answer,
            well_formed=tags.parse(answer).well_formed,
            seconds=round(time.perf_counter() - start, 1),
        )
        write_settings(temporary, _settings(resolved, result))
    return result


def _default_folder(adapter: Path) -> Path:
    return adapter.with_name("merged" if adapter.name == "adapter" else f"{adapter.name}-merged")


def _require_ours(out: Path) -> None:
    """Raises RunFolderError where `out` holds anything but an earlier merge: it would be replaced as a whole."""
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not empty and (out.is_file() or "merge" not in read_settings(out)):
        raise RunFolderError(f"{out} exists and is no merged model of thinktune", hint="choose another folder")


def _already_merged(out: Path, adapter: Path) -> Merged | None:
    """The record of an earlier merge of the same adapter, if its folder is still whole."""
    settings = read_settings(out)
    if settings.get("adapter_sha256") != adapter_sha256(adapter):
        return None
    try:
        check_model_folder(out)
    except ModelError:
        return None
    return Merged(**{**settings["merge"], "folder": str(out), "skipped": True})


def _settings(resolved: Resolved, result: Merged) -> dict[str, Any]:
    assert resolved.adapter is not None
    record = {name: value for name, value in asdict(result).items() if name not in ("folder", "skipped")}
    adapter = {"adapter_sha256": adapter_sha256(resolved.adapter), "merge": record}
    return {**resolved.settings, "base_model": resolved.base, **adapter}


def _base_dtype(resolved: Resolved, notify: Notify) -> torch.dtype:
    """The dtype that the base was published in.

    Raises:
        ModelError: it is quantised.
    """
    import torch

    if resolved.gguf:
        notify(f"{resolved.base} is GGUF: merging into its dequantised weights, which are not the original ones")
        return torch.bfloat16
    stored = stored_dtype(check_model_folder(resolved.folder))
    known = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    if stored not in known:
        raise ModelError(
            f"the base {resolved.base} is stored as {stored}: an adapter is merged into original weights only",
            hint=f"put the original model as base_model into {resolved.adapter}/thinktune.json",
        )
    return known[stored]


def _comparison_dtype(resolved: Resolved, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """float32 where a model in it (and the work on it) surely fits into free memory, else the base's own."""
    import torch

    stored = sum(file.stat().st_size for file in resolved.folder.glob(resolved.gguf or "model*.safetensors"))
    parameters = stored if resolved.gguf else stored // dtype.itemsize
    return torch.float32 if 1.5 * 4 * parameters < free_memory(device) else dtype


def _cast_weights(model: Any, dtype: torch.dtype) -> None:
    """`model.to(dtype)` would also round the buffers, such as the frequencies of rotary embeddings."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def _end_with(generation: Any, stop_ids: frozenset[int]) -> None:
    """Other programs know from the generation config what ends a reply: a base model learns to end its turn here."""
    ends = generation.eos_token_id
    known = frozenset([] if ends is None else ends if isinstance(ends, list) else [ends])
    if not stop_ids <= known:
        generation.eos_token_id = sorted(known | stop_ids)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits at every position of every prompt: one float32 tensor [positions, vocabulary] a prompt, on the CPU."""
    import torch

    with torch.inference_mode():
        return [model(torch.tensor([ids], device=model.device)).logits[0].float().cpu() for ids in prompts]


def _compare(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Raises ModelError where the merged model gives numbers that are none."""
    import torch

    if not all(bool(torch.isfinite(logits).all()) for logits in after):
        raise ModelError("the merged model gives NaN or infinite logits", hint="the adapter is broken: train it again")
    gaps = [(one - other).abs() for one, other in zip(before, after, strict=True)]
    same = [one.argmax(-1) == other.argmax(-1) for one, other in zip(before, after, strict=True)]
    positions = sum(len(gap) for gap in gaps)
    return {
        "max_difference": max(float(gap.max()) for gap in gaps),
        "mean_difference": sum(float(gap.mean(-1).sum()) for gap in gaps) / positions,
        "greedy_agreement": sum(int(equal.sum()) for equal in same) / positions,
        "positions": positions,
    }


def _answer(model: Any, tokenizer: Any, chat: Chat, question: str, max_tokens: int) -> str:
    """The smoke generation, through the engine that later verbs use."""
    from thinktune.engines.base import Request
    from thinktune.engines.transformers import TransformersEngine

    prompt = chat.prompt_ids([_user(question)])
    sampling = Sampling(temperature=0.1, max_tokens=max_tokens, seed=0)
    engine = TransformersEngine(model, tokenizer, chat.stop_ids)
    (completion,) = engine.generate([Request("smoke", prompt, sampling)])
    if completion.error:
        raise ModelError(f"the merged model cannot answer: {completion.error}")
    return completion.text
