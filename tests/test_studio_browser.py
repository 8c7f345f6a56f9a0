"""The studio in a real browser: every tab used as people use it, on the built-in model; nothing hostile ever runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import make_tiny_tokenizer
from scripted import ScriptedModel
from test_compare import write_run
from thinktune import tags
from thinktune.engines.shared import SharedModel
from thinktune.models import Chat
from thinktune.web.app import open_page
from thinktune.web.pool import Pool, Seat
from thinktune.web.studio import Studio
from thinktune.web.study import study_of_scores

pytestmark = pytest.mark.slow
SECONDS = 120_000  # milliseconds that anything may take on a machine that is busy with other things
MODEL = "builtin:smollm2"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright import sync_api

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`thinktune demo` on the built-in model: its address, and its folder of runs."""
    runs = tmp_path_factory.mktemp("studio") / "runs"
    study_of_scores(
        runs / "studio/studies/scored", [write_run(runs / "one", tuned="rrrrrrrrww", base="w" * 10)], seed=1
    )
    write_run(runs / "two", tuned="rw")
    environment = {**os.environ, "THINKTUNE_CACHE": str(runs.parent / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "thinktune", "demo", MODEL, "--runs", str(runs)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip(), runs
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=SECONDS / 1000) == 0


@pytest.fixture
def page(browser: Any, studio: tuple[str, Path]) -> Iterator[Any]:
    page = open_tab(browser, studio[0])
    yield page
    page.context.close()


def open_tab(browser: Any, url: str, **settings: Any) -> Any:
    page = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1200, "height": 900}, **settings}).new_page()
    page.set_default_timeout(SECONDS)
    page.goto(url)
    page.wait_for_selector("#chat-send")
    return page


def go(page: Any, number: int) -> None:
    """To the n-th tab."""
    page.get_by_role("tab").nth(number).click()


def choose(page: Any, dropdown: str, option: str) -> None:
    page.click(f"{dropdown} input")
    page.get_by_role("option", name=option, exact=True).click()


def short_answers(page: Any) -> None:
    page.click("#chat-sampling button")
    page.fill("#chat-max-tokens input", "40")
    page.fill("#chat-think-budget input", "16")
    page.keyboard.press("Tab")


def wait_for_text(page: Any, selector: str, text: str) -> None:
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)", arg=[selector, text]
    )


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


def test_two_models_answer_side_by_side_and_stop_when_they_are_told(page: Any) -> None:
    choose(page, "#chat-second-model", MODEL)
    page.wait_for_selector("#chat-right")
    page.fill("#chat-question textarea", "Write a very long story about a dog.")
    page.click("#chat-send")
    page.wait_for_function("document.querySelector('#chat-right').innerText.split(' ').length > 15")
    page.click("#chat-stop")
    wait_for_text(page, "#chat-left", "stopped")
    wait_for_text(page, "#chat-right", "stopped")
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
        page.keyboard.press("1" if done % 2 else "ArrowRight")
    wait_for_text(page, "#rate-progress", "has rated everything")
    page.click("#rate-results button")
    page.click("#rate-show-results")
    wait_for_text(page, "#rate-count", "10 ratings by 1 raters")
    wait_for_text(page, "#rate-table", "agreement with the automatic score")
    with page.expect_download() as download:
        page.locator("#rate-file a").first.click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 10


