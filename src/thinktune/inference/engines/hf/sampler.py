"""The next token of every row of a batch, each row by its own settings.

The order of the filters, and the scope of repetition_penalty and no_repeat_ngram_size (the prompt too), are those of
transformers' logits processors: penalty, n-grams, temperature, top_k, top_p, min_p. presence_penalty and
frequency_penalty follow repetition_penalty and look at the completion only, as in OpenAI's API and vLLM. Noise is one
number in [0, 1) a token from a generator of the row's own, so that a row draws the same whatever shares its batch; the
number that another draw for the same token needs comes of the one before.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import torch

from thinktune.config import Sampling

_CANDIDATES = 128  # likeliest tokens looked at first
_BLOCK = 256  # weights whose sum is looked at first
_WIDE_BLOCK = 1024  # the same in one pass over the logits
_COLDEST = 1e-6  # as good as greedy; scores divided by much less are no numbers any more
_LOWEST = -80.0  # below e to this, floats become subnormal, on which a CPU takes ten times as long
_LEAST = math.exp(_LOWEST)


def row_noise(seed: int | None, request_id: str, index: int) -> random.Random:
    """Make the random generator of one completion; the k-th number drawn belongs to its k-th token. No seed counts as
    0."""
    return random.Random(f"{seed or 0}/{index}/{request_id}".encode("utf-8", "surrogatepass"))


class NgramBlocker:
    """Knows which tokens would repeat an n-gram of a row, in constant time a token."""

    def __init__(self, size: int, ids: Sequence[int]) -> None:
        self._size = size
        self._followers: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self._last: list[int] = []
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        if len(self._last) == self._size - 1:
            self._followers[tuple(self._last)].add(token)
        self._last = [*self._last, token][-(self._size - 1) :] if self._size > 1 else []

    def blocked(self) -> set[int]:
        return self._followers.get(tuple(self._last), set())


class SampledRow(Protocol):
    """The sampler's view of a row."""

    noise: random.Random
    ngrams: NgramBlocker | None

    ids: list[int]

    @property
    def sampling(self) -> Sampling: ...

    def all_ids(self) -> list[int]: ...


