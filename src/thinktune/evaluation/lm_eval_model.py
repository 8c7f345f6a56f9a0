"""Our engines as a model of lm-evaluation-harness, which has to be installed to import this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.console import Console
from rich.progress import track

from thinktune.config import Sampling
from thinktune.errors import GenerationError
from thinktune.inference.complete import complete
from thinktune.inference.engines import Opened
from thinktune.inference.engines.base import Completion, Likelihood, Pair, Request
from thinktune.models.template_date import hold_date
from thinktune.tags import answer_part, valid_text

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


class HarnessModel(LM):
    """An engine that the harness asks in texts. The text of a conversation is looked up again, to give the engine the
    ids that our `Chat` rendered it to.

    Args:
        journal: file of the generated text, so that a stopped evaluation goes on.
        max_tokens: limit for tasks that set none.
        sampling: settings over those of the tasks.
        answers_only: hand over the answers without their thoughts, where these can be told.
        overwrite: begin the journal anew.

    Attributes:
        replies: all completions, whole.
    """

    def __init__(
        self,
        opened: Opened,
        journal: Path,
        *,
        max_tokens: int,
        sampling: Mapping[str, Any],
        answers_only: bool,
        overwrite: bool,
        console: Console,
    ) -> None:
        super().__init__()
        self._opened, self._engine, self._chat = opened, opened.engine, opened.chat
        self._journal, self._overwrite = journal, overwrite
        self._max_tokens, self._changes, self._answers_only = max_tokens, sampling, answers_only
        self.replies: list[Completion] = []
        self._console = console
        hold_date(opened.chat, journal, overwrite=overwrite)
        self._prompts: dict[str, tuple[list[int], str]] = {}
        first = opened.chat.tokenizer.bos_token_id
        self._first = int(opened.chat.end_of_turn_id if first is None else first)  # where nothing else stands before

    @property
    def tokenizer_name(self) -> str:
        """Name of the model for the harness's own caches."""
        return self._opened.fingerprint

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render the conversation as one text. Without a generation prompt, its last turn is the beginning of the
        reply."""
        asked = chat_history if add_generation_prompt else chat_history[:-1]
        begun = "" if add_generation_prompt else valid_text(chat_history[-1]["content"])
        ids = self._chat.prompt_ids(asked)
        text = str(self._chat.tokenizer.decode(ids)) + begun
        self._prompts[text] = ids, begun
        return text

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Generate the replies, each up to its first stop text.

        Raises:
            GenerationError: every single one failed.
            Interrupted, DiskFull, OutOfMemory: see `complete`.
        """
        asked = [self._request(f"{each.task_name}:{at}", *each.args) for at, each in enumerate(requests)]
        done = complete(
            self._engine,
            asked,
            self._journal,
            model=self._opened.fingerprint,
            console=self._console,
            overwrite=self._overwrite,
        )
        replies = [done.completions[each.id, 0] for each in asked]
        failed = [reply.error for reply in replies if reply.error is not None]
        if failed and len(failed) == len(replies):
            raise GenerationError(f"all {len(failed)} problems failed; the first: {failed[0]}")
        if failed:
            self._console.print(f"{len(failed)} of {len(replies)} problems failed and count as wrong: {failed[0]}")
        self.replies += replies
        texts = [answer_part(reply.text) if self._answers_only else reply.text for reply in replies]
        return [_before(text, _stops(*each.args)) for text, each in zip(texts, requests, strict=True)]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Compute the log-probability of each continuation, and whether it is the greedy one."""
        found = self._likelihoods([self._pair(*each.args) for each in requests])
        return [(each.logprob, each.greedy) for each in found]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Compute the log-probability of each whole text, outside any conversation."""
        windows = [(at, pair) for at, each in enumerate(requests) for pair in self._windows(*each.args)]
        totals = [0.0] * len(requests)
        for (at, _), found in zip(windows, self._likelihoods([pair for _, pair in windows]), strict=True):
            totals[at] += found.logprob
        return totals

    def _likelihoods(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        hidden = not self._console.is_terminal
        found = self._engine.likelihoods(pairs)
        return list(track(found, "", len(pairs), console=self._console, transient=True, disable=hidden))

    def _request(self, name: str, context: str, settings: Mapping[str, Any]) -> Request:
        prompt, begun = self._prompts.get(context, ([], context))
        return Request(name, prompt + self._ids(begun), self._sampling(settings))

    def _sampling(self, settings: Mapping[str, Any]) -> Sampling:
        """Read a task's generation settings as the harness does."""
        read = normalize_gen_kwargs(dict(settings), self._max_tokens)
        values = {name: read[name] for name in _SAMPLING if read.get(name) is not None}
        stops = () if self._answers_only else _stops("", settings)  # a thought may have them
        values |= {"max_tokens": read["max_gen_toks"], "stop": stops, **self._changes}
        return Sampling().changed(**{"seed": 0, **values})

    def _pair(self, context: str, continuation: str) -> Pair:
        prompt, begun = self._prompts.get(context, ([], context))
        kept = begun.rstrip()
        start, whole = self._ids(kept), self._ids(kept + begun[len(kept) :] + continuation)  # a blank is its word's
        prompt, ids = [*prompt, *start] or [self._first], whole[len(start) :]
        return prompt[-max(1, self._engine.context_length - len(ids)) :], ids

    def _windows(self, text: str) -> list[Pair]:
        """Split the text into pieces that fit the context, each predicted from the text before it in its window."""
        pieces = get_rolling_token_windows(self._ids(text), self._first, self._engine.context_length - 1, 1)
        return [make_disjoint_window(piece) for piece in pieces]

    def _ids(self, text: str) -> list[int]:
        return list(self._chat.reply_ids(valid_text(text))[:-1])


def _stops(context: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the stop texts of a request of the harness."""
    return tuple(text for text in normalize_gen_kwargs(dict(settings), 1)["until"] if text)


def _before(text: str, stops: Iterable[str]) -> str:
    """Cut the text before its stop text: our engines keep it, the harness wants it off."""
    return text[: min([at for stop in stops if (at := text.find(stop)) >= 0], default=len(text))]
