"""The training form without a browser: methods, sweeps, several sources, and rows that are collected."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from thinktune.config import load_config
from thinktune.config.shipped import shipped_configs
from thinktune.errors import ConfigError, UsageError
from thinktune.studio import chinese
from thinktune.studio.collecting_jobs import Order
from thinktune.studio.model_pool import Pool
from thinktune.studio.progress import read_sweep
from thinktune.studio.state import Studio
from thinktune.studio.tabs.training_form import TrainingForm, _fields
from thinktune.studio.translations import TEXTS

QUICKSTART = next(str(file) for file in shipped_configs() if file.stem == "quickstart")


@pytest.fixture
def studio(tmp_path: Path, tiny_model: Path) -> Studio:
    runs = tmp_path / "runs"
    return Studio(Pool([str(tiny_model)], runs), runs, may_train=True, data=[str(tmp_path / "rows.jsonl")])


@pytest.fixture
def form(studio: Studio) -> TrainingForm:
    with gr.Blocks():
        return TrainingForm(studio)


def ask(form: TrainingForm, file: str, *, grid: str = "", further: str = "", **changes: Any) -> tuple[str, str]:
    """Return the command line of the form with some fields changed, and its problem."""
    names = ("method", "model", "source", "sample", "steps", "rank", "rate", "prompts", "completions", "longest",
             "rewards", "loss", "beta")  # fmt: skip
    fields = dict(zip(names, _fields(load_config(file)), strict=True)) | changes
    command, _, problem = form.tell(None, file, "new", *fields.values(), grid, further)
    return html.unescape(command), problem


@pytest.mark.parametrize("file", shipped_configs(), ids=lambda file: file.stem)
def test_a_config_that_is_not_changed_is_started_without_settings(file: Path, form: TrainingForm) -> None:
    command, problem = ask(form, str(file))
    assert not problem
    assert command.count("=") == command.count("output=") + command.count('="')


@pytest.mark.parametrize(
    ("changes", "told", "left_out"),
    [
        ({"method": "dpo", "loss": "ipo", "beta": 0.2, "prompts": 4},
         "method=dpo dpo.loss_type=ipo dpo.beta=0.2", "rl."),
        ({"method": "grpo", "prompts": 4, "rewards": "answer: 1, format: 0.5", "beta": 0.2},
         "method=grpo rl.prompts=4 'rl.rewards={answer: 1, format: 0.5}'", "dpo"),
        ({"rate": "1e-4", "sample": 0}, "data.sample=null train.learning_rate=1e-4", "rl."),
    ],
)  # fmt: skip
def test_each_method_has_its_own_settings_and_no_others(
    changes: dict[str, Any], told: str, left_out: str, form: TrainingForm
) -> None:
    command, problem = ask(form, QUICKSTART, **changes)
    assert not problem
    assert f" {told} " in command
    assert left_out not in command


def test_rewards_of_ones_own_belong_on_the_command_line(form: TrainingForm) -> None:
    command, problem = ask(form, QUICKSTART, method="grpo", rewards="os:system: 1.0")
    assert command == ""
    assert "code of your own" in problem


def test_several_sources_are_kept_as_they_are_and_named(form: TrainingForm, studio: Studio) -> None:
    run = studio.runs / "mixed"
    run.mkdir(parents=True)
    sources = "[{source: a/b, weight: 2}, {source: builtin:arithmetic}]"
    (run / "config.yaml").write_text(f"model: builtin:smollm2\ndata: {{source: {sources}}}\n")
    file = str(run / "config.yaml")
    command, problem = ask(form, file, rank=4)
    assert not problem
    assert "data.source" not in command
    fields, sources = form.fill(None, file)  # type: ignore[arg-type]
    assert fields[2] == ""
    assert sources["choices"][0] == ("the config's own sources", "")


def test_a_sweep_is_told_and_each_of_its_members_checked(form: TrainingForm) -> None:
    command, problem = ask(form, QUICKSTART, grid="lora.r=4,8\ntrain.seed=1,2", rate="1e-4")
    assert not problem
    assert "thinktune sweep" in command
    assert "train.learning_rate=1e-4 lora.r=4,8 train.seed=1,2 output=" in command
    for grid, why in (
        ("model=builtin:smollm2,/etc", "not of a hub"),
        ("lora.r=4", "nothing to sweep over"),
        (f"train.seed={','.join(map(str, range(100)))}", "64 is the most"),
        ("output=a,b", "cannot be swept"),
    ):
        assert why in html.unescape(ask(form, QUICKSTART, grid=grid)[1])
    assert "several values" in html.unescape(ask(form, QUICKSTART, grid="lora.r=4,8", further="data.system=a,b")[1])


@pytest.mark.parametrize(
    ("trained", "log", "runs", "phase", "done", "total"),
    [
        ([], "", True, "starting", None, None),
        ([True, False], "1 of 3: r=4 ───\n2 of 3: r=8 ───\n", True, "sweeping", 2, 3),
        ([True, True, True], "3 of 3: r=16 ───\n", False, "swept", 3, 3),
        ([True, False], "2 of 3: r=8 ───\nthinktune: r=8: stopped; a checkpoint is saved\n", False, "stopped", 1, 3),
        ([True, False, True], "3 of 3: r=16 ───\nthinktune: 1 of 3 members failed\n", False, "failed", None, None),
    ],
)
def test_the_phase_of_a_sweep_is_told(
    trained: list[bool], log: str, runs: bool, phase: str, done: int | None, total: int | None
) -> None:
    found = read_sweep(trained, log, runs=runs)
    assert (found.phase, found.done, found.total) == (phase, done, total)
    assert f"phase_{phase}" in TEXTS


def test_uploaded_rows_get_a_config_that_fits_them(form: TrainingForm, studio: Studio, tmp_path: Path) -> None:
    rows = Path(__file__).parents[1] / "examples/rows.jsonl"
    model = studio.pool.names()[0]
    request: Any = None
    (name, *_), _, config, problem = form.take_file(request, str(rows), model)
    assert (name, problem) == ("rows", "")
    fitted = load_config(config["value"])
    assert (fitted.model, fitted.data.max_length) == (model, 192)
    assert fitted.eval.data == str(studio.trainings.uploads / "rows")  # its own questions, and not those of others
    assert ("rows", config["value"]) in config["choices"]
    command, problem = ask(form, config["value"])
    assert not problem
    assert "data.source" not in command
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"what": 1}\n')
    assert "data.format" in form.take_file(request, str(broken), model)[3]
    assert "not of a hub" in form.take_file(request, str(rows), "/etc")[3]


def in_chinese() -> Any:
    return SimpleNamespace(headers={"accept-language": "zh-CN"})


def latin(text: str) -> set[str]:
    return set(re.findall("[A-Za-z]{3,}", re.sub("<[^>]+>", " ", html.unescape(text))))


def test_a_chinese_page_is_told_in_chinese_what_is_wrong_with_an_upload(
    form: TrainingForm, studio: Studio, tmp_path: Path
) -> None:
    model = studio.pool.names()[0]
    for name, text, known in (
        ("broken.jsonl", '{"what": 1}\n', {"module", "function", "data", "format"}),
        ("empty.jsonl", "", set()),
        ("none.jsonl", '{"question": "a", "answer": "b"}\n', {"docs", "data"}),
        ("not.jsonl", "x\n", {"JSON", "Expecting", "value"}),  # the parser's own words
    ):
        (file := tmp_path / name).write_text(text)
        problem = form.take_file(in_chinese(), str(file), model)[3]
        assert "原文" not in problem
        assert re.search("[\u4e00-\u9fff]", problem)
        words = {word for word in latin(problem.replace(str(studio.trainings.uploads), "")) if word not in name}
        keys = {"conversations", "messages", "instruction", "input", "output", "prompt", "completion", "question",
                "answer", "what", "jsonl"}  # fmt: skip
        assert words - keys <= known, problem
    fields = _fields(load_config(QUICKSTART))
    for further, told in (("lora.rr=3", "未知的键"), ("lora.r=-1", "应大于或等于"), ("lora", "不是 key=value")):
        assert told in form.tell(in_chinese(), QUICKSTART, "new", *fields, "", further)[2]
    assert "不能用作名称" in form.tell(in_chinese(), QUICKSTART, "a b", *fields, "", "")[2]


def test_a_sentence_without_a_translation_is_shown_and_said_to_be_the_original() -> None:
    assert chinese.told("RuntimeError: boom") == "（原文）RuntimeError: boom"
    assert chinese.told("there is no run 'x' (choose another name)") == "没有运行 'x'（请换一个名称）"
    assert chinese.told("no file a.jsonl\n  → set data.sample") == "没有文件 a.jsonl\n→ 请设置 data.sample"


def test_the_plan_is_shown_in_the_language_of_the_page(form: TrainingForm) -> None:
    fields = _fields(load_config(QUICKSTART))
    shown = form.plan(in_chinese(), QUICKSTART, "new", *fields, "", "train.learning_rate=auto")
    assert latin(shown) <= {"GiB", "token", "llama", "CUDA", "graph"}, shown
    english: Any = SimpleNamespace(headers={})
    assert "recomputing nothing" in form.plan(english, QUICKSTART, "new", *fields, "", "")


def test_every_shipped_config_has_a_chinese_purpose() -> None:
    assert {file.stem for file in shipped_configs()} == set(chinese.PURPOSES)


def test_a_training_that_failed_before_its_folder_was_made_is_listed_with_its_error(studio: Studio) -> None:
    trainings = studio.trainings
    record = trainings.processes.file("lost", "json")
    record.parent.mkdir(parents=True)
    record.write_text('{"pid": 999999999, "created": 0, "verb": "train", "arguments": ["x.yaml"]}')
    assert trainings.all() == []
    trainings.processes.file("lost", "log").write_text("thinktune: no such model\n  → name another\n")
    (run,) = trainings.all()
    progress = trainings.progress(run)
    assert (run.name, progress.phase) == ("lost", "failed")
    assert "no such model" in progress.error


def order(studio: Studio, **changes: Any) -> Order:
    settings = {"name": "mine", "model": studio.pool.names()[0], "data": "builtin:arithmetic", "problems": 3,
                "completions": 2, "max_tokens": 8, "pairs": False}  # fmt: skip
    return Order(**{**settings, **changes})


def test_rows_are_collected_from_known_models_and_data_only(studio: Studio) -> None:
    command = studio.collections.command(order(studio, pairs=True))
    assert command[:2] == ["thinktune", "collect"]
    assert command[-2:] == ["--pairs", str(studio.trainings.uploads / "mine-pairs.jsonl")]
    for changes in ({"model": "/etc"}, {"data": "/etc/passwd"}, {"data": "http://127.0.0.1/"}):
        with pytest.raises(ConfigError):
            studio.collections.command(order(studio, **changes))
    for name in ("../x", "a/b", "", "x.journal"):
        with pytest.raises(UsageError):
            studio.collections.command(order(studio, name=name))


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.mark.slow
def test_a_collection_that_finds_nothing_right_says_so_and_a_sweep_lists_its_members(
    studio: Studio, tiny_model: Path, tmp_path: Path
) -> None:
    studio.collections.start(order(studio))
    assert studio.collections.newest().state == "running"  # type: ignore[union-attr]
    file = tmp_path / "tiny.yaml"
    file.write_text(f"model: {tiny_model}\ndata: {{sample: 8, max_length: 512}}\ntrain: {{max_steps: 2}}\n")
    trainings = studio.trainings
    trainings.start("grid", file, [], grid=["lora.r=2,4"])
    assert trainings.get("grid").sweeps
    assert trainings.progress(trainings.get("grid")).phase == "starting"
    wait_for(lambda: not trainings.processes.running("grid"))
    assert trainings.progress(trainings.get("grid")).phase == "swept"
    assert [(run.name, run.state) for run in trainings.members("grid")] == [
        ("grid/r=2", "trained"), ("grid/r=4", "trained"),
    ]  # fmt: skip
    wait_for(lambda: studio.collections.newest().state != "running")  # type: ignore[union-attr]
    newest = studio.collections.newest()
    assert newest is not None
    assert (newest.state, json.dumps(newest.error) != '""') == ("failed", True)
