"""Predictions of base, adapter, their sum and the merged model along held-out prompts, one model after the other."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinktune.config import Load, Sampling
from thinktune.errors import GenerationError
from thinktune.export.agreement import TOP, comparison_dtype, wrong_weights
from thinktune.inference.engines.base import Completion, Engine, Request
from thinktune.models import Chat, Resolved, make_chat, resolve
from thinktune.models.adapters import merge_adapter, put_adapter
from thinktune.models.device import choose_dtype, describe
from thinktune.models.folder import check_model_folder, generation_ends, stored_dtype
from thinktune.models.loading import load_base, load_weights
from thinktune.models.stored_weights import cast_weights
from thinktune.models.tokenizer import read_tokenizer
from thinktune.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

REPLY = 64  # tokens of each reply that are compared


@dataclass(frozen=True)
class Prompt:
    """A held-out question, and a reply in the form that was trained; `whole`: as long as those that were, too."""

    messages: Sequence[dict[str, str]]
    reply: str
    whole: bool = True


@dataclass(frozen=True)
class Seen:
    """Predictions of one way of running the model along the prompts' replies: a tensor a prompt."""

    top: list[torch.Tensor]  # [tokens, 20]: log-probabilities of the adapter's likeliest
    taken: list[torch.Tensor]  # [tokens]: of the reply itself
    best: list[torch.Tensor]  # [tokens]: the likeliest token


@dataclass(frozen=True)
class Greedy:
    """A greedy continuation."""

    tokens: Sequence[int]
    likely: Sequence[dict[int, float]]  # log-probabilities of the likeliest tokens at each place, and at the one after
    ends: frozenset[int]  # tokens that end the turn


@dataclass(frozen=True)
class Compared:
    """The findings from the models in memory: all but the engine's."""

    base: Seen
    adapter: Seen
    summed: Seen
    merged: Seen
    coarse: Seen  # the merged model in the engine's number format
    written: list[Greedy]
    rendered: list[list[int]]  # by the adapter's own tokenizer
    rendered_merged: list[list[int]]
    wrong: dict[str, float]  # weights of the merged model that are not the sum, with the share of their elements
    weights: int
    wide: torch.dtype
    stored: str


def compare_models(
    run: RunFolder,
    merged: Resolved,
    load: Load,
    device: torch.device,
    prompts: Sequence[Prompt],
    limit: int,
) -> Compared:
    """Compare base, adapter, their sum and the merged model, one after the other."""
    import torch

    tuned = resolve(run.adapter, load, prefer_merged=False)
    wide = comparison_dtype(tuned, device, torch.bfloat16)
    logger.info(f"comparing {run.adapter} with {run.merged} on {describe(device, wide)}")
    chat = make_chat(read_tokenizer(tuned, load), tuned.settings)
    rendered = [chat.prompt_ids(prompt.messages) for prompt in prompts]
    inputs = list(zip(rendered, replies_of(chat, prompts), strict=True))

    model = load_base(tuned, load, device, wide)
    before = _predictions(model, inputs)
    model = put_adapter(model, run.adapter, merge=False)
    after = _predictions(model, inputs)
    likeliest = [scores.topk(min(TOP, scores.shape[-1])).indices for scores in after]
    base, adapter_seen = (_seen(scores, inputs, likeliest) for scores in (before, after))
    del before, after
    model = merge_adapter(model, run.adapter)
    summed = _seen(_predictions(model, inputs), inputs, likeliest)

    files = check_model_folder(run.merged)
    stored = {"BF16": torch.bfloat16, "F16": torch.float16}.get(stored_dtype(files), torch.float32)
    other = load_weights(merged, load, torch.device("cpu"), stored, "none")
    expected = dict(model.named_parameters(remove_duplicate=False))
    found = dict(other.named_parameters(remove_duplicate=False))
    with torch.inference_mode():
        wrong = dict(wrong_weights(expected, found, rounded=wide != torch.float32))
    weights = len(expected)
    del model, expected, found
    gc.collect()
    cast_weights(other, wide)
    other = other.to(device).eval()
    merged_seen = _seen(_predictions(other, inputs), inputs, likeliest)
    written = _write_greedily(other, merged, load, rendered, limit)
    cast_weights(other, choose_dtype(device, load.dtype))
    coarse = _seen(_predictions(other, inputs), inputs, likeliest)
    own = make_chat(read_tokenizer(merged, load), merged.settings)
    sent = [own.prompt_ids(prompt.messages) for prompt in prompts]
    ways = (base, adapter_seen, summed, merged_seen, coarse)
    return Compared(*ways, written, rendered, sent, wrong, weights, wide, stored_dtype(files))


