"""Fast training, in parts that can each be used alone: whole decoder layers as one node, attention over packed
documents, a fused LoRA linear, a loss that never builds all logits. None of them changes the model's state dict or
PEFT's adapter format."""
