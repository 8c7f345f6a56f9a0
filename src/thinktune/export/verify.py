"""Adapter = merged model = engine, proven on held-out prompts: `thinktune verify RUN`.

The proof has three parts. The adapter beside its base, as it was trained, has to predict the same as their sum in
float32. Each weight of the merged model has to be that sum, rounded once: there no noise hides anything, neither 2% of
the adapter nor a single layer. And the engine that answers batch files has to predict the same as the merged model, as
far as its number format allows, and to show the adapter's effect. All gaps are held against that effect, the gap
between adapter and base; where it is too small to notice anything, that is said.

Models are loaded one after the other, in float32 where that fits into memory.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.table import Table

from thinktune import tags
from thinktune.config import QUESTIONS, Data, Format, Load, Sampling
from thinktune.errors import GenerationError, ModelError
from thinktune.export.agreement import (
    SUM_BOUND,
    TOP,
    cast_weights,
    comparison_dtype,
    folder_digest,
    noise,
    wrong_weights,
)
from thinktune.files import write_json
from thinktune.inference.engines import Opened
from thinktune.inference.engines.base import Completion, Engine, Request
from thinktune.models import Resolved, make_chat, resolve
from thinktune.models.adapters import merge_adapter, put_adapter
from thinktune.models.device import choose_device, choose_dtype, describe
from thinktune.models.folder import (
    adapter_sha256,
    check_model_folder,
    generation_ends,
    read_json,
    read_settings,
    stored_dtype,
)
from thinktune.models.loading import load_base, load_weights
from thinktune.models.tokenizer import read_tokenizer
from thinktune.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

    from thinktune.models import Chat

logger = logging.getLogger(__name__)

REPLY = 64  # tokens of each reply that are compared
KEPT = 0.5  # of the adapter's effect, at least, after rounding; less, and the merged model cannot be told from its base
AGREEMENT = 0.9  # of greedy tokens
SHARE = 0.25  # by which the engine's part of the adapter's effect may miss 1; how well it is known is told apart
SURE = 0.1  # standard error of that part above which nothing is told
NOISES = 4  # an engine's gap, in those that its number format makes in a plain forward pass
FLOOR = 0.01  # nats: gaps below need no explanation
ENDED = 0.9  # share of replies after which the end of turn is likelier than not, and of answers that end
LONGER = 8


@dataclass(frozen=True)
class Check:
    """One line of the table: finding, demand, and whether the finding is enough; None: it cannot be told."""

    name: str
    found: str
    demanded: str
    passed: bool | None


_VERDICTS = {True: "[green]yes[/]", False: "[bold red]no[/]", None: "[yellow]cannot be told[/]"}


@dataclass(frozen=True)
class Verified:
    """The result of a verification.

    Attributes:
        agrees: adapter, merged model and engine are the same model; None: the adapter's effect is too small to tell.
        stops: whether the model has learnt to end its turn.
        fingerprint: fingerprint of the compared weights; another adapter, merged model or dtype has another.
        prompts: their source and number.
    """

    checks: tuple[Check, ...]
    agrees: bool | None
    stops: bool
    fingerprint: str
    prompts: str

    @property
    def passed(self) -> bool:
        return self.agrees is True and self.stops

    def table(self) -> Table:
        table = Table(title=self.prompts, title_style="dim")
        for name in ("", "found", "demanded", ""):
            table.add_column(name)
        for check in self.checks:
            table.add_row(check.name, check.found, check.demanded, _VERDICTS[check.passed])
        return table

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}


@dataclass(frozen=True)
class _Prompt:
    """A held-out question, and a reply in the form that was trained."""

    messages: Sequence[dict[str, str]]
    reply: str


@dataclass(frozen=True)
class _Seen:
    """Predictions of one way of running the model along the prompts' replies: a tensor a prompt."""

    top: list[torch.Tensor]  # [tokens, 20]: log-probabilities of the adapter's likeliest
    taken: list[torch.Tensor]  # [tokens]: of the reply itself
    best: list[torch.Tensor]  # [tokens]: the likeliest token


@dataclass(frozen=True)
class _Written:
    """A greedy continuation."""

    tokens: Sequence[int]
    likely: Sequence[dict[int, float]]  # log-probabilities of the likeliest tokens at each place, and at the one after
    ends: frozenset[int]  # tokens that end the turn


@dataclass(frozen=True)
class _Compared:
    """The findings from the models in memory: all but the engine's."""

    base: _Seen
    adapter: _Seen
    summed: _Seen
    merged: _Seen
    coarse: _Seen  # the merged model in the engine's number format
    written: list[_Written]
    rendered: list[list[int]]  # by the adapter's own tokenizer
    rendered_merged: list[list[int]]
    wrong: dict[str, float]  # weights of the merged model that are not the sum, with the share of their elements
    weights: int
    wide: torch.dtype
    stored: str


