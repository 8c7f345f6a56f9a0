"""The memory of a training step: bytes by part, from sizes alone.

The physical quantities that no data sheet has are in one table below, each with its meaning. They are measured on
pieces (one product, one kernel, one layer), not adjusted to whole trainings: those test them (bench/plan.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from thinktune.config import Quantize
from thinktune.planner.fused_models import FUSED_HEAD_DIMS, FUSED_KERNEL_RANK, FUSED_MAX_RANK, FUSED_MODELS
from thinktune.planner.hardware import Hardware
from thinktune.planner.model_shape import ModelShape
from thinktune.planner.recompute_policy import RecomputePolicy

FILLED_UP = 1.04  # tokens of a batch that fills up a graph, of those it had
# Bytes.
CHUNK_BYTES = {"cuda": 512 * 2**20, "cpu": 72 * 2**20}  # held at once by `chunked_loss`: logits, on a CPU copies too
SCORES, QUERIES_AT_ONCE = 2**26, 512  # attention scores at once, of so many queries, where no kernel does without them
MASK_BYTES = {"cuda": 1, "cpu": 4}  # of dropout, of a number
SCORE_BYTES = 6 * 4  # capped, masked, their softmax, and gradients of these
INPUT_BYTES = 64  # of a batch itself, a token, beside the rotary tables: ids, positions, targets, labels as int64
MASTER_BYTES = 4 + 4  # of a trainable parameter: float32 weight and gradient
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # optimizer state of one
WEIGHT_BYTES: dict[Quantize, float] = {"fp8": 1, "int8": 1, "nf4": 0.5 + 1 / 64 + 4 / 16384}  # nf4's scales: 1 in 64
WORK_HIDDEN = 5  # tensors of the hidden width that one fused layer's backward pass has at once
PRODUCTS_SPACE = 32 * 2**20 + 2**16  # cuBLAS's own workspace
CPU_RUNTIME = 0.7 * 2**30  # interpreter and libraries
TOKENIZER_BYTES = 2000  # of a token in its vocabulary, in main memory
FRAGMENTS = 0.04  # share of the peak lost to fragmentation, …
FRAGMENTS_SPREAD = 0.08  # … and where the base is spread: 6% were too few for four GPUs and layers of a gigabyte


@dataclass(frozen=True)
class Batch:
    """The tokens that go through the model at once; `attended` is the sum of the documents' lengths squared."""

    tokens: float
    trained: float
    attended: float

    @classmethod
    def joined(cls, batches: Iterable[Batch], share: float = 1) -> Batch:
        """Return several batches as one, or that share of it."""
        totals = zip(*((each.tokens, each.trained, each.attended) for each in batches), strict=True)
        return cls(*(share * sum(total) for total in totals))


