"""Thinking within a budget: a layer over any engine, with which every completion is well-formed.

A request with `sampling.think_budget` is answered in two passes. The first writes the thought, until the model closes
it, ends by itself, or the budget is used up. The second continues prompt, thought and `</think> <answer>`, and writes
the answer, which is closed where the model does not close it. Both are plain requests over one prefix, so that this
works with every model and every engine, and an engine's prefix cache is of use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from thinktune import tags
from thinktune.config import Sampling
from thinktune.inference.engines.base import Completion, Engine, Likelihood, Pair, Request, RequestSource, polling

if TYPE_CHECKING:
    from thinktune.models import Chat

NO_ANSWER = "(no answer)"
"""Stands in the place of an answer where the model ended without writing one."""

_MOST_MERGED = 8  # tokens by which a prompt may grow where texts that were tokenised apart meet


@dataclass(frozen=True)
class Thought:
    """A request whose thought is written, and the request for its answer."""

    request: Request
    completion: Completion
    think: str
    answering: Request


class ThinkBudgetEngine(Engine):
    """Honours `think_budget` on top of an engine; requests without one pass through.

    Args:
        engine: it need not know of budgets.
        chat: of the same model; tokenises the text between the passes.
        template: as the model was trained to write (`format.template`).
    """

    def __init__(self, engine: Engine, chat: Chat, template: str = tags.TEMPLATE) -> None:
        self._engine = engine
        self._chat = chat
        self._head, self._middle, self._tail = tags.split_template(template)

    @property
    def context_length(self) -> int:  # type: ignore[override]
        return self._engine.context_length

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self._engine.slots

    @property
    def context_setting(self) -> int | None:  # type: ignore[override]
        return self._engine.context_setting

    @property
    def unsupported(self) -> frozenset[str]:  # type: ignore[override]
        return self._engine.unsupported - {"think_budget"}

    def require_supported(self, sampling: Sampling) -> None:
        """See `Engine.require_supported`."""
        self._engine.require_supported(sampling.model_copy(update={"think_budget": None}))

    def start(self) -> None:
        self._engine.start()

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """See `Engine.generate`. The finish reason is the answer's: "length" where it had to be closed."""
        ready = _Ready(polling(requests))
        passes = _Passes(self, ready)
        while ready.left:
            with closing(self._engine.generate(_Plain(ready))) as completions:
                yield from completions
            while passes.left:
                with closing(self._engine.generate(passes)) as completions:
                    yield from filter(None, map(passes.take, completions))

    def stream(self, request: Request) -> Iterator[str]:
        """See `Engine.stream`. The pieces join to the text that `generate` gives."""
        if request.sampling.think_budget is None:
            yield from self._engine.stream(request)
            return
        yield self._head
        thought = ""
        for piece in _content(self._engine.stream(self.thinking(request)), "<think>"):
            thought += piece
            yield piece
        yield self._middle
        answered = False
        for piece in _content(self._engine.stream(self._answering(request, thought, 0)), "<answer>"):
            answered = True
            yield piece
        yield ("" if answered else NO_ANSWER) + self._tail

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        return self._engine.logprobs(prompt_ids, continuation_ids)

    def likelihoods(self, pairs: Sequence[Pair]) -> Iterator[Likelihood]:
        return self._engine.likelihoods(pairs)

    def close(self) -> None:
        self._engine.close()

    def thinking(self, request: Request) -> Request:
        """Make the request of the first pass. Where the context is too small, thought and answer shrink alike."""
        sampling = request.sampling
        budget = sampling.think_budget or 0
        room = self.context_length - len(request.prompt_ids) - len(self._ids("")) - _MOST_MERGED
        if room < sampling.max_tokens:
            budget = max(1, room * budget // sampling.max_tokens)
        stop = _once("</think>", "<answer>", "</answer>", *sampling.stop)
        thinking = sampling.changed(max_tokens=budget, think_budget=None, stop=stop)
        return replace(request, id=_thinking_id(request), sampling=thinking)

    def with_thought(self, request: Request, completion: Completion) -> Thought:
        """Take the thought out of a first pass, and make the request of the second."""
        think = "".join(_content([completion.text], "<think>"))
        return Thought(request, completion, think, self._answering(request, think, completion.index))

    def _answering(self, request: Request, think: str, index: int) -> Request:
        sampling = request.sampling
        ids = self._ids(think)
        # Text that was written in an unusual way, such as halves of characters, can take more tokens when read again.
        while think and len(request.prompt_ids) + len(ids) >= self.context_length:
            think = think[: len(think) // 2]
            ids = self._ids(think)
        return replace(
            request,
            id=f"answer {index} {request.id}",
            prompt_ids=[*request.prompt_ids, *ids],
            sampling=sampling.changed(
                max_tokens=sampling.max_tokens - (sampling.think_budget or 0),
                think_budget=None,
                stop=_once("</answer>", "<think>", "</think>", *sampling.stop),
                n=1,
            ),
        )

    def join(self, thought: Thought, completion: Completion) -> Completion:
        """Join thought and answer into one completion."""
        ids = (*thought.completion.token_ids, *completion.token_ids)
        whole = replace(completion, request_id=thought.request.id, index=thought.completion.index, token_ids=ids)
        if completion.error is not None:
            return whole
        answer = "".join(_content([completion.text], "<answer>")) or NO_ANSWER
        return replace(whole, text=self._head + thought.think + self._middle + answer + self._tail)

    def _ids(self, think: str) -> list[int]:
        """Tokenize the reply so far: up to where the answer begins."""
        return self._chat.reply_ids((self._head + think + self._middle).rstrip())[:-1]


class _Ready:
    """Requests as they become ready, in two queues: without a budget, and with one. The two are answered by turns, as
    the passes of a request have names that another request might have."""

    def __init__(self, poll: Callable[[], Request | None]) -> None:
        self._poll = poll
        self._queues: tuple[deque[Request], deque[Request]] = (deque(), deque())

    def next(self, *, budgeted: bool) -> Request | None:
        """Take the next request of one kind, if one is ready."""
        queue = self._queues[budgeted]
        while not queue and (request := self._poll()) is not None:
            self._queues[request.sampling.think_budget is not None].append(request)
        return queue.popleft() if queue else None

    def has(self, *, budgeted: bool) -> bool:
        """Return whether a request of one kind is ready."""
        if (request := self.next(budgeted=budgeted)) is not None:
            self._queues[budgeted].appendleft(request)
        return request is not None

    @property
    def left(self) -> bool:
        """Whether any request is ready."""
        return self.has(budgeted=False) or self.has(budgeted=True)


class _Plain(RequestSource):
    def __init__(self, ready: _Ready) -> None:
        self._ready = ready

    def poll(self) -> Request | None:
        return self._ready.next(budgeted=False)


class _Passes(RequestSource):
    """The passes of budgeted requests that are ready: answers to finished thoughts, before further thoughts.

    No more thoughts are begun than the engine writes at once, so that answers follow soon. Nothing waits for the
    slowest thought, and little is lost when the engine is stopped.
    """

    def __init__(self, layer: ThinkBudgetEngine, ready: _Ready) -> None:
        self._layer = layer
        self._ready = ready
        self._thinking: dict[str, Request] = {}
        self._open = 0  # samples that have not ended their thought
        self._answers: deque[Request] = deque()
        self._thoughts: dict[str, Thought] = {}

    @property
    def left(self) -> bool:
        return bool(self._answers) or self._ready.has(budgeted=True)

    def poll(self) -> Request | None:
        if self._answers:
            return self._answers.popleft()
        if self._open >= self._layer.slots or (request := self._ready.next(budgeted=True)) is None:
            return None
        thinking = self._layer.thinking(request)
        self._thinking[thinking.id] = request
        self._open += request.sampling.n
        return thinking

    def take(self, completion: Completion) -> Completion | None:
        """Take in a finished pass; return the completion that it ends, or None: the answer is still to come."""
        if thought := self._thoughts.pop(completion.request_id, None):
            return self._layer.join(thought, completion)
        request = self._thinking[completion.request_id]
        self._open -= 1
        if completion.error is not None:
            return replace(completion, request_id=request.id)
        thought = self._layer.with_thought(request, completion)
        self._thoughts[thought.answering.id] = thought
        self._answers.append(thought.answering)
        return None


def _thinking_id(request: Request) -> str:
    return f"think {request.id}"


def _once(*stops: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(stops))


def _content(pieces: Iterable[str], opening: str) -> Iterator[str]:
    """Yield the text up to the first tag that is not `opening`, without white space around it; free of tags.

    >>> "".join(_content(["<think> Two", " and two. </thi", "nk> <answer>4"], "<think>"))
    'Two and two.'
    """
    stream = tags.TagStream()
    parts = chain(chain.from_iterable(map(stream.feed, pieces)), _last(stream))
    space, started, ended = "", False, False
    for part, text in parts:
        if part == "tag":
            # A space in its place keeps its neighbours from becoming a tag together.
            text, ended = " ", ended or text != opening
        if ended:
            continue  # not break: an engine that is read to its end stops in good order
        whole = space + text if started else text.lstrip()
        shown = whole.rstrip()
        space = whole[len(shown) :]
        if shown:
            started = True
            yield shown


def _last(stream: tags.TagStream) -> Iterator[tuple[tags.Part, str]]:
    yield from stream.flush()  # asked only when all before it is read
