"""Adapter = merged model = engine, proven on held-out prompts: `thinktune verify RUN`.

The adapter on its base, as it was trained, is held against the merged model (a plain forward pass) and against the
engine that answers batch files. Compared are what each renders a prompt to, the log-probabilities of the first token
and greedy continuations; and whether the model has learnt to end its turn. Models are loaded one after the other.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.table import Table

from thinktune import tags
from thinktune.config import QUESTIONS, Data, Format, Load, Sampling, Vllm, load_config
from thinktune.engines import Opened, open_engine
from thinktune.engines.base import Completion, Engine, Request
from thinktune.engines.opening import EngineName
from thinktune.errors import GenerationError, ModelError
from thinktune.files import write_json
from thinktune.models import load_model, resolve
from thinktune.models.folder import read_json, read_settings, stored_dtype
from thinktune.runs import RunFolder

if TYPE_CHECKING:
    from thinktune.models import Chat, Loaded

TOP = 20
BOUNDS = {"F32": 0.01}
"""Largest difference in log-probability (nats) over the top 20, by the merged weights' stored dtype."""
ROUNDED_BOUND = 0.5  # for 16-bit weights: adding the adapter rounds each to 8 or 11 bits
AGREEMENT = {"F32": 0.999}
ROUNDED_AGREEMENT = 0.9  # nearly equal tokens may change places
ENDED = 0.9  # share of replies after which the end of turn is likelier than not, and of answers that end
LONGER = 8

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One line of the table: what was found, what was demanded, and whether that is enough."""

    name: str
    found: str
    demanded: str
    passed: bool


@dataclass(frozen=True)
class Verified:
    """What verifying a run gave.

    Attributes:
        agrees: adapter, merged model and engine are the same model.
        stops: it has learnt to end its turn.
        fingerprint: of what was compared; another adapter, merged model or dtype has another.
        prompts: where they are from, and how many.
    """

    checks: tuple[Check, ...]
    agrees: bool
    stops: bool
    fingerprint: str
    prompts: str

    @property
    def passed(self) -> bool:
        return self.agrees and self.stops

    def table(self) -> Table:
        table = Table(title=self.prompts, title_style="dim")
        for name in ("", "found", "demanded", ""):
            table.add_column(name)
        for check in self.checks:
            table.add_row(
                check.name, check.found, check.demanded, "[green]yes[/]" if check.passed else "[bold red]no[/]"
            )
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
    """What one way of running the model shows of one prompt."""

    rendered: list[int]
    logprobs: dict[int, float]  # of the adapter's likeliest first tokens
    greedy: Sequence[int]


def verify(
    reference: str | Path,
    *,
    load: Load | None = None,
    engine: EngineName = "auto",
    vllm: Vllm | None = None,
    prompts: int = 8,
    max_tokens: int | None = None,
    notify: Notify = lambda line: None,
    opened: Opened | None = None,
) -> Verified:
    """Compare the three ways of running what a run folder holds, and write `verify.json` there.

    A comparison that was made before, of the same weights, is not made again.

    Args:
        reference: a run folder with adapter/ and merged/.
        engine, vllm: as in the config's `infer`.
        prompts: how many, from `eval.data` of the run's config, else from its training data.
        max_tokens: of the greedy continuations that are compared; None: 256 on a GPU, 48 on a CPU. To see whether they
            end, the engine writes 8 times as many.
        opened: the engine, as for `evaluate_data`.

    Raises:
        ModelError: no run folder, or its merged model is missing or older than the adapter.
        GenerationError: the engine cannot answer.
    """
    load = load or Load()
    run = RunFolder(Path(reference))
    resolved = resolve(reference, load, notify)
    if resolved.kind != "run" or resolved.folder.resolve() != run.merged.resolve():
        raise ModelError(f"{reference} has no merged model to verify", hint=f"thinktune merge {reference}")
    with opened or open_engine(reference, engine=engine, load=load, vllm=vllm, notify=notify) as opened:
        record = run.path / "verify.json"
        fingerprint = f"{opened.fingerprint} {engine} {prompts} {max_tokens}"
        if (before := _read(record)) and before.fingerprint == fingerprint:
            notify(f"{run.path} is verified")
            return before
        questions, source = _held_out(run, prompts, load, notify)
        loaded = load_model(run.adapter, load=load, merge_adapter=False, notify=notify)
        limit = max_tokens or (256 if loaded.device.type == "cuda" else 48)
        adapter = _look(loaded, questions, None, limit)
        del loaded
        gc.collect()
        loaded = load_model(run.merged, load=load, notify=notify)
        merged = _look(loaded, questions, adapter, limit)
        del loaded
        gc.collect()
        answers, written = _look_through(opened.engine, opened.chat, questions, adapter, limit)
        ends = [_end_probability(opened.engine, opened.chat, prompt) for prompt in questions]
    stored = stored_dtype(sorted(run.merged.glob("*.safetensors")))
    pairs = {"merged model": merged, "engine": answers}
    checks = [check for name, seen in pairs.items() for check in _compare(name, adapter, seen, stored)]
    stops = (_likely_end(ends), _real_ends(written))
    verified = Verified(
        (*checks, *stops),
        agrees=all(check.passed for check in checks),
        stops=all(check.passed for check in stops),
        fingerprint=fingerprint,
        prompts=f"{len(questions)} prompts of {source}",
    )
    write_json(record, verified.as_dict())
    return verified


def _read(record: Path) -> Verified | None:
    if not record.is_file():
        return None
    values = read_json(record)
    values.pop("passed", None)
    try:
        return Verified(**{**values, "checks": tuple(Check(**check) for check in values["checks"])})
    except (TypeError, KeyError):  # written by another version
        return None


def _held_out(run: RunFolder, count: int, load: Load, notify: Notify) -> tuple[list[_Prompt], str]:
    from thinktune.data import load_examples

    fmt = Format.model_validate(read_settings(run.adapter).get("format") or {})
    if not run.config.is_file():  # an adapter that was not trained here
        reply = tags.render("So be it.", "42", fmt.template)
        return [_Prompt([{"role": "user", "content": text}], reply) for text in QUESTIONS[:count]], "thinktune's own"
    config = load_config(run.config)
    if config.eval.data is not None:
        data, source = Data(source=config.eval.data, split=config.eval.split, sample=count), config.eval.data
    else:
        data, source = config.data.model_copy(update={"sample": count}), "the training data (eval.data is not set)"
    examples, _ = load_examples(data, fmt, config.seed, load=load, notify=notify, need_thought=False)
    return [
        _Prompt(list(example.messages), tags.render(example.think or "So be it.", example.answer, fmt.template))
        for example in examples
    ], source


def _look(loaded: Loaded, prompts: Sequence[_Prompt], first: Sequence[_Seen] | None, limit: int) -> list[_Seen]:
    """A model by plain forward passes. `first` says which tokens to look at; None: the likeliest."""
    import torch

    from thinktune.engines.transformers import TransformersEngine

    rendered = [loaded.chat.prompt_ids(prompt.messages) for prompt in prompts]
    engine = TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids)
    greedy = [completion.token_ids for completion in continue_greedily(engine, rendered, limit)]
    seen = []
    for at, ids in enumerate(rendered):
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([ids], device=loaded.device)).logits[0, -1].float()
        scores = logits.log_softmax(-1)
        chosen = scores.topk(TOP).indices.tolist() if first is None else list(first[at].logprobs)
        seen.append(_Seen(ids, {token: float(scores[token]) for token in chosen}, greedy[at]))
    return seen


def _look_through(
    engine: Engine, chat: Chat, prompts: Sequence[_Prompt], first: Sequence[_Seen], limit: int
) -> tuple[list[_Seen], list[Completion]]:
    """The engine that answers batch files, and what it writes where nothing but the model itself ends it."""
    rendered = [chat.prompt_ids(prompt.messages) for prompt in prompts]
    written = continue_greedily(engine, rendered, LONGER * limit)
    seen = [
        _Seen(ids, {token: engine.logprobs(ids, [token])[0] for token in other.logprobs}, completion.token_ids[:limit])
        for ids, other, completion in zip(rendered, first, written, strict=True)
    ]
    return seen, written


def continue_greedily(engine: Engine, rendered: Sequence[list[int]], limit: int) -> list[Completion]:
    """Greedy completions of at most `limit` tokens, in the order of the prompts."""
    sampling = Sampling(max_tokens=limit, stop=())
    found: dict[str, Completion] = {}
    for completion in engine.generate([Request(str(at), ids, sampling) for at, ids in enumerate(rendered)]):
        if completion.error is not None:
            raise GenerationError(f"a held-out prompt cannot be answered: {completion.error}")
        found[completion.request_id] = completion
    return [found[str(at)] for at in range(len(rendered))]


def _end_probability(engine: Engine, chat: Chat, prompt: _Prompt) -> float:
    """Of the token that ends the turn, right after a reply."""
    *reply, end = chat.reply_ids(prompt.reply)
    return math.exp(engine.logprobs([*chat.prompt_ids(prompt.messages), *reply], [end])[0])


def _likely_end(ends: Sequence[float]) -> Check:
    rate = sum(probability > 0.5 for probability in ends) / len(ends)
    found = f"{rate:.0%} of replies, {fmean(ends):.2f} on average"
    return Check("end of turn after a reply", found, f"likelier than not, {ENDED:.0%}", rate >= ENDED)


def _real_ends(written: Sequence[Completion]) -> Check:
    """Whether what the model writes ends, with no stop string to help it. A thought may be long: where none came to
    its answer, nothing is said against it."""
    ended = sum(completion.finish_reason == "stop" for completion in written)
    ran_on = sum(completion.finish_reason != "stop" and tags.STOP in completion.text for completion in written)
    unfinished = len(written) - ended - ran_on
    found = f"{ended} end, {ran_on} run on after it" + (f", {unfinished} come to none" if unfinished else "")
    passed = ended >= ENDED * (ended + ran_on)
    return Check("what is written after an answer", found, f"{ENDED:.0%} end", passed)


def _compare(name: str, adapter: Sequence[_Seen], other: Sequence[_Seen], stored: str) -> list[Check]:
    pairs = list(zip(adapter, other, strict=True))
    same = sum(one.rendered == two.rendered for one, two in pairs)
    gap = max(abs(value - two.logprobs[token]) for one, two in pairs for token, value in one.logprobs.items())
    bound = BOUNDS.get(stored, ROUNDED_BOUND)
    tokens = [alike(one.greedy, two.greedy) for one, two in pairs]
    rate = sum(equal for equal, _ in tokens) / sum(total for _, total in tokens)
    wanted = AGREEMENT.get(stored, ROUNDED_AGREEMENT)
    return [
        Check(f"{name}: rendered token ids", f"{same} of {len(pairs)} equal", "all", same == len(pairs)),
        Check(f"{name}: top {TOP} log-probabilities", f"{gap:.2g} apart at most", f"{bound:g}", gap <= bound),
        Check(f"{name}: greedy tokens", f"{rate:.1%} the same", f"{wanted:.1%}", rate >= wanted),
    ]


def alike(one: Sequence[int], two: Sequence[int]) -> tuple[int, int]:
    """How many tokens were chosen alike after the same prefix, of how many: none is counted after they part."""
    equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
    return equal, min(equal + 1, max(len(one), len(two)))
