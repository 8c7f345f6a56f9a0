"""What is typed while the server is at work stays, in a real browser whose events reach the server late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import go, open_tab, wait_for_text
from conftest import make_tiny_model
from test_compare import write_run
from thinktune.studio.app import open_page
from thinktune.studio.model_pool import Pool
from thinktune.studio.state import Studio
from thinktune.studio.study import study_of_scores

pytestmark = pytest.mark.slow
BOX = "#chat-question textarea"
_LATE = """() => {
    const send = window.fetch;
    window.fetch = async (...request) => {
        if (/queue.join|run.predict/.test(request[0])) await new Promise((done) => setTimeout(done, 1000));
        return send(...request);
    };
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("typing")
    runs, slow = folder / "runs", make_tiny_model(folder / "slow", num_hidden_layers=30)
    study_of_scores(
        runs / "studio/studies/scored", [write_run(runs / "one", tuned="rrrrwwww", base="wwwwrrrr")], seed=1
    )
    server = open_page(Studio(Pool([str(slow), str(tiny_model)], runs), runs, may_train=True))
    yield server.url
    server.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    page = open_tab(browser, url)
    page.wait_for_timeout(1000)
    page.evaluate(_LATE)
    yield page
    page.context.close()


def value(page: Any, box: str) -> str:
    found: str = page.input_value(f"{box} textarea, {box} input")
    return found


def write(page: Any, box: str, text: str) -> None:
    page.fill(f"{box} textarea, {box} input", text)


def ask(page: Any, text: str) -> None:
    page.fill(BOX, text)
    page.press(BOX, "Enter")
    page.wait_for_function(f"document.querySelector('{BOX}').value === ''")


def test_a_draft_outlives_waiting_questions_a_new_conversation_and_what_is_given_back(page: Any) -> None:
    page.click("#chat-sampling button")
    page.fill("#chat-max-tokens input", "1500")
    page.keyboard.press("Tab")
    ask(page, "one?")
    page.wait_for_selector("#chat-stop")
    ask(page, "two?")
    page.fill(BOX, "not sent yet")
    wait_for_text(page, "#chat-status", "1 waiting")
    page.wait_for_timeout(500)
    assert page.input_value(BOX) == "not sent yet"
    page.click("#chat-stop")  # what waits comes back, before the draft
    page.wait_for_function(f"document.querySelector('{BOX}').value === 'two?\\nnot sent yet'")
    page.wait_for_selector("#chat-send")
    ask(page, "three?")
    page.wait_for_selector("#chat-stop")
    page.fill(BOX, "the next one")
    page.click("#chat-new")  # while the answer is being written
    page.wait_for_timeout(3000)
    assert page.input_value(BOX) == "the next one"
    assert "one?" not in page.inner_text("#chat-left")  # the last of its answer does not bring it back


def test_the_first_question_of_a_new_conversation_is_not_the_next_one_of_the_old(page: Any) -> None:
    page.click("#chat-sampling button")
    page.fill("#chat-max-tokens input", "5")
    page.keyboard.press("Tab")
    ask(page, "one?")
    wait_for_text(page, "#chat-status", "done")
    page.click("#chat-new")
    ask(page, "two?")  # before the server has heard of the first click
    wait_for_text(page, "#chat-status", "done")
    page.wait_for_timeout(1500)
    assert "one?" not in page.inner_text("#chat-left")
    page.wait_for_function("document.querySelectorAll('#chat-list input').length === 2")


def test_settings_typed_after_a_profile_or_a_config_was_chosen_stay(page: Any) -> None:
    page.click("#chat-sampling button")
    page.locator("#chat-sampling input").first.click()
    page.get_by_role("option", name="default: code-generate", exact=True).click()
    page.fill("#chat-max-tokens input", "77")
    page.wait_for_function("document.querySelector('#chat-sampling input[type=range]')?.value === '0.6'")
    assert value(page, "#chat-max-tokens") == "77"
    go(page, 4)
    page.wait_for_timeout(1500)
    before = value(page, "#train-model")
    page.click("#train-config input")
    page.get_by_role("option", name="article ·").first.click()
    write(page, "#train-sample", "123")
    page.wait_for_function("(old) => document.querySelector('#train-model textarea, #train-model input').value !== old",
                           arg=before)  # fmt: skip
    assert value(page, "#train-sample") == "123"
    assert value(page, "#train-rank") == "4"


def test_names_and_comments_typed_while_one_waits_stay(page: Any, browser: Any, url: str) -> None:
    go(page, 1)
    write(page, "#rate-rater", "ann")
    page.click("#rate-begin")
    wait_for_text(page, "#rate-progress", "0 of")
    write(page, "#rate-comment", "on the first")
    page.click("#rate-left")
    write(page, "#rate-comment", "on the second")
    wait_for_text(page, "#rate-progress", "1 of")
    assert value(page, "#rate-comment") == "on the second"
    page.click("#rate-thinking input")
    page.wait_for_timeout(2000)
    assert value(page, "#rate-comment") == "on the second"
    page.click("#rate-new button")
    suggested = value(page, "#rate-name")
    page.locator("#rate-models .token-remove").first.click()  # one model less
    page.wait_for_function("(old) => document.querySelector('#rate-name textarea, #rate-name input').value !== old",
                           arg=suggested)  # fmt: skip
    write(page, "#rate-name", "my own")
    page.click("#rate-models input")
    page.get_by_role("option").first.click()
    page.wait_for_timeout(2000)
    assert value(page, "#rate-name") == "my own"
