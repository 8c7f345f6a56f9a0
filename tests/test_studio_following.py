"""Pages follow work that goes on without them, in a real browser, also where answers are lost or connections cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import choose, go, open_tab, wait_for_text
from relay import Relay
from test_compare import write_run
from thinktune.studio.app import open_page
from thinktune.studio.model_pool import Pool
from thinktune.studio.state import Studio

pytestmark = pytest.mark.slow
_CHANGES = """() => {
    window.changed = [];
    new MutationObserver((changes) => window.changed.push(...changes.map(({target}) => target.nodeName)))
        .observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});
}"""


@pytest.fixture
def studio(tmp_path: Path, tiny_model: Path) -> Iterator[Studio]:
    runs = tmp_path / "runs"
    write_run(runs / "one", tuned="rrrw", base="wwww")
    studio = Studio(Pool([str(tiny_model)], runs), runs, may_train=True)
    yield studio
    for process in filter(None, map(studio.trainings.processes.running, studio.trainings.processes.names())):
        process.kill()


@pytest.fixture
def relay(studio: Studio) -> Iterator[Relay]:
    server = open_page(studio)
    relay = Relay(server.address)
    yield relay
    relay.close()
    server.close()


@pytest.fixture
def page(browser: Any, relay: Relay) -> Iterator[Any]:
    page = open_tab(browser, relay.url)
    yield page
    page.context.close()


@pytest.fixture
def training(studio: Studio, tiny_model: Path, tmp_path: Path) -> str:
    """A training that goes on until it is told to stop."""
    rows = [
        {"question": f"{n} plus 3?", "answer": f"<think>{n} + 3</think> <answer>{n + 3}</answer>"} for n in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {tiny_model}\ndata: {{source: {tmp_path}/rows.jsonl, max_length: 512, eval_fraction: 0}}\n"
        "train: {epochs: 50000, save_every: 500000}\nask: {questions: []}\n"
    )
    studio.trainings.start("live", config, [])
    return "live"


def show_training(page: Any) -> None:
    page.goto(page.url.partition("?")[0] + "?run=live")
    page.wait_for_function(r"/training, step · [1-9]\d* of \d+/.test(document.querySelector('#run-head')?.innerText)")


@pytest.mark.usefixtures("training")
def test_a_run_that_has_stopped_says_so_where_the_stream_of_events_is_lost(page: Any) -> None:
    show_training(page)
    page.route("**/queue/data*", lambda _: None)  # which is neither answered nor refused
    page.click("#run-stop")
    page.wait_for_selector(".run-head.phase-stopped", timeout=60_000)


@pytest.mark.usefixtures("training")
def test_a_run_that_stops_while_the_connection_is_cut_says_so_after_it(page: Any, relay: Relay, studio: Studio) -> None:
    show_training(page)
    with relay.broken():
        studio.trainings.stop("live")
        page.wait_for_selector("#unheard")
    page.wait_for_selector(".run-head.phase-stopped", timeout=60_000)
    assert page.locator("#unheard").count() == 0


@pytest.mark.usefixtures("training")
def test_an_answer_that_is_lost_is_asked_for_again(page: Any, studio: Studio) -> None:
    show_training(page)
    lost: list[Any] = []
    page.route("**/run/predict*", lambda route: lost.append(route) if not lost else route.continue_())
    studio.trainings.stop("live")
    page.wait_for_selector(".run-head.phase-stopped", timeout=60_000)
    assert lost


def test_a_page_on_which_nothing_moves_is_neither_asked_for_nor_drawn_again(page: Any) -> None:
    go(page, 3)
    choose(page, "#runs-which", "one")
    wait_for_text(page, "#run-scores", "75.0%")
    page.wait_for_timeout(18_000)  # after a click, something might come of it
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(_CHANGES)
    page.wait_for_timeout(11_000)
    assert [url for url in asked if "studio/versions" not in url] == []
    assert len(asked) <= 2
    assert page.evaluate("window.changed") == []


def test_a_preview_of_data_comes_although_the_connection_was_cut(page: Any, relay: Relay, tiny_model: Path) -> None:
    go(page, 4)
    page.fill("#train-model textarea, #train-model input", str(tiny_model))
    page.fill("#train-sample input", "20")
    page.keyboard.press("Tab")
    wait_for_text(page, "#train-command", "data.sample=20")
    page.click("#train-look")
    with relay.broken():
        page.wait_for_timeout(1500)
    wait_for_text(page, "#train-preview", "kept")


def test_a_question_that_is_asked_while_the_stream_ends_is_answered(page: Any, relay: Relay) -> None:
    page.click("#chat-sampling button")
    page.fill("#chat-max-tokens input", "8")
    page.keyboard.press("Tab")
    relay.late = 1.0
    for number in range(3):
        page.fill("#chat-question textarea", f"What is {number} plus 4?")
        page.press("#chat-question textarea", "Enter")
        page.wait_for_function(
            "(many) => document.querySelector('#chat-left').innerText.split('tokens/s').length > many", arg=number + 1
        )
