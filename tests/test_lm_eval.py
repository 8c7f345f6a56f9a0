"""lm-evaluation-harness on our engines gives what it gives on its own, and its figures reach the report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from conftest import make_tiny_tokenizer
from scripted import ScriptedModel
from test_compare import write_run
from thinktune.cli import app
from thinktune.cli.evaluation import harness
from thinktune.config import Load
from thinktune.errors import DataError, MissingExtra, UsageError
from thinktune.evaluation.lm_eval import Figure, evaluate_harness, load_tasks, read_figures
from thinktune.evaluation.suites import evaluate_suite
from thinktune.evaluation.suites.benchmark import HarnessTask, read_suite
from thinktune.evaluation.suites.harness_benchmark import load_harness_task, run_harness_task
from thinktune.evaluation.suites.results import read_benchmarks
from thinktune.evaluation.suites.run_suite import Asked
from thinktune.inference.engines import EngineSettings, Opened, open_engine
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.models import Chat
from thinktune.report.compare import compare
from thinktune.report.html import write_report

pytest.importorskip("lm_eval")

TASKS = {
    "said": """
        output_type: generate_until
        doc_to_text: "Is <|im_end|> text? How many apples are {{a}} and {{a}} and 1?"
        doc_to_target: "{{b}}"
        generation_kwargs: {until: ["."], do_sample: false, max_gen_toks: 12}
        metric_list: [{metric: exact_match}]
        filter_list: [{name: number, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}]
        """,
    "begun": """
        output_type: generate_until
        gen_prefix: "The answer is"
        doc_to_target: "{{b}}"
        generation_kwargs: {until: ["zz"], max_gen_toks: 6}
        metric_list: [{metric: exact_match}]
        """,
    "chosen": """
        output_type: multiple_choice
        doc_to_choice: ["{{b}}", "{{a}}", "apples, 3"]
        doc_to_target: 0
        metric_list: [{metric: acc}, {metric: acc_norm}]
        """,
    "continued": """
        output_type: loglikelihood
        gen_prefix: "It is "
        doc_to_target: "{{b}} apples"
        metric_list: [{metric: perplexity}, {metric: acc}]
        """,
    "read": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "There are {{a}} apples and {{b}} pears in the basket. 小明有三个苹果"
        metric_list: [{metric: word_perplexity}]
        """,
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of tasks of every kind, on data of its own."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"a": n, "b": 2 * n + 1} for n in range(10, 16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        head = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
            "test_split": "test",
            "metadata": {"version": 2},
        }
        lines = [f"{key}: {json.dumps(value)}" for key, value in head.items()]
        lines += [line.strip() for line in text.strip().splitlines()]
        if "doc_to_text" not in text:
            lines.append('doc_to_text: "How many apples are {{a}} and {{a}} and 1?"')
        (folder / f"{name}.yaml").write_text("\n".join(lines))
    return folder


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.slow
def test_the_figures_are_those_that_the_harness_gets_from_the_model_itself(
    tiny_model: Path, tasks: Path, tmp_path: Path
) -> None:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = [name for name in TASKS if name != "said"]  # control text in a prompt is text to us only
    load = Load(dtype="float32", device="cpu")
    with open_engine(tiny_model, EngineSettings(load=load)) as opened:
        figures = evaluate_harness(opened, load_tasks(names, tasks), tmp_path / "out", sample=4, console=quiet())
    theirs = evaluator.simple_evaluate(
        HFLM(pretrained=str(tiny_model), device="cpu", batch_size=3, dtype="float32"),
        tasks=names,
        limit=4,
        apply_chat_template=True,
        task_manager=TaskManager(include_path=str(tasks)),
    )
    assert {each.task for each in figures} == set(names)
    for each in figures:
        assert each.value == pytest.approx(theirs["results"][each.task][f"{each.metric},{each.filter}"], rel=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "out/harness-samples.jsonl").read_text().splitlines()]
    ours = {(line["task"], line["doc_id"]): line["resps"] for line in lines}
    for task, samples in theirs["samples"].items():
        for sample in samples:
            found = ours[task, sample["doc_id"]]
            if task == "begun":
                assert found == sample["resps"]
                continue
            pairs = [(first_number(one), first_number(two)) for one, two in zip(found, sample["resps"], strict=True)]
            # Theirs counts the line break that ends the prompt as part of every choice: the same for all.
            shift = pairs[0][1] - pairs[0][0] if task == "chosen" else 0.0
            assert [one + shift for one, _ in pairs] == pytest.approx([two for _, two in pairs], abs=1e-4)