def compare_whole(
    merged: Resolved, load: Load, device: torch.device, prompts: Sequence[Prompt], limit: int
) -> Compared:
    """Compare a base and the model that full fine-tuning made of it, which stands for adapter and sum too."""
    import torch

    base = resolve(merged.base, load)
    wide = comparison_dtype(base, device, torch.bfloat16)
    logger.info(f"comparing {merged.base} with {merged.folder} on {describe(device, wide)}")
    chat = make_chat(read_tokenizer(merged, load), merged.settings)
    rendered = [chat.prompt_ids(prompt.messages) for prompt in prompts]
    inputs = list(zip(rendered, replies_of(chat, prompts), strict=True))
    model = load_weights(merged, load, device, wide, "none").eval()
    after = _predictions(model, inputs)
    likeliest = [scores.topk(min(TOP, scores.shape[-1])).indices for scores in after]
    tuned = _seen(after, inputs, likeliest)
    written = _write_greedily(model, merged, load, rendered, limit)
    cast_weights(model, choose_dtype(device, load.dtype))
    coarse = _seen(_predictions(model, inputs), inputs, likeliest)
    weights = len(dict(model.named_parameters(remove_duplicate=False)))
    del model
    gc.collect()
    untuned = load_base(base, load, device, wide).eval()
    before = _seen(_predictions(untuned, inputs), inputs, likeliest)
    stored = stored_dtype(check_model_folder(merged.folder))
    return Compared(before, tuned, tuned, tuned, coarse, written, rendered, rendered, {}, weights, wide, stored)


def replies_of(chat: Chat, prompts: Sequence[Prompt]) -> list[list[int]]:
    return [chat.reply_ids(prompt.reply)[:REPLY] for prompt in prompts]


def _predictions(model: Any, inputs: Sequence[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    """Compute the log-probabilities of every token along each reply: float32 [tokens, vocabulary], on the CPU."""
    import torch

    from thinktune.models.untouched import untouched

    found = []
    with torch.inference_mode(), untouched(model) as own:  # its eager forward: the engine has another one
        for ids, reply in inputs:
            logits = own(torch.tensor([ids + reply], device=model.device)).logits[0, len(ids) - 1 : -1]
            found.append(logits.float().log_softmax(-1).cpu())
    return found


def _seen(
    predictions: Sequence[torch.Tensor],
    inputs: Sequence[tuple[list[int], list[int]]],
    likeliest: Sequence[torch.Tensor],
) -> Seen:
    import torch

    replies = [torch.tensor(reply)[:, None] for _, reply in inputs]
    return Seen(
        [scores.gather(-1, tokens) for scores, tokens in zip(predictions, likeliest, strict=True)],
        [scores.gather(-1, tokens)[:, 0] for scores, tokens in zip(predictions, replies, strict=True)],
        [scores.argmax(-1) for scores in predictions],
    )


def _write_greedily(
    model: Any, merged: Resolved, load: Load, rendered: Sequence[list[int]], limit: int
) -> list[Greedy]:
    """Generate greedy continuations of the merged model, with the other likely tokens at each place."""
    from thinktune.inference.engines.hf.engine import TransformersEngine

    tokenizer = read_tokenizer(merged, load)
    chat = make_chat(tokenizer, merged.settings, stop_ids=generation_ends(merged.folder))
    engine = TransformersEngine(model, tokenizer, chat.stop_ids)
    try:
        written = continue_greedily(engine, rendered, limit)
    except GenerationError:
        engine.recompute()
        written = continue_greedily(engine, rendered, limit)
    tokens = [list(completion.token_ids) for completion in written]
    scores = _predictions(model, [(ids, [*said, 0]) for ids, said in zip(rendered, tokens, strict=True)])
    return [Greedy(said, _likely(each), chat.stop_ids) for said, each in zip(tokens, scores, strict=True)]


def _likely(scores: torch.Tensor) -> list[dict[int, float]]:
    best = scores.topk(min(TOP, scores.shape[-1]))
    return [dict(zip(*place, strict=True)) for place in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def continue_greedily(engine: Engine, rendered: Sequence[list[int]], limit: int) -> list[Completion]:
    """Generate greedy completions of at most `limit` tokens, in the order of the prompts."""
    sampling = Sampling(max_tokens=limit, stop=())
    found: dict[str, Completion] = {}
    for completion in engine.generate([Request(str(at), ids, sampling) for at, ids in enumerate(rendered)]):
        if completion.error is not None:
            raise GenerationError(f"a held-out prompt cannot be answered: {completion.error}")
        found[completion.request_id] = completion
    return [found[str(at)] for at in range(len(rendered))]
