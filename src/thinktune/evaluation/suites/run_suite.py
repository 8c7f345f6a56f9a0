"""`thinktune eval MODEL --suite SUITE`: benchmarks with the settings that their figures are published with.

Each benchmark has a folder with `summary.json`, `samples.jsonl` and the journal from which a stopped call goes on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from thinktune.config import Data, Sampling
from thinktune.errors import DataError, DownloadError, MissingExtra
from thinktune.evaluation.evaluate import told
from thinktune.evaluation.metrics import sample_line, score_lines
from thinktune.evaluation.suites.benchmark import Benchmark
from thinktune.evaluation.suites.harness_benchmark import load_harness_task, run_harness_task
from thinktune.evaluation.suites.pinned_files import NotAvailable, PinnedFiles
from thinktune.evaluation.suites.problems import draw, load_problems, require_count
from thinktune.evaluation.suites.results import (
    BenchmarkScores,
    SuiteScores,
    published_sample,
    read_benchmarks,
    write_results,
)
from thinktune.inference.complete import complete
from thinktune.inference.engines import EngineSettings, Opened, open_engine
from thinktune.inference.engines.base import Completion, Request
from thinktune.inference.problems import GoldItem
from thinktune.models.template_date import hold_date
from thinktune.scoring import TASKS
from thinktune.tags import valid_text


@dataclass(frozen=True)
class Asked:
    """A benchmark that is about to be asked.

    Attributes:
        count: problems that are asked, `of` those that it has.
        items: the problems; none of a task of lm-evaluation-harness, which has its own.
    """

    name: str
    benchmark: Benchmark
    sampling: Sampling
    count: int
    of: int
    items: Sequence[GoldItem] = ()
    files: PinnedFiles | None = None
    harness: Any = None

    def as_dict(self, model: str, fingerprint: str) -> dict[str, Any]:
        """Return the values of a summary that are known before anything is asked."""
        own = self.benchmark.sampling.model_dump()
        return {
            "benchmark": self.name,
            "title": self.benchmark.title,
            "model": model,
            "fingerprint": fingerprint,
            "problems": self.count,
            "of": self.of,
            "n": self.sampling.n,
            "sampling": self.sampling.model_dump(mode="json"),
            "changed": [
                key for key, value in self.sampling.model_dump().items() if key != "seed" and value != own[key]
            ],
            "revision": self.files.revision if self.files else None,
            "files": self.files.hashes if self.files else {},
            "published": self.benchmark.published_for(model),
        }


def evaluate_suite(
    reference: str | Path,
    benchmarks: Mapping[str, Benchmark],
    out: Path,
    settings: EngineSettings | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    sample: int | None = None,
    tell_format: bool | None = None,
    seed: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
    cache: Path | None = None,
) -> SuiteScores:
    """Score a model on benchmarks, and write a folder for each below `out`.

    Args:
        benchmarks: by name, see `read_suite`.
        changes: settings over the sampling of each benchmark.
        sample: number of problems of each benchmark, drawn by seed; None: all.
        tell_format: None: a model that was trained for thinktune's format gets the question alone, another one the
            prompt of the benchmark. True: the question with the format explained; False: the question alone.
        cache: of downloaded files; None: below that of `data.cache`.

    A benchmark that cannot be had, or is not the pinned one, is named in the result, and the others go on.

    Raises:
        Interrupted, DiskFull, OutOfMemory, GenerationError: see `complete`.
    """
    console, settings = console or Console(stderr=True), settings or EngineSettings()
    cache = cache or Data.model_fields["cache"].default / "benchmarks"
    asked: list[Asked] = []
    not_run: dict[str, str] = {}
    failed: list[str] = []
    for name, benchmark in benchmarks.items():
        sampling = benchmark.sampling.changed(**{"seed": seed, **(changes or {})})
        try:
            asked.append(_prepare(name, benchmark, sampling, sample, seed, cache, settings))
        except (DataError, DownloadError, MissingExtra) as error:
            why = error.message.removeprefix(f"{benchmark.title}: ") + (f" ({error.hint})" if error.hint else "")
            not_run[benchmark.title] = f"{benchmark.title}: {why}"
            if not isinstance(error, NotAvailable | MissingExtra):
                failed.append(benchmark.title)
    for line in [*(f"not run: {why}" for why in not_run.values()), *cost(asked, out)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    scores = []
    if asked:
        with open_engine(reference, settings) as opened:
            hold_date(opened.chat, out / "journal.jsonl", overwrite=overwrite, shared=True)
            for each in asked:
                count = f"{each.count:,} problem{'s' * (each.count > 1)}"
                console.print(f"{each.benchmark.title}: {count}", style="dim", highlight=False)
                run = _run if each.harness is None else run_harness_task
                scores.append(run(opened, str(reference), each, out / each.name, tell_format, overwrite, console))
    return SuiteScores(scores, not_run, failed)


def cost(asked: Sequence[Asked], out: Path) -> list[str]:
    """Say how much there is to generate at most, and how long that takes at the rate of an earlier evaluation."""
    if not asked:
        return []
    completions = sum(each.count * each.sampling.n for each in asked)
    tokens = sum(each.count * each.sampling.n * each.sampling.max_tokens for each in asked)
    line = (
        f"{len(asked)} benchmark{'s' * (len(asked) > 1)}, {sum(each.count for each in asked):,} problems, "
        f"{completions:,} completions, {tokens:,} tokens at most"
    )
    before = read_benchmarks(out)
    rates = [each.tokens_per_second for each in before.values() if each.tokens_per_second]
    if not rates:
        return [f"{line}; their time is not known before the first ones are there"]
    rate = fmean(rates)
    most = timedelta(seconds=round(tokens / rate))
    about = ""
    if means := {name: each.mean_tokens for name, each in before.items() if each.mean_tokens}:
        usual = fmean(means.values())
        likely = sum(each.count * each.sampling.n * means.get(each.name, usual) for each in asked)
        about = f"about {timedelta(seconds=round(likely / rate))} with completions as long as before, "
    return [f"{line}; {about}{most} at most, at {rate:,.0f} tokens/s as before"]


def _prepare(
    name: str,
    benchmark: Benchmark,
    sampling: Sampling,
    sample: int | None,
    seed: int,
    cache: Path,
    settings: EngineSettings,
) -> Asked:
    if benchmark.harness is not None:
        task, of = load_harness_task(benchmark.harness)
        require_count(benchmark, of)
        return Asked(name, benchmark, sampling.changed(n=1), min(of, sample or of), of, harness=task)
    problems = load_problems(name, benchmark, cache, settings.load, seed)
    items = draw(problems.items, sample, seed)
    return Asked(name, benchmark, sampling, len(items), len(problems.items), items, problems.files)


def _run(
    opened: Opened,
    model: str,
    asked: Asked,
    out: Path,
    tell_format: bool | None,
    overwrite: bool,
    console: Console,
) -> BenchmarkScores:
    """Let the model answer the problems, score the answers, and write samples.jsonl and summary.json."""
    way = _way(opened, tell_format)
    prompts = [_prompt(item, asked.benchmark, way) for item in asked.items]
    requests = [
        Request(item.id, opened.chat.prompt_ids(prompt), asked.sampling)
        for item, prompt in zip(asked.items, prompts, strict=True)
    ]
    done = complete(
        opened.engine,
        requests,
        out / "journal.jsonl",
        model=opened.fingerprint,
        console=console,
        overwrite=overwrite,
    )
    jobs = [(item, done.completions[item.id, at]) for item in asked.items for at in range(asked.sampling.n)]
    # Threads: what takes long are processes of their own, which are waited for.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        lines = list(pool.map(lambda job: _sample(*job), jobs))
    scores = score_lines(TASKS[asked.benchmark.type], lines)
    assert scores.strict is not None
    summary = BenchmarkScores(
        **asked.as_dict(model, opened.fingerprint),
        accuracy=scores.strict,
        measures=scores.measures,
        cut_off=fmean(line["finish_reason"] == "length" for line in lines),
        well_formed=scores.format.value,
        mean_tokens=fmean(line["tokens"] for line in lines),
        tokens_per_second=done.tokens_per_second,
        seconds=done.seconds,
        asked=way,
        scorer=lines[0]["scorer"],
        outcomes=scores.outcomes,
        notes=dict(Counter(line["note"] for line in lines if line["note"]).most_common()),
    )
    write_results(out, summary, lines)
    return summary


def _way(opened: Opened, tell_format: bool | None) -> str:
    if tell_format is None:
        return "alone" if opened.tuned else "as published"
    return "with the format explained" if tell_format else "alone"


def _prompt(item: GoldItem, benchmark: Benchmark, way: str) -> Any:
    if way == "with the format explained":
        return told(item.messages)
    if way == "alone":
        return item.messages
    *context, last = item.messages
    return (*context, {**last, "content": benchmark.prompt.replace("{question}", last["content"])})


def _sample(item: GoldItem, completion: Completion) -> dict[str, Any]:
    """Score a completion as benchmarks are, and make its line of samples.jsonl."""
    completion = replace(completion, text=valid_text(completion.text))
    score = TASKS[item.type].score(completion.text, item.gold, completion.finish_reason)
    score = replace(score, note=score.note or completion.error)
    line = sample_line(completion, item.gold.get("reference"), score)
    where = {"id": item.id, "type": item.type, "prompt": valid_text(item.messages[-1]["content"])}
    return published_sample({**where, **line, "tokens": completion.tokens})
