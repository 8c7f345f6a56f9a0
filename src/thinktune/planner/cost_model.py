"""The time of a training step, from sizes and a device's rates alone, beside its memory (`memory_model`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thinktune.config import Config, Lora
from thinktune.planner.fused_models import FUSED_MODELS
from thinktune.planner.hardware import Hardware
from thinktune.planner.memory_model import (
    FILLED_UP,
    MASTER_BYTES,
    STATE_BYTES,
    WEIGHT_BYTES,
    Batch,
    MemoryModel,
)
from thinktune.planner.model_shape import ModelShape
from thinktune.planner.recompute_policy import RecomputePolicy

# Rates: the share of the published one that is reached.
PRODUCT_SHARE = 0.72  # large matrix products in bf16: 630 to 790 of 989 TFLOP/s on an H100
FP8_SHARE = 0.70  # with a scale a row and column: 1,290 to 1,510 of 1,979
ATTENTION_SHARE = {"forward": 0.50, "backward": 0.36}  # causal flash attention, of the bf16 rate
BANDWIDTH_SHARE = 0.85  # a kernel that only moves memory
HALF_RATE_TOKENS = 128  # tokens at which a product reaches half of its full rate; twice as many in fp8
KERNELS = {True: 45, False: 223}  # that a decoder layer starts, forward and backward: fused; one by one
PEFT_KERNELS = 310  # as many as by PEFT's own linears, whose Python takes longer, seem to be
# That the host takes to start one from Python: beside an H100, SmolLM2's 30 layers took 113 to 125 ms a step, for 500
# tokens and for 2,000, and 325 ms by PEFT. On a CPU those are plain calls.
LAUNCH_SECONDS = {True: 75e-6, False: 33e-6}
LARGE_RANK_KERNELS = 20  # more of a fused layer whose low-rank products are beside its kernels
UNPACKING_KERNELS = {True: 1, False: 8}  # to bring an 8- or 4-bit weight into bfloat16 once
CPU_LAUNCH_SECONDS = 16e-6
# Of a CPU: share of the rate of products that attention, in float32, reaches, by the bytes of the dtype of these.
CPU_ATTENTION_SHARE = {2: 0.15, 4: 0.35}
# From CUDA graphs: of a kernel beside its work, to start and to end; and of the host for an optimizer step.
GRAPHED_KERNEL_SECONDS, GRAPHED_STEP_SECONDS = 2.4e-6, 2.5e-3
EIGHT_BIT_SECONDS = 50e-6  # of the host, for each of its tensors, to step an 8-bit optimizer
# Bytes/s of an all-reduce between GPUs of a host, by their NVLink or over PCIe, and seconds that hosts are apart.
LINK_BANDWIDTH = {True: 300e9, False: 12e9}
JITTER_SECONDS = 2e-3
HOST_BANDWIDTH = 20e9  # bytes/s between GPU and pinned main memory
# Of a CPU: elements of two bytes that a layer's small operations read and write for a token, forward and backward, in
# units of one activation of that width, counted with all weights adapted; the share of it where nothing is converted
# from and to float32; and bytes for a logit.
CPU_PASSES = {"hidden": 220, "q": 73, "kv": 73, "f": 30}
CPU_UNCONVERTED = 0.7
CPU_LOGIT_BYTES = 70
CPU_LOW_RANK_SHARE = 0.45  # of the rate of large products that those of rank 16 reach: 0.35 to 0.6
# Passes over memory that a fused layer makes beside its products, in units of one activation of that width.
FUSED_PASSES = {"forward": {"hidden": 6, "q": 2, "kv": 2, "f": 3}, "backward": {"hidden": 12, "q": 4, "kv": 4, "f": 6}}
# Where a layer is not fused, bytes that PyTorch's kernels, started one by one, read and write beside the large products
# for a number of that width, in 16 bits: counted by operations, of two norms, rotations, SwiGLU and residual sums. Its
# adapters': of a number that they take and of one that they give, by a node of ours; by PEFT's own linears, in float32;
# and more of one that they take with dropout.
PLAIN_BYTES = {
    "forward": {"hidden": 84, "q": 29, "kv": 21, "f": 11, "experts": 7},
    "backward": {"hidden": 205, "q": 38, "kv": 47, "f": 22, "experts": 18},
}
HEAD_NORM_BYTES = {"forward": 37, "backward": 85}  # of a number of queries or keys, where heads are normed
NODE_BYTES = {"forward": (2, 4), "backward": (6, 4)}
PEFT_BYTES = {"forward": (10, 28), "backward": (20, 27)}
DROPPED_BYTES = 9
PLAIN_SHARE = 0.60  # of the bandwidth that they reach, rows of 16 products of low rank among them
WHOLE_FACTOR = 1.3  # where all weights are trained, in float32: so many times as many
WHOLE_WEIGHT_BYTES = 24  # and moved for a weight, to 16 bits and, its gradient, from there and added up
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
class CostModel(MemoryModel):
    """The bytes and the seconds that a training step takes."""

    def graphed(self, batch: Batch, memory: RecomputePolicy) -> bool:
        """Tell whether batches like this are run from CUDA graphs: where that is faster, since the host takes long to
        start a layer's kernels, and there is room for activations of a graph beside those of passes without one."""
        if not self.may_graph or not all(self._fused_halves) or memory.offload or self.kept < 1:
            return False
        parts = self.memory(batch, memory)
        beside = parts["activations"] + max(parts["logits"], parts["workspace"]) + self.beside_graphs(parts)
        if self.with_fragments(parts["peak"] + beside) > self.hardware.memory:
            return False
        plain, graphed = (
            self._layer_seconds(batch, memory.levels[-1], memory.mlp_chunks, graphed=each) for each in (False, True)
        )
        return graphed < plain

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
            return self._cpu_seconds(batch, memory)
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
        return total + self.late_seconds(batch, memory)

    def _cpu_seconds(self, batch: Batch, memory: RecomputePolicy) -> float:
        s, hardware = self.shape, self.hardware
        extra = sum(level == "full" for level in memory.levels) / s.layers / 2
        logits = s.vocabulary * batch.trained
        widths = {"hidden": s.hidden, "q": s.q, "kv": s.kv, "f": s.intermediate}
        elements = sum(CPU_PASSES[name] * width for name, width in widths.items()) * batch.tokens * s.layers
        moved = elements * (2 if self.width == 2 else 4 * CPU_UNCONVERTED)
        moved += 2 * self.weights()  # read once in each pass, however few tokens there are
        starting = s.layers * PEFT_KERNELS * CPU_LAUNCH_SECONDS
        starting += s.layers * self._state_seconds(batch, CPU_LAUNCH_SECONDS, 1)
        low_rank = 0 if self.whole else 6 * batch.tokens * self.trained_parameters / CPU_LOW_RANK_SHARE
        products = (6 if self.whole else 4) * (s.linear_weights + s.active_experts) * batch.tokens
        attention = 7 * s.q * s.layers * batch.attended / CPU_ATTENTION_SHARE[self.width]
        layers = (products + attention + low_rank) / hardware.bf16 + moved / hardware.bandwidth + starting
        head = (6 if self.whole else 4) * s.hidden * logits / hardware.bf16
        head += CPU_LOGIT_BYTES * logits / hardware.bandwidth
        return layers * (1 + extra) + head

    def late_seconds(self, batch: Batch, memory: RecomputePolicy) -> float:
        """Estimate the seconds of a forward and backward pass in which layers of a sharded base are still on their
        way: each comes twice, while the one before it is computed."""
        coming = (1 - self.kept) * self.layer_bytes / LINK_BANDWIDTH[self.hardware.linked]
        late = 0.0
        for level in set(memory.levels) if coming else ():
            both = self._layer_seconds(batch, level, memory.mlp_chunks, graphed=False)
            forward = both / (2 + self._repeated(level))
            late += memory.levels.count(level) * sum(max(0.0, coming - each) for each in (forward, both - forward))
        return late

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
            return moved / self.hardware.bandwidth
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
        states = self._state_seconds(batch, LAUNCH_SECONDS[False], BANDWIDTH_SHARE) * (4 / 3 if level == "full" else 1)
        return max(computing, self._launching_seconds(level, chunks)) + states

    def _state_seconds(self, batch: Batch, start: float, share: float) -> float:
        """Estimate the seconds of a layer's state beside its projections, as if documents were of one length and run
        together: of different lengths, its operations are started for each."""
        mixers = self.shape.mixers
        if not batch.tokens:
            return 0.0
        starting = (mixers.started + mixers.started_each * batch.attended / batch.tokens) * start
        moving = mixers.moved * batch.tokens / (share * self.hardware.bandwidth)
        return starting + moving if self.kind == "cpu" else max(starting, moving)

    def _launching_seconds(self, level: str, chunks: int, start: float | None = None) -> float:
        uses = 2 * len(self.shape.linears) / self.shape.layers if self._unpacks else 0
        beside = LARGE_RANK_KERNELS if self.fused and not self.in_kernels else 0
        plain = PEFT_KERNELS if not self._ours or self.shape.experts else KERNELS[False]  # tokens are sorted by expert
        kernels = {**KERNELS, False: plain}
        one = sum(
            (kernels[half] + UNPACKING_KERNELS[half] * uses + beside) * (start or LAUNCH_SECONDS[half]) / 2
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
        moved = moved / BANDWIDTH_SHARE + self._plain_bytes(tokens, forwards) / PLAIN_SHARE
        computing = products + attention + moved / hardware.bandwidth
        if self.fused:
            low_rank = 6 * tokens * self.trained_parameters / s.layers
            computing += low_rank / ((IN_KERNEL_SHARE if self.in_kernels else PRODUCT_SHARE) * hardware.bf16)
        if self.in_kernels and self.dropout:
            computing += tokens * self._adapted_inputs * DROPOUT_FLOPS / hardware.bf16
        return computing

    def _bytes_moved(self, tokens: float, repeated: float) -> float:
        """Count the bytes moved by everything in the fused halves of a layer that is no large product, and by experts'
        weights."""
        s, (attention, mlp) = self.shape, self._fused_halves
        widths = {"hidden": (attention + mlp) / 2 * s.hidden, "q": attention * s.q, "kv": attention * s.kv}
        widths["f"] = mlp * s.intermediate
        forward, backward = FUSED_PASSES["forward"], FUSED_PASSES["backward"]
        elements = sum((forward[name] * (1 + repeated) + backward[name]) * width for name, width in widths.items())
        if self.fused:
            passes = LOW_RANK_PASSES if self.in_kernels else LARGE_RANK_PASSES + (2 if self.quantize != "none" else 0)
            elements += passes * (attention + mlp) / 2 * sum(map(sum, self.adapted)) / s.layers
        if self.fused and not self.in_kernels and self.dropout:
            elements += DROPPED_PASSES * self._adapted_inputs
        moved = self.width * elements
        if self.in_fp8:
            moved += QUANTIZE_BYTES * sum(map(sum, s.linears.values())) / s.layers
        return tokens * moved + EXPERT_PASSES * self.expert_stack

    def _plain_bytes(self, tokens: float, forwards: int) -> float:
        """Count the bytes moved by the kernels of the halves of a layer that are not fused, large products left out."""
        s, (attention, mlp) = self.shape, (not fused for fused in self._fused_halves)
        family = FUSED_MODELS.get(s.model_type)
        normed = attention * (s.q + s.kv) if family is not None and family.head_norms else 0
        widths = {"hidden": (attention + mlp) / 2 * s.hidden, "q": attention * s.q, "kv": attention * s.kv}
        widths |= {"f": mlp * s.intermediate, "experts": mlp * s.expert_widths}
        by_pass = {}
        for name, times in (("forward", forwards), ("backward", 1)):
            taken, given = (NODE_BYTES if self._ours else PEFT_BYTES)[name]
            taken += DROPPED_BYTES if self.dropout else 0
            adapters = sum(taken * inputs + given * outputs for inputs, outputs in self.adapted) / s.layers
            own = sum(PLAIN_BYTES[name][width] * numbers for width, numbers in widths.items())
            by_pass[name] = times * (own + HEAD_NORM_BYTES[name] * normed + (attention + mlp) / 2 * adapters)
        moved = self.width / 2 * sum(by_pass.values()) * tokens
        return WHOLE_FACTOR * moved + WHOLE_WEIGHT_BYTES * self._multiplied if self.whole else moved

    @property
    def _ours(self) -> bool:
        """Whether adapters beside layers that are not fused are nodes of ours (`fused.lora_linear`), not PEFT's."""
        return self.quantize == "none" and not self.dropout

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
