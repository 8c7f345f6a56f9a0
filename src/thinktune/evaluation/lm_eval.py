"""lm-evaluation-harness's own tasks on our engines: `thinktune harness MODEL gsm8k,…`.

Tasks, prompts, filters and metrics are the harness's, so that its figures can be set beside published ones; rendering
(its chat templates are our `Chat`) and generation are ours. A run keeps them in `eval/tuned/harness.json`, for `report`
and `compare`.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from typing_extensions import TypedDict

from thinktune.errors import DataError, MissingExtra, UsageError
from thinktune.files import telling_full_disk, write_json, write_json_lines
from thinktune.inference.engines import Opened
from thinktune.inference.engines.base import Completion
from thinktune.records import read_record

FILE = "harness.json"
_SEED = 1234  # the harness's own default


@dataclass(frozen=True)
class Figure:
    """One metric of one task as the harness computed it.

    Attributes:
        filter: the harness's name of the extraction of answers; "none": without one.
        stderr: standard error; None: the harness gives none.
        shots: solved examples in the prompt.
        n: problems.
        version: of the task.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    shots: int
    n: int
    version: str

    @property
    def name(self) -> str:
        return f"{self.task}, {self.metric}" + (f" ({self.filter})" if self.filter != "none" else "")

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" ± {self.stderr:.2g}" if self.stderr is not None else "")


class _Taken(TypedDict):
    model: str
    figures: list[Figure]


def evaluate_harness(
    opened: Opened,
    tasks: Any,
    out: Path,
    *,
    sample: int | None = None,
    max_tokens: int = 1024,
    overwrite: bool = False,
    console: Console | None = None,
) -> list[Figure]:
    """Run tasks of lm-evaluation-harness on a model, and write harness.json to `out`.

    Args:
        tasks: of `load_tasks`.
        out: also gets `harness-samples.jsonl` and the journal from which stopped generation goes on.
        sample: number of problems of each task, the first ones; None: all.
        max_tokens: of tasks that set none.

    Raises:
        Interrupted, DiskFull, …: see `complete` and `Engine.likelihoods`.
    """
    results, _ = run_tasks(
        opened,
        tasks,
        out / "harness.journal.jsonl",
        sample=sample,
        max_tokens=max_tokens,
        overwrite=overwrite,
        console=console,
    )
    figures = _figures(results)
    with telling_full_disk(out):
        _write(out, figures, results, opened.fingerprint, _import_harness().__version__)
    return figures


