"""Triton kernels of a fused decoder layer, each a Python function over torch tensors.

All of them own whole tokens: a program takes some rows and walks over their columns, so that sums over a row (norms,
scales of a quantised row, the low-rank products) stay in registers, and any slice of the tokens can be worked on alone.
Sums over tokens (the adapter's gradients) go to float32 memory by atomic additions.

Low-rank activations of projections that read the same input lie beside each other: [tokens, slots * rank], where a slot
is a projection. Tiles of them have R columns, the rank rounded up to a tensor core's size (16, 32, 64, …), zeros
beyond the rank.

Scales of quantised rows are float32 [tokens]: value = byte * scale. `weight_scale` are those of a frozen weight's rows;
a gradient takes them in before it is quantised, since in its product they stand on the summed side.
"""
