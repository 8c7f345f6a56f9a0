"""`from thinktune import Infer`: a model that stays loaded, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from thinktune import config, tags
from thinktune.errors import GenerationError, UsageError
from thinktune.inference.batch import Inferred, infer
from thinktune.inference.batch_file import as_messages, read_batch_file
from thinktune.inference.engines import EngineSettings, open_engine
from thinktune.inference.engines.base import Request
from thinktune.inference.profiles import samplings
from thinktune.inference.result_file import ResultFormat

Conversation = Sequence[Mapping[str, str]]


class Infer:
    """Answers questions and batch files with one model, loaded at the first question.

    >>> with Infer("runs/quickstart", think_budget=256) as model:  # doctest: +SKIP
    ...     model("What is 7 times 8?").answer
    ...     model.file("A1.jsonl", "res.json")

    Args:
        model: any model reference.
        settings: further settings of the config's `infer` section, such as profile, think_budget or engine.
        load: how the model is loaded.
        seed: for sampling that has none.

    Raises:
        UsageError, ModelError, …: see `engines.open_engine`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        quantize: config.Quantize = "none",
        load: config.Load | None = None,
        seed: int = config.SEED,
        **settings: object,
    ) -> None:
        if taken := [name for name in ("file", "out") if name in settings]:
            raise UsageError(f"Infer has no {taken[0]}: it is for many files", hint="model.file(FILE, OUT)")
        self._settings = config.parse_config({"infer": settings}, where="Infer").infer
        self._samplings = samplings(self._settings, seed)
        self._name = str(model)
        self._opened = open_engine(model, EngineSettings.of(self._settings, load, quantize))
        for sampling in self._samplings.values():  # so that "auto" chooses an engine for all of them
            self._opened.engine.require_supported(sampling)

    def __call__(
        self, question: str | Conversation, *, type: config.ItemType = "generic-generate", **sampling: object
    ) -> tags.Parsed:
        """Answer one question, or a conversation that ends with one. See `batch` for many at once.

        Raises:
            UsageError: see `batch`; also for another `n` than 1.
            GenerationError: it cannot be answered, for example because it is too long.
        """
        if sampling.get("n", 1) != 1:
            raise UsageError("one question has one answer here", hint="for several: model.batch([question], n=…)")
        ((parsed,),) = self.batch([question], type=type, **{**sampling, "n": 1})
        return parsed

    def batch(
        self,
        questions: Iterable[str | Conversation],
        *,
        type: config.ItemType = "generic-generate",
        **sampling: object,
    ) -> list[list[tags.Parsed]]:
        """Answer many questions together: `n` completions of each, in the order of the questions.

        Args:
            type: chooses the sampling.
            sampling: fields of Sampling that are to be different.

        Raises:
            ConfigError: a sampling field that does not exist, or a wrong value.
            UsageError: one that the engine cannot honour, an unknown type, one text in the place of several, or a
                question that is none.
            GenerationError: a question cannot be answered.
        """
        if isinstance(questions, str):  # which is an iterable of questions of one character
            raise UsageError("batch takes a list of questions", hint="for one: model(question)")
        if type not in self._samplings:
            raise UsageError(f"unknown type {type!r}", hint=f"known are {', '.join(self._samplings)}")
        chosen = self._samplings[type].changed(**sampling)
        self._opened.engine.require_supported(chosen)
        turns = [as_messages(each) for each in questions]
        requests = [
            Request(
                str(at),
                self._opened.chat.prompt_ids(each),
                chosen,
            )
            for at, each in enumerate(turns)
        ]
        texts: dict[tuple[str, int], str] = {}
        for completion in self._opened.engine.generate(requests):
            if completion.error is not None:
                raise GenerationError(f"question {int(completion.request_id) + 1}: {completion.error}")
            texts[completion.request_id, completion.index] = completion.text
        return [[tags.parse(texts[each.id, index]) for index in range(chosen.n)] for each in requests]

    def file(
        self,
        file: str | Path,
        out: str | Path,
        *,
        skip_bad: bool = False,
        overwrite: bool = False,
        form: ResultFormat = "results",
    ) -> Inferred:
        """Answer a batch file as `thinktune infer` does; the model stays loaded for the next one."""
        items = read_batch_file(file, samplings=self._samplings, skip_bad=skip_bad)
        return infer(self._opened, items, Path(out), name=self._name, overwrite=overwrite, form=form)

    def close(self) -> None:
        """Give the model's memory back."""
        self._opened.engine.close()

    def __enter__(self) -> Infer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
