"""The records of thinktune's own work, read back.

Disks fail and people edit files: a damaged record is an error that names file and fault. Only the fields read are
checked; further ones pass, so that runs of other versions can be read too.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NotRequired, Required

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from thinktune.errors import RunFolderError

_LENIENT = ConfigDict(extra="allow")


class BestEvaluation(TypedDict, total=False):
    """The evaluation whose weights `train.stop` kept."""

    __pydantic_config__ = _LENIENT  # type: ignore[misc]
    step: Required[int]
    monitor: str
    eval_loss: float
    eval_token_accuracy: float
    stopped_early: bool


class RunRecord(TypedDict, total=False):
    """run.json, as far as it is read again. Seconds, GiB, nats."""

    __pydantic_config__ = _LENIENT  # type: ignore[misc]
    model: str
    dtype: str
    seed: int
    system: str | None
    hardware: dict[str, Any]
    parameters: int
    trainable_parameters: int
    steps: int
    epochs: float
    tokens: int
    trained_tokens: int
    tokens_per_second: float
    train_seconds: float
    peak_memory_gib: float
    final_loss: float
    final_token_accuracy: NotRequired[float]
    best: NotRequired[BestEvaluation]


class MetricsLine(TypedDict, total=False):
    """A line of metrics.jsonl."""

    __pydantic_config__ = _LENIENT  # type: ignore[misc]
    step: Required[int]
    loss: float
    token_accuracy: float
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    memory_gib: float
    eval_loss: float
    eval_token_accuracy: float
    eval_accuracy: float
    eval_format_rate: float


class SampleLine(TypedDict, total=False):
    """A line of an evaluation's samples.jsonl: a problem, a completion, its score."""

    __pydantic_config__ = _LENIENT  # type: ignore[misc]
    source: str
    row: int
    sample: Required[int]
    prompt: str | None
    completion: Required[str]
    correct: Required[bool | None]
    outcome: Required[str]
    lenient: bool | None
    tokens: int


class ReportedSource(TypedDict):
    """The rows of one source, in data_report.json."""

    __pydantic_config__ = _LENIENT  # type: ignore[misc]
    source: str
    read: int
    dropped: dict[str, list[int]]


class DataRecord(TypedDict):
    """data_report.json."""

    __pydantic_config__ = _LENIENT  # type: ignore[misc]
    sources: list[ReportedSource]
    fingerprint: str


class _Memory(TypedDict):
    __pydantic_config__ = _LENIENT  # type: ignore[misc]
    levels: list[str]


class _Setup(TypedDict):
    memory: _Memory
    rows: int
    accumulation: int
    graphed: NotRequired[bool]


class _Rate(TypedDict):
    value: float
    rule: str | None


class _Plan(TypedDict):
    __pydantic_config__ = _LENIENT  # type: ignore[misc]
    hardware: Any
    gpus: NotRequired[int]
    slopes: NotRequired[tuple[float, float]]
    rate: NotRequired[_Rate]


class PlanRecord(TypedDict):
    """plan.json: the way a run spreads its packs, the settings asked for, and the prediction."""

    setup: _Setup
    asked: dict[str, Any]
    plan: _Plan


class EvalSummary(TypedDict, total=False):
    """summary.json of an evaluation. Rates and their 95% intervals are between 0 and 1."""

    __pydantic_config__ = _LENIENT  # type: ignore[misc]
    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    accuracy_lenient: float
    accuracy_lenient_interval: tuple[float, float]
    accuracy_completed: float | None
    format_rate: float
    format_rate_interval: tuple[float, float]


class BenchmarkRecord(TypedDict, total=False):
    """summary.json of a benchmark, as far as it is always needed."""

    __pydantic_config__ = _LENIENT  # type: ignore[misc]
    benchmark: str
    title: str
    model: str
    fingerprint: str
    problems: int
    of: int
    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    measures: dict[str, float]
    cut_off: float | None
    well_formed: float | None
    mean_tokens: float | None
    tokens_per_second: float | None
    seconds: float
    sampling: dict[str, Any]
    changed: list[str]
    asked: str
    scorer: str


def read_record(file: Path, shape: Any, *, whole: bool = False) -> Any:
    """Read the value of a JSON file that thinktune wrote.

    Args:
        shape: expected type, as pydantic takes it.
        whole: whether all fields of the shape have to be there, but for those that are NotRequired.

    Raises:
        RunFolderError: the file is missing, cannot be read, or is something else.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror}") from None
    value = _checked(text, shape, str(file))
    needed = [name for name, kind in shape.__annotations__.items() if "NotRequired" not in str(kind)] if whole else []
    if lacking := [name for name in needed if name not in value]:
        raise _damaged(str(file), f"it lacks {', '.join(lacking)}")
    return value


def read_records(file: Path, shape: Any) -> list[Any]:
    """Read the values of a JSON lines file; none if there is no file. A last line that is not whole was being written.

    Raises:
        RunFolderError: the file cannot be read, or a line is something else.
    """
    try:
        lines = file.read_bytes().split(b"\n")  # splitlines would also end lines inside of texts
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror}") from None
    return [_checked(line, shape, f"{file}, line {at}") for at, line in enumerate(lines[:-1], start=1) if line.strip()]


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    """Make the validator of a shape, once: this takes longer than reading hundreds of lines."""
    return TypeAdapter(shape)


def _checked(text: bytes, shape: Any, where: str) -> Any:
    try:
        value = json.loads(text)
        _adapter(shape).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(where, f"{place}: {first['msg']}" if place else first["msg"]) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(where, str(error)) from None
    return value


def _damaged(where: str, why: str) -> RunFolderError:
    return RunFolderError(f"{where} is damaged: {why}", hint="restore it from a copy, or make the run anew")
