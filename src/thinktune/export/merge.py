"""Adapter + original weights → merged model, checked before it appears.

    thinktune merge runs/quickstart

The adapter is always put on the base's own, unquantised weights, even if it was trained on quantised ones. The sum is
computed in float32 and rounded once, to the base's dtype or to another on request. Before it is rounded it has to
predict as the adapter does on a few prompts; the saved folder, loaded again, has to hold the rounded sum bit by bit.
Else the merge fails, and no folder appears. The comparison runs in float32 where that fits into memory: it then shows
the effect of merging, and not bfloat16's rounding along two ways of computing the same.
"""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from thinktune import tags
from thinktune.config import QUESTIONS, Load, Sampling
from thinktune.errors import ModelError, RunFolderError
from thinktune.export.agreement import Gap, allowed, comparison_dtype, gap_of
from thinktune.files import replacing
from thinktune.models import Chat, Resolved, make_chat, read_settings, resolve, write_settings
from thinktune.models.adapters import merge_adapter, put_adapter
from thinktune.models.cache import space_required
from thinktune.models.device import choose_device, choose_dtype, describe
from thinktune.models.folder import adapter_sha256, check_model_folder, stored_dtype
from thinktune.models.loading import load_base, load_weights
from thinktune.models.quantised import dequantised_method
from thinktune.models.saving import save_model
from thinktune.models.stored_weights import cast_weights, plain_dtype, require_saved, sums_of_bits
from thinktune.models.tokenizer import read_tokenizer

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

