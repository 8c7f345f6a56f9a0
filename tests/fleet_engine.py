"""An engine for tests of fleets: answers at once, by a digest of what it is asked; some questions end its process."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from thinktune.inference.engines import Completion, Engine, Request
from thinktune.inference.engines.base import polling


class Digests(Engine):
    """`FLEET_POISON` in the environment is a token id that ends the process, `FLEET_SECONDS` the time of a request."""

    context_length = 100_000
    slots = 32

    def __init__(self, model: Any) -> None:
        self._poison = int(os.environ.get("FLEET_POISON", "-1"))
        self._seconds = float(os.environ.get("FLEET_SECONDS", "0"))

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        poll = polling(requests)
        while (request := poll()) is not None:
            if self._poison in request.prompt_ids:
                os._exit(7)
            if self._seconds:
                time.sleep(self._seconds)
            for index in range(request.sampling.n):
                asked = f"{request.id}/{index}/{request.sampling.max_tokens}/{[*request.prompt_ids]}"
                text = hashlib.sha256(asked.encode()).hexdigest()[:12]
                yield Completion(request.id, index, f"<think>{text}</think> <answer>{text}</answer>", (1, 2), "stop")

    def stream(self, request: Request) -> Iterator[str]:
        yield from (each.text for each in self.generate([request]))

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        return [-0.5 * (token + len(prompt_ids)) for token in continuation_ids]