def run_tasks(
    opened: Opened,
    tasks: Any,
    journal: Path,
    *,
    sample: int | None = None,
    max_tokens: int = 1024,
    sampling: Mapping[str, Any] | None = None,
    answers_only: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> tuple[Mapping[str, Any], list[Completion]]:
    """Run tasks of lm-evaluation-harness on a model, and return its results and the completions.

    Args:
        sampling: settings over those of the tasks.
        answers_only: hand over the answers without their thoughts, where these can be told.

    Raises:
        Interrupted, DiskFull, …: see `complete` and `Engine.likelihoods`.
    """
    harness = _import_harness()
    from thinktune.evaluation.lm_eval_model import HarnessModel

    model = HarnessModel(
        opened,
        journal,
        max_tokens=max_tokens,
        sampling=sampling or {},
        answers_only=answers_only,
        overwrite=overwrite,
        console=console or Console(stderr=True),
    )
    with redirect_stdout(sys.stderr):
        results = harness.evaluator.evaluate(
            model, tasks, limit=sample, apply_chat_template=True, fewshot_as_multiturn=True
        )
    return results, model.replies


def read_figures(folder: Path) -> list[Figure]:
    """Read the figures that `evaluate_harness` wrote to a folder; none without its file.

    Raises:
        RunFolderError: the file is damaged.
    """
    file = folder / FILE
    return [Figure(**each) for each in read_record(file, _Taken)["figures"]] if file.exists() else []


def figures_table(figures: Iterable[Figure]) -> Table:
    """Make a table of a row a figure."""
    table = Table(title="by lm-evaluation-harness, ± one standard error", title_style="dim")
    for heading in ("", "value", "shots", "problems"):
        table.add_column(heading, justify="right" if heading else "left")
    for each in figures:
        table.add_row(each.name, str(each), str(each.shots), str(each.n))
    return table


def _import_harness() -> Any:
    try:
        import lm_eval
        import lm_eval.evaluator
        import lm_eval.tasks
    except ImportError:
        raise MissingExtra("lm-evaluation-harness is not installed", hint="pip install 'thinktune[harness]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def load_tasks(names: Sequence[str], path: Path | None = None, shots: int | None = None) -> Any:
    """Prepare tasks as `simple_evaluate` of the harness does, with its seeds.

    Args:
        names: names or patterns of tasks, groups or tags, as the harness has them.
        path: a folder with further tasks.
        shots: few-shot examples in the prompt; None: as each task has it.

    Raises:
        MissingExtra: lm-evaluation-harness is not installed, or a package that a task needs.
        UsageError: a task is unknown, or would run programs of the model in this process.
        DataError: a task's data cannot be had.
    """
    _import_harness()
    import numpy
    from lm_eval.tasks import TaskManager

    if path is not None and not path.is_dir():
        raise UsageError(f"there is no folder of tasks {path}")
    # Its own tasks are thousands of files to read: only where the names are not all in the folder.
    for with_own in (False, True) if path is not None else (True,):
        manager = TaskManager(include_path=None if path is None else str(path), include_defaults=with_own)
        unknown = [name for name in names or [""] if not manager.match_tasks([name])]
        if not unknown:
            break
    else:
        raise UsageError(
            f"lm-evaluation-harness has no task {', '.join(map(repr, unknown))}",
            hint="`lm-eval ls tasks` lists them; --include-path names a folder with tasks of your own",
        )
    random.seed(0)
    numpy.random.seed(_SEED)
    try:
        with redirect_stdout(sys.stderr):  # IFEval's says what it downloads
            loaded = manager.load(manager.match_tasks(list(names)))
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{', '.join(names)} of lm-evaluation-harness needs {error.name}",
            hint=f"pip install {error.name}, or what 'lm_eval[{names[0]}]' names",
        ) from error
    except (OSError, ImportError, ValueError) as error:  # a hub that does not answer, …
        raise DataError(
            f"lm-evaluation-harness cannot prepare {', '.join(names)}: {error}",
            hint="its data sets come from the Hugging Face hub; once there, they are found without network",
        ) from error
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise UsageError(
                f"{task.task_name} would run the model's programs in this process, unconfined",
                hint="score programs by `thinktune score`, which confines them",
            )
        # A task may be written for a number of examples; where it says none, the prompts have none.
        if task.get_config("num_fewshot") is None or (shots is not None and task.get_config("num_fewshot") != 0):
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=_SEED)
    return loaded


def _figures(results: Mapping[str, Any]) -> list[Figure]:
    figures = []
    for task, metrics in {**results["results"], **results.get("groups", {})}.items():
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{filter_name}")
            figures.append(
                Figure(
                    task, metric, filter_name, float(value), stderr if isinstance(stderr, float) else None,
                    int(results.get("n-shot", {}).get(task) or 0),
                    int(metrics.get("sample_len") or results.get("n-samples", {}).get(task, {}).get("effective", 0)),
                    str(results.get("versions", {}).get(task, "")),
                )
            )  # fmt: skip
    return figures


def _write(out: Path, figures: Sequence[Figure], results: Mapping[str, Any], model: str, version: str) -> None:
    """Write the figures, beside those of other tasks that the same model has taken before."""
    file = out / FILE
    before: dict[str, Any] = read_record(file, _Taken) if file.exists() else {"model": model, "figures": []}
    taken = {each.task for each in figures}
    kept = [each for each in before["figures"] if before["model"] == model and each["task"] not in taken]
    write_json(file, {"model": model, "lm_eval": version, "figures": kept + [asdict(each) for each in figures]})
    lines = ({"task": task, **line} for task, samples in results["samples"].items() for line in samples)
    write_json_lines(out / "harness-samples.jsonl", lines)
