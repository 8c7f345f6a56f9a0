"""A small test that a model takes while it is trained: format rate and accuracy by generation, every so many steps.

Training goes on as if there had been none: random state, train mode and attention are as they were.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thinktune import tags
from thinktune.config import Config, Data
from thinktune.data import Example, load_examples
from thinktune.inference.engines.base import Completion, Request
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.scoring import ROW_TASK
from thinktune.training.ranks import agree, by_first, gathered, here

if TYPE_CHECKING:
    from thinktune.models import Loaded
    from thinktune.training.trainer import ThinkTrainer

_STEP_SECONDS = 0.02
"""Least seconds to decode one token of all problems; with the tokens at the speed of training, a guess at what the
first evaluation will take."""


def checkup_problems(config: Config) -> list[Example]:
    """Read the problems asked during training, always the same; none unless `eval.data` and `eval.every` are set.

    Raises:
        DataError, DownloadError, MissingExtra: see `data.load_examples`.
    """
    if config.eval.data is None or config.eval.every is None:
        return []
    data = Data(source=config.eval.data, split=config.eval.split, sample=config.eval.every_sample)
    examples, _ = load_examples(data, config.format, config.seed, load=config.load, need_thought=False)
    return examples


class GenerationEvalCallback(TrainerCallback):
    """Asks the problems every `eval.every` steps and logs `eval_format_rate`, `eval_accuracy`,
    `eval_accuracy_lenient`, `eval_samples` and `eval_seconds`, their cost.

    One is left out where it would bring their cost above `eval.every_share` of the training time that has passed, going
    going by the last one, or by a guess at the first. With a share of 1 none is left out.
    """

    def __init__(
        self,
        problems: Sequence[Example],
        model: Any,
        loaded: Loaded,
        config: Config,
        trainer: ThinkTrainer,
        console: Console,
    ) -> None:
        limit = min(config.eval.every_tokens, config.eval.sampling.max_tokens)
        plain = {"temperature": 0.0, "n": 1, "seed": 0, "max_tokens": limit, "think_budget": None}
        sampling = config.eval.sampling.model_copy(update=plain)
        prompts = [loaded.chat.prompt_ids(problem.messages) for problem in problems]
        self._requests = [Request(str(at), ids, sampling) for at, ids in enumerate(prompts)]
        self._references = [problem.answer for problem in problems]
        self._engine = TransformersEngine(
            model,
            loaded.tokenizer,
            loaded.chat.stop_ids,
            max_batch_tokens=len(prompts) * (max(map(len, prompts)) + limit),
        )
        self._every = config.eval.every or 0
        self._share = config.eval.every_share
        self._trainer = trainer
        self._console = console
        self._warned = False
        self._seconds = 0.0
        self._limit, self._tokens = limit, len(prompts) * limit
        self._last: float | None = None

    def resume(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Count the cost of those before the checkpoint, by the lines of metrics.jsonl."""
        if costs := [line["eval_seconds"] for line in lines if "eval_seconds" in line]:
            self._seconds, self._last = sum(costs), costs[-1]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self._every:
            return
        self._trainer.stop_clock()
        if by_first(self._fits):
            due = control.should_log
            self._take()
            control.should_log = due  # the trainer takes what was logged here for the line of this step
        elif not self._warned:
            self._warned = True
            self._console.print(
                f"evaluation during training takes about {self._expected():.0f} s; every {self._every} steps, that "
                f"would be over {self._share:.0%} of the training time (eval.every_share), so some are left out",
                style="dim",
                highlight=False,
            )
        self._trainer.start_clock()

    def _fits(self) -> bool:
        return self._share == 1 or self._seconds + self._expected() <= self._share * self._trainer.meter.seconds

    def _expected(self) -> float:
        """Estimate the seconds of the next one."""
        if self._last is not None:
            return self._last
        meter = self._trainer.meter
        return self._tokens * meter.seconds / max(1, meter.tokens) + _STEP_SECONDS * self._limit

    def _take(self) -> None:
        started, place = time.monotonic(), here()
        with closing(self._engine.generate(self._requests[place.rank :: place.size])) as answers:
            own = list(answers)
        scores = self._score([answer for answers in gathered(own) for answer in answers])
        self._last = agree(time.monotonic() - started, max)
        self._seconds += self._last
        self._trainer.log({**scores, "eval_seconds": round(self._last, 3)})

    def _score(self, completions: Sequence[Completion]) -> dict[str, float]:
        scores = [
            ROW_TASK.score(each.text, {"reference": self._references[int(each.request_id)]}, each.finish_reason)
            for each in completions
        ]
        count = len(scores)
        return {
            "eval_format_rate": sum(tags.parse(each.text).well_formed for each in completions) / count,
            "eval_accuracy": sum(bool(score.correct) for score in scores) / count,
            "eval_accuracy_lenient": sum(bool(score.lenient) for score in scores) / count,
            "eval_samples": count,
        }
