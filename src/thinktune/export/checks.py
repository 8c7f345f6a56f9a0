"""Judgements of the compared models and of the engine: one `Check` a line of the table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import TYPE_CHECKING

from thinktune import tags
from thinktune.export.agreement import SUM_BOUND, noise
from thinktune.export.compared_models import Compared, Greedy, Seen
from thinktune.inference.engines.base import Completion

if TYPE_CHECKING:
    import torch

KEPT = 0.5  # of the adapter's effect, at least, after rounding; less, and the merged model cannot be told from its base
AGREEMENT = 0.9  # of greedy tokens
SHARE = 0.25  # by which the engine's part of the adapter's effect may miss 1; how well it is known is told apart
SURE = 0.1  # standard error of that part above which nothing is told
NOISES = 4  # an engine's gap, in those that its number format makes in a plain forward pass
FLOOR = 0.01  # nats: gaps below need no explanation
ENDED = 0.9  # share of replies after which the end of turn is likelier than not, and of answers that end


@dataclass(frozen=True)
class Check:
    """One line of the table: finding, demand, and whether the finding is enough; None: it cannot be told."""

    name: str
    found: str
    demanded: str
    passed: bool | None


def likely_end(ends: Sequence[float]) -> Check:
    rate = sum(probability > 0.5 for probability in ends) / len(ends)
    found = f"{rate:.0%} of replies, {fmean(ends):.2f} on average"
    return Check("end of turn after a reply", found, f"likelier than not, {ENDED:.0%}", rate >= ENDED)


def real_ends(written: Sequence[Completion]) -> Check:
    """Check that the model's completions end, without a stop string. A thought may be long: if none came to its answer,
    nothing is said against it."""
    ended = sum(completion.finish_reason == "stop" for completion in written)
    ran_on = sum(completion.finish_reason != "stop" and tags.STOP in completion.text for completion in written)
    unfinished = len(written) - ended - ran_on
    found = f"{ended} end, {ran_on} run on after it" + (f", {unfinished} come to none" if unfinished else "")
    passed = ended >= ENDED * (ended + ran_on)
    return Check("what is written after an answer", found, f"{ENDED:.0%} end", passed)


def checks_of_merged(seen: Compared) -> Iterator[Check]:
    """Check sum and rounding: the merged model is the adapter on its base."""
    import torch

    effect = _mean_gap(seen.base.top, seen.adapter.top)
    sum_gap, gap = (_mean_gap(seen.adapter.top, other.top) for other in (seen.summed, seen.merged))
    floor = noise(seen.wide) * _size(seen.adapter.top)
    bound = SUM_BOUND if seen.wide == torch.float32 else 1.0
    told = _can_tell(seen) or None
    yield Check(
        "adapter summed with its base",
        f"{_percent(sum_gap, effect)} of its effect apart, which is {effect:.2g} nats",
        f"{bound:.0%}",
        sum_gap <= bound * effect + floor and told,
    )
    yield _rendered("merged model", seen.rendered, seen.rendered_merged)
    name = "merged model: weights"
    if seen.wrong:
        worst = max(seen.wrong, key=lambda each: seen.wrong[each])
        found = f"{len(seen.wrong)} of {seen.weights} are not the sum, {worst} in {seen.wrong[worst]:.2%}"
    else:
        found = f"all {seen.weights} are the sum, as {seen.stored}"
    yield Check(name, found, "all", not seen.wrong)
    rate = _same(seen.adapter.best, seen.merged.best)
    # With right weights, only the precision of their number format can be lost.
    lost = False if seen.wrong else None
    yield Check(
        "merged model: log-probabilities",
        f"{_percent(gap, effect)} of the adapter's effect lost, KL {_divergence(seen.adapter, seen.merged):.2g} nats",
        f"{1 - KEPT:.0%}",
        (gap <= (1 - KEPT) * effect or lost) and told,
    )
    yield Check("merged model: greedy tokens", f"{rate:.1%} the same", f"{AGREEMENT:.0%}", rate >= AGREEMENT or lost)


def checks_of_engine(
    seen: Compared, rendered: Sequence[list[int]], said: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]
) -> Iterator[Check]:
    """Check the engine against the merged model: it may be off by the effect of its number format on a forward pass."""
    import torch

    alike_rendered = _rendered("engine", seen.rendered, rendered)
    yield alike_rendered
    if not alike_rendered.passed:
        return
    # Of two right ways in one format, where the models themselves ran in that of the engine.
    second = seen.coarse if seen.wide == torch.float32 else seen.summed
    engine = [torch.tensor(list(each)) for each in said]
    gap, usual = _mean_gap(seen.merged.taken, engine), _mean_gap(seen.merged.taken, second.taken)
    bound = NOISES * usual + FLOOR
    share, error = _share(seen, engine)
    effect = _mean_gap(seen.base.taken, seen.merged.taken)
    passed: bool | None = gap <= bound
    if passed and (not _can_tell(seen) or usual > SHARE * effect or error > SURE):
        passed = None
    elif passed:
        passed = abs(share - 1) <= max(SHARE, 4 * error)
    yield Check(
        "engine: log-probabilities",
        f"{gap:.2g} nats apart, {share:.0%} ± {error:.0%} of the training's effect",
        f"{bound:.2g}, {1 - SHARE:.0%} to {1 + SHARE:.0%}",
        passed,
    )
    largest = max(float((one - two).abs().max()) for one, two in zip(seen.merged.top, second.top, strict=True))
    counts = [alike(one.tokens, other) for one, other in zip(seen.written, tokens, strict=True)]
    rate = sum(equal for equal, _ in counts) / sum(total for _, total in counts)
    apart = max((_margin(one, other) for one, other in zip(seen.written, tokens, strict=True)), default=0.0)
    allowed = 2 * largest + FLOOR
    yield Check(
        "engine: greedy tokens",
        f"{rate:.1%} the same" + (f", else {apart:.2g} nats less likely at most" if rate < 1 else ""),
        f"less likely by {allowed:.2g} at most",
        apart <= allowed,
    )


def _can_tell(seen: Compared) -> bool:
    """Return whether the training's effect can be seen above rounding errors."""
    return _mean_gap(seen.base.top, seen.adapter.top) > 10 * noise(seen.wide) * _size(seen.adapter.top)


