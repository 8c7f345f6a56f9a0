"""Suites of benchmarks: problems from rows of the hub's shape, scores as they are published, one line each."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hub_server import COMMIT, Hub, serve
from thinktune.cli import app
from thinktune.errors import ConfigError, DataError, UsageError
from thinktune.evaluation.suites import read_suite
from thinktune.evaluation.suites.problems import problems_of
from thinktune.evaluation.suites.results import published_sample, read_benchmarks
from thinktune.inference.problems import GoldItem
from thinktune.scoring import TASKS


def packed(text: str) -> str:
    """Pack test cases as LiveCodeBench's files have them."""
    return base64.b64encode(zlib.compress(pickle.dumps(text))).decode()


AMC = "A positive integer divisor of $12!$ is chosen at random. What is the number of divisors?"
ROWS: dict[str, dict[str, Any]] = {  # of the fields that each data set has
    "math_500": {"problem": r"Evaluate $\sqrt{16}$.", "solution": "So 4.", "answer": "4", "subject": "Algebra"},
    "aime_2024": {"id": 60, "problem": "Find the sum.", "solution": "…", "answer": "204", "url": "", "year": "2024"},
    "aime_2025": {"problem": "Find the sum of all bases.", "answer": "70", "id": "0"},
    "amc_2023": {"id": 0, "answer": 27.0, "url": "", "question": AMC},
    "gsm8k": {"question": "3 and 4 apples?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    "gpqa_diamond": {
        "Question": "Which one?", "Correct Answer": "helium", "Incorrect Answer 1": "neon",
        "Incorrect Answer 2": "argon", "Incorrect Answer 3": "xenon",
    },
    "humaneval_plus": {
        "task_id": "HumanEval/0", "prompt": 'def add(a, b):\n    """Add."""\n', "entry_point": "add",
        "canonical_solution": "    return a + b\n", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    },
    "livecodebench": {
        "question_title": "Sum", "question_content": "Add two numbers.", "platform": "atcoder", "starter_code": "",
        "public_test_cases": '[{"input": "1 2\\n", "output": "3\\n", "testtype": "stdin"}]', "metadata": "{}",
        "private_test_cases": packed('[{"input": "5 6\\n", "output": "11\\n", "testtype": "stdin"}]'),
    },
}  # fmt: skip


def test_livecodebench_s_rows_ask_for_a_program_or_for_a_function(tmp_path: Path) -> None:
    called = {**ROWS["livecodebench"], "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:\n"}
    called |= {"public_test_cases": '[{"input": "1\\n2", "output": "3"}]', "private_test_cases": "[]"}
    called["metadata"] = '{"func_name": "add"}'
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (ROWS["livecodebench"], called)))
    whole, function = problems_in(tmp_path, "livecodebench", 2)
    assert "Read the inputs from stdin" in whole.gold["prompt"]
    assert "class Solution" in function.gold["prompt"]
    reads = "<think>a</think> <answer>```python\nprint(sum(map(int, input().split())))\n```</answer>"
    adds = "<think>a</think> <answer>class Solution:\n    def add(self, a, b):\n        return a + b</answer>"
    outcomes = [
        [TASKS[each.type].score(text, each.gold, "stop").outcome for text in (reads, adds)]
        for each in (whole, function)
    ]
    assert outcomes == [["right", "wrong"], ["wrong", "right"]]


def problems_in(folder: Path, name: str, count: int) -> list[GoldItem]:
    benchmark = read_suite(name)[name].model_copy(update={"problems": count})
    return problems_of(name, benchmark, [folder / "rows.jsonl"])


def sample(text: str, reference: str = "7", *, kind: str = "math", finish_reason: str = "stop") -> dict[str, Any]:
    score = TASKS[kind].score(text, {"reference": reference}, finish_reason)
    return published_sample({"type": kind, "completion": text, "finish_reason": finish_reason, **vars(score)})


@pytest.mark.parametrize(
    ("text", "finish_reason", "outcome"),
    [
        ("<think>3 + 4</think> <answer>7</answer>", "stop", "right"),
        (r"3 + 4, so \boxed{7}", "stop", "right"),
        ("So it is 7.", "stop", "right"),
        ("So it is 8.", "stop", "wrong"),
        ("Who knows?", "stop", "no answer"),
        (r"So \boxed{7}. Let me check: 3", "length", "right"),
        (r"<think>3</think> \boxed{7} Let me", "length", "right"),
        ("3 + 4 makes 7", "length", "cut off"),  # where it stopped by chance
        (r"<think>Is it \boxed{7}? No", "length", "cut off"),
        ("<think>3 + 4 is 7", "length", "cut off"),
        ("", "error", "error"),
    ],
)
def test_an_answer_counts_as_published_scores_count_it(text: str, finish_reason: str, outcome: str) -> None:
    line = sample(text, finish_reason=finish_reason)
    assert (line["outcome"], line["correct"]) == (outcome, outcome == "right")
    assert line["strict"] == text.endswith("<answer>7</answer>")


