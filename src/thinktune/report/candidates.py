"""The models of a comparison, read from their run folders: tuned ones, the base, the adapter that was gone on with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from thinktune.config import read_values
from thinktune.errors import ConfigError, RunFolderError
from thinktune.evaluation.lm_eval import Figure, read_figures
from thinktune.evaluation.problems import Place, Problem, place_of, problem_of
from thinktune.evaluation.suites.results import BenchmarkScores, read_benchmarks, read_samples
from thinktune.files import name_of
from thinktune.records import EvalSummary, MetricsLine, RunRecord, SampleLine, read_record, read_records
from thinktune.run_folder import RunFolder

_FACTS = (
    "trainable_parameters",
    "tokens_per_second",
    "peak_memory_gib",
    "train_seconds",
    "final_loss",
    "final_token_accuracy",
    "steps",
    "tokens",
)
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Candidate:
    """A tuned model, or the base model that tuned ones began with (then without `facts` and `metrics`).

    Attributes:
        facts: entries of run.json, by name.
        settings: the whole config by dotted key.
        summary: summary.json of its scores; None if it was not scored.
        samples: the lines of its samples.jsonl.
        metrics: the lines of its metrics.jsonl.
        figures: results of lm-evaluation-harness.
        suites: folder of its scores on benchmarks; None: there is none.
        also_called: other names of it, such as those in ratings.
    """

    name: str
    facts: dict[str, Any]
    settings: dict[str, Any]
    summary: dict[str, Any] | None
    samples: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    figures: list[Figure] = field(default_factory=list)
    suites: Path | None = None
    also_called: frozenset[str] = frozenset()

    def benchmarks(self) -> dict[str, BenchmarkScores]:
        """Read the scores on benchmarks, by name."""
        return {} if self.suites is None else read_benchmarks(self.suites)

    def benchmark_samples(self, benchmark: str) -> list[dict[str, Any]]:
        """Read the samples of a benchmark."""
        assert self.suites is not None
        return read_samples(self.suites, benchmark)

    def scores_by_place(self) -> dict[Place, float]:
        """Return the score of each problem by its place: 1 for right, strictly; of several samples their mean."""
        return {place: fmean(scores) for place, scores in _by(self.samples, place_of).items()}

    def places(self) -> dict[Place, Problem]:
        """Map places to the scored problems that stand there."""
        return {
            place_of(line): problem_of(line)
            for line in self.samples
            if line["correct"] is not None and line.get("error") is None
        }

    def all_scores(self) -> dict[Problem, list[float]]:
        """Return the score of each sample, 1 for right, strictly, by problem. A problem that stands in several places
        is one: its answers say no more of a model than several samples do."""
        return scores_of(self.samples)


def scores_of(samples: Iterable[Mapping[str, Any]]) -> dict[Problem, list[float]]:
    """Return the scores of samples that are right or wrong, by problem. A completion that could not be generated counts
    as wrong in its model's rate, but shows nothing of which of two models is better."""
    return _by((line for line in samples if line.get("error") is None), problem_of)


