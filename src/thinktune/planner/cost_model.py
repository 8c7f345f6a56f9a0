"""The cost of a training step: bytes by part, and seconds, from sizes and a device's rates alone.

The physical quantities that no data sheet has are in one table below, each with its meaning. They are measured on
pieces (one product, one kernel, one layer), not adjusted to whole trainings: those test them (bench/plan.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from thinktune.config import Config, Lora, Quantize
from thinktune.planner.fused_models import FUSED_HEAD_DIMS, FUSED_KERNEL_RANK, FUSED_MAX_RANK, FUSED_MODELS
from thinktune.planner.hardware import Hardware
from thinktune.planner.model_shape import ModelShape
from thinktune.planner.recompute_policy import RecomputePolicy

# Rates: the share of the published one that is reached.
PRODUCT_SHARE = 0.72  # large matrix products in bf16: 630 to 790 of 989 TFLOP/s on an H100
FP8_SHARE = 0.70  # with a scale a row and column: 1,290 to 1,510 of 1,979
ATTENTION_SHARE = {"forward": 0.50, "backward": 0.36}  # causal flash attention, of the bf16 rate
BANDWIDTH_SHARE = 0.85  # a kernel that only moves memory
HALF_RATE_TOKENS = 128  # tokens at which a product reaches half of its full rate; twice as many in fp8
KERNELS = {True: 45, False: 310}  # that a decoder layer starts, forward and backward: fused; by PEFT, one by one
# That the host takes to start one from Python: beside an H100, SmolLM2's 30 layers took 113 to 125 ms a step, for 500
# tokens and for 2,000, and 325 ms by PEFT. On a CPU those are plain calls.
LAUNCH_SECONDS = {True: 75e-6, False: 33e-6}
LARGE_RANK_KERNELS = 20  # more of a fused layer whose low-rank products are beside its kernels
UNPACKING_KERNELS = {True: 1, False: 8}  # to bring an 8- or 4-bit weight into bfloat16 once
CPU_LAUNCH_SECONDS = 12e-6
# From CUDA graphs: of a kernel beside its work, to start and to end; and of the host for an optimizer step.
GRAPHED_KERNEL_SECONDS, GRAPHED_STEP_SECONDS = 2.4e-6, 2.5e-3
FILLED_UP = 1.04  # tokens of a batch that fills up a graph, of those it had
EIGHT_BIT_SECONDS = 50e-6  # of the host, for each of its tensors, to step an 8-bit optimizer
# Bytes/s of an all-reduce between GPUs of a host, by their NVLink or over PCIe, and seconds that hosts are apart.
LINK_BANDWIDTH = {True: 300e9, False: 12e9}
JITTER_SECONDS = 2e-3
HOST_BANDWIDTH = 20e9  # bytes/s between GPU and pinned main memory
CPU_PRODUCT_SHARE = 0.7  # share of matrix products in the time of a CPU

# Bytes.
CHUNK_BYTES = {"cuda": 512 * 2**20, "cpu": 72 * 2**20}  # held at once by `chunked_loss`: logits, on a CPU copies too
SCORES, QUERIES_AT_ONCE = 2**26, 512  # attention scores at once, of so many queries, where no kernel does without them
SCORE_BYTES = 6 * 4  # capped, masked, their softmax, and gradients of these
INPUT_BYTES = 64  # of a batch itself, a token, beside the rotary tables: ids, positions, targets, labels as int64
MASTER_BYTES = 4 + 4  # of a trainable parameter: float32 weight and gradient
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # optimizer state of one
WEIGHT_BYTES: dict[Quantize, float] = {"fp8": 1, "int8": 1, "nf4": 0.5 + 1 / 64 + 4 / 16384}  # nf4's scales: 1 in 64
WORK_HIDDEN = 5  # tensors of the hidden width that one fused layer's backward pass has at once
PRODUCTS_SPACE = 32 * 2**20 + 2**16  # cuBLAS's own workspace
CPU_RUNTIME = 0.7 * 2**30  # interpreter and libraries
TOKENIZER_BYTES = 2000  # of a token in its vocabulary, in main memory
FRAGMENTS = 0.04  # share of the peak lost to fragmentation

# Passes over memory that a fused layer makes beside its products, in units of one activation of that width.
FUSED_PASSES = {"forward": {"hidden": 6, "q": 2, "kv": 2, "f": 3}, "backward": {"hidden": 12, "q": 4, "kv": 4, "f": 6}}
PLAIN_FACTOR = 4  # PEFT's and transformers' own make so many times as many
CAST_BYTES = 20  # moved by PEFT's own linears for a number that an adapter takes: to float32 and back, dropped out
PLAIN_FP8_BYTES = 1 + 4 + 4 + 4 + 4 + 2  # moved to make an fp8 weight whole with torch's own kernels, through float32
LOW_RANK_PASSES = 2  # reads of inputs and of gradients for the adapter's products, forward and backward together
LARGE_RANK_PASSES = 3  # the same where they are no part of the kernels; twice more where weights are packed
IN_KERNEL_SHARE = 0.12  # of the bf16 rate that low-rank products reach as a part of the kernels
DROPOUT_FLOPS = 1800  # to draw a mask of an adapter's input, forward and twice backward: as long as so many of bf16
DROPPED_PASSES = 9  # over such an input, where what is left of it is written out for products of large rank
EXPERT_PASSES = (
    6  # over a layer's experts with adapters: the sum written in two passes, its gradient written and read twice
)
QUANTIZE_BYTES = 1.5  # moved to bring one activation into fp8: written, and read where no kernel before has it at hand


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
class CostModel:
    """A model, the number format of its base, the adapter trained on it, and the device that does it."""

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
        return bool(self.may_fuse and known and self.kind == "cuda" and self.width == 2)

    @property
    def _fused_halves(self) -> tuple[bool, bool]:
        """Whether attention is fused, and the MLP."""
        family = FUSED_MODELS.get(self.shape.model_type)
        if family is None or not self.fused:
            return False, False
        return family.attention is not None, family.mlp is not None

    def graphed(self, batch: Batch, memory: RecomputePolicy) -> bool:
        """Tell whether batches like this are run from CUDA graphs: where that is faster, since the host takes long to
        start a layer's kernels, and there is room for activations of a graph beside those of passes without one."""
        if not self.may_graph or not all(self._fused_halves) or memory.offload:
            return False
        parts = self.memory(batch, memory)
        beside = parts["activations"] + max(parts["logits"], parts["workspace"]) + self.beside_graphs(parts)
        if (parts["peak"] + beside) * (1 + FRAGMENTS) > self.hardware.memory:
            return False
        plain, graphed = (
            self._layer_seconds(batch, memory.levels[-1], memory.mlp_chunks, graphed=each) for each in (False, True)
        )
        return graphed < plain

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

    # Memory ---------------------------------------------------------------------------------------------------------

    def weights(self) -> int:
        """Return the bytes of the base, frozen or with the copies that products take of it."""
        shape = self.shape
        if self.whole:
            copies = self.width * (shape.linear_weights + shape.vocabulary * shape.hidden) if self.width < 4 else 0
            return 4 * shape.parameters + copies
        if self.quantize == "none":
            return shape.parameters * self.width
        scales = 0 if self.quantize == "nf4" else 4 * sum(outputs for _, outputs in shape.linears.values())
        return int(shape.linear_weights * WEIGHT_BYTES[self.quantize] + scales + shape.others * self.width)

    def adapter(self) -> int:
        """Return the bytes of the trainable weights, their gradients and the copies that products take; where all are
        trained, of the gradients."""
        if self.whole:
            return 4 * self.trained_parameters
        copies = self.width if self.fused else 0
        joined = 0  # with the frozen weights: B of gate and of up, with zeros between, and A of down
        if self.fused and not self.in_kernels and self.quantize == "none":
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
        attention = b * (2 * s.q + 2 * s.kv) + 4 * s.heads
        # Both norms keep their input in float32 and their output; SwiGLU keeps gate, up, their activation and product.
        # Of experts, what comes in is gathered again; what they make is kept, gate and up a second time, activated.
        plain = [(4 + b) * s.hidden + attention, (4 + b) * s.hidden + b * (4 * s.intermediate + s.expert_widths)]
        if self.whole and b < 4:  # a residual stream and norms in float32, and a copy for each product
            plain = [(4 + 4 + 3 * b) * s.hidden + attention, plain[1] + (2 + b) * s.hidden]
        adapters = b * self.rank * len(self.adapted) / s.layers
        if self.quantize != "none" or self.dropout:  # PEFT's own linears: the input in float32, once for each
            adapters += self._adapted_inputs * ((4 if b < 4 else 0) + (5 if self.dropout else 0))
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
        return self.memory(batch, memory)["peak"] * (1 + FRAGMENTS) <= self.hardware.memory

    # Time -----------------------------------------------------------------------------------------------------------

    def flops(self, batch: Batch) -> float:
        """Count the FLOPs of a forward and a backward pass, nothing recomputed: 4 a weight and token, 6 where it is
        trained, and causal attention."""
        s = self.shape
        each = 6 if self.whole else 4
        head = each * s.vocabulary * s.hidden * batch.trained
        return each * (s.linear_weights + s.active_experts) * batch.tokens + head + 7 * s.q * s.layers * batch.attended

    def seconds(self, batch: Batch, memory: RecomputePolicy) -> float:
        """Estimate the seconds of one forward and backward pass."""
        if self.kind == "cpu":
            extra = sum(level == "full" for level in memory.levels) / self.shape.layers / 2
            read = 2 * self.weights() / self.hardware.bandwidth  # once in each pass, however few tokens there are
            starting = self.shape.layers * KERNELS[False] * CPU_LAUNCH_SECONDS
            return (self.flops(batch) / self.hardware.bf16 / CPU_PRODUCT_SHARE + read + starting) * (1 + extra)
        levels = set(memory.levels)
        graphed = self.graphed(batch, memory)
        by_level = {level: self._layer_seconds(batch, level, memory.mlp_chunks, graphed=graphed) for level in levels}
        total = GRAPHED_STEP_SECONDS if graphed else 0.0
        total += sum(by_level[level] for level in memory.levels)
        head = (8 if self.whole else 4) * self.shape.vocabulary * self.shape.hidden * batch.trained
        total += head / (PRODUCT_SHARE * self.hardware.bf16)
        if memory.offload:  # overlapped with the computing, which it slows down a little
            moved = 2 * self.saved["full"] * batch.tokens * memory.levels.count("full")
            total += 0.1 * moved / HOST_BANDWIDTH
        return total

    def slopes(self, memory: RecomputePolicy) -> tuple[float, float]:
        """Estimate the seconds of a further token, and of a further pair of tokens that attend, where the device is
        busy: what one pack costs more than another."""
        some = 2**14
        few, many, attending = (
            self.seconds(batch, memory)
            for batch in (Batch(some, some, 0), Batch(2 * some, 2 * some, 0), Batch(some, some, some**2))
        )
        return (many - few) / some, (attending - few) / some**2

    def optimizer_seconds(self) -> float:
        """Estimate the seconds of clipping and stepping."""
        moved = self.trained_parameters * (3 * MASTER_BYTES + 2 * STATE_BYTES[self.optimizer])
        if self.kind == "cpu":
            return 0.0
        calls = 0 if self.optimizer == "adamw" else 2 * len(self.adapted) * EIGHT_BIT_SECONDS
        return 2e-3 + calls + moved / (BANDWIDTH_SHARE * self.hardware.bandwidth)

    def adding_seconds(self, gpus: int) -> float:
        """Estimate the seconds to add up the gradients of all GPUs: a ring moves them twice, but for one share."""
        moved = 2 * (gpus - 1) / gpus * 4 * self.trained_parameters
        return JITTER_SECONDS + moved / LINK_BANDWIDTH[self.hardware.linked]

    def _layer_seconds(self, batch: Batch, level: str, chunks: int, *, graphed: bool) -> float:
        computing = self._computing_seconds(batch, level, chunks)
        if graphed:
            return FILLED_UP * computing + self._launching_seconds(level, chunks, GRAPHED_KERNEL_SECONDS)
        return max(computing, self._launching_seconds(level, chunks))

    def _launching_seconds(self, level: str, chunks: int, start: float | None = None) -> float:
        uses = 2 * len(self.shape.linears) / self.shape.layers if self._unpacks else 0
        beside = LARGE_RANK_KERNELS if self.fused and not self.in_kernels else 0
        one = sum(
            (KERNELS[half] + UNPACKING_KERNELS[half] * uses + beside) * (start or LAUNCH_SECONDS[half]) / 2
            for half in self._fused_halves
        )
        return one * (1 + self._repeated(level) / 2) * math.sqrt(chunks)

    def _again(self, level: str) -> float:
        """Count the weights of a layer whose products are computed twice forward."""
        gate_up = 2 * self.shape.hidden * self.shape.intermediate
        return {"none": 0.0, "mlp": gate_up, "full": self._multiplied - gate_up / 2}[level]

    @property
    def _multiplied(self) -> float:
        """Weights of a layer that a token goes through."""
        return (self.shape.linear_weights + self.shape.active_experts) / self.shape.layers

    def _repeated(self, level: str) -> float:
        return self._again(level) / self._multiplied

    def _computing_seconds(self, batch: Batch, level: str, chunks: int) -> float:
        s, tokens, hardware = self.shape, batch.tokens, self.hardware
        weights = self._multiplied
        again, repeated = self._again(level), self._repeated(level)
        rate = FP8_SHARE * hardware.fp8 if self.in_fp8 else PRODUCT_SHARE * hardware.bf16
        efficiency = (tokens / chunks) / (tokens / chunks + HALF_RATE_TOKENS * (1 + self.in_fp8))
        products = 2 * tokens * ((2 + self.whole) * weights + again) / (rate * efficiency)
        attention = 2 * s.q * batch.attended / hardware.bf16
        forwards = 1 + (level == "full")
        attention *= forwards / ATTENTION_SHARE["forward"] + 2.5 / ATTENTION_SHARE["backward"]
        moved = self._bytes_moved(tokens, repeated) + self._bytes_unpacked(s.linear_weights / s.layers, 2 + repeated)
        computing = products + attention + moved / (BANDWIDTH_SHARE * hardware.bandwidth)
        if self.fused:
            low_rank = 6 * tokens * self.trained_parameters / s.layers
            computing += low_rank / ((IN_KERNEL_SHARE if self.in_kernels else PRODUCT_SHARE) * hardware.bf16)
        if self.in_kernels and self.dropout:
            computing += tokens * self._adapted_inputs * DROPOUT_FLOPS / hardware.bf16
        return computing

    def _bytes_moved(self, tokens: float, repeated: float) -> float:
        """Count the bytes moved by everything in a layer that is no large product."""
        s = self.shape
        widths = {"hidden": s.hidden, "q": s.q, "kv": s.kv, "f": s.intermediate}
        passes = {
            name: FUSED_PASSES["forward"][name] * (1 + repeated) + FUSED_PASSES["backward"][name] for name in widths
        }
        factors = [1 if half or not self.fused else PLAIN_FACTOR for half in self._fused_halves]
        shares = {"hidden": sum(factors) / 2, "q": factors[0], "kv": factors[0], "f": factors[1]}
        elements = sum(passes[name] * width * shares[name] for name, width in widths.items())
        passes_of_low_rank = LOW_RANK_PASSES
        if self.fused and not self.in_kernels:
            passes_of_low_rank = LARGE_RANK_PASSES + (2 if self.quantize != "none" else 0)
        elements += passes_of_low_rank * sum(inputs + outputs for inputs, outputs in self.adapted) / s.layers
        if self.fused and not self.in_kernels and self.dropout:
            elements += DROPPED_PASSES * self._adapted_inputs
        moved = self.width * elements * (1 if self.fused else PLAIN_FACTOR)
        if not self.fused and (self.quantize != "none" or self.dropout):
            moved += CAST_BYTES * self._adapted_inputs
        if self.in_fp8:
            moved += QUANTIZE_BYTES * sum(map(sum, s.linears.values())) / s.layers
        return tokens * moved + EXPERT_PASSES * self.expert_stack

    @property
    def _unpacks(self) -> bool:
        """Whether 8- or 4-bit weights are brought into bfloat16 at each use."""
        return self.quantize != "none" and not self.in_fp8

    def _bytes_unpacked(self, weights: float, passes: float) -> float:
        """Count the bytes moved to bring a layer's 8- or 4-bit weights into the form in which they are multiplied."""
        if self.in_fp8:
            return 2 * weights  # transposed for the backward pass
        if not self._unpacks:
            return 0.0
        if self.quantize == "fp8" and not self.fused:
            return passes * weights * PLAIN_FP8_BYTES
        return passes * weights * (WEIGHT_BYTES[self.quantize] + self.width)


