"""Rejection sampling, `thinktune collect MODEL DATA -o rows.jsonl`: a model learns from its own right answers.

Several completions are drawn for each problem; of those that are right and well-formed, some become rows (Yuan et al.
2023, https://arxiv.org/abs/2308.01825). A right and a wrong one of the same problem make a pair, to learn a preference
from. Beside the rows lies the journal from which a stopped call goes on.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from thinktune.config import Data, Format, Infer, Sampling
from thinktune.data import Row, RowFault
from thinktune.data.row_formats import ROW_FORMATS, find_format, to_example
from thinktune.errors import DataError, GenerationError
from thinktune.evaluation.evaluate import told
from thinktune.evaluation.metrics import Scores, rate_rows, sample_line, score_lines, scores_table
from thinktune.evaluation.predictions import read_gold
from thinktune.evaluation.significance import wilson
from thinktune.files import telling_full_disk, write_json, write_json_lines
from thinktune.inference.batch_file import read_batch_file
from thinktune.inference.complete import complete
from thinktune.inference.engines import EngineSettings, Opened, open_engine
from thinktune.inference.engines.base import Completion, Request
from thinktune.inference.problems import GoldItem, read_problems
from thinktune.inference.profiles import samplings
from thinktune.inference.shard import journal_of
from thinktune.models.template_date import hold_date
from thinktune.scoring import Score, Task, tasks_scored_by
from thinktune.scoring.rewards import answer_reward, shows_thought
from thinktune.tags import parse, valid_text

Choose = Literal["distinct", "shortest", "difficulty"]
_FINISHED = ("right", "wrong", "malformed", "no answer")


@dataclass(frozen=True)
class Scored:
    """A completion and what may become of it.

    Attributes:
        fault: why it cannot be a row; None: it can.
        bad: it shows what not to write: finished, and known not to be right.
    """

    completion: Completion
    score: Score
    fault: str | None
    bad: bool

    @property
    def words(self) -> tuple[str, ...]:
        """The words of thought and answer, by which completions are the same."""
        parsed = parse(self.completion.text)
        return tuple(f"{parsed.think} {parsed.answer}".split())


@dataclass(frozen=True)
class Choice:
    """The completions of a problem that become rows, no two of the same words.

    Attributes:
        how: "distinct" takes them as they were drawn, "shortest" by their tokens. "difficulty" takes them as they were
            drawn, and fewer of a problem that is often solved, none of one that always is (Tong et al. 2024,
            https://arxiv.org/abs/2407.13690, Prop2Diff).
        most: rows, and pairs, of a problem.
    """

    how: Choose = "distinct"
    most: int = 4

    def of(self, group: Sequence[Scored]) -> list[Scored]:
        """Choose from all completions of a problem."""
        right = [each for each in group if each.fault is None]
        most = math.ceil(self.most * (1 - len(right) / len(group))) if self.how == "difficulty" else self.most
        return self._ordered(right)[:most]

    def pairs_of(self, group: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
        """Choose a right and a wrong completion for each pair."""
        right, bad = ([each for each in group if each.fault is None], [each for each in group if each.bad])
        return list(zip(self._ordered(right), self._ordered(bad), strict=False))[: self.most]

    def _ordered(self, group: Sequence[Scored]) -> list[Scored]:
        distinct = list({each.words: each for each in reversed(group)}.values())[::-1]
        return sorted(distinct, key=lambda each: each.completion.tokens) if self.how == "shortest" else distinct


@dataclass(frozen=True)
class Collected:
    """The outcome.

    Attributes:
        scores: of all completions, by item type.
        solved: problems with a completion that can be a row.
        solved_by: number of problems by their number of such completions.
        rows, pairs: number written; of pairs None if none were asked for.
        left_out: number of completions that cannot be rows, by reason.
    """

    scores: dict[str, Scores]
    problems: int
    solved: int
    solved_by: dict[int, int]
    rows: int
    pairs: int | None
    left_out: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Table:
        """Make a table of a column an item type: rates and pass@k, with intervals."""
        types = list(self.scores.values())
        rows = {"problems": [str(each.n) for each in types], "completions": [str(each.completions) for each in types]}
        rows |= rate_rows(types)
        shown = [name for name in {name: 0 for each in types for name in each.measures} if _is_shown(name)]
        for name in shown:
            rates = [wilson(each.measures[name] * each.n, each.n) if name in each.measures else "" for each in types]
            rows[name] = list(map(str, rates))
        return scores_table(self.scores, rows)

    def remarks(self) -> list[str]:
        """Say what was kept and what was not, a line each."""
        right = ", ".join(f"{count} with {number}" for number, count in self.solved_by.items())
        lines = [f"problems by their right and well-formed completions: {right}"]
        if self.left_out:
            lines.append("left out: " + ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()))
        kept = f"{self.rows} rows" + (f" and {self.pairs} pairs" if self.pairs is not None else "")
        return [*lines, f"{kept} of {self.solved} of {self.problems} problems"]


def _is_shown(measure: str) -> bool:
    """Leave out pass@k but for powers of two."""
    name, _, k = measure.partition("@")
    return name != "pass" or int(k).bit_count() == 1


def collect(
    reference: str | Path,
    data: Data,
    out: Path,
    settings: EngineSettings | None = None,
    *,
    choice: Choice | None = None,
    pairs: Path | None = None,
    gold: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    tell_format: bool | None = None,
    seed: int = 0,
    scorer: str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Collected:
    """Draw completions, and write rows of the right ones to `out`, and pairs of right and wrong ones to `pairs`.

    Args:
        data: rows with answers, a batch file with its gold records, or with `gold` a batch file.
        changes: settings over the sampling of each item type.
        tell_format: as for `evaluate_data`; rows have the questions alone.
        scorer: `module:function` of a user's own, see `scoring.own_scorer`.
        overwrite: begin the journal anew.

    Raises:
        GenerationError: no completion is right and well-formed.
        DataError, BatchFileError, …: see `read_problems`, `read_gold`, `open_engine` and `complete`.
    """
    console, choice = console or Console(stderr=True), choice or Choice()
    tasks = tasks_scored_by(scorer)
    drawn = samplings(Infer(), seed, **(changes or {}))
    of_gold = _read_items(data, gold, tasks) if gold else None
    with open_engine(reference, settings) as opened:
        fmt = Format.model_validate(opened.format_settings)
        problems = of_gold or read_problems(data, fmt, seed, load=opened.settings.load)
        hold_date(opened.chat, journal_of(out), overwrite=overwrite)
        tell_format = not opened.tuned if tell_format is None else tell_format
        requests = [_request(problem, opened, drawn[problem.type], tell_format) for problem in problems]
        done = complete(
            opened.engine, requests, journal_of(out), model=opened.fingerprint, console=console, overwrite=overwrite
        )
    jobs = [
        (done.completions[request.id, index], problem, tasks[problem.type], fmt)
        for problem, request in zip(problems, requests, strict=True)
        for index in range(request.sampling.n)
    ]
    # Threads: what takes long are processes of their own, which are waited for.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        scored = iter(list(pool.map(lambda job: assess(*job), jobs)))
    groups = [(each, [next(scored) for _ in range(drawn[each.type].n)]) for each in problems]
    source = {"model": str(reference), "fingerprint": opened.fingerprint, "sampling": {**(changes or {}), "seed": seed}}
    rows = [_row(problem, each, group, source) for problem, group in groups for each in choice.of(group)]
    both = [_pair(problem, *pair, group, source) for problem, group in groups for pair in choice.pairs_of(group)]
    collected = _summarise(groups, tasks, len(rows), None if pairs is None else len(both))
    if not rows:
        raise GenerationError(
            "no rows: " + "; ".join(collected.remarks()),
            hint="train the format first, draw more, or take easier problems",
        )
    with telling_full_disk(out):
        write_json_lines(out, rows)
        write_json(out.with_name(f"{out.stem}.report.json"), collected.as_dict())
        if pairs is not None:
            write_json_lines(pairs, both)
    return collected


def _read_items(data: Data, gold: Path, tasks: Mapping[str, Task]) -> list[GoldItem]:
    """Read a batch file, and its gold records from another file.

    Raises:
        BatchFileError, DataError: one of them cannot be used, or they share no id.
    """
    records, file = read_gold(gold, tasks), data.sources[0].source
    items = [(str(item.id), item) for item in read_batch_file(file)]
    problems = [
        GoldItem(name, item.messages, records[name]["type"], {"prompt": item.messages[-1]["content"], **records[name]})
        for name, item in items
        if name in records
    ]
    if not problems:
        raise DataError(f"{file} and {gold} share no id")
    return problems[: data.sample]


def _request(problem: GoldItem, opened: Opened, sampling: Sampling, tell_format: bool) -> Request:
    messages = told(problem.messages) if tell_format else problem.messages
    return Request(problem.id, opened.chat.prompt_ids(messages), sampling)


def assess(completion: Completion, problem: GoldItem, task: Task, fmt: Format) -> Scored:
    """Score a completion, and find out whether training takes it.

    Args:
        fmt: of the training.
    """
    completion = replace(completion, text=valid_text(completion.text))
    score = task.score(completion.text, problem.gold, completion.finish_reason)
    worth = answer_reward(task, problem.gold, score)
    bad = worth is not None and worth < 1 and score.outcome in _FINISHED
    return Scored(completion, score, _fault(completion, problem, score, worth, fmt), bad)


def _fault(completion: Completion, problem: GoldItem, score: Score, worth: float | None, fmt: Format) -> str | None:
    """Explain why a completion cannot be a row; None if it can: training reads it as it will then."""
    if not score.correct:
        return score.outcome
    if worth != 1:
        return "right, but a computation"
    if not shows_thought(completion.text):
        return "right, but without a thought"
    fields = {"messages": _turns(problem, completion)}
    row_format = find_format(fields, ROW_FORMATS)
    assert row_format is not None
    try:
        to_example(Row(0, fields), row_format, problem.id, fmt, "keep")
    except RowFault as fault:
        return f"right, but {fault}"
    return None


def _turns(problem: GoldItem, completion: Completion) -> list[Mapping[str, str]]:
    return [*problem.messages, _reply(completion)]


def _reply(completion: Completion) -> dict[str, str]:
    return {"role": "assistant", "content": completion.text}


def _row(problem: GoldItem, chosen: Scored, group: Sequence[Scored], source: Mapping[str, Any]) -> dict[str, Any]:
    about = _provenance(problem, group, source) | {
        "sample": chosen.completion.index,
        "tokens": chosen.completion.tokens,
        "scorer": chosen.score.scorer,
    }
    return {"messages": _turns(problem, chosen.completion), "provenance": about}


def _pair(
    problem: GoldItem, right: Scored, bad: Scored, group: Sequence[Scored], source: Mapping[str, Any]
) -> dict[str, Any]:
    about = _provenance(problem, group, source) | {
        "samples": [right.completion.index, bad.completion.index],
        "outcome": bad.score.outcome,
        "scorer": right.score.scorer,
    }
    both = {"chosen": [_reply(right.completion)], "rejected": [_reply(bad.completion)]}
    return {"prompt": list(problem.messages), **both, "provenance": about}


def _provenance(problem: GoldItem, group: Sequence[Scored], source: Mapping[str, Any]) -> dict[str, Any]:
    reference = problem.gold.get("reference", problem.gold.get("answer"))
    right = sum(each.fault is None for each in group)
    return {
        **source,
        "problem": problem.id,
        "type": problem.type,
        "reference": reference,
        "right": right,
        "of": len(group),
    }


def _summarise(
    groups: Sequence[tuple[GoldItem, Sequence[Scored]]], tasks: Mapping[str, Task], rows: int, pairs: int | None
) -> Collected:
    lines: dict[str, list[dict[str, Any]]] = {}
    for problem, group in groups:
        lines.setdefault(problem.type, []).extend(
            {"id": problem.id, **sample_line(each.completion, None, each.score)} for each in group
        )
    solved_by = Counter(sum(each.fault is None for each in group) for _, group in groups)
    return Collected(
        {kind: score_lines(tasks[kind], lines[kind]) for kind in tasks if kind in lines},
        problems=len(groups),
        solved=len(groups) - solved_by[0],
        solved_by=dict(sorted(solved_by.items())),
        rows=rows,
        pairs=pairs,
        left_out=dict(Counter(each.fault for _, group in groups for each in group if each.fault).most_common()),
    )
