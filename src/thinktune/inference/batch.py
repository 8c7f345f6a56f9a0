"""Batch items to a result file: `thinktune infer MODEL FILE -o res.json`.

`batch_file` and `result_file` describe the input and the output. Beside the result file lies the journal from which a
stopped call goes on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from thinktune import tags
from thinktune.config import Sampling
from thinktune.errors import GenerationError
from thinktune.files import telling_full_disk
from thinktune.inference.batch_file import Item, read_batch_file
from thinktune.inference.complete import Completed, complete
from thinktune.inference.engines import EngineSettings, Opened, open_engine
from thinktune.inference.engines.base import Completion, Request
from thinktune.inference.rendering import render
from thinktune.inference.result_file import Result, ResultFormat, write_results
from thinktune.inference.shard import Shard, journal_of, journals_beside, require_ended
from thinktune.models.template_date import hold_date


@dataclass
class Inferred:
    """The outcome of a batch file. Counts are of completions, `items` and `failed` of items."""

    out: Path
    tokens_per_second: float | None
    items: int = 0
    failed: int = 0
    first_error: str = ""
    completions: int = 0
    well_formed: int = 0
    cut_off: int = 0
    closed: int = 0
    clamped: int = 0
    problems: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [f"{self.items} items", f"{self.well_formed} of {self.completions} completions well-formed"]
        parts += [f"{count} {problem}" for problem, count in self.problems.most_common()]
        parts += [f"{self.cut_off} cut off by max_tokens or the context"] if self.cut_off else []
        parts += [f"{self.closed} answers closed at their limit"] if self.closed else []
        parts += [f"{self.clamped} ended where the context did, before max_tokens"] if self.clamped else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.tokens_per_second:,.0f} tokens/s"] if self.tokens_per_second else []
        return f"{'; '.join(parts)}. Result: {self.out}"

    def count(self, results: Iterable[Result]) -> Iterator[Result]:
        """Count results as they pass."""
        for result in results:
            self.items += 1
            self.failed += result.error is not None
            self.first_error = self.first_error or result.error or ""
            for completion in result.completions:
                if completion.error is None:
                    self._count(completion, result.item.sampling)
            yield result

    def _count(self, completion: Completion, sampling: Sampling) -> None:
        problem = tags.parse(completion.text).problem
        at_limit = completion.finish_reason == "length"
        self.completions += 1
        self.well_formed += problem is None
        self.cut_off += at_limit and problem is not None
        # Under a budget a thought that ended early leaves max_tokens unused, and an answer is closed by us.
        if sampling.think_budget is not None:
            self.closed += at_limit
        else:
            self.clamped += at_limit and completion.tokens < sampling.max_tokens
        if problem is not None and not at_limit:
            self.problems[problem] += 1


def infer_files(
    reference: str | Path,
    files: Mapping[str | Path, Path],
    settings: EngineSettings | None = None,
    *,
    samplings: Mapping[str, Sampling],
    skip_bad: bool = False,
    **options: Any,
) -> list[Inferred]:
    """Answer batch files, one after the other, with the model that a reference names: `thinktune infer`.

    All files are checked before the model is loaded, which happens once, and only if a journal lacks something.
    Errors as for `read_batch_file`, `open_engine` and `infer`.

    Args:
        files: the result file of each batch file.
        samplings, skip_bad: see `read_batch_file`.
        options: of `infer`.
    """
    items = {file: read_batch_file(file, samplings=samplings, skip_bad=skip_bad) for file in files}
    with open_engine(reference, settings) as opened:
        return [infer(opened, items[file], out, name=str(reference), **options) for file, out in files.items()]


def infer(
    opened: Opened,
    items: Sequence[Item],
    out: Path,
    *,
    name: str = "",
    overwrite: bool = False,
    retry_errors: bool = False,
    form: ResultFormat = "results",
    shard: Shard | None = None,
    console: Console | None = None,
) -> Inferred:
    """Answer the items and write the result to `out`, going on from its journal and those of its shards.

    Args:
        name: of the model, for OpenAI's format.
        overwrite: forget earlier completions.
        retry_errors: generate only for the items that failed before.
        form: of the result file.
        shard: answer this part only, into its own journal, and write no result.

    Raises:
        GenerationError: every single item failed (the result, all errors, is written nevertheless).
        UsageError, Interrupted, DiskFull, OutOfMemory: see `complete`.
    """
    console = console or Console(stderr=True)
    beside = journals_beside(out, shard)
    if shard is not None:
        items = shard.of(items)
        beside = [] if overwrite else beside
    else:
        require_ended(beside)
        if overwrite:
            for journal in beside:
                journal.unlink()
            beside = []
    journal = journal_of(out, shard)
    hold_date(opened.chat, journal_of(out), overwrite=overwrite and shard is None, shared=bool(shard or beside))
    failures: dict[str, str] = {}
    requests: dict[str, Request] = {}
    sound = [item for item in items if item.problem is None]
    for item, rendered in zip(sound, render(opened.chat, [item.messages for item in sound]), strict=True):
        if isinstance(rendered, str):
            failures[str(item.id)] = rendered
        else:
            requests[str(item.id)] = Request(str(item.id), rendered, item.sampling)
    done = complete(
        opened.engine,
        list(requests.values()),
        journal,
        model=opened.fingerprint,
        console=console,
        overwrite=overwrite,
        only_failed=retry_errors,
        beside=beside,
    )
    inferred = Inferred(journal if shard else out, done.tokens_per_second)
    results = inferred.count(_results(items, failures, requests, done, counted=opened.engine.reads_tokens))
    if shard is None:
        with telling_full_disk(out):
            write_results(out, results, form=form, model=name)
    else:
        deque(results, maxlen=0)
        console.print(f"{shard}; the same command without --shard writes {out}", soft_wrap=True, highlight=False)
    console.print(str(inferred), soft_wrap=True, markup=False, highlight=False)
    if items and inferred.failed == inferred.items:
        raise GenerationError(f"all {len(items)} items failed; the first: {inferred.first_error}", hint=f"see {out}")
    return inferred


def _results(
    items: Sequence[Item],
    failures: Mapping[str, str],
    requests: Mapping[str, Request],
    done: Completed,
    *,
    counted: bool,
) -> Iterator[Result]:
    """Yield the result of each item. `counted`: the number of a prompt's tokens is known."""
    for item in items:
        request = requests.get(str(item.id))
        if item.problem is not None or request is None:
            yield Result(item, (), item.problem or failures[str(item.id)])
            continue
        places = [(request.id, index) for index in range(request.sampling.n)]
        if any(place not in done.completions for place in places):
            yield Result(item, (), "not answered yet: give the command without --retry-errors")
            continue
        completions = [done.completions[place] for place in places]
        error = next((each.error for each in completions if each.error is not None), None)
        yield Result(item, completions, error, len(request.prompt_ids) if counted else 0)
