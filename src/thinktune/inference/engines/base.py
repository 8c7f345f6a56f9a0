"""The contract of every engine: token ids in, completions out. Tasks, files and tags are none of its business."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from thinktune.config import Sampling
from thinktune.errors import UsageError

FinishReason = Literal["stop", "length", "error"]
_KEPT: dict[str, Any] = {"index": int, "text": str, "finish_reason": str, "error": str | None, "tokens": int}


@dataclass(frozen=True)
class Request:
    """One prompt, and how to continue it (`sampling.n` times).

    `prompt_ids` come from the chat that was opened with the engine: token ids, rendered by us, or for a model behind a
    server, which renders for itself, the bytes of the messages (`Engine.reads_tokens`).

    `adapter` names one of those that the engine was opened with; None is the engine's own model. `logprobs` asks for
    those of the tokens drawn.
    """

    id: str
    prompt_ids: Sequence[int]
    sampling: Sampling
    adapter: str | None = None
    logprobs: bool = False


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt, as an engine makes it, a journal keeps it and a result file of any tool has it.

    Attributes:
        index: of the request's samples.
        text: with the stop string, without marks of turns.
        token_ids: not kept in files: empty if read from one.
        finish_reason: a `FinishReason`; from a file of another tool, any text.
        error: the fault, if the reason is "error".
        tokens: number of generated tokens; 0 if unknown.
        logprobs: of each token, natural, under the model at the temperature it was drawn with, before any token was
            left out (top_k, …); empty unless the request asked. Not kept in files.
    """

    request_id: str
    index: int
    text: str
    token_ids: Sequence[int] = ()
    finish_reason: str = "stop"
    error: str | None = None
    tokens: int = 0
    logprobs: Sequence[float] = ()

    def __post_init__(self) -> None:
        if len(self.token_ids) > 0:  # an array has no truth
            object.__setattr__(self, "tokens", len(self.token_ids))

    def as_dict(self) -> dict[str, Any]:
        """Return the values that a file keeps, for JSON."""
        return {"id": self.request_id, **{name: getattr(self, name) for name in _KEPT}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Completion:
        """Make a completion of one of thinktune's engines from the values of `as_dict`.

        Raises:
            ValueError, TypeError, KeyError: a value is missing, unknown, or of another type.
        """
        for name, kind in {"id": str, **_KEPT}.items():
            if not isinstance(values[name], kind):
                raise TypeError(name)
        if values["finish_reason"] not in get_args(FinishReason):
            raise ValueError("finish_reason")
        return cls(request_id=values["id"], **{name: value for name, value in values.items() if name != "id"})


def why_refused(ids: Sequence[int], context_length: int, vocabulary: int) -> str | None:
    """Explain why a prompt cannot be answered by a model of this context and vocabulary; None if it can."""
    if not ids:
        return "the prompt is empty"
    if len(ids) >= context_length:
        return (
            f"the prompt has {len(ids)} tokens, which leaves no room for an answer in the model's context "
            f"of {context_length}"
        )
    if min(ids) < 0 or max(ids) >= vocabulary:
        return f"the prompt holds a token id outside the model's vocabulary of {vocabulary}"
    return None


def unhonoured(sampling: Sampling, unsupported: Iterable[str]) -> list[str]:
    """List the fields among `unsupported` that a sampling sets."""
    unset = Sampling()
    return [name for name in sorted(unsupported) if getattr(sampling, name) != getattr(unset, name)]


class RequestSource(Iterable[Request]):
    """Requests that become ready while others are answered. Iterating yields those that are ready now; an engine that
    has answered all it took may end, and is called again if there are more."""

    @abstractmethod
    def poll(self) -> Request | None:
        """Take the next request; None: none is ready now."""

    def __iter__(self) -> Iterator[Request]:
        return iter(self.poll, None)


def polling(requests: Iterable[Request]) -> Callable[[], Request | None]:
    """Make a function that takes the next request, or returns None where none is ready."""
    return requests.poll if isinstance(requests, RequestSource) else partial(next, iter(requests), None)


Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of a continuation, each at least one."""


@dataclass(frozen=True)
class Likelihood:
    """Log-probability (natural) of a whole continuation, and whether greedy decoding would have written it."""

    logprob: float
    greedy: bool


class Engine(ABC):
    """Turns requests into completions."""

    context_length: int
    reads_tokens: bool = True
    """Whether the ids of prompts are tokens, and their number tells what a prompt takes."""
    unsupported: frozenset[str] = frozenset({"think_budget"})
    """Fields of Sampling that this engine has no means to honour. Thinking within a budget is a layer over engines."""
    slots: int = 256
    """How many completions it writes at once, if there are as many."""
    context_setting: int | None = None
    """The limit that a setting puts on the context, known before a model is loaded; None: there is no such setting."""

    def require_supported(self, sampling: Sampling) -> None:
        """Refuse a sampling that this engine would have to change.

        Raises:
            UsageError: a field is set that it cannot honour; it is named.
        """
        if names := unhonoured(sampling, self.unsupported):
            raise UsageError(f"this engine cannot honour sampling.{names[0]}", hint=f"leave out {names[0]}")

    def start(self) -> None:  # noqa: B027 - most have their model as soon as they exist
        """Load the model now, instead of at first use."""

    @abstractmethod
    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """Yield `n` completions for each request, as they finish, in any order. A fault of one request becomes error
        completions of that request. Close the generator to stop early.

        Args:
            requests: an engine that answers many at once polls a `RequestSource` again while it answers some.

        Raises:
            GenerationError: the engine itself cannot go on.
        """

    @abstractmethod
    def stream(self, request: Request) -> Iterator[str]:
        """Yield the text of one completion piece by piece."""

    @abstractmethod
    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        """Return the log-probability (natural) of each continuation token given all before it."""

    def likelihoods(self, pairs: Sequence[Pair]) -> Iterator[Likelihood]:
        """Yield the likelihood of each pair's continuation given its prompt, in order.

        This goes by way of `generate` and `logprobs`; an engine that can do it at once should.

        Raises:
            GenerationError: as `generate` and `logprobs`.
        """
        requests = [
            Request(str(at), prompt, Sampling(max_tokens=len(continuation), stop=()))
            for at, (prompt, continuation) in enumerate(pairs)
        ]
        written = {each.request_id: tuple(each.token_ids) for each in self.generate(requests)}
        for at, (prompt, continuation) in enumerate(pairs):
            yield Likelihood(sum(self.logprobs(prompt, continuation)), written[str(at)] == tuple(continuation))

    def close(self) -> None:  # noqa: B027 - an engine inside this process has nothing to give back
        """Give memory and processes back. Safe to call twice."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