@dataclass(frozen=True)
class MemoryModel:
    """A model, the number format of its base, what is trained of it, and the device: the bytes that it takes."""

    shape: ModelShape
    hardware: Hardware
    quantize: Quantize
    rank: int
    targets: tuple[str, ...]
    experts: Mapping[str, int]  # that have adapters too: parameters by name, and the rank's multiple in each
    optimizer: str
    dropout: bool
    width: int  # bytes of a number that products take: 2 in bfloat16
    may_fuse: bool = True
    may_graph: bool = True
    kept: float = 1.0  # share of the layers' frozen weights that this device has; the rest comes layer by layer
    whole: bool = False  # all weights are trained, in float32, and nothing is frozen or added

    @property
    def kind(self) -> str:
        """cuda or cpu."""
        return self.hardware.kind

    @property
    def in_fp8(self) -> bool:
        """Whether products run in fp8; else the weights of an fp8 base are dequantised for each."""
        return self.quantize == "fp8" and self.fused and self.hardware.fp8 > 0

    @property
    def fused(self) -> bool:
        """Whether decoder layers are fused, as far as sizes tell (`fused.fuse_model` knows)."""
        family = FUSED_MODELS.get(self.shape.model_type)
        heads = self.shape.q // self.shape.heads in FUSED_HEAD_DIMS or (family and family.attention is None)
        known = family is not None and heads and self.rank <= FUSED_MAX_RANK
        known = known and self.shape.known_parts
        if family is not None and self.kept < 1:
            known = known and family.attention is not None and family.mlp is not None
        return bool(self.may_fuse and known and self.kind == "cuda" and self.width == 2)

    @property
    def why_not_fused(self) -> str:
        """What keeps this training from fused decoder layers, as far as it is a matter of its config; "" if nothing."""
        if self.fused or self.whole:
            return ""
        if self.kind != "cuda":
            return "as on every CPU"
        if self.width != 2:
            return "the fused ones are for bfloat16 (load.dtype)"
        if self.shape.model_type not in FUSED_MODELS:
            return f"{self.shape.model_type} is none of the {len(FUSED_MODELS)} model types with fused ones"
        if self.rank > FUSED_MAX_RANK:
            return f"the fused ones are for ranks up to {FUSED_MAX_RANK} (lora.r)"
        return "the fused ones cannot run its layers"

    @property
    def _fused_halves(self) -> tuple[bool, bool]:
        """Whether attention is fused, and the MLP."""
        family = FUSED_MODELS.get(self.shape.model_type)
        if family is None or not self.fused:
            return False, False
        return family.attention is not None, family.mlp is not None

    @property
    def in_kernels(self) -> bool:
        """Whether the kernels of fused layers compute the low-rank products; else they are products of their own."""
        return self.fused and self.rank <= FUSED_KERNEL_RANK

    @cached_property
    def adapted(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers that get an adapter."""
        return self.shape.targets(self.targets)

    @property
    def trained_parameters(self) -> int:
        if self.whole:
            return self.shape.parameters
        linears = sum(self.rank * (inputs + outputs) for inputs, outputs in self.adapted)
        sizes = ((times, *self.shape.experts[name]) for name, times in self.experts.items())
        return linears + sum(self.rank * times * count * (one + other) for times, count, one, other in sizes)

    @property
    def expert_stack(self) -> float:
        """Bytes of a layer's experts if they have adapters, whose product is added to the weights in each pass."""
        return self.width * sum(math.prod(self.shape.experts[name]) for name in self.experts) / self.shape.layers

    @property
    def _adapted_inputs(self) -> float:
        """Summed width of the inputs of a layer's adapters."""
        return sum(inputs for inputs, _ in self.adapted) / self.shape.layers

    def weights(self) -> int:
        """Return the bytes of the base, frozen or with the copies that products take of it."""
        shape = self.shape
        if self.whole:
            copies = self.width * (shape.linear_weights + shape.vocabulary * shape.hidden) if self.width < 4 else 0
            return 4 * shape.parameters + copies
        per_row = self.quantize in ("int8", "fp8")
        scales = 4 * sum(outputs for _, outputs in shape.linears.values()) if per_row else 0
        layers = shape.layers * self.layer_bytes
        if self.kept < 1:
            layers = self.kept * layers + 2 * self.layer_bytes  # whole ones: at work, and on its way
        return int(layers + scales + shape.others * self.width)

    @property
    def layer_bytes(self) -> float:
        """Bytes of the frozen weights of a layer."""
        return self.shape.linear_weights * WEIGHT_BYTES.get(self.quantize, self.width) / self.shape.layers

    def adapter(self) -> int:
        """Return the bytes of the trainable weights, their gradients and the copies that products take; where all are
        trained, of the gradients."""
        if self.whole:
            return 4 * self.trained_parameters
        copies = self.width if self.fused else 0
        joined = 0  # with the frozen weights: B of gate and of up, with zeros between, and A of down
        if self.fused and not self.in_kernels and self.quantize == "none" and self.kept == 1:
            joined = self.width * self.rank * self.shape.intermediate * self.shape.layers * (4 + (not self.dropout))
        return self.trained_parameters * (MASTER_BYTES + copies) + joined

    def beside_graphs(self, parts: dict[str, int]) -> int:
        """Return the bytes that CUDA graphs take beyond those of plain passes: the gradients that one leaves, before
        they join those of the step; workspaces of cuBLAS on the stream that records, three as measured; the padding.
        """
        padding = (FILLED_UP - 1) * parts["activations"]
        return int(4 * self.trained_parameters + 3 * PRODUCTS_SPACE + padding)

    def optimizer_state(self) -> int:
        return self.trained_parameters * STATE_BYTES[self.optimizer if self.kind == "cuda" else "adamw"]

    @cached_property
    def saved(self) -> dict[str, float]:
        """Bytes a token that a layer keeps for its backward pass, by level."""
        s, b = self.shape, self.width
        attention = s.mixers.attending * (b * (2 * s.q + 2 * s.kv) + 4 * s.heads) + s.mixers.kept
        # Both norms keep their input in float32 and their output; SwiGLU keeps gate, up, their activation and product.
        # Of experts, what comes in is gathered again; what they make is kept, gate and up a second time, activated.
        plain = [(4 + b) * s.hidden + attention, (4 + b) * s.hidden + b * (4 * s.intermediate + s.expert_widths)]
        if self.whole and b < 4:  # a residual stream and norms in float32, and a copy for each product
            plain = [(4 + 4 + 3 * b) * s.hidden + attention, plain[1] + (2 + b) * s.hidden]
        adapters = b * self.rank * len(self.adapted) / s.layers
        if (self.quantize != "none" and b < 4) or self.dropout:
            # PEFT's own linears keep their input in float32, once for each, or what dropout leaves of it, and its mask;
            # and no second time in the model's dtype.
            adapters += self._adapted_inputs * (4 + (MASK_BYTES[self.kind] if self.dropout else 0))
            plain = [plain[0] - b * s.hidden, plain[1] - b * (s.hidden + s.intermediate)]
        if not self.fused:
            return {"none": sum(plain) + adapters, "full": b * s.hidden}
        family, low = FUSED_MODELS[s.model_type], (4 if self.in_kernels else b) * self.rank  # of one projection
        products = b * s.hidden if family.norms_updates else 0
        before_norm = b * (s.q + 2 * s.kv) if family.head_norms else 0  # of its heads
        halves: list[float] = [
            b * s.hidden + attention + before_norm + products + 4 * low,
            b * s.hidden + products + 3 * low,
        ]
        wide = b * 2 * s.intermediate
        full = b * s.hidden + products + low
        if not all(self._fused_halves):  # the input of the other half is kept where it is recomputed
            both = zip(halves, plain, self._fused_halves, strict=True)
            halves = [ours if fused else own + adapters / 2 for ours, own, fused in both]
            full += b * s.hidden
            wide = wide if self._fused_halves[1] else 0
        return {"none": sum(halves) + wide, "mlp": sum(halves), "full": full}

    def workspace(self, tokens: float, level: str, chunks: int) -> float:
        """Return the bytes that the backward pass of one layer takes while it runs, beside the saved activations."""
        s, b = self.shape, self.width
        # Of experts with adapters, the sum is computed again where it was not kept, and its gradient comes beside it.
        fixed = self._scratch + self._scores(tokens) + self.expert_stack * (2 if level == "full" else 1)
        if level == "full":  # what is made again is a layer's own, not the mean
            fixed += tokens * (s.mixers.most - s.mixers.kept)
        if self.fused:
            # Gate and up are kept, or made again; in fp8 their gradients come beside them, else in their place.
            wide = (1 if level == "none" else 3) + self.in_fp8
            if not self._fused_halves[1]:
                wide, chunks = 4, 1
            wide += 2 if self.dropout and not self.in_kernels else 0  # its input with dropout, and its gradient
            rebuilt = self.saved["mlp"] - b * s.hidden if level == "full" else 0
            sums = (4 if self.in_kernels else b) * 9 * self.rank  # low-rank activations and gradients
            widths = wide * s.intermediate / chunks + WORK_HIDDEN * s.hidden + 2 * s.expert_widths
            return tokens * (b * widths + rebuilt + sums) + fixed
        rebuilt = self.saved["none"] if level == "full" else 0
        return tokens * (b * (4 * s.intermediate + 8 * s.hidden + 2 * s.expert_widths) + rebuilt) + fixed

    def _scores(self, tokens: float) -> float:
        """Return the bytes of attention scores at once where no kernel does without them: see `packed_attention`."""
        if not self.shape.plain_scores or self.kind != "cpu":
            return 0.0
        return SCORE_BYTES * min(SCORES, self.shape.heads * min(tokens, QUERIES_AT_ONCE) * tokens)

    @property
    def _scratch(self) -> float:
        """Bytes to bring the widest product's weights into the form in which they are multiplied."""
        widest = self.shape.hidden * self.shape.intermediate * (2 if self.fused else 1)
        if self.quantize == "none":
            return 0
        whole = 8 if self.quantize == "fp8" and not self.fused else self.width  # through float32, and with its scales
        return widest * (1 if self.in_fp8 else whole)

    def head(self, batch: Batch) -> float:
        """Return the bytes for the loss: a chunk of logits, the hidden states it takes and their gradient."""
        s, b = self.shape, self.width
        logits = min(CHUNK_BYTES[self.kind], batch.trained * s.vocabulary * b)
        norm = 4 + 2 * b  # the last one's input, in float32 too, and its output
        if self.whole:  # the gradient of its weight, of a chunk and added up
            logits += 2 * 4 * s.vocabulary * s.hidden
        return logits + s.hidden * (2 * b * batch.trained + norm * batch.tokens)

    def memory(self, batch: Batch, memory: RecomputePolicy) -> dict[str, int]:
        """Return bytes by part, and their peak: the loss and a layer's backward pass are never in memory together."""
        counts = {level: memory.levels.count(level) for level in ("full", "mlp", "none")}
        held = {level: counts[level] * self.saved.get(level, 0) * batch.tokens for level in counts}
        for level in ("mlp", "none"):
            held[level] += counts[level] * self.expert_stack
        if memory.offload:
            held["full"] = min(counts["full"], 2) * self.saved["full"] * batch.tokens
        head, moments, kept, cost = self.head(batch), [], 0.0, 0.0
        for level in counts:  # in the order of the layers: see `choose`
            kept += held[level]
            if counts[level]:
                space = self.workspace(batch.tokens, level, memory.mlp_chunks)
                moments.append(kept + space)
                cost = max(cost, space)
        fixed = {
            "weights": self.weights(),
            "adapter": self.adapter(),
            "optimizer": self.optimizer_state(),
            "runtime": CPU_RUNTIME + TOKENIZER_BYTES * self.shape.vocabulary if self.kind == "cpu" else PRODUCTS_SPACE,
            "batch": batch.tokens * (INPUT_BYTES + 2 * self.width * self.shape.q / self.shape.heads),
        }
        peak = sum(fixed.values()) + max(kept + head, *moments)
        parts = {**fixed, "activations": kept, "logits": head, "workspace": cost, "peak": peak}
        return {name: int(size) for name, size in parts.items()}

    def fits(self, batch: Batch, memory: RecomputePolicy) -> bool:
        """Tell whether the device has memory for a batch, fragments allowed for."""
        return self.with_fragments(self.memory(batch, memory)["peak"]) <= self.hardware.memory

    def with_fragments(self, peak: float) -> float:
        """Return the bytes that the device needs for a peak."""
        return peak * (1 + (FRAGMENTS if self.kept == 1 else FRAGMENTS_SPREAD))