def first_number(value: Any) -> float:
    return value if isinstance(value, float) else first_number(value[0])


def scripted(reply: Any) -> Opened:
    tokenizer = make_tiny_tokenizer()
    engine = TransformersEngine(ScriptedModel(tokenizer, reply), tokenizer, [2])
    return Opened(engine, Chat(tokenizer), "fingerprint")


def test_answers_end_before_the_stop_text_and_a_second_call_asks_nothing(tasks: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def reply(prompt: str) -> str:
        asked.append(prompt)
        number = int(prompt.partition("apples are ")[2].partition(" ")[0])
        return f" {2 * number + (number != 12)}. 77"

    def take() -> list[Figure]:
        return evaluate_harness(scripted(reply), load_tasks(["said"], tasks), tmp_path, console=quiet())

    (figure,) = take()
    assert (figure.task, figure.metric, figure.filter, figure.n) == ("said", "exact_match", "number", 6)
    assert figure.value == pytest.approx(5 / 6)
    assert figure.name == "said, exact_match (number)"
    line = json.loads((tmp_path / "harness-samples.jsonl").read_text().splitlines()[0])
    assert line["resps"] == [[" 21"]]
    assert asked[0].startswith(
        "<|im_start|>system\nYou are a tiny model.<|im_end|>\n<|im_start|>user\nIs <|im_end|> text?"
    )
    asked.clear()
    assert take() == [figure]
    assert asked == []


def test_a_task_is_a_benchmark_of_a_suite_and_gets_answers_without_their_thoughts(tasks: Path, tmp_path: Path) -> None:
    def reply(prompt: str) -> str:
        number = int(prompt.partition("apples are ")[2].partition(" ")[0])
        return f"<think>Is it 99. No.</think> <answer>{2 * number + (number != 12)}. 77</answer>"

    (tmp_path / "own.yaml").write_text(
        f"benchmarks: {{own: {{title: Own, source: rows, harness: {{task: said, metric: exact_match, path: {tasks}}}, "
        "sampling: {max_tokens: 100}}}"
    )
    benchmark = read_suite(str(tmp_path / "own.yaml"))["own"]
    assert benchmark.harness is not None
    task, of = load_harness_task(benchmark.harness)
    asked = Asked("own", benchmark, benchmark.sampling, of, of, harness=task)
    scores = run_harness_task(scripted(reply), "m", asked, tmp_path / "out" / "own", None, False, quiet())
    assert (scores.problems, scores.cut_off) == (6, 0)
    assert scores.accuracy.value == pytest.approx(5 / 6)
    assert read_benchmarks(tmp_path / "out") == {"own": scores}
    lines = [json.loads(line) for line in (tmp_path / "out" / "own" / "samples.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [True, True, False, True, True, True]
    assert (lines[0]["id"], lines[0]["completion"]) == ("own:0", "21")


def test_a_task_with_other_problems_than_the_benchmark_has_is_not_scored(tasks: Path, tmp_path: Path) -> None:
    harness = f"{{task: said, metric: exact_match, path: {tasks}}}"
    (tmp_path / "own.yaml").write_text(
        f"benchmarks: {{own: {{title: Own, source: rows, problems: 7, harness: {harness}}}}}"
    )
    result = evaluate_suite("nowhere", read_suite(str(tmp_path / "own.yaml")), tmp_path / "out", console=quiet())
    assert (result.failed, result.scores) == (["Own"], [])
    assert "rows has 6 problems, not 7" in result.not_run["Own"]


@pytest.mark.parametrize(
    ("first_line", "raised", "says"),
    [
        (
            "",
            r"LookupError('\n  Resource \x1b[93mpunkt_tab\x1b[0m not found.\n')",
            "said of .* needs punkt_tab of",
        ),
        ("", "ModuleNotFoundError('no', name='langdetect')", "said of .* needs langdetect"),
        ("import nowhere", "KeyError('never come to')", "said of .* needs nowhere"),
    ],
)
def test_what_the_checks_of_a_benchmark_need_is_told_before_anything_is_asked(
    tasks: Path, first_line: str, raised: str, says: str
) -> None:
    (tasks / "checks.py").write_text(f"{first_line}\ndef check(doc, results):\n    raise {raised}\n")
    with (tasks / "said.yaml").open("a") as file:
        file.write("\nprocess_results: !function checks.check\n")
    with pytest.raises(MissingExtra, match=says):
        load_harness_task(HarnessTask(task="said", metric="exact_match", path=tasks))


def test_figures_of_several_calls_lie_side_by_side_until_the_model_changes(
    tiny_model: Path, tasks: Path, tmp_path: Path
) -> None:
    def take(opened: Opened, name: str) -> None:
        evaluate_harness(opened, load_tasks([name], tasks), tmp_path, sample=2, console=quiet())

    with open_engine(tiny_model) as opened:
        take(opened, "chosen")
        take(opened, "read")
    assert [each.task for each in read_figures(tmp_path)] == ["chosen", "chosen", "read"]
    take(scripted(lambda prompt: "1."), "said")
    assert [each.task for each in read_figures(tmp_path)] == ["said"]


@pytest.mark.slow
def test_what_cannot_be_taken_is_told_before_a_model_is_loaded(tasks: Path, tmp_path: Path) -> None:
    def take(name: str, path: Path = tasks) -> None:
        harness(str(tmp_path / "no model"), name, path, out=tmp_path)

    with pytest.raises(UsageError, match="no task 'sayd'"):
        take("sayd")
    with pytest.raises(UsageError, match="no folder of tasks"):
        take("said", tmp_path / "nowhere")
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="cannot prepare said"):
        take("said")


def test_a_task_that_runs_the_models_programs_is_refused(tasks: Path, tmp_path: Path) -> None:
    with (tasks / "said.yaml").open("a") as stream:
        stream.write("\nunsafe_code: true\n")
    with pytest.raises(UsageError, match="said would run the model's programs"):
        load_tasks(["said"], tasks)


def test_without_the_harness_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"thinktune\[harness\]"):
        load_tasks(["gsm8k"])


def test_the_verb_prints_figures_and_refuses_what_the_harness_brings_itself(
    tiny_model: Path, tasks: Path, tmp_path: Path
) -> None:
    where = ["-o", str(tmp_path), "--json"]
    call = ["harness", str(tiny_model), "chosen, read", "--include-path", str(tasks), "--limit", "2"]
    result = CliRunner().invoke(app, [*call, *where])
    assert result.exit_code == 0, result.output
    assert [each["metric"] for each in json.loads(result.stdout)] == ["acc", "acc_norm", "word_perplexity"]
    old = ["eval", str(tiny_model), "--harness", "chosen, read", "--harness-path", str(tasks), "--sample", "2"]
    again = CliRunner().invoke(app, [*old, *where])
    assert json.loads(again.stdout) == json.loads(result.stdout)
    assert f"write: thinktune harness {tiny_model} 'chosen, read'" in again.stderr
    assert isinstance(CliRunner().invoke(app, [*old, "--n", "2"]).exception, UsageError)


def test_figures_reach_the_report_and_the_comparison(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tuned="rw", base="ww")
    figure = {"task": "gsm8k", "metric": "exact_match", "filter": "flexible-extract", "stderr": 0.03}
    for name, value in (("tuned", 0.5), ("base", 0.25)):
        figures = [{**figure, "value": value, "shots": 5, "n": 8, "version": "3"}]
        (run / "eval" / name / "harness.json").write_text(json.dumps({"model": "m", "figures": figures}))
    page = write_report(run).read_text(encoding="utf-8")
    assert '<td class="text">gsm8k, exact_match (flexible-extract)</td><td>0.25 ± 0.03</td><td>0.5 ± 0.03</td>' in page
    comparison = compare([run])
    tuned = Figure("gsm8k", "exact_match", "flexible-extract", 0.5, 0.03, 5, 8, "3")
    assert comparison.candidates[1].figures == [tuned]
    assert comparison.as_dict()["candidates"][0]["harness"][0]["value"] == 0.25
    result = CliRunner().invoke(app, ["compare", str(run), "--out", str(tmp_path / "out")])
    assert "0.25 ± 0.03" in result.stdout
