"""A study: questions, the answers of several models to each, and people's ratings of them, in one folder.

`study.json` names models and seed; `answers.jsonl` has a line a question: `{"id", "prompt", "answers": {model: text},
"correct": {model: true, false or null}}`; `ratings.sqlite` is of `evaluation.ratings`. During preparation each model's
result file and journal lie beside them, so that a stopped one goes on.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console

from thinktune.config import SEED, Infer, Sampling
from thinktune.errors import RunFolderError, UsageError
from thinktune.evaluation.ratings import (
    Judgements,
    Rating,
    Ratings,
    Verdict,
    agreement,
    agreement_with_scores,
    bradley_terry,
    win_rate,
)
from thinktune.files import write_json, write_text
from thinktune.inference.batch import infer
from thinktune.inference.batch_file import BUILTIN, Item, read_batch_file
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.inference.profiles import samplings
from thinktune.records import read_records
from thinktune.report.candidates import read_scores
from thinktune.run_folder import RunFolder
from thinktune.studio.answer_table import Row
from thinktune.studio.batch_jobs import count_lines
from thinktune.studio.known_answers import golds_of, is_right
from thinktune.studio.model_pool import Pool

_NAME = re.compile(r"[\w][\w .-]{0,63}")


@dataclass(frozen=True)
class Question:
    """One item of a study; `correct` is the automatic score, where there is one."""

    id: str
    prompt: str
    answers: dict[str, str]
    correct: dict[str, bool | None]
    reference: str = ""


@dataclass(frozen=True)
class Pair:
    """The view of a rater: two answers to one question, names hidden."""

    question: Question
    left: str
    right: str


class Study:
    """A folder with a study in it."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            RunFolderError: there is no prepared study in the folder.
        """
        if not (folder / "answers.jsonl").is_file():
            raise RunFolderError(f"{folder.name} is no study that is ready")
        self.folder = folder
        self.settings: dict[str, Any] = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        self.questions = [Question(**line) for line in read_records(folder / "answers.jsonl", dict[str, Any])]
        self.ratings = Ratings(folder / "ratings.sqlite")

    @property
    def models(self) -> list[str]:
        return list(self.settings["models"])

    def pairs(self, rater: str) -> list[Pair]:
        """Return every pair that a rater is to judge, in an order and with sides of their own, always the same."""
        found = [
            (question, pair)
            for question in self.questions
            for pair in combinations([model for model in self.models if model in question.answers], 2)
        ]
        # The sides of one pair must not depend on how many others there are.
        shuffled = random.Random(f"{self.settings['seed']}/{rater}")
        shuffled.shuffle(found)
        pairs = []
        for question, pair in found:
            sides = list(pair)
            random.Random(f"{self.settings['seed']}/{rater}/{question.id}/{pair}").shuffle(sides)
            pairs.append(Pair(question, *sides))
        return pairs

    def next(self, rater: str, skipped: Sequence[tuple[str, str, str]] = ()) -> tuple[Pair | None, int, int]:
        """Return the first pair that a rater has not judged, the number of judged ones, and their total.

        Args:
            skipped: id and sides of pairs that come after all others, in this order.
        """
        pairs = self.pairs(rater)
        done = {(each.item, each.first, each.second) for each in self.ratings.all() if each.rater == rater}
        rest = [pair for pair in pairs if (pair.question.id, *sorted((pair.left, pair.right))) not in done]
        places = {pair: place for place, pair in enumerate(skipped)}
        rest.sort(key=lambda pair: places.get((pair.question.id, pair.left, pair.right), -1))
        return (rest[0] if rest else None), len(pairs) - len(rest), len(pairs)

    def rate(self, rater: str, pair: Pair, verdict: Verdict, comment: str) -> None:
        """Record a rating; `first` is the left side. Raises as `Ratings.add` does."""
        self.ratings.add(Rating(rater, pair.question.id, pair.left, pair.right, verdict, comment))

    def results(self) -> dict[str, Any]:
        """Compute win rates of every two models, strengths, agreement; the caller turns them into plain values."""
        judged = Judgements()
        judged.add_study(self.folder / "ratings.sqlite")
        ratings, problems = judged.ratings, judged.problems
        return {
            "ratings": len(ratings),
            "raters": len({rating.rater for rating in ratings}),
            "old_display": sum(rating.display is None for rating in ratings),
            "wins": [(one, two, win_rate(ratings, one, two, problems)) for one, two in combinations(self.models, 2)],
            "strengths": bradley_terry(ratings) if len(self.models) > 2 else {},
            "raters_agree": agreement(ratings),
            "scores_agree": agreement_with_scores(ratings, judged.scores, problems),
        }

    def export(self) -> str:
        """Return every rating as JSON lines."""
        return "".join(json.dumps(asdict(rating), ensure_ascii=False) + "\n" for rating in self.ratings.all())


def names(folder: Path) -> list[str]:
    """List the studies in a folder that are ready, newest first."""
    found = [file.parent for file in folder.glob("*/answers.jsonl")]
    return [study.name for study in sorted(found, key=lambda study: -study.stat().st_mtime)]


def throw_away(study: Path) -> None:
    """Move a study out of the list, into the folder `deleted` beside all studies: ratings are people's work."""
    bin_ = study.parent.parent / "deleted"
    bin_.mkdir(exist_ok=True)
    study.rename(bin_ / f"{time.strftime('%Y%m%d-%H%M%S')} {study.name}")


