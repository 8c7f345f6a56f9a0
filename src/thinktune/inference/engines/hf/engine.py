"""Batched generation on a transformers model, with a decode loop of our own.

Waiting requests enter as others finish (continuous batching), within a budget of tokens held at once. `generate()` of
transformers is not used because it cannot admit rows, keeps finished ones and draws from one generator for the whole
batch, and because its continuous batching ignores stop strings and repetition penalty.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from thinktune.errors import GenerationError, OutOfMemory
from thinktune.inference.engines.base import Completion, Engine, Likelihood, Pair, Request, polling, why_refused
from thinktune.inference.engines.detokenizer import Detokenizer, TextStream
from thinktune.inference.engines.hf.cache_layers import keeps_state, layout_of
from thinktune.inference.engines.hf.cache_size import (
    CacheSize,
    measured_size,
    reads_padding,
    size_by_config,
    tokens_that_fit,
)
from thinktune.inference.engines.hf.cuda_graph import Recorder, attends_to_all
from thinktune.inference.engines.hf.decoder import SPARE, Decoder, Row
from thinktune.inference.engines.hf.kv_cache import ATTENTION, register_attention
from thinktune.inference.engines.hf.loglikelihood import likelihoods
from thinktune.inference.engines.hf.packed_linear import packed_linears
from thinktune.inference.engines.hf.scheduler import OUT_OF_MEMORY_HINT, Limits, Scheduler
from thinktune.models.loading import out_of_memory
from thinktune.models.untouched import eval_mode, inner_model

logger = logging.getLogger(__name__)

SLOW = "are answered the slow way: the transformers engine reads the whole text again for each token"
_WINDOW = 4096  # requests sorted together; bounds memory when the caller streams them
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class TransformersEngine(Engine):
    """Generates with a causal language model held in memory.

    The model's train or eval mode and its attention are as they were after every call, so that a model in training can
    answer questions. Results do not depend on the other rows of a batch, beyond the rounding of matrix products.
    Each text of a model that keeps something unknown between two tokens is read anew for every token, and that is said:
    it is slow, and always right.

    Args:
        model: a transformers causal model or a PeftModel over one.
        tokenizer: its tokenizer.
        stop_ids: token ids that end a completion.
        max_batch_tokens: rows times columns of the cache held at once; None chooses from free memory.
        max_rows: completions decoded together; None: a good number for the device.
        spare: columns of cache to fill between two copies of it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stop_ids: Iterable[int],
        *,
        max_batch_tokens: int | None = None,
        max_rows: int | None = None,
        spare: int = SPARE,
    ) -> None:
        config = model.config.get_text_config()
        register_attention()
        embedding = model.get_input_embeddings().weight
        on_gpu = embedding.device.type == "cuda"
        stops = frozenset(stop_ids)
        self.context_length = _context_length(config, tokenizer)
        self._model = model
        self._decoder = Decoder(
            model=model,
            detokenizer=Detokenizer(tokenizer, stops, len(embedding)),
            stop_ids=stops,
            vocabulary=len(embedding),
            context_length=self.context_length,
            layout=layout_of(config),
            device=embedding.device,
            recorder=Recorder(embedding.device) if on_gpu and attends_to_all(config) else None,
            spare=spare,
        )
        size = CacheSize(1)
        if self._decoder.layout is None:
            self.recompute()
        elif keeps_state(self._decoder.layout) or inner_model(model)._is_stateful:
            size = self._try_cache()
        else:
            size = size_by_config(config, embedding)
        self.slots = max_rows or (512 if on_gpu else 64)
        self._limits = Limits(
            tokens=max_batch_tokens or tokens_that_fit(size, embedding.device),
            rows=self.slots,
            prefill=16384 if on_gpu and not size.state else 2048,  # Mamba without its kernels takes MiBs a token
            state=0 if max_batch_tokens else -(-size.state // size.token),
        )

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """See `Engine.generate`. Requests are taken from the iterable in windows, longest prompts first inside one.

        Raises:
            GenerationError: the device failed.
            OutOfMemory: not one item could be answered, each by itself being too large for the memory.
        """
        with self.ready(), closing(self.steps(requests)) as steps:
            for finished in steps:
                yield from finished

    def steps(self, requests: Iterable[Request]) -> Generator[list[Completion], None, None]:
        """Do as `generate`, one decoded token at a time: yield the completions that it finished, often none. To be used
        within `ready`."""
        poll = polling(requests)
        scheduler = self.scheduler()
        answered = False
        while True:
            if not scheduler.waiting:
                window = list(islice(iter(poll, None), _WINDOW))
                yield [refused for request in window for refused in self._refuse(request)]
                scheduler.waiting.extend(self._rows(window))
            if scheduler.idle:
                break
            finished = scheduler.advance()
            answered |= any(row.error is None for row in finished)
            yield [self.complete(row) for row in finished]
        if scheduler.starved is not None and not answered:
            raise OutOfMemory(scheduler.starved.error or "out of memory", hint=OUT_OF_MEMORY_HINT)

    def stream(self, request: Request) -> Iterator[str]:
        """See `Engine.stream`. The pieces join to the text that `generate` gives for the same request.

        Raises:
            GenerationError: the request cannot be answered, for example because its prompt is too long.
        """
        scheduler = self.scheduler()
        writer = self.writer(request)
        scheduler.waiting.append(writer.row)
        with self.ready():
            while not scheduler.idle:
                scheduler.advance()
                yield from writer.written()

    def scheduler(self, *, eager: bool = False, decoder: Decoder | None = None) -> Scheduler:
        """Make an empty batch of this model. `eager`: see there. `decoder`: one that watches this engine's."""
        limits = replace(self._limits, rows=1) if self.recomputes else replace(self._limits)
        return Scheduler(decoder or self._decoder, limits, eager=eager)

    @property
    def recomputes(self) -> bool:
        """Whether it reads each text anew for every token."""
        return self._decoder.layout is None

    def recompute(self) -> None:
        """Read each text anew for every token from now on, and say so."""
        self._decoder = replace(self._decoder, layout=None, recorder=None)
        logger.warning(f"{inner_model(self._model).config.model_type} models {SLOW}")

    @property
    def model(self) -> Any:
        return self._model

    @property
    def decoder(self) -> Decoder:
        return self._decoder

    def writer(self, request: Request) -> Writer:
        """Make a row to put into a scheduler's queue, and the stream of its text.

        Raises:
            GenerationError: the request cannot be answered.
        """
        if problem := self._problem(request):
            raise GenerationError(problem)
        return Writer(Row(request, 0, self._room(request)), self._decoder.detokenizer)

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        """See `Engine.logprobs`.

        Raises:
            GenerationError: there is no prompt, or the two together exceed the context.
        """
        total = len(prompt_ids) + len(continuation_ids)
        if not prompt_ids or total > self.context_length:
            raise GenerationError(f"{total} tokens do not make a prompt within the context of {self.context_length}")
        ids = torch.tensor([[*prompt_ids, *continuation_ids]], device=self._decoder.device)
        with self._model_ready(), torch.inference_mode():
            logits = self._model(input_ids=ids, logits_to_keep=len(continuation_ids) + 1).logits[0]
        scores = logits[-len(continuation_ids) - 1 : -1].float().log_softmax(-1)
        return [float(score) for score in scores.gather(1, ids[0, len(prompt_ids) :, None])[:, 0]]

    def likelihoods(self, pairs: Sequence[Pair]) -> Iterator[Likelihood]:
        """See `Engine.likelihoods`.

        Raises:
            GenerationError: a pair lacks a prompt or a continuation, or exceeds the context.
        """
        for prompt, continuation in pairs:
            if not prompt or not continuation or len(prompt) + len(continuation) > self.context_length:
                raise GenerationError(
                    f"{len(prompt)} and {len(continuation)} tokens do not make a prompt and its continuation within "
                    f"the context of {self.context_length}"
                )
        with self._model_ready(), torch.inference_mode():
            yield from likelihoods(
                self._model,
                pairs,
                device=self._decoder.device,
                tokens=self._limits.prefill,
                vocabulary=self._decoder.vocabulary,
            )

    def _rows(self, requests: Iterable[Request]) -> list[Row]:
        sound = [request for request in requests if not self._problem(request)]
        # Similar lengths beside each other pad least; longest first, so that memory runs out early if it does.
        sound.sort(key=lambda request: -len(request.prompt_ids))
        return [Row(request, index, self._room(request)) for request in sound for index in range(request.sampling.n)]

    def _room(self, request: Request) -> int:
        return min(request.sampling.max_tokens, self.context_length - len(request.prompt_ids))

    def _refuse(self, request: Request) -> Iterator[Completion]:
        if problem := self._problem(request):
            for index in range(request.sampling.n):
                yield Completion(request.id, index, "", (), "error", problem)

    def _problem(self, request: Request) -> str | None:
        if request.adapter is not None:
            return f"the transformers engine holds one model, and no adapter {request.adapter!r} beside it"
        return why_refused(request.prompt_ids, self.context_length, self._decoder.vocabulary)

    def complete(self, row: Row) -> Completion:
        """Turn a row that has ended into a completion."""
        if row.reason is None or row.reason == "error":
            return Completion(row.request.id, row.index, "", (), "error", row.error)
        text = self._decoder.detokenizer.final_text(row.ids, row.sampling.stop)
        return Completion(row.request.id, row.index, text, tuple(row.ids), row.reason, logprobs=tuple(row.logprobs))

    def _try_cache(self) -> CacheSize:
        """Measure the cache of a model with states. One that does not work with it is recomputed from now on."""
        try:
            with self._model_ready(), torch.inference_mode():
                size = measured_size(self._decoder)
                self._decoder = replace(self._decoder, reads_padding=reads_padding(self._decoder))
                return size
        except torch.OutOfMemoryError as error:
            raise out_of_memory("reading two tokens", self._decoder.device) from error
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            logger.debug("its cache is not ours: %s", error)
            self.recompute()
            return CacheSize(1)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Let the model decode within the block: in eval mode, with our attention and packed weights."""
        with self._model_ready(), packed_linears(self._model):
            yield

    @contextmanager
    def _model_ready(self) -> Iterator[None]:
        """Switch to eval mode and our attention; restore both afterwards.

        With `packed_linears`, that is all that generation changes in a model: it draws no random number of torch.
        """
        config = self._model.config
        attention = config._attn_implementation
        # Attention put in for training may know nothing of padded rows. Models that cannot use SDPA keep their own.
        if self.recomputes and inner_model(self._model)._can_set_attn_implementation():
            config._attn_implementation = "eager"
        elif _takes_attention(self._model):
            config._attn_implementation = ATTENTION
        # cuDNN's, which PyTorch likes best on newer GPUs, makes a plan for each new width: a tenth of a second a token.
        on_gpu = self._decoder.device.type == "cuda"
        try:
            with eval_mode(self._model), sdpa_kernel(_BACKENDS) if on_gpu else nullcontext():
                yield
        finally:
            config._attn_implementation = attention


class Writer:
    """One row's text as it grows."""

    def __init__(self, row: Row, detokenizer: Detokenizer) -> None:
        self.row = row
        self._detokenizer = detokenizer
        self._text = TextStream(detokenizer)
        self._seen = 0  # tokens
        self._shown = ""

    def written(self) -> Iterator[str]:
        """Return the text added since the last call; the pieces join to the completion's text.

        Raises:
            GenerationError: the row has failed.
        """
        row = self.row
        end = len(row.ids) - (row.reason is not None)  # the last token may be cut off, by a stop string
        for token in row.ids[self._seen : end]:
            if piece := self._text.push(token):
                self._shown += piece
                yield piece
        self._seen = max(self._seen, end)
        if row.reason == "error":
            raise GenerationError(row.error or "the model failed")
        if row.reason is not None:
            rest = self._detokenizer.final_text(row.ids, row.sampling.stop)[len(self._shown) :]
            if rest:
                self._shown += rest
                yield rest


def _takes_attention(model: Any) -> bool:
    """Return whether the model uses the attention that its config names. Falcon and others know only names of their
    own, and would read SDPA's boolean mask as numbers to add."""
    inner = inner_model(model)
    return bool(inner._can_set_attn_implementation())


def _context_length(config: Any, tokenizer: Any) -> int:
    """Return the most tokens of prompt and answer together.

    Where rotary frequencies are chosen by the longest row of a batch, only so many as need no others: a short answer
    would be another one beside a long prompt. So too where queries are scaled by their column (Llama 4, from some 8,192
    on): a column is no position where rows are filled up.
    """
    longest: int = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    if getattr(config, "attn_temperature_tuning", False):
        longest = min(longest, config.floor_scale - 1)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("longrope", "dynamic"):
        return longest
    return min(longest, rope.get("original_max_position_embeddings") or longest)
