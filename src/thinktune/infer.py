"""Batch items to a result file: `thinktune infer MODEL FILE -o res.json`.

In: JSON lines `{"id", "type", "prompt"}`. Out: `{"result": {"results": [{"id", "content"}, …]}}` in the order of the
file, where content is a list for `code-generate` and wherever several completions were asked for, and a failed item is
`{"id", "error"}`. Beside it lies the journal from which a stopped call goes on.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from thinktune import tags
from thinktune.config import Infer, Load, Quantize, Sampling
from thinktune.engines import open_engine
from thinktune.engines.base import Engine, Request
from thinktune.errors import BatchFileError, GenerationError, ThinktuneError
from thinktune.files import write_json
from thinktune.journal import Completed, Record, complete, telling_full_disk
from thinktune.tasks import TASKS

if TYPE_CHECKING:
    from thinktune.models import Chat

BUILTIN = "builtin:questions"


@dataclass(frozen=True)
class Item:
    """One line of a batch file. `problem` is set where the line is faulty and was let through."""

    id: str | int | None
    type: str
    prompt: str
    problem: str | None = None


@dataclass(frozen=True)
class Inferred:
    """What became of a batch file. Counts are of completions, `items` and `failed` of items."""

    items: int
    failed: int
    completions: int
    well_formed: int
    cut_off: int
    problems: dict[str, int]
    clamped: int
    tokens_per_second: float | None
    out: Path

    def __str__(self) -> str:
        parts = [f"{self.items} items", f"{self.well_formed} of {self.completions} completions well-formed"]
        parts += [f"{count} {problem}" for problem, count in self.problems.items()]
        parts += [f"{self.cut_off} cut off by max_tokens or the context"] if self.cut_off else []
        parts += [f"{self.clamped} ended where the context did, before max_tokens"] if self.clamped else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.tokens_per_second:,.0f} tokens/s"] if self.tokens_per_second else []
        return f"{'; '.join(parts)}. Result: {self.out}"


def read_batch_file(path: str | Path, *, skip_bad: bool = False) -> list[Item]:
    """Read and check every line of a batch file, before any model is loaded.

    Args:
        path: JSON lines, UTF-8 with or without a byte order mark; `builtin:questions` for a small one.
        skip_bad: turn faulty lines into items with a `problem` instead of refusing the file.

    Raises:
        BatchFileError: the file is missing or empty, or, listing all of them, lines are faulty.
    """
    items: list[Item] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        item = _parse_line(line)
        name = str(item.id)
        if item.id is not None and name in lines_of:
            item = Item(item.id, item.type, item.prompt, f"id {name!r} is used in line {lines_of[name]} already")
        elif item.id is not None:
            lines_of[name] = number
        problem = f"line {number}: {item.problem}" if item.problem else None
        items.append(Item(item.id, item.type, item.prompt, problem))
    problems = [item.problem for item in items if item.problem]
    if not items:
        raise BatchFileError(f"{path}: has no items", hint='a line is {"id": …, "type": …, "prompt": …}')
    if problems and not skip_bad:
        raise BatchFileError(
            f"{path}: {len(problems)} of {len(items)} lines cannot be used:\n" + "\n".join(problems),
            hint="correct them, or give --skip-bad to have them reported as errors in the result",
        )
    return items


def infer_file(
    reference: str | Path,
    file: str | Path,
    out: Path,
    *,
    settings: Infer | None = None,
    load: Load | None = None,
    quantize: Quantize = "none",
    seed: int = 0,
    skip_bad: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Inferred:
    """`thinktune infer`: answer a batch file with the model that a reference names.

    The model is loaded only if the journal lacks something. Arguments and errors as for `read_batch_file`,
    `models.load_model` and `infer`.
    """
    console = console or Console(stderr=True)
    settings = settings or Infer()
    items = read_batch_file(file, skip_bad=skip_bad)
    with open_engine(
        reference,
        engine=settings.engine,
        load=load,
        quantize=quantize,
        batch_tokens=settings.batch_tokens,
        notify=console.print,
    ) as opened:
        return infer(
            opened.engine,
            opened.chat,
            items,
            out,
            model=opened.fingerprint,
            profiles=settings.profiles,
            seed=seed,
            overwrite=overwrite,
            console=console,
        )


def infer(
    engine: Engine,
    chat: Chat,
    items: Sequence[Item],
    out: Path,
    *,
    model: str,
    profiles: Mapping[Any, Sampling] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> Inferred:
    """Answer the items and write the result to `out`, going on from its journal.

    Args:
        model: fingerprint of the model, so that the answers of two models are never mixed.
        profiles: sampling by item type, instead of the tasks' own.
        seed: for sampling that has none.
        overwrite: forget what was finished before.

    Raises:
        GenerationError: every single item failed (the result, all errors, is written nevertheless).
        Interrupted, DiskFull, OutOfMemory: see `journal.complete`.
    """
    console = console or Console(stderr=True)
    samplings = {name: _sampling(name, profiles or {}, seed) for name in TASKS}
    failures = {at: item.problem for at, item in enumerate(items) if item.problem}
    requests: dict[int, Request] = {}
    for at, item in enumerate(items):
        if item.problem is None:
            try:
                ids = chat.prompt_ids([{"role": "user", "content": valid_text(item.prompt)}])
            except (ThinktuneError, ValueError, TypeError) as error:  # what tokenizers raise at text they do not like
                failures[at] = f"the prompt cannot be rendered: {error}"
            else:
                requests[at] = Request(str(item.id), ids, samplings[item.type])
    done = complete(engine, list(requests.values()), journal_of(out), model=model, console=console, overwrite=overwrite)
    results = [_result(item, failures.get(at), requests.get(at), done.records) for at, item in enumerate(items)]
    with telling_full_disk(out):
        write_json(out, {"result": {"results": results}})
    inferred = _count(results, requests, done, out)
    console.print(str(inferred), soft_wrap=True, markup=False, highlight=False)
    if inferred.failed == inferred.items:
        raise GenerationError(f"all {len(items)} items failed; the first: {results[0]['error']}", hint=f"see {out}")
    return inferred


def journal_of(out: Path) -> Path:
    """The journal that belongs to a result file."""
    return out.with_name(f"{out.stem}.journal.jsonl")


def valid_text(text: str) -> str:
    """Text that can be encoded: halves of surrogate pairs, which JSON can smuggle in, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _sampling(name: str, profiles: Mapping[Any, Sampling], seed: int) -> Sampling:
    sampling = profiles.get(name, TASKS[name].sampling)
    return sampling if sampling.seed is not None else sampling.model_copy(update={"seed": seed})


