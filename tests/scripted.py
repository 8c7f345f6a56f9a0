"""A model that says what a function tells it to, through the real cache: it remembers only what the engine fed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

GENERATION_PROMPT = "<|im_start|>assistant\n"


class ScriptedModel(LlamaForCausalLM):
    """Answers each prompt with `reply(prompt text)`, then ends its turn.

    Its only layer keeps the token ids themselves as keys and values. So a cache that mixes up rows, columns or padding
    makes it say something else.
    """

    def __init__(self, tokenizer: Any, reply: Callable[[str], str]) -> None:
        super().__init__(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                num_key_value_heads=1,
                max_position_embeddings=512,
            )
        )
        self.tokenizer = tokenizer
        self.reply = reply
        self.batches: list[int] = []  # rows of every forward
        self.eval()

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        self.batches.append(len(input_ids))
        states = input_ids[:, None, :, None].float()
        keys, _ = kwargs["past_key_values"].update(states, states, 0)
        seen, positions = kwargs["attention_mask"], kwargs["position_ids"]
        logits = torch.zeros(len(input_ids), 1, self.config.vocab_size)
        for row, (ids, mask) in enumerate(zip(keys[:, 0, :, 0].long(), seen, strict=True)):
            history = ids[mask].tolist()
            assert positions[row, -1] == len(history) - 1
            logits[row, 0, self.next_token(history)] = 100.0
        return CausalLMOutputWithPast(logits=logits)

    def next_token(self, history: list[int]) -> int:
        marker = self.tokenizer(GENERATION_PROMPT, add_special_tokens=False).input_ids
        start = next(at for at in range(len(history), 0, -1) if history[at - len(marker) : at] == marker)
        said = self.reply(self.tokenizer.decode(history[:start]))
        script = [*self.tokenizer(said, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        return int(script[min(len(history) - start, len(script) - 1)])
