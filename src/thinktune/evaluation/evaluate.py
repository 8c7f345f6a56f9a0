"""Format rate and accuracy of a model: `thinktune eval MODEL DATA`.

Writes to a folder: `samples.jsonl`, a line a completion in the order of the problems; `summary.json`; and the journal
from which a stopped call goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from thinktune import tags
from thinktune.config import Data, Format, Infer, Sampling
from thinktune.evaluation.metrics import Problem, Scores, rate_rows, sample_line, score_problems, scores_table
from thinktune.evaluation.predictions import PredictionScores, read_gold, score_predictions
from thinktune.evaluation.significance import Rate
from thinktune.files import telling_full_disk, write_json, write_json_lines
from thinktune.inference.batch import infer
from thinktune.inference.batch_file import Messages, read_batch_file
from thinktune.inference.complete import Completed, complete
from thinktune.inference.engines import EngineSettings, Opened, open_engine
from thinktune.inference.engines.base import Completion, Request
from thinktune.inference.profiles import samplings
from thinktune.models.template_date import hold_date
from thinktune.scoring import ROW_TASK, Scorer, tasks_scored_by

if TYPE_CHECKING:
    from thinktune.data import Example

# The values of a line of samples.jsonl, in their order.
_SAMPLE = (
    "source", "row", "sample", "prompt", "completion", "reference", "extracted", "outcome", "correct", "lenient",
    "format_problem", "finish_reason", "error", "tokens", "scorer", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Summary(Scores):
    """Scores of one model on problems that have a right answer.

    Attributes:
        mean_tokens: of a completion.
        told_format: whether the prompt explained the format.
        sampling: the settings, but for the seed.
        scorer: name and version.
        notes: count of each remark of the scorer.
    """

    strict: Rate
    lenient: Rate
    mean_tokens: float
    tokens_per_second: float | None
    told_format: bool
    sampling: dict[str, Any]
    scorer: str
    notes: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return the values of summary.json: the rates by their short names, the intervals beside them."""
        values = asdict(self)
        del values["measures"]
        for name, rate in (("format_rate", "format"), ("accuracy", "strict"), ("accuracy_lenient", "lenient")):
            interval = values.pop(rate)
            values |= {name: interval["value"], f"{name}_interval": [interval["low"], interval["high"]]}
        completed = values.pop("completed")
        values["accuracy_completed"] = completed["value"] if completed else None
        return values


def evaluate_data(
    opened: Opened,
    data: Data,
    out: Path,
    *,
    sampling: Sampling | None = None,
    tell_format: bool | None = None,
    seed: int = 0,
    scorer: Scorer = ROW_TASK.score,
    overwrite: bool = False,
    console: Console | None = None,
) -> Summary:
    """Score a model on rows with references: `thinktune eval MODEL DATA`.

    Args:
        tell_format: explain the format in the prompt; None: only to models that were not trained for it.
        scorer: compares answer and reference; a user's own is `tasks_scored_by(…)[ROW_TASK.name].score`.

    Raises:
        DataError, …: see `data.load_examples` and `evaluate`.
    """
    from thinktune.data import load_examples

    console = console or Console(stderr=True)
    fmt = Format.model_validate(opened.format_settings)
    examples, _ = load_examples(data, fmt, seed, load=opened.settings.load, need_thought=False)
    return evaluate(
        opened,
        examples,
        sampling or Sampling(),
        out,
        tell_format=tell_format,
        seed=seed,
        scorer=scorer,
        overwrite=overwrite,
        console=console,
    )