def new_folder(folder: Path, name: str) -> Path:
    """Return the folder of a new study of that name.

    Raises:
        UsageError: the name is not one for a folder, or taken by a study that is ready.
    """
    name = name.strip()
    if not _NAME.fullmatch(name) or ".." in name:
        raise UsageError(f"{name!r} cannot be the name of a study", hint="letters, digits, spaces, dots, dashes")
    if (folder / name / "answers.jsonl").exists():
        raise UsageError(f"there is a study {name} already", hint="choose another name")
    return folder / name


def study_of_scores(folder: Path, runs: Sequence[Path], *, seed: int) -> Study:
    """Make a study of answers that `eval` or `run` made and scored: of each run, and of the first base model.

    Raises:
        UsageError: fewer than two models that were given the same problems.
    """
    answers: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        sources = [(run.name, read_scores(RunFolder(run), "tuned")[1])]
        if not any(name.startswith("base of ") for name in answers):
            sources.append((f"base of {run.name}", read_scores(RunFolder(run), "base")[1]))
        for name, samples in sources:
            if samples:
                answers[name] = {f"{line['source']}:{line['row']}:{line['sample']}": line for line in samples}
    shared = [item for item in next(iter(answers.values()), {}) if all(item in each for each in answers.values())]
    if len(answers) < 2 or not shared:
        raise UsageError("these runs have no scored answers of two models to the same problems", "score them first")
    questions = [
        Question(
            item,
            next(iter(answers.values()))[item]["prompt"],
            {name: lines[item]["completion"] for name, lines in answers.items()},
            {name: lines[item]["correct"] for name, lines in answers.items()},
            str(next(iter(answers.values()))[item].get("reference") or ""),
        )
        for item in shared
    ]
    return _write(folder, questions, {"models": list(answers), "seed": seed, "source": "scores"})


def study_of_models(
    folder: Path,
    pool: Pool,
    models: Sequence[str],
    questions: str | Path | None,
    *,
    seed: int,
    handle: RequestHandle,
    tell: Callable[[str], None] = lambda model: None,
) -> Study:
    """Let models answer a batch file, and make a study of it.

    Args:
        questions: as for `infer`. None: the built-in ones.
        tell: called with the name of the model that answers now.

    Raises:
        UsageError: fewer than two models.
        BatchFileError, GenerationError, Interrupted: see `read_batch_file` and `infer`.
    """
    if len(set(models)) < 2:
        raise UsageError("a comparison needs two models or more")
    settings: dict[str, Sampling] = {name: each.changed(n=1) for name, each in samplings(Infer(), seed).items()}
    items = read_batch_file(questions or BUILTIN, samplings=settings)
    golds = golds_of(questions or BUILTIN)
    answers: dict[str, dict[str, str]] = {}
    for number, model in enumerate(models):
        tell(model)
        out = folder / f"model{number}.json"
        infer(pool.open(model, handle), items, out, name=model, console=Console(quiet=True))
        answers[model] = dict(_texts(out))
    found = [
        _question(item, {model: texts[str(item.id)] for model, texts in answers.items()}, golds.get(str(item.id)))
        for item in items
        if all(str(item.id) in texts for texts in answers.values())
    ]
    return _write(folder, found, {"models": list(models), "seed": seed, "source": "models"})


def study_of_rows(folder: Path, models: Sequence[str], rows: Sequence[Row], name: str) -> Study:
    """Make a study of answers that models have given to a question file.

    Args:
        folder: the folder of studies.
        name: the beginning of its name.

    Raises:
        UsageError: fewer than two models, or no row that all have answered.
    """
    if len(models) < 2:
        raise UsageError("a comparison needs two models or more")
    taken = {each.name for each in folder.glob("*")}
    chosen = next(each for each in (name, *(f"{name} {n}" for n in range(2, 10_000))) if each not in taken)
    questions = [
        Question(
            row.id,
            row.prompt,
            dict(zip(models, map(str, row.answers), strict=True)),
            dict(zip(models, row.right, strict=True)) if None not in row.right else {},
            row.reference,
        )
        for row in rows
        if None not in row.answers
    ]
    return _write(folder / chosen, questions, {"models": list(models), "seed": SEED, "source": "models"})


def finished(folder: Path, model: int) -> int:
    """Count a model's answers so far while a study is prepared."""
    return count_lines(folder / f"model{model}.journal.jsonl")


def _texts(out: Path) -> Iterator[tuple[str, str]]:
    for result in json.loads(out.read_text(encoding="utf-8"))["result"]["results"]:
        content = result.get("content")
        if content is not None:
            yield str(result["id"]), content if isinstance(content, str) else content[0]


def _question(item: Item, answers: dict[str, str], gold: dict[str, Any] | None) -> Question:
    correct = {model: is_right(item.type, text, gold) for model, text in answers.items()} if gold else {}
    return Question(str(item.id), _prompt(item), answers, correct, str((gold or {}).get("reference", "")))


def _prompt(item: Item) -> str:
    return "\n\n".join(turn["content"] for turn in item.messages)


def _write(folder: Path, questions: Sequence[Question], settings: dict[str, Any]) -> Study:
    if not questions:
        raise UsageError("no question has an answer of every model")
    write_json(folder / "study.json", settings)
    write_text(
        folder / "answers.jsonl",
        "".join(json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions),
    )
    return Study(folder)