LOST = 0.1  # of the adapter's effect: where rounding takes more, it is said
Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class Merged:
    """The result of a merge.

    Attributes:
        folder: the merged model.
        dtype: of its weights.
        compared_in: the dtype of the comparison.
        max_difference, mean_difference: of the logits of adapter and merged model, absolute, over all positions and
            the whole vocabulary of the compared prompts. The weights are the sum, so this is the effect of rounding it.
        adapter_effect: mean difference between adapter and base, the scale of the others.
        greedy_agreement: share of positions at which both would choose the same token.
        positions: how many were compared.
        question, answer: the smoke generation, by the merged model.
        well_formed: whether that answer has the tags right; one that hit the token limit has not.
        seconds: duration of the merge.
        skipped: True if a whole, up-to-date folder was there already.
        unanswered: why the transformers engine cannot answer the question; the merged model is right nevertheless.
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
    unanswered: str | None = None

    def summary(self) -> str:
        """Summarise the merge for a person, in a few lines."""
        tags_right = "well-formed" if self.well_formed else "not well-formed"
        smoke = f"not asked: {self.unanswered}" if self.unanswered else f"{tags_right}: {self.answer}"
        lost = self.mean_difference > LOST * self.adapter_effect and self.dtype != "float32"
        advice = f"rounding to {self.dtype} loses much of it: --dtype float32 does not\n" if lost else ""
        return (
            f"{self.folder} ({self.dtype}, {self.seconds} s)\n"
            f"adapter against merged, in {self.compared_in} over {self.positions} positions: logits differ by "
            f"{self.mean_difference:.2g} on average and {self.max_difference:.2g} at most "
            f"(the adapter itself makes {self.adapter_effect:.2g}); "
            f"same next token at {self.greedy_agreement:.1%}\n{advice}"
            f"{self.question} → {smoke}"
        )


def merge(
    reference: str | Path,
    out: Path | None = None,
    *,
    load: Load | None = None,
    dtype: Dtype | None = None,
    overwrite: bool = False,
    question: str = QUESTIONS[2],
    max_tokens: int | None = None,
) -> Merged:
    """Merge the adapter of a run or adapter folder into its base.

    Args:
        out: the folder to make; None: `merged/` in the run folder, or beside the adapter.
        dtype: of the merged weights; None: the base's own. float32 takes twice the space, and loses nothing of an
            adapter whose changes are smaller than the steps of bfloat16.
        overwrite: merge again even if a whole and up-to-date merged model is there.
        question: asked of the merged model at temperature 0.1.
        max_tokens: limit of that answer; None: 2,000 on a GPU, 64 on a CPU and where the engine is slow.

    Raises:
        ModelError: nothing to merge, an adapter of another model, a base that is quantised itself, or a sum that
            predicts otherwise than the adapter.
        RunFolderError: `out` holds anything but a merged model of ours.
        DiskFull, OutOfMemory, DownloadError: see `models.load_model` and `space_required`.
    """
    from filelock import FileLock

    load = load or Load()
    resolved = resolve(reference, load, prefer_merged=False)
    if resolved.is_whole:
        raise ModelError(
            f"nothing to merge: all weights of {reference} were trained, and {resolved.folder} is its model",
            hint="use it as it is: infer, eval, export and the others take it",
        )
    if resolved.adapter is None:
        raise ModelError(f"{reference} has no adapter to merge", hint=resolved.adapter_hint)
    out = (out or _default_folder(resolved.adapter)).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        for left_over in out.parent.glob(f".{out.name}.*.tmp"):
            shutil.rmtree(left_over)  # of a merge that was killed: we hold the lock
        _require_ours(out)
        if not overwrite and (done := _already_merged(out, resolved.adapter, dtype)):
            logger.info(f"{out} is there and up to date (--overwrite merges again)")
            return done
        return _merge(resolved, out, load, dtype, question, max_tokens)


def _merge(
    resolved: Resolved,
    out: Path,
    load: Load,
    wanted: Dtype | None,
    question: str,
    max_tokens: int | None,
) -> Merged:
    import torch

    start = time.perf_counter()
    device = choose_device(load.device)
    own = _base_dtype(resolved)
    dtype: torch.dtype = getattr(torch, wanted) if wanted else own
    tokenizer = read_tokenizer(resolved, load)
    chat = make_chat(tokenizer, resolved.settings)
    prompts = [chat.prompt_ids([_user(text)]) + chat.reply_ids(tags.render("So be it.", "42")) for text in QUESTIONS]

    wide = torch.float32 if dtype == torch.float32 else comparison_dtype(resolved, device, own)
    logger.info(f"merging on {describe(device, dtype)}, compared in {_name(wide)}")
    model, logits, effect = _summed(resolved, load, device, wide, prompts)
    cast_weights(model, dtype)
    cast_weights(model, wide)
    expected = _logits(model, prompts)
    cast_weights(model, dtype)
    bits = sums_of_bits(model)
    size = _bytes_of(model)
    if not resolved.gguf:
        size = max(size, _bytes_stored(resolved.folder) * dtype.itemsize // own.itemsize)
    with space_required(out.parent, int(1.05 * size), "the merged model"), replacing(out) as temporary:
        save_model(model, temporary, resolved.folder, chat.stop_ids)
        tokenizer.save_pretrained(temporary)
        del model
        gc.collect()
        merged = load_weights(Resolved(str(out), "folder", temporary, ""), load, device, dtype, "none")
        require_saved(bits, sums_of_bits(merged))
        cast_weights(merged, wide)
        found = _logits(merged, prompts)
        _require_close(gap_of(expected, found), effect, expected, wide, "the merged model, saved and loaded again,")
        rounding = gap_of(logits, found)
        cast_weights(merged, choose_dtype(device, load.dtype))
        answer, unanswered = _answer(merged, tokenizer, chat, question, max_tokens)
        result = Merged(
            folder=str(out),
            dtype=_name(dtype),
            compared_in=_name(wide),
            max_difference=rounding.largest,
            mean_difference=rounding.mean,
            adapter_effect=effect,
            greedy_agreement=rounding.agreement,
            positions=rounding.positions,
            question=question,
            answer=answer,
            well_formed=tags.parse(answer).well_formed,
            seconds=round(time.perf_counter() - start, 1),
            unanswered=unanswered,
        )
        write_settings(temporary, _settings(resolved, result))
    return result


def _bytes_of(model: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _bytes_stored(folder: Path) -> int:
    """Add up the weights of a folder: a vision tower comes along, too."""
    return sum(file.stat().st_size for file in check_model_folder(folder))


def _summed(
    resolved: Resolved, load: Load, device: torch.device, wide: torch.dtype, prompts: Sequence[Sequence[int]]
) -> tuple[Any, list[torch.Tensor], float]:
    """Return the base with its adapters summed into it, not rounded; the adapter's logits beside its base, and its
    effect.

    Raises:
        ModelError: the sum says something else than the adapter.
    """
    assert resolved.adapter is not None
    model = load_base(resolved, load, device, wide)
    base = _logits(model, prompts)
    model = put_adapter(model, resolved.adapter, merge=False)
    logits = _logits(model, prompts)
    effect = gap_of(base, logits).mean
    model = merge_adapter(model, resolved.adapter)
    _require_close(gap_of(logits, _logits(model, prompts)), effect, logits, wide, "the sum of base and adapter")
    return model, logits, effect


def _require_close(gap: Gap, effect: float, logits: Sequence[torch.Tensor], wide: torch.dtype, what: str) -> None:
    """Raise ModelError if two ways of computing the same logits are too far apart."""
    bound = allowed(effect, logits, wide)
    if not gap.mean <= bound:  # a NaN is not
        raise ModelError(
            f"{what} is another model than the adapter beside its base: in {_name(wide)} logits differ by "
            f"{gap.mean:.2g} on average, where {bound:.2g} is the most (the adapter itself makes {effect:.2g})",
            hint="no folder was written: use the adapter unmerged, as infer --unmerged does, and report this, please",
        )


def _default_folder(adapter: Path) -> Path:
    return adapter.with_name("merged" if adapter.name == "adapter" else f"{adapter.name}-merged")


def _require_ours(out: Path) -> None:
    """Raise RunFolderError if `out` holds anything but an earlier merge: it would be replaced as a whole."""
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not empty and (out.is_file() or "merge" not in read_settings(out)):
        raise RunFolderError(f"{out} exists and is no merged model of thinktune", hint="choose another folder")


def _already_merged(out: Path, adapter: Path, dtype: Dtype | None) -> Merged | None:
    """Return the record of an earlier merge of the same adapter, if its folder is still whole."""
    settings = read_settings(out)
    if settings.get("adapter_sha256") != adapter_sha256(adapter):
        return None
    if dtype is not None and dtype != settings["merge"]["dtype"]:
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


def _base_dtype(resolved: Resolved) -> torch.dtype:
    """Return the dtype that the base was published in.

    Raises:
        ModelError: it is quantised.
    """
    import torch

    if resolved.gguf:
        logger.info(f"{resolved.base} is GGUF: merging into its dequantised weights, which are not the original ones")
        return torch.bfloat16
    if (method := dequantised_method(resolved.folder)) is not None:
        logger.info(f"{resolved.base} is stored in {method}: merging into its dequantised weights")
        return torch.bfloat16
    if (stored := plain_dtype(resolved.folder)) is None:
        raise ModelError(
            f"the base {resolved.base} is stored as {stored_dtype(check_model_folder(resolved.folder))}: an adapter is "
            "merged into original weights only",
            hint=f"put the original model as base_model into {resolved.adapter}/thinktune.json",
        )
    return stored


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Compute the logits at every position of every prompt: one float32 tensor [positions, vocabulary] a prompt, on the
    CPU.

    Raises:
        ModelError: there are some that are no numbers.
    """
    import torch

    with torch.inference_mode():
        logits = [model(torch.tensor([ids], device=model.device)).logits[0].float().cpu() for ids in prompts]
    if not all(bool(torch.isfinite(each).all()) for each in logits):
        raise ModelError("the model gives NaN or infinite logits", hint="the adapter is broken: train it again")
    return logits


def _answer(model: Any, tokenizer: Any, chat: Chat, question: str, max_tokens: int | None) -> tuple[str, str | None]:
    """Generate the smoke answer, through the engine that later verbs use; or return why that cannot."""
    from thinktune.inference.engines.base import Request
    from thinktune.inference.engines.hf.engine import TransformersEngine

    prompt = chat.prompt_ids([_user(question)])
    try:
        engine = TransformersEngine(model, tokenizer, chat.stop_ids)
        limit = max_tokens or (64 if model.device.type == "cpu" or engine.recomputes else 2000)
        sampling = Sampling(temperature=0.1, max_tokens=limit, seed=0)
        (completion,) = engine.generate([Request("smoke", prompt, sampling)])
    except Exception as error:  # noqa: BLE001 - whatever it is, the weights are compared already, and right
        return "", getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    return completion.text, completion.error
