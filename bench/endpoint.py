"""The engine for endpoints against our own server, with faults in between, and its client killed again and again.

    python bench/endpoint.py                                   # 1,000 items, 20 kills, the built-in model
    python bench/endpoint.py --model FOLDER --items 60 --kills 3

`thinktune serve` answers behind a proxy that gives a share of all requests a fault: status 429, status 500, a
connection cut before or within the answer, an answer that comes slowly, JSON that is none. `thinktune infer openai:…`
is killed (SIGKILL) at even distances, and started again with the same command. At the end every item has to be there
once, without an error, with the text that an undisturbed call gets.

In bfloat16 some have another text: the server decodes other requests together then, which rounds otherwise, and the
likeliest token of two that are as good as equal changes. So each is looked at where the two texts part: the two tokens
have to be closer in float32 than bfloat16's rounding moves the logits there. With `--dtype float32` no text may differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = ("429", "500", "cut before", "cut within", "slow", "wrong JSON")


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, and gives some of them a fault.

    Attributes:
        share: of the requests that get a fault.
        given: how many of each kind so far, those passed on under "none".
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str, share: float, seed: int) -> None:
        self.target, self.share, self.random = target, share, random.Random(seed)
        self.given: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def log_message(self, *values: Any) -> None:
        """Say nothing of requests."""

    def do_GET(self) -> None:
        with urllib.request.urlopen(self.server.target + self.path) as reply:
            self._send(reply.status, reply.read())

    def do_POST(self) -> None:
        proxy = self.server
        asked = self.rfile.read(int(self.headers["content-length"]))
        fault = proxy.random.choice(FAULTS) if proxy.random.random() < proxy.share else "none"
        proxy.given[fault] += 1
        if fault == "cut before":
            return
        if fault in ("429", "500"):
            self._send(int(fault), b'{"error": {"message": "injected"}}')
            return
        status, answer = self._pass_on(asked)
        if fault == "wrong JSON":
            answer = answer[: len(answer) // 2]
        self._send(status, answer, fault)

    def _pass_on(self, asked: bytes) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self.server.target + self.path, asked, {"content-type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def _send(self, status: int, data: bytes, fault: str = "none") -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if fault == "slow":
            for at in range(0, len(data), 100):
                self.wfile.write(data[at : at + 100])
                time.sleep(0.1)
            return
        self.wfile.write(data[: len(data) // 2] if fault == "cut within" else data)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(model: str, dtype: str, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start `thinktune serve`, and wait until it answers."""
    port = free_port()
    command = [sys.executable, "-m", "thinktune", "serve", model, "--engine", "transformers", "--port", str(port)]
    command += ["--load", f"dtype={dtype}"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health"):
                return process, url
        except OSError:
            if process.poll() is not None:
                raise SystemExit(f"the server has ended: {log.read_text()}") from None
            time.sleep(0.2)


def infer(reference: str, items: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "thinktune", "infer", reference, str(items), "-o", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def answered(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def kill_when(process: subprocess.Popen[bytes], journal: Path, count: int) -> bool:
    """Kill a call as soon as the journal has so many lines; return False if it ended before."""
    while process.poll() is None:
        if answered(journal) >= count:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.02)
    return False


def finish(process: subprocess.Popen[bytes]) -> str:
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"thinktune infer failed:\n{said.decode()}")
    return said.decode()


def results(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["result"]["results"]
    return found


@cache
def loaded(model: str, dtype: str) -> Any:
    from thinktune.config import Load
    from thinktune.models import load_model

    return load_model(model, load=Load(dtype=dtype, device="cpu"))


def is_tie(model: str, prompt: str, one: str, other: str) -> bool:
    """Return whether two answers part at tokens that are closer than bfloat16's rounding moves the logits there."""
    import torch

    exact, rounded = (loaded(model, dtype) for dtype in ("float32", "bfloat16"))
    end = exact.tokenizer.eos_token_id
    first, second = ([*exact.tokenizer(text, add_special_tokens=False).input_ids, end] for text in (one, other))
    at = next(n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    ids = torch.tensor([[*exact.chat.prompt_ids([{"role": "user", "content": prompt}]), *first[:at]]])
    with torch.inference_mode():
        logits, others = (each.model(ids).logits[0, -1].float() for each in (exact, rounded))
    gap, moved = float(logits[first[at]] - logits[second[at]]), float((logits - others).abs().max())
    print(f"  parted at token {at}: {gap:+.3f} apart, rounding moves logits by up to {moved:.3f}")
    return abs(gap) <= 2 * moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.3, help="of the requests that get a fault")
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="auto", help="of the server's model")
    arguments = parser.parse_args()
    os.environ.pop("OPENAI_API_KEY", None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        items, journal = folder / "items.jsonl", folder / "res.journal.jsonl"
        prompts = {f"q{at}": f"What is {at} + {at % 7}?" for at in range(arguments.items)}
        with items.open("w") as stream:
            for name, prompt in prompts.items():
                item = {"id": name, "type": "math", "prompt": prompt}
                stream.write(json.dumps(item | {"sampling": {"max_tokens": arguments.tokens, "temperature": 0}}) + "\n")
        server, url = start_server(arguments.model, arguments.dtype, folder / "server.log")
        try:
            model = json.load(urllib.request.urlopen(f"{url}/v1/models"))["data"][0]["id"]
            finish(infer(f"openai:{model}@{url}/v1", items, folder / "calm.json"))
            proxy = Proxy(url, arguments.share, arguments.seed)
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            reference = f"openai:{model}@http://127.0.0.1:{proxy.server_port}/v1"
            started, kills = time.monotonic(), 0
            for number in range(1, arguments.kills + 1):
                wanted = number * arguments.items // (arguments.kills + 1)
                kills += kill_when(infer(reference, items, folder / "res.json"), journal, wanted)
            said = finish(infer(reference, items, folder / "res.json"))
            seconds = time.monotonic() - started
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
        calm, stormy = results(folder / "calm.json"), results(folder / "res.json")
        lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = Counter(line["id"] for line in lines if line["error"] is None)
    print(f"{arguments.items:,} items, {kills} kills, {seconds:.0f} s; requests by fault: {dict(proxy.given)}")
    print(f"  lost               {len({each['id'] for each in calm} - {each['id'] for each in stormy}):6}")
    print(f"  twice in result    {len(stormy) - len({each['id'] for each in stormy}):6}")
    print(f"  twice in journal   {sum(count > 1 for count in kept.values()):6}")
    print(f"  errors             {sum('error' in each for each in stormy):6}")
    parted = [(one, other) for one, other in zip(calm, stormy, strict=False) if one != other]
    ties = sum(is_tie(arguments.model, prompts[one["id"]], one["content"], other["content"]) for one, other in parted)
    print(f"  other text         {len(parted):6}")
    print(f"  of these by rounding {ties:4}")
    print(f"  asked again        {sum(proxy.given.values()) - arguments.items:6}")
    print(said.strip())


if __name__ == "__main__":
    main()