def test_a_batch_is_checked_run_and_downloaded_as_the_command_line_writes_it(
    page: Any, studio: tuple[str, Path], tmp_path: Path
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
    with page.expect_download() as download:
        page.locator("#batch-result a").first.click()
    environment = {**os.environ, "THINKTUNE_CACHE": str(studio[1].parent / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "thinktune", "infer", MODEL, str(file), "-o", str(tmp_path / "cli.json")]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    assert Path(download.value.path()).read_bytes() == (tmp_path / "cli.json").read_bytes()


def test_a_training_is_started_watched_and_stopped(page: Any, studio: tuple[str, Path]) -> None:
    go(page, 3)
    wait_for_text(page, "#runs-table", "two")
    page.click("#train-form button")
    page.fill("#train-name textarea, #train-name input", "mine")
    page.fill("#train-sample input", "20")
    page.fill(
        "#train-overrides textarea",
        "data.max_length=512\nask.questions=[]\neval.every=null\ntrain.epochs=200\ntrain.save_every=50",
    )
    page.keyboard.press("Tab")
    wait_for_text(page, "#train-command", "train.save_every=50")
    assert "data.sample=20" in page.inner_text("#train-command")
    wait_for_text(page, "#train-yaml", "max_length: 512")
    page.click("#train-start")
    page.wait_for_function(r"/mine\s+training\s+[1-9]/.test(document.querySelector('#runs-table').innerText)")
    page.click("#runs-stop")
    page.wait_for_function(r"/mine\s+unfinished/.test(document.querySelector('#runs-table').innerText)")
    assert list((studio[1] / "mine/checkpoints").glob("checkpoint-*/adapter_model.safetensors"))


@pytest.mark.parametrize(("locale", "word"), [("zh-CN", "发送"), ("en-US", "Send"), ("de-DE", "Send")])
def test_the_page_speaks_the_browsers_language_and_fits_a_phone(
    locale: str, word: str, browser: Any, studio: tuple[str, Path]
) -> None:
    page = open_tab(browser, studio[0], locale=locale, viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert page.inner_text("#chat-send") == word
    for number in range(4):
        page.wait_for_timeout(500)
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


PAYLOADS = [
    "<script>alert(1)</script>",
    "<ScRiPt>alert(1)</sCrIpT>",
    "<img src=x onerror=alert(1)>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>x</details>",
    "<video><source onerror=alert(1)></video>",
    "<audio src=x onerror=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<math href=javascript:alert(1)>x</math>",
    "<a href=javascript:alert(1)>x</a>",
    "[x](javascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    '![x](x"onerror="alert(1))',
    "<object data=javascript:alert(1)></object>",
    "<embed src=javascript:alert(1)>",
    "<form action=javascript:alert(1)><button>x</button></form>",
    "<style>@import 'javascript:alert(1)';</style>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example/'>",
    "`<script>alert(1)</script>`",
    "```html\n<img src=x onerror=alert(1)>\n```",
    "$\\href{javascript:alert(1)}{x}$ $$\\url{javascript:alert(1)}$$",
    "{{constructor.constructor('alert(1)')()}} ${alert(1)}",
    '</think><noscript><p title="</noscript><img src=x onerror=alert(1)>">',
    "\"'><img src=x onerror=alert(1)//",
]


class Parrot(Pool):
    """A pool of one model, which says what it is told."""

    def __init__(self, reference: str, runs: Path) -> None:
        super().__init__([reference], runs)
        tokenizer = make_tiny_tokenizer()
        model = ScriptedModel(tokenizer, lambda prompt: prompt.rsplit("say: ", 1)[1].split("<|im_end|>")[0])
        shared = SharedModel(model, tokenizer, [tokenizer.eos_token_id])
        self._seat = Seat(reference, Chat(tokenizer), False, "parrot", tags.TEMPLATE, shared, None)

    def take(self, reference: str) -> Seat:
        return self._seat


def test_no_payload_runs_in_prompts_answers_thoughts_names_or_comments(browser: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number, payload in enumerate(PAYLOADS):
        name = payload.replace("/", "\\") if len(payload) < 100 else f"run{number}"
        write_run(runs / name, tuned="r", completion=payload.replace("{", "{{").replace("}", "}}"))
    server = open_page(Studio(Parrot("<img src=x onerror=alert(1)>", runs), runs, may_train=True))
    page = open_tab(browser, server.url)
    ran: list[str] = []
    page.on("dialog", lambda dialog: ran.append(dialog.message))
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.on("console", lambda each: ran.append(each.text) if "Content Security Policy" in each.text else None)
    outside: list[str] = []
    page.on("request", lambda each: outside.append(each.url) if "evil" in each.url else None)
    title = page.title()
    for number, payload in enumerate(PAYLOADS):
        text = (
            f"say: <think>{payload}</think> <answer>{payload}</answer>" if "think" not in payload else f"say: {payload}"
        )
        page.fill("#chat-question textarea", text)
        page.click("#chat-send")
        page.wait_for_function("document.querySelector('#chat-question textarea').value === ''")
        wait_for_text(page, "#chat-status", "done")
        page.wait_for_timeout(400)
        if number % 5 == 4:
            page.click("#chat-new")
            page.wait_for_function("document.querySelector('#chat-left').innerText.trim().length < 400")
    page.reload()
    page.wait_for_selector("#chat-send")
    go(page, 3)
    page.wait_for_timeout(3000)
    file = tmp_path / "<img src=x onerror=alert(1)>.jsonl"
    file.write_text(json.dumps({"id": PAYLOADS[2], "type": "math", "prompt": PAYLOADS[0]}) + "\nnot <b>JSON</b>\n")
    go(page, 2)
    page.set_input_files("#batch-file input[type=file]", file)
    page.wait_for_timeout(2000)
    assert (
        page.evaluate("document.querySelectorAll('img[onerror], [onload], [ontoggle], iframe, object, embed').length")
        == 0
    )
    assert (ran, outside, page.title()) == ([], [], title)
    page.context.close()
    server.close()
