"""How fast and how steady the studio is: python bench/studio.py [--model builtin:smollm2] [--minutes 5] [--sessions 20]

Prints, line by line: seconds from the start of `thinktune demo` to its page in a browser; milliseconds from a click on
*Send* to the first token on the page, beside the engine's own from its call to its first token; and what many sessions
at once got: answers, errors, answers on another session's topic, and the memory of the server's process as time goes
by. Half of the sessions are one page that stays open, the others open a page for every question.

A batch of other rows rounds differently in bfloat16, so that greedy answers may differ from those of a session that is
alone; with --dtype float32 they are to be the same. --only runs some of the three parts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from gradio_client.utils import apply_diff

from thinktune.config import Load, Sampling
from thinktune.inference.engines import EngineSettings
from thinktune.inference.engines.base import Request
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.studio.model_pool import Pool

PARTS = ("page", "first", "sessions")
QUESTION = "What is 7 times 8?"
TOPICS = (
    "Volcano", "Violin", "Elephant", "Democracy", "Photosynthesis", "Bicycle", "Chess", "Glacier", "Bread", "Satellite",
    "Poetry", "Magnet", "Penguin", "Cathedral", "Vaccine", "Desert", "Piano", "Inflation", "Spider", "Lighthouse",
)  # fmt: skip
MOST_TOKENS = 48
STARTS, ASKED = 5, 20
PATIENCE = 60  # seconds for anything on the page
LOOK = 30  # seconds between two looks at the memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)  # this file as the server: the folder of runs
    arguments = parser.parse_args()
    settings = EngineSettings(load=Load(dtype=arguments.dtype))
    if arguments.serve:
        serve(arguments.model, arguments.serve, settings)
        return
    if "page" in arguments.only:
        measure_page(arguments.model)
    pool = Pool([arguments.model], Path(), settings)
    try:
        with served([__file__, "--model", arguments.model, "--dtype", arguments.dtype, "--serve"]) as (url, process):
            if "first" in arguments.only:
                measure_first_tokens(url, pool, arguments.model)
            if "sessions" in arguments.only:
                measure_sessions(url, process, pool, arguments.model, arguments.sessions, 60 * arguments.minutes)
    finally:
        pool.close()


def serve(model: str, runs: Path, settings: EngineSettings) -> None:
    """What `thinktune demo` does, with a choice of dtype."""
    from thinktune.cli.common import prepare_libraries
    from thinktune.studio.app import serve

    prepare_libraries()
    server = serve([model], runs=runs, settings=settings)
    print(server.url, flush=True)
    server.wait()


@contextmanager
def served(command: Sequence[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own, which ends with this: its address, once it listens, and the process."""
    runs = tempfile.mkdtemp(prefix="studio-bench-")
    with subprocess.Popen([sys.executable, *command, runs], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip(), psutil.Process(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(PATIENCE)
            shutil.rmtree(runs)


def measure_page(model: str) -> None:
    times = []
    with chromium() as browser:
        for _ in range(STARTS):
            started = time.perf_counter()
            with served(["-m", "thinktune", "demo", model, "--runs"]) as (url, _):
                listening = time.perf_counter() - started
                open_page(browser, url)
                times.append((time.perf_counter() - started, listening))
                time.sleep(LOOK / 2)  # the model is loaded: not to be cut off in the middle of it
    ready, listening = map(median, zip(*times, strict=True))
    each = " ".join(f"{seconds:.2f}" for seconds, _ in times)
    print(
        f"page: listening {listening:.2f} s after the start, in the browser after {ready:.2f} s (median of {each})",
        flush=True,
    )


def measure_first_tokens(url: str, pool: Pool, model: str) -> None:
    """Both for the same question, in turns, so that a load on the machine is the same for both."""
    model_handle = pool.take(model)
    sampling = Sampling(temperature=0.1, max_tokens=4, seed=3407)
    request = Request("ask", model_handle.chat.prompt_ids([{"role": "user", "content": QUESTION}]), sampling)
    engine, page_times = [], []
    with chromium() as browser:
        page = open_page(browser, url)
        page.wait_for_function("() => document.querySelector('#model-state').innerText.trim() === ''")
        page.click("#chat-sampling button")
        page.fill("#chat-max-tokens input", "4")
        page.keyboard.press("Tab")
        for _ in range(ASKED + 1):
            started = time.perf_counter()
            stream = model_handle.open(RequestHandle()).engine.stream(request)
            next(stream)
            engine.append(1000 * (time.perf_counter() - started))
            list(stream)
            page_times.append(ask_on(page))
    # The first of each warms up.
    own, seen = median(engine[1:]), median(page_times[1:])
    print(
        f"first token, median of {ASKED}: engine {own:.0f} ms, page {seen:.0f} ms, {seen - own:.0f} ms more", flush=True
    )


def ask_on(page: Any) -> float:
    """Ask once in a new conversation: milliseconds from the click to the first token.

    Raises:
        TimeoutError: nothing came; it says what the page shows instead.
    """
    page.click("#chat-new")
    page.wait_for_function("() => !document.querySelector('#chat-left .bot')")
    page.fill("#chat-question textarea", QUESTION)
    page.wait_for_timeout(500)  # the page takes the question in, as it does while people move the mouse
    found: dict[str, Any] = page.evaluate(_TIME_TO_FIRST_TOKEN, 1000 * PATIENCE)
    if found["shown"] is not None:
        raise TimeoutError(f"no token on the page within {PATIENCE} s of the click; it shows {found['shown']}")
    wait_for = "() => document.querySelector('#chat-status').innerText.includes('done')"
    page.wait_for_function(wait_for)
    return float(found["milliseconds"])


_TIME_TO_FIRST_TOKEN = """(patience) => new Promise(resolve => {
    const chat = document.querySelector('#chat-left');
    const text = selector => document.querySelector(selector)?.innerText?.trim() ?? null;
    const started = performance.now();
    const end = shown => {
        observer.disconnect();
        clearTimeout(timer);
        resolve({milliseconds: performance.now() - started, shown});
    };
    const look = () => {
        if ([...chat.querySelectorAll('.bot .md, .bot .prose')].some(each => each.innerText.trim())) end(null);
    };
    const observer = new MutationObserver(look);
    const timer = setTimeout(() => end({
        question: document.querySelector('#chat-question textarea').value, chat: text('#chat-left'),
        status: text('#chat-status'), models: text('#model-state'), toast: text('.toast-wrap'),
    }), patience);
    observer.observe(chat, {childList: true, subtree: true, characterData: true});
    document.querySelector('#chat-send').click();
})"""


def measure_sessions(url: str, process: psutil.Process, pool: Pool, model: str, sessions: int, seconds: float) -> None:
    """Each session asks its own question again and again, over HTTP as a page does, until the time is over."""
    # Answers that have nothing in common tell a mixed one from one that rounding has changed.
    questions = [f"{TOPICS[n % len(TOPICS)]}: tell me what it is, in sentence {n + 1}." for n in range(sessions)]
    expected = [alone(pool, model, question) for question in questions]
    with signed_in(url) as client:
        event = event_of_send(client)
        talk(client, event, model, questions[0], "warm")
    ends = time.monotonic() + seconds
    latencies: list[float] = []
    answers: list[tuple[int, str]] = []
    errors: list[str] = []

    def work(n: int) -> None:
        with signed_in(url) as client:
            while time.monotonic() < ends:
                started = time.monotonic()
                session = f"session{n}" if n % 2 else f"session{n}-{time.monotonic_ns()}"
                try:
                    answers.append((n, talk(client, event, model, questions[n], session)))
                    latencies.append(time.monotonic() - started)
                except (httpx.HTTPError, KeyError, ValueError, IndexError) as error:
                    errors.append(f"{type(error).__name__}: {error}")

    over = threading.Event()
    with ThreadPoolExecutor(sessions + 1) as threads:
        memory = threads.submit(lambda: list(sizes(process, over)))
        list(threads.map(work, range(sessions)))
        over.set()
    same = sum(text == expected[n] for n, text in answers)
    words = [TOPICS[n % len(TOPICS)].lower()[:6] for n in range(sessions)]
    mixed = sum(words[n] not in text.lower() and any(word in text.lower() for word in words) for n, text in answers)
    print(
        f"{sessions} sessions for {seconds / 60:.1f} minutes: {len(answers)} answers, {len(errors)} errors, "
        f"{same} the same as alone, {mixed} on another session's topic; {median(latencies or [0]):.1f} s an answer; "
        f"MiB of memory, each {LOOK} s: {' '.join(f'{size:.0f}' for size in memory.result())}",
        flush=True,
    )
    for error in errors[:5]:
        print(f"  {error}", flush=True)


def sizes(process: psutil.Process, over: threading.Event) -> Iterator[float]:
    """The memory of a process in MiB, now, every `LOOK` seconds, and when it is over."""
    while True:
        yield process.memory_info().rss / 2**20
        if over.is_set():
            return
        over.wait(LOOK)


def alone(pool: Pool, model: str, question: str) -> str:
    model_handle = pool.take(model)
    sampling = Sampling(temperature=0, max_tokens=MOST_TOKENS, seed=1)
    ids = model_handle.chat.prompt_ids([{"role": "user", "content": question}])
    return "".join(model_handle.open(RequestHandle()).engine.stream(Request("ask", ids, sampling)))


def signed_in(url: str) -> httpx.Client:
    """Make a client of the server that printed this address, with its token."""
    base, _, token = url.partition("?token=")
    return httpx.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=300)


def talk(client: httpx.Client, event: int, model: str, question: str, session: str) -> str:
    """One question through Gradio's queue, and the answer that the browser would keep."""
    values = [question, {"turns": []}, model, "", False, 0.0, 1.0, 0, 1.0, MOST_TOKENS, 0, 1]
    body = {"data": values, "fn_index": event, "session_hash": session, "trigger_id": None}
    client.post("gradio_api/queue/join", json=body).raise_for_status()
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as lines:
        told: list[Any] = []
        kept: dict[str, Any] = {}
        for line in lines.iter_lines():
            message = json.loads(line[6:]) if line.startswith("data: ") else {}
            if message.get("msg") == "process_generating":  # the first in full, then what has changed
                news = message["output"]["data"]
                told = [apply_diff(old, new) for old, new in zip(told, news, strict=True)] if told else news
                kept = told[1] if "turns" in told[1] else kept
            if message.get("msg") == "process_completed":
                return str(kept["turns"][0]["answers"][0]["text"])
    raise ValueError(f"the stream of {session} ended without an answer")


def event_of_send(client: httpx.Client) -> int:
    """The number under which Gradio knows a click on the button that sends."""
    config = client.get("config").json()
    button = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "chat-send")
    return int(next(each["id"] for each in config["dependencies"] if [button, "click"] in each["targets"]))


def open_page(browser: Any, url: str) -> Any:
    page = browser.new_context(locale="en-US").new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(url)
    page.wait_for_selector("#chat-send")
    return page


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser while in use."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


if __name__ == "__main__":
    main()