def _result(
    item: Item, failure: str | None, request: Request | None, records: Mapping[tuple[str, int], Record]
) -> dict[str, Any]:
    if request is None:
        return {"id": item.id, "error": failure}
    samples = [records[request.id, index] for index in range(request.sampling.n)]
    if errors := [record.error for record in samples if record.error is not None]:
        return {"id": item.id, "error": errors[0]}
    several = item.type == "code-generate" or len(samples) > 1
    return {"id": item.id, "content": [record.text for record in samples] if several else samples[0].text}


def _count(results: Sequence[dict[str, Any]], requests: Mapping[int, Request], done: Completed, out: Path) -> Inferred:
    records = [record for record in done.records.values() if record.error is None]
    limits = {request.id: request.sampling.max_tokens for request in requests.values()}
    problems = Counter(tags.parse(record.text).problem or "" for record in records if record.finish_reason == "stop")
    well_formed = sum(tags.parse(record.text).well_formed for record in records)
    problems.pop("", None)
    return Inferred(
        items=len(results),
        failed=sum("error" in result for result in results),
        completions=len(records),
        well_formed=well_formed,
        cut_off=sum(record.finish_reason == "length" and not tags.parse(record.text).well_formed for record in records),
        problems=dict(problems.most_common()),
        clamped=sum(record.finish_reason == "length" and record.tokens < limits[record.id] for record in records),
        tokens_per_second=done.tokens_per_second,
        out=out,
    )


def _read_lines(path: str | Path) -> Iterator[bytes]:
    if str(path) == BUILTIN:
        raw = resources.files("thinktune.data").joinpath("questions.jsonl").read_bytes()
    else:
        try:
            raw = Path(path).read_bytes()
        except FileNotFoundError:
            raise BatchFileError(f"there is no batch file {path}", hint=f"{BUILTIN} is a small one to try") from None
        except OSError as error:
            raise BatchFileError(f"{path}: cannot be read: {error.strerror}") from None
    yield from raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")


def _parse_line(line: bytes) -> Item:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Item(None, "", "", "is not UTF-8")
    except json.JSONDecodeError as error:
        return Item(None, "", "", f"is not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return Item(None, "", "", "is nested too deep")
    if not isinstance(fields, dict):
        return Item(None, "", "", "is not an object with id, type and prompt")
    id_problem, identity = _check_id(fields)
    problem = id_problem or _check_type(fields) or _check_prompt(fields)
    if problem:
        return Item(identity, "", "", problem)
    return Item(identity, fields["type"], fields["prompt"])


def _check_id(fields: Mapping[str, Any]) -> tuple[str | None, str | int | None]:
    identity = fields.get("id")
    if identity is None:
        return "has no id", None
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or not str(identity).strip():
        return f"id must be a text or a whole number, not {json.dumps(identity)[:40]}", None
    if valid_text(str(identity)) != str(identity):
        return "id is not valid Unicode", None
    return None, identity


def _check_type(fields: Mapping[str, Any]) -> str | None:
    kind = fields.get("type")
    if kind is None:
        return f"has no type; known are {', '.join(TASKS)}"
    if isinstance(kind, str) and kind in TASKS:
        return None
    near = difflib.get_close_matches(str(kind), TASKS, n=1)
    return (
        f"unknown type {json.dumps(kind)[:40]}; "
        + (f"did you mean {near[0]}? " if near else "")
        + (f"known are {', '.join(TASKS)}")
    )


def _check_prompt(fields: Mapping[str, Any]) -> str | None:
    prompt = fields.get("prompt")
    if prompt is None:
        return "has no prompt"
    if not isinstance(prompt, str):
        return f"prompt must be a text, not {json.dumps(prompt)[:40]}"
    return None if prompt.strip() else "prompt is blank"
