"""Adapter = merged model = engine, proven on held-out prompts: `thinktune verify RUN`.

The proof has three parts. The adapter beside its base, as it was trained, has to predict the same as their sum in
float32. Each weight of the merged model has to be that sum, rounded once: there no noise hides anything, neither 2% of
the adapter nor a single layer. And the engine that answers batch files has to predict the same as the merged model, as
far as its number format allows, and to show the adapter's effect. All gaps are held against that effect, the gap
between adapter and base; where it is too small to notice anything, that is said.

Models are loaded one after the other, in float32 where that fits into memory. Of full fine-tuning there is no adapter,
and its model was read back bit by bit when it was saved: only the engine is compared with it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from thinktune import tags
from thinktune.config import QUESTIONS, Data, Format, Load
from thinktune.errors import ModelError
from thinktune.export.agreement import folder_digest
from thinktune.export.checks import Check, checks_of_engine, checks_of_merged, likely_end, real_ends
from thinktune.export.compared_models import REPLY, Prompt, compare_models, compare_whole, continue_greedily
from thinktune.files import write_json
from thinktune.inference.engines import Opened
from thinktune.inference.engines.base import Engine
from thinktune.models import resolve
from thinktune.models.device import choose_device
from thinktune.models.folder import adapter_sha256, read_json, read_settings
from thinktune.run_folder import RunFolder

logger = logging.getLogger(__name__)

LONGER = 8  # the engine's completions than the compared ones, at most, to see whether they end
_ONE_PASS = 4 * REPLY
ROOM = 2  # for them, in replies as long as the longest that is known
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
            end, the engine writes twice as many as the longest reply of the rows has, and 2 to 8 times `max_tokens`.

    Raises:
        ModelError: no run folder, or its merged model is missing or older than the adapter.
        GenerationError: the engine cannot answer.
    """
    load = opened.settings.load
    run = RunFolder(Path(reference))
    resolved = resolve(reference, load)
    whole = resolved.is_whole
    if resolved.kind != "run" or resolved.folder.resolve() != run.merged.resolve():
        remedy = f"name the run: thinktune verify {run.path.parent}" if whole else f"thinktune merge {reference}"
        raise ModelError(f"{reference} has no merged model to verify", hint=remedy)
    record = run.path / "verify.json"
    weights = f"{folder_digest(run.merged)[:32]} {'whole' if whole else adapter_sha256(run.adapter)[:32]}"
    fingerprint = f"3 {opened.fingerprint} {weights} {opened.settings.engine} {prompts} {max_tokens}"
    if (before := _read(record)) and before.fingerprint == fingerprint:
        logger.info(f"{run.path} is verified")
        return before
    questions, source = _held_out(run, prompts, load)
    device = choose_device(load.device)
    limit = max_tokens or (256 if device.type == "cuda" else 48)
    ways = resolved, load, device, questions, limit
    seen = compare_whole(*ways) if whole else compare_models(run, *ways)
    rendered = [opened.chat.prompt_ids(prompt.messages) for prompt in questions]
    replies = [opened.chat.reply_ids(prompt.reply) for prompt in questions]  # which end with the turn's end
    said, ends = zip(*(_said(opened.engine, *pair) for pair in zip(rendered, replies, strict=True)), strict=True)
    room = _room(questions, replies, limit)
    logger.info(f"the engine answers {len(questions)} prompts with up to {room} tokens")
    written = continue_greedily(opened.engine, rendered, room)
    stops = (likely_end(ends), real_ends(written))
    checks = [
        *(() if whole else checks_of_merged(seen)),
        *checks_of_engine(seen, rendered, said, [completion.token_ids[:limit] for completion in written]),
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


def _held_out(run: RunFolder, count: int, load: Load) -> tuple[list[Prompt], str]:
    from thinktune.data import load_examples

    tuned = run.adapter if run.adapter.is_dir() else run.merged
    fmt = Format.model_validate(read_settings(tuned).get("format") or {})
    if not run.config.is_file():  # an adapter that was not trained here
        reply = tags.render("So be it.", "42", fmt.template)
        own = [Prompt([{"role": "user", "content": text}], reply, whole=False) for text in QUESTIONS[:count]]
        return own, "thinktune's own"
    config = run.read_config()
    if config.eval.data is not None:
        data, source = Data(source=config.eval.data, split=config.eval.split, sample=count), config.eval.data
    else:
        drawn = {"sample": count, "deduplicate": False, "decontaminate": []}  # any few rows will do
        data, source = config.data.model_copy(update=drawn), "the training data (eval.data is not set)"
    examples, _ = load_examples(data, fmt, config.seed, load=load, need_thought=False)
    return [
        Prompt(
            list(example.messages),
            tags.render(example.think or "So be it.", example.answer, fmt.template),
            whole=bool(example.think),
        )
        for example in examples
    ], source


def _said(engine: Engine, ids: list[int], reply: list[int]) -> tuple[list[float], float]:
    """Return the log-probabilities of a reply's first tokens, and the probability of the end of turn right after it; in
    one pass, unless that would make logits of very many tokens."""
    if len(reply) <= _ONE_PASS:
        scores = engine.logprobs(ids, reply)
        return scores[:REPLY], math.exp(scores[-1])
    *text, end = reply
    return engine.logprobs(ids, reply[:REPLY]), math.exp(engine.logprobs([*ids, *text], [end])[0])


def _room(questions: Sequence[Prompt], replies: Sequence[Sequence[int]], limit: int) -> int:
    """Return how many tokens the engine may write, to see whether it ends: a model that has not by twice what it was
    taught comes to no end that could be judged, and on a CPU more would be most of the wait."""
    if not all(prompt.whole for prompt in questions):
        return LONGER * limit
    return min(LONGER, max(2, -(-ROOM * max(map(len, replies)) // limit))) * limit
