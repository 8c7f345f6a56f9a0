"""The studio in a real browser: every tab used as people use it, on the built-in model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from browsing import SECONDS, choose, go, open_tab, wait_for_text
from conftest import make_tiny_model
from test_compare import write_run
from thinktune.cli import app
from thinktune.studio.app import open_page
from thinktune.studio.model_pool import Pool
from thinktune.studio.processes import Processes
from thinktune.studio.state import Studio
from thinktune.studio.study import study_of_scores

pytestmark = pytest.mark.slow
MODEL = "builtin:smollm2"


@pytest.fixture(scope="module")
def studio(
    tmp_path_factory: pytest.TempPathFactory, builtin_cache: Path, tiny_model: Path
) -> Iterator[tuple[str, Path]]:
    """`thinktune demo` on the built-in model and a tiny one: its address, and its folder of runs."""
    runs = tmp_path_factory.mktemp("studio") / "runs"
    study_of_scores(
        runs / "studio/studies/scored", [write_run(runs / "one", tuned="rrrrrrrrww", base="w" * 10)], seed=1
    )
    write_run(runs / "two", tuned="rw")
    environment = {**os.environ, "THINKTUNE_CACHE": str(builtin_cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "thinktune", "demo", MODEL, str(tiny_model), "--runs", str(runs)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip(), runs
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=SECONDS / 1000) == 0


@pytest.fixture
def _no_training_is_left(studio: tuple[str, Path]) -> Iterator[None]:
    """End what a test has started, also when it fails."""
    yield
    trainings = Processes(studio[1] / "studio/trainings")
    for process in filter(None, map(trainings.running, trainings.names())):
        process.kill()


@pytest.fixture
def page(browser: Any, studio: tuple[str, Path]) -> Iterator[Any]:
    page = open_tab(browser, studio[0])
    yield page
    page.context.close()


def short_answers(page: Any) -> None:
    page.click("#chat-sampling button")
    page.fill("#chat-max-tokens input", "40")
    page.fill("#chat-think-budget input", "16")
    page.keyboard.press("Tab")


def test_an_answer_streams_folds_its_thought_and_outlives_a_reload(page: Any) -> None:
    short_answers(page)
    page.fill("#chat-question textarea", "What is 7 times 8?")
    page.press("#chat-question textarea", "Enter")
    wait_for_text(page, "#chat-left", "Thinking … ")
    wait_for_text(page, "#chat-left", "Thought: ")
    wait_for_text(page, "#chat-status", "done")
    page.wait_for_timeout(500)
    answer = page.inner_text("#chat-left")
    assert "What is 7 times 8?" in answer
    page.reload()
    wait_for_text(page, "#chat-left", "Thought: ")
    with page.expect_download() as download:
        page.click("#chat-export")
    kept = json.loads(Path(download.value.path()).read_text())
    assert kept["turns"][0]["answers"][0]["state"] == "done"
    assert kept["turns"][0]["answers"][0]["text"].startswith("<think>")
    page.click("#chat-edit")
    page.wait_for_function("document.querySelector('#chat-question textarea').value === 'What is 7 times 8?'")
    assert "Thought" not in page.inner_text("#chat-left")


def test_questions_wait_and_conversations_are_kept_opened_and_deleted(page: Any) -> None:
    short_answers(page)
    for text in ("What is 7 times 8?", "What is 9 plus 4?"):  # the second while the first is answered
        page.fill("#chat-question textarea", text)
        page.press("#chat-question textarea", "Enter")
        page.wait_for_function("document.querySelector('#chat-question textarea').value === ''")
    page.wait_for_selector("#chat-stop")
    wait_for_text(page, "#chat-left", "9 plus 4")
    wait_for_text(page, "#chat-status", "done")
    page.wait_for_selector("#chat-send")
    facts = page.inner_text("#chat-left")
    assert facts.count("tokens/s") == 2
    assert len(re.findall("^(right|wrong)$", facts, re.MULTILINE)) == 2
    wait_for_text(page, "#chat-list", "What is 7 times 8?")
    page.click("#chat-new")
    page.wait_for_selector("#chat-examples button")
    assert "7 times 8" not in page.inner_text("#chat-left")
    page.reload()
    wait_for_text(page, "#chat-list", "What is 7 times 8?")
    page.click("#chat-list label")
    wait_for_text(page, "#chat-left", "9 plus 4")
    asked: list[str] = []

    def answer_no_then_yes(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.accept() if len(asked) > 1 else dialog.dismiss()

    page.on("dialog", answer_no_then_yes)
    page.click("#chat-left .top-panel button")
    page.wait_for_timeout(500)
    assert "9 plus 4" in page.inner_text("#chat-left")
    page.click("#chat-left .top-panel button")
    page.wait_for_selector("#chat-examples button")
    assert len(asked) == 2


def test_two_models_answer_side_by_side_and_stop_when_they_are_told(page: Any) -> None:
    choose(page, "#chat-second-model", MODEL)
    page.wait_for_selector("#chat-right")
    page.fill("#chat-question textarea", "Write a very long story about a dog.")
    page.click("#chat-send")
    page.wait_for_function("document.querySelector('#chat-right').innerText.split(' ').length > 15")
    page.click("#chat-stop")
    wait_for_text(page, "#chat-left", "stopped")
    wait_for_text(page, "#chat-right", "stopped")
    page.wait_for_selector("#chat-send")  # which Stop stood for
    before = page.inner_text("#chat-right")
    page.wait_for_timeout(1500)
    assert page.inner_text("#chat-right") == before


def test_ten_pairs_are_rated_blind_by_keys_and_counted(page: Any) -> None:
    go(page, 1)
    page.fill("#rate-rater textarea, #rate-rater input", "ann")
    page.click("#rate-begin")
    for done in range(10):
        wait_for_text(page, "#rate-progress", f"{done} of 10")
        shown = page.inner_text("#rate-left-answer") + page.inner_text("#rate-right-answer")
        assert "base" not in shown
        if done == 4:
            page.reload()  # it goes on where it stopped
            page.wait_for_selector("#chat-send")
            go(page, 1)
            page.wait_for_function("document.querySelector('#rate-rater textarea, #rate-rater input').value === 'ann'")
            page.click("#rate-begin")
            wait_for_text(page, "#rate-progress", "4 of 10")
        page.locator("#rate-progress").click()  # away from the fields
        page.wait_for_timeout(700)  # to read the pair: keys that come sooner are not taken for a verdict on it
        for _ in range(2):  # the second is one too many
            page.keyboard.press("1" if done % 2 else "2")
        if done == 8:  # the last pair but one comes after the last, and with its reference
            wait_for_text(page, "#rate-progress", "9 of 10")
            last = page.inner_text("#rate-prompt")
            page.click("#rate-with-reference input")
            wait_for_text(page, "#rate-reference", "Reference: ")
            page.click("#rate-skip")
            page.wait_for_timeout(500)
            assert last.splitlines()[-1] in page.inner_text("#rate-prompt")  # there is no other
    wait_for_text(page, "#rate-progress", "has rated everything")
    page.click("#rate-results button")
    page.click("#rate-show-results")
    wait_for_text(page, "#rate-count", "ratings: 10, raters: 1")
    wait_for_text(page, "#rate-table", "agreement with the automatic score")
    with page.expect_download() as download:
        page.locator("#rate-file a").first.click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 10


def test_two_models_answer_a_study_which_is_rated_blind(browser: Any, tmp_path: Path, tiny_model: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    runs = tmp_path / "runs"
    server = open_page(Studio(Pool([str(tiny_model), str(other)], runs), runs, may_train=False))
    page = open_tab(browser, server.url)
    file = tmp_path / "questions.jsonl"
    lines = [{"id": n, "type": "math", "prompt": f"{n} plus 3?", "sampling": {"max_tokens": 12}} for n in range(4)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    go(page, 1)
    page.click("#rate-new button")
    page.fill("#rate-name textarea, #rate-name input", "two live")
    page.set_input_files("#rate-questions input[type=file]", file)
    wait_for_text(page, "#rate-questions", "questions.jsonl")
    page.click("#rate-prepare")
    wait_for_text(page, "#rate-prepared", "4 questions are ready")
    page.fill("#rate-rater textarea, #rate-rater input", "bob")
    page.click("#rate-begin")
    seen = set()
    for done in range(4):
        wait_for_text(page, "#rate-progress", f"{done} of 4")
        seen.add(page.inner_text("#rate-prompt").strip().splitlines()[-1])  # after Gradio's hidden "processing"
        sides = [page.inner_text(f"#rate-{side}-answer") for side in ("left", "right")]
        assert all(side.strip() for side in sides)
        assert not any(name in side for name in (str(tiny_model), str(other)) for side in sides)
        page.fill("#rate-comment textarea, #rate-comment input", f"comment {done}")
        page.click("#rate-left" if done % 2 else "#rate-both-bad")
    wait_for_text(page, "#rate-progress", "has rated everything")
    assert seen == {line["prompt"] for line in lines}
    page.click("#rate-results button")
    page.click("#rate-show-results")
    wait_for_text(page, "#rate-count", "ratings: 4, raters: 1")
    wait_for_text(page, "#rate-table", f"{tiny_model} is preferred to {other}")
    with page.expect_download() as download:
        page.locator("#rate-file a").first.click()
    ratings = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert sorted(rating["comment"] for rating in ratings) == [f"comment {n}" for n in range(4)]
    assert {rating["first"] for rating in ratings} | {rating["second"] for rating in ratings} == {
        str(tiny_model), str(other),
    }  # fmt: skip
    page.context.close()
    server.close()


def test_a_batch_is_checked_run_and_downloaded_as_the_command_line_writes_it(
    page: Any, builtin_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "A1.jsonl"
    sampling = {"max_tokens": 12, "temperature": 0}
    lines = [{"id": f"q{n}", "type": "math", "prompt": f"{n} plus 3?", "sampling": sampling} for n in range(5)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    go(page, 2)
    page.set_input_files("#batch-file input[type=file]", file)
    wait_for_text(page, "#batch-check", "5 items: 5 math")
    page.click("#batch-run")
    wait_for_text(page, "#batch-state", "done · 5 of 5")
    wait_for_text(page, "#batch-answers", "4 plus 3?")
    page.fill("#batch-search textarea, #batch-search input", "2 plus")
    wait_for_text(page, "#batch-answers", "rows: 1 ·")
    with page.expect_download() as download:
        page.locator("#batch-result a").first.click()
    monkeypatch.setenv("THINKTUNE_CACHE", str(builtin_cache))
    done = CliRunner().invoke(app, ["infer", MODEL, str(file), "-o", str(tmp_path / "cli.json")])
    assert done.exit_code == 0, done.output
    assert Path(download.value.path()).read_bytes() == (tmp_path / "cli.json").read_bytes()


@pytest.mark.usefixtures("_no_training_is_left")
def test_a_training_is_started_watched_stopped_and_resumed(
    page: Any, studio: tuple[str, Path], tiny_model: Path
) -> None:
    go(page, 4)
    page.fill("#train-name textarea, #train-name input", "mine")
    page.fill("#train-model textarea, #train-model input", str(tiny_model))
    page.fill("#train-sample input", "20")
    page.fill(
        "#train-overrides textarea",
        "data.max_length=512\nask.questions=[]\neval.every=null\ntrain.epochs=5000\ntrain.save_every=50000",
    )
    page.keyboard.press("Tab")
    wait_for_text(page, "#train-command", "train.save_every=50000")
    assert "data.sample=20" in page.inner_text("#train-command")
    wait_for_text(page, "#train-yaml", "max_length: 512")
    page.click("#train-look")
    wait_for_text(page, "#train-preview", "kept")
    page.click("#train-estimate")
    wait_for_text(page, "#train-memory", "GiB")
    page.click("#train-start")
    page.wait_for_selector(".run-head.works")
    page.wait_for_url("**?run=mine")  # told by the browser, after the page is there
    page.wait_for_function(r"/training, step · [1-9]\d* of \d+/.test(document.querySelector('#run-head').innerText)")
    page.click("#run-stop")
    page.wait_for_selector(".run-head.phase-stopped")
    assert list((studio[1] / "mine/checkpoints").glob("checkpoint-*/adapter_model.safetensors"))
    page.reload()  # the address is the run's
    page.wait_for_selector(".run-head.phase-stopped")
    wait_for_text(page, "#run-facts", "data.sample")
    page.click("#run-train-again")
    page.wait_for_function("document.querySelector('#train-name textarea, #train-name input')?.value === 'mine-2'")
    go(page, 3)
    page.click("#run-resume")
    page.wait_for_selector(".run-head.phase-training")


def test_a_runs_page_shows_its_scores_what_changed_and_its_report(page: Any) -> None:
    go(page, 3)
    wait_for_text(page, "#runs-table", "two")
    choose(page, "#runs-which", "one")
    wait_for_text(page, "#run-scores", "80.0%")
    wait_for_text(page, "#run-samples", "wrong before, right now: 8")
    assert page.url.endswith("?run=one")
    with page.expect_download() as download:
        page.click("#run-report")
        page.locator("#run-file a").first.click()
    assert "<html" in Path(download.value.path()).read_text()
    choose(page, "#runs-which", "All runs")
    page.wait_for_selector("#runs-table")
    assert "run=" not in page.url


@pytest.mark.parametrize(("locale", "word"), [("zh-CN", "发送"), ("de-DE", "Send")])
def test_the_page_speaks_the_browsers_language_and_fits_a_phone(
    locale: str, word: str, browser: Any, studio: tuple[str, Path]
) -> None:
    page = open_tab(browser, studio[0], locale=locale, viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert page.inner_text("#chat-send") == word
    for number in range(5):
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        more = page.locator("button.overflow-menu, .overflow-menu button").first
        if page.get_by_role("tab").nth(number).is_visible():
            go(page, number)
        elif more.is_visible():
            more.click()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, background.removeprefix("rgb(").rstrip(")").split(",")[:3])) < 150
    page.context.close()


def test_everything_can_be_reached_by_keyboard_and_has_a_name(page: Any) -> None:
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select')].filter(e => e.offsetParent
        && !(e.innerText || e.ariaLabel || e.labels?.length || e.title || e.closest('label'))).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    page.focus("#chat-question textarea")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "chat-send"