def _rendered(name: str, one: Sequence[list[int]], other: Sequence[list[int]]) -> Check:
    same = sum(first == second for first, second in zip(one, other, strict=True))
    return Check(f"{name}: rendered token ids", f"{same} of {len(one)} equal", "all", same == len(one))


def _share(seen: Compared, engine: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Estimate the part of the merged model's effect that the engine shows, by least squares, with its standard
    error."""
    import torch

    base, merged, other = (torch.cat(list(each)) for each in (seen.base.taken, seen.merged.taken, engine))
    effect, shown = merged - base, other - base
    size = float(effect.square().sum())
    if size == 0:
        return 0.0, math.inf
    share = float((effect * shown).sum()) / size
    return share, float((effect * (shown - share * effect)).square().sum().sqrt()) / size


def _mean_gap(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    gaps = [(first - second).abs().flatten() for first, second in zip(one, other, strict=True)]
    return fmean(value for gap in gaps for value in gap.tolist())


def _size(each: Sequence[torch.Tensor]) -> float:
    return fmean(float(scores.abs().mean()) for scores in each)


def _same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    return fmean(equal for first, second in zip(one, other, strict=True) for equal in (first == second).tolist())


def _divergence(one: Seen, other: Seen) -> float:
    """Compute KL from `one` to `other`, in nats a position: over the likeliest tokens, the rest taken as one."""
    values: list[float] = []
    for first, second in zip(one.top, other.top, strict=True):
        p, q = (_with_rest(scores.double().exp()) for scores in (first, second))
        values += (p * (p / q).log()).sum(-1).tolist()
    return fmean(values)


def _with_rest(chances: torch.Tensor) -> torch.Tensor:
    import torch

    rest = (1 - chances.sum(-1, keepdim=True)).clamp_min(1e-12)
    return torch.cat([chances.clamp_min(1e-30), rest], -1)


def _percent(gap: float, effect: float) -> str:
    return f"{gap / effect:.2%}" if effect else "all" if gap else "none"


def _margin(written: Greedy, other: Sequence[int]) -> float:
    """Return by how many nats the token where another continuation departs was less likely; 0 if none departs."""
    at, _ = alike(written.tokens, other)
    if at == len(written.tokens) == len(other):
        return 0.0
    likely = written.likely[at]
    chosen = [other[at]] if at < len(other) else list(written.ends)
    return max(likely.values()) - max(likely.get(token, -math.inf) for token in chosen)


def alike(one: Sequence[int], two: Sequence[int]) -> tuple[int, int]:
    """Count the tokens chosen alike after the same prefix, and all compared ones: none is counted after they part."""
    equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
    return equal, min(equal + 1, max(len(one), len(two)))