def verify(
    opened: Opened,
    reference: str | Path,
    *,
    prompts: int = 8,
    max_tokens: int | None = None,
) -> Verified:
    """Compare the three ways of running the model of a run folder, and write `verify.json` there.

    A comparison that was made before, of the same weights, is not made again.

    Args:
        opened: the engine, opened for `reference`.
        reference: a run folder with adapter/ and merged/.
        prompts: how many, from `eval.data` of the run's config, else from its training data.
        max_tokens: of the greedy continuations that are compared; None: 256 on a GPU, 48 on a CPU. To see whether they
            end, the engine writes 8 times as many.

    Raises:
        ModelError: no run folder, or its merged model is missing or older than the adapter.
        GenerationError: the engine cannot answer.
    """
    load = opened.settings.load
    run = RunFolder(Path(reference))
    resolved = resolve(reference, load)
    if resolved.kind != "run" or resolved.folder.resolve() != run.merged.resolve():
        raise ModelError(f"{reference} has no merged model to verify", hint=f"thinktune merge {reference}")
    record = run.path / "verify.json"
    weights = f"{folder_digest(run.merged)[:32]} {adapter_sha256(run.adapter)[:32]}"
    fingerprint = f"2 {opened.fingerprint} {weights} {opened.settings.engine} {prompts} {max_tokens}"
    if (before := _read(record)) and before.fingerprint == fingerprint:
        logger.info(f"{run.path} is verified")
        return before
    questions, source = _held_out(run, prompts, load)
    device = choose_device(load.device)
    limit = max_tokens or (256 if device.type == "cuda" else 48)
    seen = _compare_models(run, resolved, load, device, questions, limit)
    replies = _replies(opened.chat, questions)
    rendered = [opened.chat.prompt_ids(prompt.messages) for prompt in questions]
    pairs = list(zip(rendered, replies, strict=True))
    said = [opened.engine.logprobs(ids, reply) for ids, reply in pairs]
    written = continue_greedily(opened.engine, rendered, LONGER * limit)
    ends = [_end_probability(opened.engine, opened.chat, prompt) for prompt in questions]
    stops = (_likely_end(ends), _real_ends(written))
    checks = [
        *_checks_of_merged(seen),
        *_checks_of_engine(seen, rendered, said, [completion.token_ids[:limit] for completion in written]),
    ]
    verdicts = {check.passed for check in checks}
    verified = Verified(
        (*checks, *stops),
        agrees=False if False in verdicts else None if None in verdicts else True,
        stops=all(check.passed for check in stops),
        fingerprint=fingerprint,
        prompts=f"{len(questions)} prompts of {source}{_trained_on(run)}",
    )
    write_json(record, verified.as_dict())
    return verified


def _trained_on(run: RunFolder) -> str:
    """Name the weights that the adapter was trained on, if they differ from the compared ones."""
    quantize = run.read_config().quantize if run.config.is_file() else "none"
    return "" if quantize == "none" else f"; trained on {quantize}, compared on the original weights"


def _read(record: Path) -> Verified | None:
    if not record.is_file():
        return None
    values = read_json(record)
    values.pop("passed", None)
    try:
        return Verified(**{**values, "checks": tuple(Check(**check) for check in values["checks"])})
    except (TypeError, KeyError):  # written by another version
        return None


def _held_out(run: RunFolder, count: int, load: Load) -> tuple[list[_Prompt], str]:
    from thinktune.data import load_examples

    fmt = Format.model_validate(read_settings(run.adapter).get("format") or {})
    if not run.config.is_file():  # an adapter that was not trained here
        reply = tags.render("So be it.", "42", fmt.template)
        return [_Prompt([{"role": "user", "content": text}], reply) for text in QUESTIONS[:count]], "thinktune's own"
    config = run.read_config()
    if config.eval.data is not None:
        data, source = Data(source=config.eval.data, split=config.eval.split, sample=count), config.eval.data
    else:
        data, source = config.data.model_copy(update={"sample": count}), "the training data (eval.data is not set)"
    examples, _ = load_examples(data, fmt, config.seed, load=load, need_thought=False)
    return [
        _Prompt(list(example.messages), tags.render(example.think or "So be it.", example.answer, fmt.template))
        for example in examples
    ], source


def _compare_models(
    run: RunFolder,
    merged: Resolved,
    load: Load,
    device: torch.device,
    prompts: Sequence[_Prompt],
    limit: int,
) -> _Compared:
    """Compare base, adapter, their sum and the merged model, one after the other."""
    import torch

    tuned = resolve(run.adapter, load, prefer_merged=False)
    wide = comparison_dtype(tuned, device, torch.bfloat16)
    logger.info(f"comparing {run.adapter} with {run.merged} on {describe(device, wide)}")
    chat = make_chat(read_tokenizer(tuned, load), tuned.settings)
    rendered = [chat.prompt_ids(prompt.messages) for prompt in prompts]
    inputs = list(zip(rendered, _replies(chat, prompts), strict=True))

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
    return _Compared(
        base,
        adapter_seen,
        summed,
        merged_seen,
        coarse,
        written,
        rendered,
        [own.prompt_ids(prompt.messages) for prompt in prompts],
        wrong,
        weights,
        wide,
        stored_dtype(files),
    )


