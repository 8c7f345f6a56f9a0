"""Layers that mix along the whole sequence, and models with an attention of their own, run on documents apart.

A layer with a state (gated delta rule, Mamba, a short convolution) carries it into the next document, and some rotary
embeddings choose their frequencies by the longest one. Kernels told of the ends of documents exist for some of them;
the sequence cut in front of such a layer is right with every kernel. Layers with a state take documents of like length
as rows of a batch, filled up behind their ends, from where nothing reaches back; all else takes one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

KEYS = ("key_tokens", "cu_seq_lens_k", "max_length_k", "key_lengths")
"""Names of the arguments that tell the keys of each document, where those are not its own tokens alone."""
_ENDS = ("cu_seq_lens_q", "max_length_q", "document_lengths", "repeats", *KEYS)
_OF_A_PACK = {*_ENDS, "token_keys", "dropout_seed"}

_FILLED_UP = 1.25
"""Tokens of documents that make up a batch, filled up to the longest, of those they had."""

Forward = Callable[..., Any]


@contextmanager
def one_at_a_time(model: Any) -> Iterator[None]:
    """Run the layers that mix along the whole sequence on one document at a time within the block."""
    modules = layers_run_apart(model)
    if not modules:
        yield
        return
    with _documents_of(model) as documents, changed_forwards(modules, _cutting(documents)):
        yield


def layers_run_apart(model: Any) -> list[Any]:
    """List the layers that mix along the whole sequence: their calls follow the documents, which no graph does."""
    return [module for module in model.modules() if _has_state(module) or _follows_length(module)]


@contextmanager
def wholly_one_at_a_time(model: Any) -> Iterator[None]:
    """Run all of the model but its head on one document at a time within the block."""
    with changed_forwards([model.base_model], _cutting({})):
        yield


@contextmanager
def handing_on(model: Any) -> Iterator[None]:
    """Hand the ends of documents to the attention of a model whose decoder layers do not pass them on."""
    with _documents_of(model) as documents:

        def told(_: Any, original: Forward) -> Forward:
            return lambda *args, **inputs: original(*args, **{**documents, **inputs})

        with changed_forwards([module for module in model.modules() if hasattr(module, "is_causal")], told):
            yield


def _cutting(documents: dict[str, Any]) -> Callable[[Any, Forward], Forward]:
    """Make a change of forwards: to one call a document, those of the call itself or else `documents`."""

    def change(module: Any, original: Forward) -> Forward:
        def forward(*args: Any, **inputs: Any) -> Any:
            lengths = inputs.get("document_lengths", documents.get("document_lengths"))
            if lengths is None:  # no pack: the model answers
                _forget_lengths(module)
                return original(*args, **inputs)
            if not lengths:  # they stand in a tensor on the GPU alone
                raise RuntimeError("layers that run a document at a time cannot be recorded as a CUDA graph")
            batches = _batches(lengths) if _has_state(module) else [[row] for row in range(len(lengths))]
            alone = {name: value for name, value in inputs.items() if name not in _OF_A_PACK}
            results = []
            for rows in batches:
                _forget_lengths(module)
                cut_args, cut_inputs = _cut((args, alone), rows, lengths)
                results.append(original(*cut_args, **cut_inputs))
            return _joined(results, batches, lengths)

        return forward

    return change


@contextmanager
def _documents_of(model: Any) -> Iterator[dict[str, Any]]:
    """Yield the arguments that tell the ends of documents, those of the batch that entered the model last."""
    documents: dict[str, Any] = {}

    def noting(_: Any, original: Forward) -> Forward:
        def forward(*args: Any, **inputs: Any) -> Any:
            documents.clear()
            documents.update({name: inputs[name] for name in _ENDS if name in inputs})
            return original(*args, **inputs)

        return forward

    with changed_forwards([model.base_model], noting):
        yield documents


@contextmanager
def changed_forwards(modules: Sequence[Any], change: Callable[[Any, Forward], Forward]) -> Iterator[None]:
    """Replace the forward of each module within the block."""
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = change(module, module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def _has_state(module: Any) -> bool:
    """Return whether a layer carries something along the sequence that is not keys and values."""
    if any(isinstance(child, torch.nn.Conv1d) for child in module._modules.values()):
        return True
    linear = hasattr(module, "layer_idx") and getattr(module, "layer_type", None) == "linear_attention"
    return linear and not any(hasattr(part, "layer_idx") for part in module.modules() if part is not module)


def _follows_length(module: Any) -> bool:
    """Return whether the frequencies of a rotary embedding follow the longest sequence."""
    kinds = getattr(module, "rope_type", None) or ""
    return any(
        kind == "longrope" or "dynamic" in kind for kind in (kinds.values() if isinstance(kinds, dict) else [kinds])
    )


def _forget_lengths(module: Any) -> None:
    """Let a rotary embedding forget the longest sequence that it has seen: the next one is to be as if alone."""
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        setattr(module, name, module.original_max_seq_len)
    for name, frequencies in list(module._buffers.items()):
        original = getattr(module, f"{name.removesuffix('inv_freq')}original_inv_freq", None)
        if name.endswith("inv_freq") and original is not None:
            module._buffers[name] = original.to(frequencies.device)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Group documents, by number, whose lengths differ so little that few tokens fill them up."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        joined = [*batches[-1], row] if batches else []
        if joined and lengths[joined[0]] * len(joined) <= _FILLED_UP * sum(lengths[each] for each in joined):
            batches[-1] = joined
        else:
            batches.append([row])
    return batches


def _cut(value: Any, rows: Sequence[int], lengths: Sequence[int]) -> Any:
    """Cut what has a place for each token, [1, tokens, …], to a batch of some documents, [rows, longest, …]."""
    if isinstance(value, dict):
        return {name: _cut(part, rows, lengths) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_cut(part, rows, lengths) for part in value)
    if torch.is_tensor(value) and value.ndim > 1 and value.shape[:2] == (1, sum(lengths)):
        documents = value.split(list(lengths), dim=1)
        if len(rows) == 1:
            return documents[rows[0]]
        return torch.nn.utils.rnn.pad_sequence([documents[row][0] for row in rows], batch_first=True)
    return value


def _joined(results: Sequence[Any], batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> Any:
    """Join the results for batches of documents; what has no place for each token is that of the last."""
    if isinstance(results[0], dict):
        for name in results[-1]:
            results[-1][name] = _joined([result[name] for result in results], batches, lengths)
        return results[-1]
    if isinstance(results[0], tuple):
        return tuple(_joined(parts, batches, lengths) for parts in zip(*results, strict=True))
    documents: dict[int, torch.Tensor] = {}
    for result, rows in zip(results, batches, strict=True):
        if not torch.is_tensor(result) or result.ndim < 2 or result.shape[1] != max(lengths[row] for row in rows):
            return results[-1]
        documents |= {row: result[at : at + 1, : lengths[row]] for at, row in enumerate(rows)}
    return torch.cat([documents[row] for row in range(len(lengths))], dim=1)