def evaluate_items(
    reference: str | Path,
    file: str | Path,
    gold: Path,
    out: Path,
    settings: EngineSettings | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    tell_format: bool | None = None,
    seed: int = 0,
    scorer: str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> PredictionScores:
    """Answer a batch file, then score the answers by item type: `thinktune eval MODEL FILE --gold GOLD`.

    Args:
        changes: settings over the sampling of each type.
        tell_format: as for `evaluate_data`.
        scorer: `module:function` of a user's own, see `scoring.own_scorer`.
        out: also gets `predictions.jsonl`, and its journal.

    Raises:
        BatchFileError, DataError, …: see `batch_file.read_batch_file`, `read_gold`, `open_engine` and `infer`.
    """
    console = console or Console(stderr=True)
    read_gold(gold, tasks_scored_by(scorer))  # its faults are told before a model is loaded
    items = read_batch_file(file, samplings=samplings(Infer(), seed, **(changes or {})))
    prompts = {str(item.id): item.messages[-1]["content"] for item in items}
    with open_engine(reference, settings) as opened:
        if not opened.tuned if tell_format is None else tell_format:
            items = [replace(item, messages=told(item.messages)) for item in items]
        answers = out / "predictions.jsonl"
        infer(opened, items, answers, overwrite=overwrite, form="lines", console=console)
    return score_predictions(answers, gold, out, prompts=prompts, scorer=scorer)


def evaluate(
    opened: Opened,
    examples: Sequence[Example],
    sampling: Sampling,
    out: Path,
    *,
    tell_format: bool | None = None,
    seed: int = 0,
    scorer: Scorer = ROW_TASK.score,
    overwrite: bool = False,
    console: Console | None = None,
) -> Summary:
    """Let the model answer the examples' prompts, score its answers, and write samples.jsonl and summary.json to `out`.

    Args:
        tell_format: append `tags.INSTRUCTION` to each question; None: only for a model not trained for the format. A
            tuned model is asked exactly as it was trained.
        seed: for sampling that has none.
        overwrite: begin the journal anew.

    Raises:
        Interrupted, DiskFull, OutOfMemory, GenerationError: see `complete`.
    """
    console = console or Console(stderr=True)
    if sampling.seed is None:
        sampling = sampling.model_copy(update={"seed": seed})
    tell_format = not opened.tuned if tell_format is None else tell_format
    hold_date(opened.chat, out / "journal.jsonl", overwrite=overwrite)
    prompts = [_prompt(example, tell_format) for example in examples]
    requests = [
        Request(f"{example.source}:{example.row}", opened.chat.prompt_ids(prompt), sampling)
        for example, prompt in zip(examples, prompts, strict=True)
    ]
    done = complete(
        opened.engine,
        requests,
        out / "journal.jsonl",
        model=opened.fingerprint,
        console=console,
        overwrite=overwrite,
    )
    samples = [
        [
            _sample(example, tags.valid_text(prompt[-1]["content"]), done.completions[request.id, index], scorer)
            for index in range(sampling.n)
        ]
        for example, prompt, request in zip(examples, prompts, requests, strict=True)
    ]
    summary = _summarise(samples, done, sampling, told_format=tell_format)
    with telling_full_disk(out):
        write_json_lines(out / "samples.jsonl", (line for group in samples for line in group))
        write_json(out / "summary.json", summary.as_dict())
    return summary


def comparison_table(summaries: Mapping[str, Summary]) -> Table:
    """Make a table of a column a model: format rate, accuracies with their intervals, problems, tokens."""
    each_of = list(summaries.values())
    rows = {
        **rate_rows(each_of),
        "cut off by length": [str(each.outcomes.get("cut off", 0)) for each in each_of],
        "problems": [str(each.n) for each in each_of],
        "tokens an answer": [f"{each.mean_tokens:.0f}" for each in each_of],
        "told the format": ["yes" if each.told_format else "no" for each in each_of],
    }
    return scores_table(summaries, rows)


def _prompt(example: Example, tell_format: bool) -> Messages:
    return told(example.messages) if tell_format else example.messages


def told(messages: Messages) -> Messages:
    """Append an explanation of the format to the last turn."""
    *context, last = messages
    return (*context, {**last, "content": f"{last['content']}\n\n{tags.INSTRUCTION}"})


def _sample(example: Example, prompt: str, completion: Completion, scorer: Scorer) -> dict[str, Any]:
    """Score a completion and make its line of samples.jsonl."""
    completion = replace(completion, text=tags.valid_text(completion.text))
    reference = tags.valid_text(example.answer)
    score = scorer(completion.text, {"reference": reference, "prompt": prompt}, completion.finish_reason)
    line = sample_line(completion, reference, score)
    line |= {"source": example.source, "row": example.row, "prompt": prompt, "tokens": completion.tokens}
    return {name: line[name] for name in _SAMPLE}


def _summarise(samples: Sequence[Problem], done: Completed, sampling: Sampling, *, told_format: bool) -> Summary:
    lines = [line for problem in samples for line in problem]
    return Summary(
        **vars(score_problems(samples)),
        mean_tokens=fmean(line["tokens"] for line in lines),
        tokens_per_second=done.tokens_per_second,
        told_format=told_format,
        sampling=sampling.model_dump(mode="json", exclude={"seed"}),
        scorer=lines[0]["scorer"],
        notes=dict(Counter(line["note"] for line in lines if line["note"]).most_common()),
    )