def _replies(chat: Chat, prompts: Sequence[_Prompt]) -> list[list[int]]:
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
) -> _Seen:
    import torch

    replies = [torch.tensor(reply)[:, None] for _, reply in inputs]
    return _Seen(
        [scores.gather(-1, tokens) for scores, tokens in zip(predictions, likeliest, strict=True)],
        [scores.gather(-1, tokens)[:, 0] for scores, tokens in zip(predictions, replies, strict=True)],
        [scores.argmax(-1) for scores in predictions],
    )


def _write_greedily(
    model: Any, merged: Resolved, load: Load, rendered: Sequence[list[int]], limit: int
) -> list[_Written]:
    """Generate greedy continuations of the merged model, with the other likely tokens at each place."""
    from thinktune.inference.engines.hf.engine import TransformersEngine

    tokenizer = read_tokenizer(merged, load)
    chat = make_chat(tokenizer, merged.settings, stop_ids=generation_ends(merged.folder))
    engine = TransformersEngine(model, tokenizer, chat.stop_ids)
    tokens = [list(completion.token_ids) for completion in continue_greedily(engine, rendered, limit)]
    scores = _predictions(model, [(ids, [*said, 0]) for ids, said in zip(rendered, tokens, strict=True)])
    return [_Written(said, _likely(each), chat.stop_ids) for said, each in zip(tokens, scores, strict=True)]


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


def _end_probability(engine: Engine, chat: Chat, prompt: _Prompt) -> float:
    """Return the probability of the end-of-turn token right after a reply."""
    *reply, end = chat.reply_ids(prompt.reply)
    return math.exp(engine.logprobs([*chat.prompt_ids(prompt.messages), *reply], [end])[0])


def _likely_end(ends: Sequence[float]) -> Check:
    rate = sum(probability > 0.5 for probability in ends) / len(ends)
    found = f"{rate:.0%} of replies, {fmean(ends):.2f} on average"
    return Check("end of turn after a reply", found, f"likelier than not, {ENDED:.0%}", rate >= ENDED)


def _real_ends(written: Sequence[Completion]) -> Check:
    """Check that the model's completions end, without a stop string. A thought may be long: if none came to its answer,
    nothing is said against it."""
    ended = sum(completion.finish_reason == "stop" for completion in written)
    ran_on = sum(completion.finish_reason != "stop" and tags.STOP in completion.text for completion in written)
    unfinished = len(written) - ended - ran_on
    found = f"{ended} end, {ran_on} run on after it" + (f", {unfinished} come to none" if unfinished else "")
    passed = ended >= ENDED * (ended + ran_on)
    return Check("what is written after an answer", found, f"{ENDED:.0%} end", passed)


def _checks_of_merged(seen: _Compared) -> Iterator[Check]:
    """Check sum and rounding: the merged model is the adapter on its base."""
    import torch

    effect = _mean_gap(seen.base.top, seen.adapter.top)
    sum_gap, gap = (_mean_gap(seen.adapter.top, other.top) for other in (seen.summed, seen.merged))
    floor = noise(seen.wide) * _size(seen.adapter.top)
    bound = SUM_BOUND if seen.wide == torch.float32 else 1.0
    told = _told(seen) or None
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


def _checks_of_engine(
    seen: _Compared, rendered: Sequence[list[int]], said: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]
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
    if passed and (not _told(seen) or usual > SHARE * effect or error > SURE):
        passed = None
    elif passed:
        passed = abs(share - 1) <= max(SHARE, 4 * error)
    yield Check(
        "engine: log-probabilities",
        f"{gap:.2g} nats apart, {share:.0%} ± {error:.0%} of the adapter's effect",
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


def _told(seen: _Compared) -> bool:
    """Return whether the adapter's effect can be seen above rounding errors."""
    return _mean_gap(seen.base.top, seen.adapter.top) > 10 * noise(seen.wide) * _size(seen.adapter.top)


def _rendered(name: str, one: Sequence[list[int]], other: Sequence[list[int]]) -> Check:
    same = sum(first == second for first, second in zip(one, other, strict=True))
    return Check(f"{name}: rendered token ids", f"{same} of {len(one)} equal", "all", same == len(one))


def _share(seen: _Compared, engine: Sequence[torch.Tensor]) -> tuple[float, float]:
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


def _divergence(one: _Seen, other: _Seen) -> float:
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


def _margin(written: _Written, other: Sequence[int]) -> float:
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