def cost_model_of(config: Config, shape: ModelShape, hardware: Hardware, *, width: int) -> CostModel:
    """Return the cost model of a config on a model of this shape.

    Args:
        width: bytes of a number in the model's dtype.

    Raises:
        ConfigError: the shape has none of the layers that a new adapter shall be on.
    """
    common: dict[str, Any] = {"shape": shape, "hardware": hardware, "optimizer": config.train.optimizer, "width": width}
    if config.lora is None:
        whole: dict[str, Any] = {"quantize": "none", "rank": 0, "targets": (), "experts": {}, "dropout": False}
        return CostModel(**common, **whole, may_fuse=False, whole=True)
    targets = shape.named_targets(config.lora.targets)
    if config.lora.init is None:
        shape.check_targets(targets)
        if config.lora.experts:
            shape.check_experts()
    return CostModel(
        **common,
        quantize=config.quantize,
        rank=config.lora.r,
        targets=tuple(name for name in targets if name not in shape.moved),
        experts=_experts_with_adapters(config.lora, shape, targets),
        dropout=config.lora.dropout > 0,
        may_fuse=config.train.fused,
    )


def _experts_with_adapters(lora: Lora, shape: ModelShape, targets: Sequence[str]) -> dict[str, int]:
    """Return the parameters of experts that get an adapter, and the multiple of its rank: see `ModelShape.moved`."""
    moved = dict(shape.moved[name] for name in targets if name in shape.moved)
    return {
        name: next((times for end, times in moved.items() if name.endswith(f".{end}")), 1)
        for name in shape.experts
        if lora.experts or any(name.endswith(f".{end}") for end in moved)
    }
