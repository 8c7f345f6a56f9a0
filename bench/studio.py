"""How fast and how steady the studio is: python bench/studio.py [--model builtin:smollm2] [--minutes 5] [--sessions 20]

Prints, line by line: seconds from the server's start to its page in a browser; milliseconds from the click to the first
token on the page, beside the engine's own from the call to the first token; and what many sessions at once got:
answers, errors, answers on another session's topic, and the memory of the process before and after.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from thinktune.config import Sampling
from thinktune.engines.base import Request
from thinktune.engines.tickets import Ticket

QUESTION = "What is 7 times 8?"
TOPICS = (
    "Volcano", "Violin", "Elephant", "Democracy", "Photosynthesis", "Bicycle", "Chess", "Glacier", "Bread", "Satellite",
    "Poetry", "Magnet", "Penguin", "Cathedral", "Vaccine", "Desert", "Piano", "Inflation", "Spider", "Lighthouse",
)  # fmt: skip
MOST_TOKENS = 48
ASKED = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="builtin:smollm2")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--sessions", type=int, default=20)
    arguments = parser.parse_args()
    from thinktune.web.app import open_page
    from thinktune.web.pool import Pool
    from thinktune.web.studio import Studio

    runs = Path(tempfile.mkdtemp(prefix="studio-bench-"))
    pool = Pool([arguments.model], runs)
    studio = Studio(pool, runs, may_train=False)
    started = time.perf_counter()
    server = open_page(studio)
    listening = time.perf_counter() - started
    try:
        measure_page(server.url, listening)
        measure_first_tokens(server.url, pool, arguments.model)
        measure_sessions(server.url, pool, arguments.model, arguments.sessions, 60 * arguments.minutes)
    finally:
        server.close()
        shutil.rmtree(runs)


def measure_page(url: str, listening: float) -> None:
    with chromium() as browser:
        page = browser.new_page()
        started = time.perf_counter()
        page.goto(url)
        page.wait_for_selector("#chat-send")
        ready = time.perf_counter() - started
    print(f"page: built and listening in {listening:.2f} s, ready in the browser {ready:.2f} s later", flush=True)


def measure_first_tokens(url: str, pool: Any, model: str) -> None:
    """Both for the same question, in turns, so that a load on the machine is the same for both."""
    seat = pool.take(model)
    sampling = Sampling(temperature=0.1, max_tokens=4, seed=3407)
    request = Request("ask", seat.chat.prompt_ids([{"role": "user", "content": QUESTION}]), sampling)
    engine, page_times = [], []
    with chromium() as browser:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#chat-send")
        page.wait_for_timeout(3000)
        page.click("#chat-sampling button")
        page.fill("#chat-max-tokens input", "4")
        page.keyboard.press("Tab")
        for _ in range(ASKED + 1):
            started = time.perf_counter()
            stream = seat.engine(Ticket()).stream(request)
            next(stream)
            engine.append(1000 * (time.perf_counter() - started))
            list(stream)
            page.click("#chat-new")
            page.wait_for_function("!document.querySelector('#chat-left .bot')")
            page.fill("#chat-question textarea", QUESTION)
            page.wait_for_timeout(500)  # else the click may come before the page has taken the question in
            page_times.append(page.evaluate(_TIME_TO_FIRST_TOKEN))
            page.wait_for_timeout(1500)
    # The first of each warms up.
    own, seen = median(engine[1:]), median(page_times[1:])
    print(
        f"first token, median of {ASKED}: engine {own:.0f} ms, page {seen:.0f} ms, {seen - own:.0f} ms more", flush=True
    )


_TIME_TO_FIRST_TOKEN = """() => new Promise(resolve => {
    const chat = document.querySelector('#chat-left');
    const started = performance.now();
    const observer = new MutationObserver(() => {
        const texts = [...chat.querySelectorAll('.bot .md, .bot .prose')];
        if (texts.some(each => each.innerText.trim())) { observer.disconnect(); resolve(performance.now() - started); }
    });
    observer.observe(chat, {childList: true, subtree: true, characterData: true});
    document.querySelector('#chat-send').click();
})"""


def measure_sessions(url: str, pool: Any, model: str, sessions: int, seconds: float) -> None:
    """Each session asks its own question again and again, over HTTP as a page does, until the time is over."""
    # Answers that have nothing in common tell a mixed one from one that rounding has changed.
    questions = [f"{TOPICS[n % len(TOPICS)]}: tell me what it is, in sentence {n + 1}." for n in range(sessions)]
    expected = [alone(pool, model, question) for question in questions]
    process = psutil.Process()
    event = event_of_send(url)
    talk(url, event, model, questions[0], "warm")
    before = process.memory_info().rss / 2**20
    ends = time.monotonic() + seconds
    latencies: list[float] = []
    answers: list[tuple[int, str]] = []
    errors: list[str] = []

    def work(n: int) -> None:
        while time.monotonic() < ends:
            started = time.monotonic()
            try:
                answers.append((n, talk(url, event, model, questions[n], f"session{n}")))
                latencies.append(time.monotonic() - started)
            except (httpx.HTTPError, KeyError, ValueError, IndexError) as error:
                errors.append(f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(sessions + 1) as threads:
        halfway = threads.submit(lambda: (time.sleep(seconds / 2), process.memory_info().rss / 2**20)[1])
        list(threads.map(work, range(sessions)))
    after = process.memory_info().rss / 2**20
    same = sum(text == expected[n] for n, text in answers)
    words = [TOPICS[n % len(TOPICS)].lower()[:6] for n in range(sessions)]
    mixed = sum(words[n] not in text.lower() and any(word in text.lower() for word in words) for n, text in answers)
    print(
        f"{sessions} sessions for {seconds / 60:.1f} minutes: {len(answers)} answers, {len(errors)} errors, "
        f"{same} the same as alone, {mixed} on another session's topic; {median(latencies or [0]):.1f} s an answer; "
        f"memory {before:.0f} MiB before, {halfway.result():.0f} halfway, {after:.0f} after",
        flush=True,
    )
    for error in errors[:5]:
        print(f"  {error}", flush=True)


def alone(pool: Any, model: str, question: str) -> str:
    seat = pool.take(model)
    sampling = Sampling(temperature=0, max_tokens=MOST_TOKENS, seed=1)
    ids = seat.chat.prompt_ids([{"role": "user", "content": question}])
    return "".join(seat.engine(Ticket()).stream(Request("ask", ids, sampling)))


def talk(url: str, event: int, model: str, question: str, session: str) -> str:
    """One question through Gradio's queue, and the answer that the browser would keep."""
    session = f"{session}{time.monotonic_ns()}"
    values = [question, {"turns": []}, model, "", False, 0.0, 1.0, 0, 1.0, MOST_TOKENS, 0, 1]
    body = {"data": values, "fn_index": event, "session_hash": session, "trigger_id": None}
    api = f"{url}gradio_api/queue"
    kept: dict[str, Any] = {}
    with httpx.Client(timeout=300) as client:
        client.post(f"{api}/join", json=body).raise_for_status()
        with client.stream("GET", f"{api}/data", params={"session_hash": session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line[6:]) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    kept = message["output"]["data"][1]
                    break
    return str(kept["turns"][0]["answers"][0]["text"])


def event_of_send(url: str) -> int:
    """The number under which Gradio knows a click on the button that sends."""
    config = httpx.get(f"{url}config").json()
    button = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "chat-send")
    return next(each["id"] for each in config["dependencies"] if [button, "click"] in each["targets"])


class chromium:
    """A browser while in use."""

    def __enter__(self) -> Any:
        from playwright.sync_api import sync_playwright

        path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        return self._browser

    def __exit__(self, *exc: object) -> None:
        self._browser.close()
        self._playwright.stop()


if __name__ == "__main__":
    main()
