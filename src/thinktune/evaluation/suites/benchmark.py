"""Benchmarks as data: what is asked, how, and what is right (`suites.yaml`, or a file of the user's own)."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from thinktune.config import Sampling, read_values
from thinktune.config.explain import explain
from thinktune.config.section import Section
from thinktune.config.sections import ItemType
from thinktune.errors import ConfigError, UsageError


class Published(Section):
    """Published figures: average scores in percent, by the model's name without its owner."""

    by: str
    figures: dict[str, float]


class HarnessTask(Section):
    """A task of lm-evaluation-harness, and its metric of one problem that is the score."""

    task: str
    metric: str
    path: Path | None = Field(None, description="a folder with tasks of your own")


class Benchmark(Section):
    """A set of problems, with the settings that its figures are published with."""

    title: str
    type: ItemType = Field("math", description="decides the scorer")
    source: str = Field(description="a data set of the hub; without files: anything that DATA of `eval` may be")
    split: str = Field("test", description="of a source without files")
    revision: str | None = Field(None, description="commit of the hub; null: the newest at the first download")
    files: dict[str, str | None] = Field(
        default_factory=dict, description="files of the data set by path, each with its SHA-256; null: the first one's"
    )
    problems: int | None = Field(None, ge=1, description="their number; another one is refused")
    question: str = Field("{question}", description="text with {field} for the fields of a row")
    question_with: dict[str, str] = Field(
        default_factory=dict, description="another question for rows in which this field is not blank"
    )
    reference: str | None = Field(None, description="field of the right answer")
    after: str | None = Field(None, description="a mark, which the right answer stands behind")
    options: list[str] = Field(
        default_factory=list, description="fields of the options, the right one first; they are shuffled by question"
    )
    gold: dict[str, str] = Field(default_factory=dict, description="further keys of the gold record, by field")
    prompt: str = Field(
        "{question}", description="text around {question} for models that were not trained on thinktune's format"
    )
    sampling: Sampling = Sampling()
    harness: HarnessTask | None = Field(None, description="ask and score by lm-evaluation-harness")
    published: list[Published] = Field(default_factory=list)

    @model_validator(mode="after")
    def _whole(self) -> Benchmark:
        if self.files and not self.reference and not self.options and not self.gold:
            raise ValueError("needs `reference`, `options` or `gold`, the fields of the right answer")
        if "{question}" not in self.prompt:
            raise ValueError("prompt needs {question}")
        return self

    def published_for(self, model: str) -> dict[str, float]:
        """Return the published figures of a model, by their publisher; none if its name is no published one's."""
        name = model.removeprefix("openai:").partition("@")[0].rstrip("/").rpartition("/")[2].lower()
        return {
            each.by: value for each in self.published for known, value in each.figures.items() if known.lower() == name
        }


class _Suites(Section):
    suites: dict[str, list[str]] = Field(default_factory=dict)
    benchmarks: dict[str, Benchmark]

    @model_validator(mode="after")
    def _known(self) -> _Suites:
        for suite, names in self.suites.items():
            if unknown := [name for name in names if name not in self.benchmarks]:
                raise ValueError(f"suite {suite} names unknown benchmarks: {', '.join(unknown)}")
        return self


def read_suite(names: str) -> dict[str, Benchmark]:
    """Return the benchmarks of suites, by name.

    Args:
        names: suites and benchmarks, separated by commas, or a YAML file with `benchmarks` of the user's own.

    Raises:
        UsageError: one of them is unknown.
        ConfigError: the file cannot be used.
    """
    if names.endswith((".yaml", ".yml")):
        return _read(Path(names)).benchmarks
    with as_file(files(__package__) / "suites.yaml") as file:
        known = _read(file)
    chosen: dict[str, Benchmark] = {}
    for name in filter(None, map(str.strip, names.split(","))):
        if name not in known.suites and name not in known.benchmarks:
            raise UsageError(
                f"there is no suite or benchmark {name!r}",
                hint=f"suites are {', '.join(known.suites)}; benchmarks {', '.join(known.benchmarks)}; or a YAML file",
            )
        chosen |= {each: known.benchmarks[each] for each in known.suites.get(name, [name])}
    if not chosen:
        raise UsageError("--suite names nothing", hint=f"suites are {', '.join(known.suites)}")
    return chosen


def _read(file: Path) -> _Suites:
    values: dict[str, Any] = read_values(file)
    try:
        return _Suites.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{file}: " + "\n".join(explain(item, _Suites) for item in error.errors())) from None
