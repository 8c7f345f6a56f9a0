"""Whether the transformers engine is the model: log-probabilities of a few tokens against its untouched forward.

Prompts of different lengths are read and continued in one batch, some of them joining later, the way they will be; each
is then read alone by the model itself, with eager attention.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from thinktune.config import QUESTIONS, Sampling
from thinktune.errors import ModelError
from thinktune.files import write_json
from thinktune.inference.engines.base import Request
from thinktune.inference.engines.hf.decoder import Decoder, Row
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.hf.kv_cache import UNANSWERED
from thinktune.inference.engines.hf.sampler import Sampler
from thinktune.inference.engines.hf.scheduler import OUT_OF_MEMORY_HINT
from thinktune.models import Loaded
from thinktune.models.cache import cache_folder
from thinktune.models.folder import read_json
from thinktune.models.untouched import computes_in, inner_model, is_coarse, rounded_otherwise, untouched

logger = logging.getLogger(__name__)

BOUND = 2e-3
"""Nats that the log-probability of a token may be off in float32, as the mean over the likely tokens of a position."""
ROUNDED_BOUND = 0.05  # in 16 bits
COARSE_BOUND = 0.4  # over int8
_NOISE = 3.0  # times the usual change by rounding, in 16 bits
_TRIES = 4
_TOKENS = 5  # written to each prompt
_LONGEST = 640  # tokens of a prompt that is to reach beyond a sliding window
_LIBRARIES = ("thinktune", "torch", "transformers", "peft")


@dataclass(frozen=True)
class _Watched(Decoder):
    """A decoder that keeps the log-probabilities each token was drawn from."""

    seen: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def accept(self, rows: Sequence[Row], logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
        for row, scores in zip(rows, logits, strict=True):
            if row.reason is None:
                self.seen.setdefault(row.request.id, []).append(scores.float().log_softmax(-1))
        return super().accept(rows, logits, sampler)


def faithful_engine(loaded: Loaded, fingerprint: str, *, max_batch_tokens: int | None = None) -> TransformersEngine:
    """Make an engine of a loaded model, and check it; see `require_faithful`."""
    engine = TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids, max_batch_tokens=max_batch_tokens)
    require_faithful(engine, loaded.tokenizer, fingerprint)
    return engine


def require_faithful(engine: TransformersEngine, tokenizer: Any, fingerprint: str) -> None:
    """Hold an engine against its own model; one that is not right has to recompute from then on. Where that was found
    before, it is not looked at again.

    Args:
        fingerprint: of the weights, their dtype and quantisation.

    Raises:
        ModelError: it cannot run the model, or differs from it by more than rounding can explain, even so.
    """
    versions = [f"{name} {version(name)}" for name in _LIBRARIES]
    device = engine.decoder.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    key = hashlib.sha256(json.dumps([fingerprint, *versions, where]).encode()).hexdigest()[:32]
    record = cache_folder() / "faithful" / f"{key}.json"
    if record.is_file():
        if read_json(record).get("recomputes") and not engine.recomputes:
            engine.recompute()
        return
    prompts = prompts_for(engine, tokenizer)
    try:
        apart = compare(engine, prompts)
    except ModelError as error:
        if engine.recomputes or error.hint == OUT_OF_MEMORY_HINT:
            raise
        logger.debug(error.message)
        engine.recompute()
        apart = compare(engine, prompts)
    try:
        write_json(record, {"apart": apart, "recomputes": engine.recomputes, "where": where, "versions": versions})
    except OSError as error:  # then it is looked at again
        logger.warning(f"{record} cannot be written: {error}")


def compare(engine: TransformersEngine, prompts: Sequence[list[int]]) -> float:
    """Measure the nats between an engine and its model: the mean over the likely tokens where they are furthest apart.

    Raises:
        ModelError: more than rounding can explain.
    """
    rows, seen = _written(engine, prompts)
    own = _own_scores(engine.model, rows)
    apart = max(_gap(scores, torch.stack(seen[row.request.id])) for row, scores in zip(rows, own, strict=True))
    dtype = _dtype(engine.model)
    coarse = is_coarse(engine.model)
    bound = COARSE_BOUND if coarse else BOUND if dtype == torch.float32 else ROUNDED_BOUND
    for seed in range(_TRIES if dtype != torch.float32 else 0):
        if apart <= bound:
            break
        noisy = _own_scores(engine.model, rows, dtype, seed)
        bound = max(bound, _NOISE * max(_gap(one, two) for one, two in zip(own, noisy, strict=True)))
    if not apart <= bound and all(torch.isfinite(scores).all() for scores in own):
        raise ModelError(
            f"the transformers engine would not be this model: its log-probabilities are {apart:.2g} nats off those of "
            f"the model's own forward pass with eager attention ({inner_model(engine.model).config.model_type})",
            hint=UNANSWERED,
        )
    return apart


def prompts_for(engine: TransformersEngine, tokenizer: Any) -> list[list[int]]:
    """Make three prompts of very different lengths, the longest beyond the model's sliding window where that is short,
    and two that begin alike."""
    text = " ".join(QUESTIONS)
    ids = [
        token for token in tokenizer(text, add_special_tokens=False)["input_ids"] if token < engine.decoder.vocabulary
    ]
    window = getattr(inner_model(engine.model).config.get_text_config(), "sliding_window", None) or 0
    longest = window + 8 if window + 8 <= _LONGEST else 48
    longest = min(longest, engine.context_length - _TOKENS - 1)
    long = (ids * (longest // max(1, len(ids)) + 1))[:longest]
    shared = long[:20]
    return [long, ids[:2], ids[:11], [*shared, *ids[-9:]], [*shared, *ids[3:6]]]


def _written(
    engine: TransformersEngine, prompts: Sequence[list[int]]
) -> tuple[list[Row], dict[str, list[torch.Tensor]]]:
    decoder = _Watched(**vars(engine.decoder))
    scheduler = engine.scheduler(eager=True, decoder=decoder)
    rows = [
        Row(Request(str(at), ids, Sampling(temperature=0, max_tokens=_TOKENS, stop=())), 0, _TOKENS)
        for at, ids in enumerate(prompts)
    ]
    scheduler.waiting.extend(rows[:3])
    with engine.ready():
        scheduler.advance()
        scheduler.waiting.extend(rows[3:])
        while not scheduler.idle:
            scheduler.advance()
    if failed := next((row for row in rows if row.reason == "error"), None):
        hint = OUT_OF_MEMORY_HINT if "out of memory" in (failed.error or "") else UNANSWERED
        raise ModelError(f"the transformers engine cannot run this model: {failed.error}", hint=hint)
    return rows, decoder.seen


@torch.inference_mode()
def _own_scores(
    model: Any, rows: Sequence[Row], rounded: torch.dtype | None = None, seed: int = 0
) -> list[torch.Tensor]:
    found = []
    with untouched(model) as own, rounded_otherwise(own, rounded, seed) if rounded else nullcontext():
        for row in rows:
            prompt = row.request.prompt_ids
            ids = torch.tensor([[*prompt, *row.ids[:-1]]], device=inner_model(model).device)
            try:
                logits = own(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
            except Exception as error:
                raise ModelError(
                    f"the model fails with eager attention, which its engine is held against: {error}", hint=UNANSWERED
                ) from error
            found.append(logits.float().log_softmax(-1))
    return found


def _gap(own: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean of |difference| over p, at that position of `(positions, vocabulary)` where it is largest."""
    likely = own.exp()
    apart = torch.where(likely > 1e-8, likely * (own - other).abs(), 0.0)  # tokens ruled out may be -inf in both
    return float(apart.sum(-1).max())


def _dtype(model: Any) -> torch.dtype:
    return computes_in(model, inner_model(model).dtype)