def failures(name: str, samples: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say how many completions could not be generated, if any."""
    failed = sum(line.get("error") is not None for line in samples)
    return [f"{failed:,} completions of {name} failed: they are left out of the comparisons"] if failed else []


def _by(samples: Iterable[Mapping[str, Any]], key_of: Callable[[Mapping[str, Any]], Key]) -> dict[Key, list[float]]:
    scores: dict[Key, list[float]] = {}
    for line in samples:
        if line["correct"] is not None:
            scores.setdefault(key_of(line), []).append(float(line["correct"]))
    return scores


def read_candidates(runs: Sequence[str | Path], names: Sequence[str] | None = None) -> list[Candidate]:
    """Read runs, and before them the models that they began with, where those were scored.

    Args:
        runs: run folders, or folders of models that were only scored, on suites.
        names: names of the runs. None: those of their folders.

    Raises:
        RunFolderError: a folder is neither, or its training has not ended.
    """
    folders = [RunFolder(Path(run)) for run in dict.fromkeys(map(Path, runs))]
    trained = [folder for folder in folders if not _is_only_scored(folder)]
    for folder in trained:
        _require_trained(folder)
    names = names or _names([folder.path for folder in folders])
    read = {
        folder: (_read_run if folder in trained else _read_scored)(folder, name)
        for folder, name in zip(folders, names, strict=True)
    }
    tuned = [read[folder] for folder in trained]
    scored = [each for folder, each in read.items() if folder not in trained]
    bases = [each for each in _base_models(trained, tuned) if each.suites not in [other.suites for other in scored]]
    return [*bases, *_starting_points(trained, tuned), *scored, *tuned]


def _is_only_scored(folder: RunFolder) -> bool:
    return not folder.config.exists() and any(folder.suites.glob("*/summary.json"))


def _read_scored(folder: RunFolder, name: str) -> Candidate:
    """Read a model that no run made, such as one behind a server."""
    models = {each.model for each in read_benchmarks(folder.suites).values()}
    called = frozenset((str(folder.path), str(folder.path.resolve()), *models))
    return Candidate(name, {}, {}, None, [], [], suites=folder.suites, also_called=called)


def _suites_of(folder: RunFolder) -> Path | None:
    return folder.suites if folder.suites.is_dir() else None


def _require_trained(folder: RunFolder) -> None:
    if not folder.config.exists():
        raise RunFolderError(f"{folder.path} is no run folder", hint="name folders that `train`, `run` or `sweep` made")
    if not folder.is_trained:
        raise RunFolderError(f"{folder.path} is not trained to its end", hint="thinktune train … --resume goes on")


def _names(paths: list[Path]) -> list[str]:
    """Return the folders' names, with as many parents as it takes to tell them apart."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read_run(folder: RunFolder, name: str) -> Candidate:
    record = read_record(folder.record, RunRecord)
    settings = read_settings(folder)
    facts = {fact: record[fact] for fact in _FACTS if fact in record}
    summary, samples = read_scores(folder, "tuned")
    return Candidate(
        name,
        facts,
        settings,
        summary,
        samples,
        read_records(folder.metrics, MetricsLine),
        figures=read_figures(folder.eval / "tuned"),
        suites=_suites_of(folder),
        also_called=frozenset((str(folder.path), str(folder.path.resolve()), folder.path.name)),
    )


def read_scores(folder: RunFolder, model: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Read summary and samples of the run's `base` or `tuned` model; None and nothing if it was not scored."""
    summary = read_summary(folder, model)
    return summary, read_records(folder.eval / model / "samples.jsonl", SampleLine) if summary is not None else []


def read_summary(folder: RunFolder, model: str) -> dict[str, Any] | None:
    """Read the summary of the run's `base` or `tuned` model; None if it was not scored."""
    file = folder.eval / model / "summary.json"
    summary: dict[str, Any] | None = read_record(file, EvalSummary) if file.exists() else None
    return summary


def _base_models(folders: list[RunFolder], tuned: list[Candidate]) -> list[Candidate]:
    """Return each base model that was scored with a run, once: from the first run that has its scores."""
    found: dict[str, Candidate] = {}
    for folder, run in zip(folders, tuned, strict=True):
        model = str(run.settings["model"])
        summary, samples = read_scores(folder, "base")
        figures = read_figures(folder.eval / "base")
        homes = [RunFolder(parent / name_of(model)) for parent in folder.path.absolute().parents[:2]]
        suites = next(filter(None, map(_suites_of, homes)), None)
        if (summary is not None or figures or suites) and model not in found:
            runs = [
                each.path.name for each, other in zip(folders, tuned, strict=True) if other.settings["model"] == model
            ]
            called = frozenset((model, *(f"base of {name}" for name in runs)))
            found[model] = Candidate(
                f"base: {model}", {}, {"model": model}, summary, samples, [], figures, suites, called
            )
    return [replace(each, name="base") if len(found) == 1 else each for each in found.values()]


def _starting_points(folders: list[RunFolder], tuned: list[Candidate]) -> list[Candidate]:
    """Return each adapter that a run went on from and that was scored with it, once."""
    found: dict[str, Candidate] = {}
    for folder, run in zip(folders, tuned, strict=True):
        init = str(run.settings.get("lora.init"))
        summary, samples = read_scores(folder, "start")
        if summary is not None and init not in found:
            found[init] = Candidate(f"start: {init}", {}, {"lora.init": init}, summary, samples, [])
    return [replace(each, name="start") if len(found) == 1 else each for each in found.values()]


def read_settings(folder: RunFolder) -> dict[str, Any]:
    """Read the config of a run, with its keys joined by dots, and the learning rate that `auto` stood for.

    Raises:
        ConfigError, RunFolderError: it is damaged.
    """
    settings = _flat(read_values(folder.config))
    if "model" not in settings:
        raise ConfigError(f"{folder.config} is damaged: it names no model")
    if settings.get("train.learning_rate") == "auto" and folder.is_trained:
        settings["train.learning_rate"] = read_record(folder.record, RunRecord).get("learning_rate", "auto")
    return settings


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def differing_settings(settings: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings (see `read_settings`) in which runs differ, with each run's value."""
    keys: Iterable[str] = dict.fromkeys(key for each in settings for key in each)
    values = {key: [each.get(key) for each in settings] for key in keys if key != "output"}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}