class Sampler:
    """Draws for a fixed set of rows; made anew when the set changes."""

    def __init__(self, rows: Sequence[SampledRow], vocabulary: int, device: torch.device) -> None:
        self._device = device
        drawn = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
        penalised = [index for index, row in enumerate(rows) if row.sampling.repetition_penalty != 1]
        self._noises = [rows[index].noise for index in drawn]
        self._blockers = [(index, row.ngrams) for index, row in enumerate(rows) if row.ngrams is not None]
        # A slice, where it is all of them, spares a copy of the logits.
        self._drawn = slice(None) if len(drawn) == len(rows) else torch.tensor(drawn, dtype=torch.long, device=device)
        self._penalised = torch.tensor(penalised, dtype=torch.long, device=device)
        settings = [rows[index].sampling for index in drawn]
        self._temperature = self._column([max(each.temperature, _COLDEST) for each in settings])
        self._scale = self._column([row.sampling.temperature or 1.0 for row in rows])
        top_k = [min(each.top_k or vocabulary, vocabulary) for each in settings]
        self._top_k = torch.tensor(top_k, dtype=torch.long, device=device)[:, None]
        self._most = max((count for count in top_k if count < vocabulary), default=0)
        self._top_p = self._column([each.top_p for each in settings])
        self._min_p = self._column([each.min_p for each in settings])
        self._filtered = any(each.top_p < 1 or each.min_p for each in settings)
        if penalised:
            pairs = [(index, token) for index in penalised for token in sorted(set(rows[index].all_ids()))]
            self._seen = torch.tensor(pairs, device=device).T  # rows, token ids
            self._penalty = torch.tensor([row.sampling.repetition_penalty for row in rows], device=device)
        wearing = [n for n, row in enumerate(rows) if row.sampling.presence_penalty or row.sampling.frequency_penalty]
        self._wearing = torch.tensor(wearing, dtype=torch.long, device=device)
        if wearing:
            written = [(index, token) for index in wearing for token in rows[index].ids]
            self._written = torch.tensor(written, dtype=torch.long, device=device).reshape(-1, 2).T  # rows, token ids
            self._presence = torch.tensor([row.sampling.presence_penalty for row in rows], device=device)
            self._frequency = torch.tensor([row.sampling.frequency_penalty for row in rows], device=device)

    def pick(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the next token ids `(rows,)` for logits `(rows, vocabulary)`; return also which rows had usable logits
        `(rows,)`.

        Logits may be changed in place.
        """
        if len(self._penalised) or len(self._wearing) or self._blockers:
            logits = self._penalise(logits.float())
        best, ids = logits.max(dim=-1)
        if self._noises:
            scores = logits[self._drawn].float() / self._temperature
            noise = _noise(self._noises, self._device)
            if self._most:
                last = scores.topk(self._most).values.gather(1, self._top_k.clamp(max=self._most) - 1)
                scores.masked_fill_((scores < last) & (self._top_k <= self._most), -torch.inf)
            if self._filtered:
                ids[self._drawn] = _draw_filtered(scores, noise, self._top_p, self._min_p)
            else:
                ids[self._drawn] = _invert(_weights(scores), noise)
        if len(self._penalised):
            self._seen = torch.cat([self._seen, torch.stack([self._penalised, ids[self._penalised]])], dim=1)
        if len(self._wearing):
            self._written = torch.cat([self._written, torch.stack([self._wearing, ids[self._wearing]])], dim=1)
        return ids, best.isfinite()

    @property
    def is_plain(self) -> bool:
        """Whether every row is drawn from all tokens as they are, at a temperature."""
        touched = len(self._penalised) or len(self._wearing) or self._blockers or self._filtered or self._most
        return isinstance(self._drawn, slice) and bool(self._noises) and not touched

    def noise(self, count: int) -> torch.Tensor:
        """Draw the noise of the next tokens, float32 `(count, rows, 1)`, without a wait for the device."""
        drawn = torch.stack([_noise(self._noises, torch.device("cpu")) for _ in range(count)])
        return drawn.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else drawn

    def draw(self, logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Draw token ids as `pick` does where it `is_plain`, with one pass over the logits, and no wait for the device.

        Args:
            noise: of one token, `(rows, 1)`.

        Returns:
            float64 `(3, rows)`: ids, log-probabilities, and 1 where logits were usable.
        """
        tops, sums = _block_sums(logits, self._scale)
        best = tops.amax(-1, True)
        weights = sums.double() * (tops - best).double().exp()
        running = weights.cumsum(-1)
        target = noise.double() * running[:, -1:]
        block = torch.searchsorted(running, target, right=True).clamp_(max=tops.shape[1] - 1)
        columns = block * _WIDE_BLOCK + torch.arange(_WIDE_BLOCK, device=logits.device)
        scores = logits.gather(1, columns.clamp(max=logits.shape[1] - 1)).float() / self._scale
        within = torch.where(columns < logits.shape[1], (scores - best).double().exp(), 0).cumsum(-1)
        rest = (target - (running - weights).gather(1, block)).clamp_(min=0).minimum(within[:, -1:] * (1 - 2**-24))
        place = torch.searchsorted(within, rest, right=True).clamp_(max=_WIDE_BLOCK - 1)
        ids = columns.gather(1, place).clamp_(max=logits.shape[1] - 1)
        logprobs = (scores.gather(1, place) - best).double() - running[:, -1:].log()
        return torch.stack([ids.double(), logprobs, best.isfinite().double()])[..., 0]

    def logprobs(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Compute log-probabilities `(rows,)` of token ids `(rows,)`, in float32, at each row's temperature (1 where it
        is greedy) and with no token left out."""
        scores = logits.float() / self._scale
        return scores.gather(1, ids[:, None])[:, 0] - scores.logsumexp(-1)

    def _penalise(self, logits: torch.Tensor) -> torch.Tensor:
        if len(self._penalised):
            at, tokens = self._seen
            some, penalty = logits[at, tokens], self._penalty[at]
            # A token seen twice is written twice, with the same value.
            logits[at, tokens] = torch.where(some < 0, some * penalty, some / penalty)
        if len(self._wearing):
            (at, tokens), times = self._written.unique(dim=1, return_counts=True)
            logits[at, tokens] -= self._presence[at] + self._frequency[at] * times
        pairs = [(index, token) for index, ngrams in self._blockers for token in ngrams.blocked()]
        if pairs:
            at, tokens = torch.tensor(pairs, device=self._device).unbind(1)
            logits[at, tokens] = -torch.inf
        return logits

    def _column(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]


def _draw_filtered(scores: torch.Tensor, noise: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Draw token ids `(rows,)` for scores `(rows, vocabulary)` and columns `(rows, 1)`.

    Looks at the likeliest tokens, and at all of them only for the rows whose kept tokens are not all among these. Of
    equal scores all are kept or none, since topk leaves them in any order.
    """
    count = min(_CANDIDATES, scores.shape[-1])
    top, ids = scores.topk(count)
    weights = _weights(top)
    kept = weights.cumsum(-1) - weights < top_p * _weights(scores).sum(-1, True)
    kept &= weights >= min_p
    least = top.gather(1, (kept.sum(-1, True) - 1).clamp_(min=0))  # a row of no numbers keeps none
    ordered, order = ids.sort(-1)
    # In float64, where the sums that a GPU takes in parallel leave no room for tokens without weight.
    found = _invert((weights * (top >= least)).gather(1, order).double(), noise)
    picked = ordered.gather(1, found[:, None])[:, 0]
    wider = (least == top[:, -1:])[:, 0].nonzero()[:, 0]
    if count < scores.shape[-1] and len(wider):
        picked[wider] = _draw_nucleus(scores[wider], noise[wider], top_p[wider], min_p[wider])
    return picked


def _draw_nucleus(scores: torch.Tensor, noise: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Draw the same for any number of tokens.

    By rejection, as FlashInfer does it, which spares the sorting: a token is drawn from all, and if it is not among
    those that are kept, another one is drawn from those likelier than it.
    """
    weights = _weights(scores)
    enough = top_p * weights.sum(-1, True)
    picked = torch.empty(len(scores), dtype=torch.long, device=scores.device)
    rows = torch.arange(len(scores), device=scores.device)
    while True:
        ids = _invert(weights, noise)
        drawn = weights.gather(1, ids[:, None])
        likelier = weights * (weights > drawn).to(weights.dtype)  # several times as fast as with booleans, on a CPU
        kept = ((likelier.sum(-1, True) < enough) & (drawn >= min_p))[:, 0] | weights[:, 0].isnan()
        picked[rows] = ids
        again = (~kept).nonzero()[:, 0]
        if not len(again):
            return picked
        weights, enough, min_p, rows = likelier[again], enough[again], min_p[again], rows[again]
        noise = _noise([random.Random(seed) for (seed,) in noise[again].tolist()], scores.device)


def _noise(generators: Sequence[random.Random], device: torch.device) -> torch.Tensor:
    """Draw a number in [0, 1) from each `(rows, 1)`."""
    drawn = torch.tensor([generator.random() for generator in generators], dtype=torch.float32, device=device)
    return drawn.clamp_(max=1 - 2**-24)[:, None]  # float32 rounds the highest up to 1


def _block_sums(logits: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if logits.is_cuda:
        from thinktune.inference.engines.hf.block_sums import block_sums  # it needs Triton

        return block_sums(logits.contiguous(), scale, _WIDE_BLOCK)
    padding = -logits.shape[1] % _WIDE_BLOCK
    scores = torch.nn.functional.pad(logits.float() / scale, (0, padding), value=-torch.inf)
    blocks = scores.unflatten(-1, (-1, _WIDE_BLOCK))
    tops = blocks.amax(-1)
    return tops, (blocks - tops[..., None]).exp().sum(-1)


def _weights(scores: torch.Tensor) -> torch.Tensor:
    """Compute probabilities `(rows, n)` up to a factor, 1 for the likeliest."""
    # Tokens without a chance have the least weight, which is never drawn.
    return (scores - scores.amax(-1, True)).clamp_(min=_LOWEST).exp_()


def _invert(weights: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Find indexes `(rows,)` where the running sum of weights `(rows, n)` passes noise `(rows, 1)` times their sum.

    Found among the sums of blocks first, because running sums of whole rows are slow on a GPU.
    """
    vocabulary = weights.shape[-1]
    blocks = torch.nn.functional.pad(weights, (0, -vocabulary % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    sums = blocks.sum(-1).double()  # sums in float32 led beside the target twice in a million tokens
    running = sums.cumsum(-1)
    target = noise * running[:, -1:]
    # Beyond the end only by rounding, or where sums are no numbers.
    block = torch.searchsorted(running, target, right=True).clamp_(max=sums.shape[-1] - 1)
    chosen = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK))[:, 0]
    within = torch.where(chosen > 2 * _LEAST, chosen, 0).double().cumsum(-1)
    # The two sums of a block differ by rounding, which must not lead to tokens without weight beside the others.
    rest = (target - (running - sums).gather(1, block)).clamp_(min=0).minimum(within[:, -1:] * (1 - 2**-24))
    place = torch.searchsorted(within, rest, right=True).clamp_(max=_BLOCK - 1)
    return (block * _BLOCK + place)[:, 0].clamp_(max=vocabulary - 1)
