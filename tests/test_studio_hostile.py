"""The studio in a real browser, and people who mean no good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from browsing import go, open_tab, wait_for_text
from conftest import make_tiny_tokenizer
from scripted import ScriptedModel
from test_compare import write_run
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.shared_engine import SharedModel
from thinktune.models import Chat
from thinktune.report.compare import compare
from thinktune.report.html import write_comparison, write_report
from thinktune.studio.app import USER, open_page
from thinktune.studio.model_pool import ModelHandle, Pool
from thinktune.studio.state import Studio
from thinktune.studio.study import study_of_scores

pytestmark = pytest.mark.slow

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
        shared = SharedModel(TransformersEngine(model, tokenizer, [tokenizer.eos_token_id]))
        self._model_handle = ModelHandle(reference, Chat(tokenizer), False, "parrot", {}, shared, None)

    def take(self, reference: str) -> ModelHandle:
        return self._model_handle


class Watch:
    """What happens on a page that must not."""

    def __init__(self, page: Any) -> None:
        self.seen: list[str] = []
        page.on("dialog", self._dialog)
        page.on("console", lambda each: self._note(each.text) if "Content Security Policy" in each.text else None)
        page.on("request", lambda each: self._note(each.url) if "evil" in each.url else None)

    def _dialog(self, dialog: Any) -> None:
        self._note(dialog.message)
        dialog.dismiss()

    def _note(self, what: str) -> None:
        self.seen.append(what)


LIVE = "img[onerror], [onload], [ontoggle], [onfocus], [href^=javascript], iframe, object, embed"
"""Elements that the payloads would be, if they were any."""


def count(page: Any, selector: str) -> int:
    return int(page.evaluate("selector => document.querySelectorAll(selector).length", selector))


def named_runs(runs: Path) -> None:
    """A run under the name of each payload, whose completions are the payload too."""
    for number, payload in enumerate(PAYLOADS):
        name = payload.replace("/", "\\") if len(payload) < 100 else f"run{number}"
        write_run(runs / name, tuned="r", completion=payload.replace("{", "{{").replace("}", "}}"))


def test_no_payload_runs_in_prompts_answers_thoughts_or_names(browser: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    named_runs(runs)
    server = open_page(Studio(Parrot("<img src=x onerror=alert(1)>", runs), runs, may_train=True))
    page = open_tab(browser, server.url)
    watch = Watch(page)
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
    assert count(page, LIVE) == 0
    assert (watch.seen, page.title()) == ([], title)
    page.context.close()
    server.close()


def test_no_payload_runs_as_a_comment_a_rater_or_a_model_that_is_rated(browser: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    rated = write_run(runs / PAYLOADS[2], tuned="r" * len(PAYLOADS), base="w" * len(PAYLOADS))
    study_of_scores(runs / "studio/studies/s", [rated], seed=1)
    server = open_page(Studio(Parrot("parrot", runs), runs, may_train=False))
    page = open_tab(browser, server.url)
    watch = Watch(page)
    title = page.title()
    go(page, 1)
    page.fill("#rate-rater textarea, #rate-rater input", PAYLOADS[3])
    page.click("#rate-begin")
    for done, payload in enumerate(PAYLOADS):
        wait_for_text(page, "#rate-progress", f"{done} of {len(PAYLOADS)}")
        page.fill("#rate-comment textarea, #rate-comment input", payload)
        page.click("#rate-left")
    wait_for_text(page, "#rate-progress", "has rated everything")
    page.click("#rate-results button")
    page.click("#rate-show-results")
    wait_for_text(page, "#rate-table", "is preferred to")
    with page.expect_download() as download:
        page.locator("#rate-file a").first.click()
    assert count(page, LIVE) == 0
    ratings = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    lines = [payload.replace("\n", " ") for payload in PAYLOADS]  # the field for a comment has one line
    assert sorted(rating["comment"].replace("\n", " ") for rating in ratings) == sorted(lines)
    # The same ratings, in the pages that others are sent.
    comparison = compare([rated], ["tuned"])
    for file in (write_report(rated), write_comparison(comparison, tmp_path)):
        page.goto(file.as_uri())
        page.wait_for_timeout(300)
        assert count(page, LIVE) == 0
        assert "preferred" in page.inner_text("body")
    assert watch.seen == []
    assert page.title() != title
    page.context.close()
    server.close()


def test_a_page_with_a_password_opens_with_it_and_not_without(browser: Any, tmp_path: Path) -> None:
    server = open_page(Studio(Parrot("parrot", tmp_path), tmp_path, may_train=False), password="open sesame")
    page = browser.new_context(locale="en-US").new_page()
    watch = Watch(page)
    page.goto(server.url)
    for password in ("wrong", "open sesame"):
        assert count(page, "#chat-send") == 0
        fields = page.locator("form input, .wrap input")
        fields.nth(0).fill(USER)
        fields.nth(1).fill(password)
        page.keyboard.press("Enter")
        page.wait_for_timeout(1000)
    page.wait_for_selector("#chat-send")
    page.fill("#chat-question textarea", "say: <answer>welcome</answer>")
    page.wait_for_timeout(300)
    page.click("#chat-send")
    wait_for_text(page, "#chat-left", "welcome")
    assert watch.seen == []
    page.context.close()
    server.close()