def test_a_sample_has_the_answer_that_it_votes_for() -> None:
    assert sample(r"\boxed{8}")["extracted"] == "8"
    assert sample("Answer: C", "B", kind="choice")["extracted"] == "C"
    assert sample("Hm.")["extracted"] is None


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_each_data_set_become_problems(name: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[name]) + "\n")
    item = problems_in(tmp_path, name, 1)[0]
    assert item.id == f"{name}:1"
    expected: dict[str, object] = {"gsm8k": "7", "humaneval_plus": "    return a + b\n", "gpqa_diamond": None}
    reference = ROWS[name].get("answer") if name not in expected else expected[name]
    if reference is not None:
        assert item.gold["reference"] == reference


def test_options_are_shuffled_by_their_question_and_the_right_one_is_known(tmp_path: Path) -> None:
    rows = [{**ROWS["gpqa_diamond"], "Question": f"Which one, {n}?"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = problems_in(tmp_path, "gpqa_diamond", 40)
    letters = [item.gold["reference"] for item in items]
    assert set(letters) == set("ABCD")
    assert all(item.gold["options"][letter] == "helium" for item, letter in zip(items, letters, strict=True))
    assert all(f"\n{letter}) helium" in item.gold["prompt"] for item, letter in zip(items, letters, strict=True))
    assert [item.gold for item in problems_in(tmp_path, "gpqa_diamond", 40)] == [item.gold for item in items]


@pytest.mark.parametrize(
    ("rows", "problems", "said"),
    [
        ([{"problem": "?", "answer": "4"}], 2, "has 1 problems, not 2"),
        ([{"problem": "?"}], 1, "row 1 of .* has no field 'answer'; it has problem"),
        ([{"problem": "?", "answer": ""}], 1, "row 1 of .*: the reference is blank"),
    ],
)
def test_other_problems_than_the_benchmarks_are_refused(
    rows: list[dict[str, str]], problems: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=said):
        problems_in(tmp_path, "math_500", problems)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("benchmarks: {x: {title: X, source: a/b, files: {t.jsonl: null}}}", "needs `reference`, `options` or `gold`"),
        (
            "benchmarks: {x: {title: X, source: a/b, promt: hi}}",
            "benchmarks.x.promt: unknown key; did you mean prompt?",
        ),
        ("benchmarks: {x: {title: X, source: a/b, prompt: hi}}", "prompt needs {question}"),
        ("suites: {s: [y]}\nbenchmarks: {}", "suite s names unknown benchmarks: y"),
    ],
)
def test_a_file_of_benchmarks_is_checked(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_suite(str(tmp_path / "own.yaml"))
    assert said in str(caught.value)


def test_an_unknown_suite_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        read_suite("math_500, reasonning")
    assert "no suite or benchmark 'reasonning'" in str(caught.value)
    assert "suites are quick, reasoning; benchmarks arithmetic, " in str(caught.value)


@pytest.mark.parametrize(
    ("model", "figures"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", {"open-r1 (LightEval)": 94.5, "DeepSeek": 92.8}),
        ("openai:deepseek-r1-distill-qwen-7b@http://here:8000/v1", {"open-r1 (LightEval)": 94.5, "DeepSeek": 92.8}),
        ("models/DeepSeek-R1-Distill-Qwen-7B-tuned", {}),
    ],
)
def test_published_figures_are_those_of_the_same_model(model: str, figures: dict[str, float]) -> None:
    assert read_suite("math_500")["math_500"].published_for(model) == figures


def test_the_quick_suite_needs_no_network_and_goes_on_from_its_journals(tiny_model: Path, tmp_path: Path) -> None:
    command = ["eval", str(tiny_model), "--suite", "quick", "--sample", "3", "--n", "2", "--temperature", "1"]
    command += ["--max-tokens", "8", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert "2 benchmarks, 6 problems, 12 completions, 96 tokens at most; their time is not known" in lines[0]
    assert "Arithmetic: with n 2, max_tokens 8, temperature 1.0, other than its settings" in result.stderr.replace(
        "temperature 1.0, max_tokens 8, n 2", "n 2, max_tokens 8, temperature 1.0"
    )
    assert "Arithmetic: 3 of 100 problems" in lines
    found = read_benchmarks(tmp_path)
    assert [(each.title, each.problems, each.n, each.asked) for each in found.values()] == [
        ("Arithmetic", 3, 2, "as published"), ("Small sums", 3, 2, "as published"),
    ]  # fmt: skip
    assert found["arithmetic"].tokens_per_second is not None
    again = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    assert "all 6 completions are in" in again.stderr
    assert "tokens/s as before" in again.stderr
    assert json.loads(again.stdout)["benchmarks"][0]["accuracy"] == found["arithmetic"].accuracy.value
    samples = [json.loads(line) for line in (tmp_path / "arithmetic" / "samples.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in samples] == [0, 1] * 3
    assert not any("boxed" in line["prompt"] for line in samples)  # questions are the same for every way of asking


def test_a_benchmark_that_cannot_be_had_is_named_and_the_others_are_scored(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS["gsm8k"]) + "\n")
    values = {"title": "Mine", "source": str(tmp_path / "rows.jsonl"), "sampling": {"max_tokens": 4}}
    benchmarks = {"mine": values, "more": {**values, "title": "More", "problems": 2}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"benchmarks": benchmarks}))
    command = ["eval", str(tiny_model), "--suite", str(tmp_path / "own.yaml"), "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    scores = json.loads(result.stdout)
    assert [each["title"] for each in scores["benchmarks"]] == ["Mine"]
    assert scores["failed"] == ["More"]
    assert "has 1 problems, not 2" in scores["not_run"]["More"]
    assert "not scored: More" in str(result.exception)


SUITE = """
import io, json, sys
from pathlib import Path
from rich.console import Console
from thinktune.config import Load
from thinktune.errors import ThinktuneError
from thinktune.evaluation.suites import evaluate_suite, read_suite
from thinktune.inference.engines import EngineSettings

model, suite, cache = sys.argv[1:]
settings = EngineSettings(load=Load(attempts=1))
said, result = io.StringIO(), {}
try:
    scores = evaluate_suite(
        model, read_suite(suite), Path("out"), settings, changes={"n": 2, "max_tokens": 8},
        console=Console(file=said, width=1000), cache=Path(cache),
    )
    result = scores.as_dict() | {"rows": len(scores.table().rows)}
except ThinktuneError as error:
    result = {"error": str(error)}
print(json.dumps(result | {"said": said.getvalue()}))
"""


@pytest.mark.slow
def test_every_benchmark_runs_to_its_report_on_a_hub_that_speaks_the_protocol(tiny_model: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {}
    for name, benchmark in read_suite("reasoning,livecodebench").items():
        count = 3 * max(len(benchmark.files), 1)
        values = {**benchmark.model_dump(mode="json"), "revision": None, "problems": count, "published": []}
        own[name] = values | {"files": dict.fromkeys(benchmark.files)}
        for file in benchmark.files:
            write_rows(tmp_path / "hub" / benchmark.source / file, [ROWS[name]] * 3)
    del own["ifeval"]  # its checks need packages and data that are not here; test_lm_eval has a task of the harness
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"benchmarks": own}, sort_keys=False))

    def run(hub: Hub, cache: str = "cache") -> dict[str, Any]:
        return evaluate(tmp_path, hub.url, str(tiny_model), "own.yaml", cache)

    with serve("many hub datasets", Hub("Idavidrein/gpqa", tmp_path / "hub")) as hub:
        result = run(hub)
        titles = [each["title"] for each in result["benchmarks"]]
        assert titles == [
            "MATH-500",
            "AIME 2024",
            "AIME 2025",
            "AMC 2023",
            "GSM8K",
            "HumanEval+",
            "LiveCodeBench v4 and v5",
        ]
        assert result["rows"] == 8
        assert "GPQA diamond: Idavidrein/gpqa is gated: accept the terms on" in result["not_run"]["GPQA diamond"]
        assert all(each["revision"] == COMMIT and each["n"] == 2 for each in result["benchmarks"])
        lock = json.loads((tmp_path / "cache" / "benchmarks.lock.json").read_text())
        assert lock["gsm8k"]["files"] == result["benchmarks"][4]["files"]
        hub.repository = ""  # the terms are accepted
        hub.requests.clear()
        again = run(hub)
        assert [each["accuracy"] for each in again["benchmarks"] if each["title"] != "GPQA diamond"] == [
            each["accuracy"] for each in result["benchmarks"]
        ]
        assert len(again["benchmarks"]) == 8
        assert again["said"].count("are in out/") == 7
        assert {path.split("/datasets/")[-1].split("/")[0] for _, path, _ in hub.requests} == {"Idavidrein"}
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "benchmarks.lock.json").write_text(json.dumps(lock))
        write_rows(tmp_path / "hub" / "openai/gsm8k/main/test-00000-of-00001.parquet", [ROWS["gsm8k"]] * 4)
        changed = run(hub, "other")
    why = "GSM8K: main/test-00000-of-00001.parquet of openai/gsm8k is not the file that other/"
    assert changed["not_run"]["GSM8K"].startswith(why)
    assert (changed["failed"], len(changed["benchmarks"])) == (["GSM8K"], 7)  # the others are scored


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows to a file of the kind that its name says."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if file.suffix == ".parquet":
        parquet.write_table(table, file)
    elif file.suffix == ".csv":
        csv.write_csv(table, file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(folder: Path, url: str, *arguments: str) -> dict[str, Any]:
    """Evaluate in a process of its own: the hub's client reads its settings when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
    done = subprocess.run(
        [sys.executable, "-c", SUITE, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
