"""What the benchmarks train: models of known shapes with random weights, a tokenizer, and rows of known lengths.

Speed and memory do not depend on what the weights are; random ones keep the device as busy as real ones do. Folders
are made once, on the device, and found again by later runs.
"""

from __future__ import annotations

import json
import random
import tempfile
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinktune.data.examples import Example
from thinktune.data.tokens import Tokens
from thinktune.files import replacing, write_text

QWEN = {"max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "3b": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
}
"""Qwen2.5's, and one for a CPU. All with two key heads but the 7B, whose embeddings are not tied either."""
for _shape in SHAPES.values():
    _shape |= {**QWEN, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
SHAPES["7b"] |= {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}
SHAPES["tiny"] |= {"num_key_value_heads": 1, "vocab_size": 512}

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def model_folder(shape: str, root: Path | None = None) -> Path:
    """A folder with a Qwen2 model of this shape, its weights random in bfloat16, and a tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = (root or Path(tempfile.gettempdir()) / "thinktune-bench") / shape
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape], pad_token_id=0))
    torch.set_default_dtype(before)
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        byte_tokenizer().save_pretrained(temporary)
    return folder


def byte_tokenizer() -> Any:
    """One token a byte, so that a text has as many tokens as it should."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + len(alphabet), special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_TEMPLATE,
        model_max_length=32768,
    )


@dataclass(frozen=True)
class Workload:
    """The rows of an optimizer step.

    Attributes:
        rows, accumulation: documents of a batch, and batches of a step.
        length: tokens of each document; 0: long reasoning of log-normal lengths, 32,768 tokens a step.
    """

    rows: int
    accumulation: int
    length: int
    steps: int
    seed: int = 1

    def documents(self, vocabulary: int) -> list[list[list[int]]]:
        """For each step its documents, as token ids; the same for everyone."""
        draw = random.Random(self.seed)
        lengths = [[self.length] * (self.rows * self.accumulation)] * self.steps if self.length else self._reasoning()
        return [[[draw.randrange(vocabulary - 10) for _ in range(size)] for size in step] for step in lengths]

    def _reasoning(self) -> list[list[int]]:
        """Lengths with a median of 4,500 tokens, 95% of them below 14,000, none above 16,384: six documents a step that
        fill 32,768 tokens to 97% or more (a trainer that cannot pack may then take them one at a time)."""
        draw = random.Random(self.seed)
        spread = 0.69  # of the logarithm: 14,000 / 4,500 = exp(1.645 * 0.69)
        steps: list[list[int]] = []
        while len(steps) < self.steps:
            sizes = [min(16384, round(4500 * draw.lognormvariate(0, spread))) for _ in range(6)]
            if 0.97 * 32768 <= sum(sizes) <= 32768:
                steps.append(sizes)
        return steps


def as_tokens(documents: list[list[int]]) -> list[Tokens]:
    """Documents of which everything is trained that can be: all but the first token."""
    nobody = Example(messages=(), think="", answer="", row=1, source="bench")
    return [Tokens(array("i", ids), 1, nobody) for ids in documents]


def write_rows(file: Path, lengths: list[int], seed: int = 1) -> None:
    """Rows of text for `thinktune train`, in the shape of messages, each with exactly so many tokens in the end."""
    tokenizer = byte_tokenizer()
    draw = random.Random(seed)

    def make(size: int) -> list[dict[str, str]]:
        thought = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=size))
        reply = f"<think>{thought}</think> <answer>{draw.randrange(10)}</answer>"
        return [{"role": "user", "content": "What comes of it?"}, {"role": "assistant", "content": reply}]

    def tokens(messages: list[dict[str, str]]) -> int:
        text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    lines = []
    for length in lengths:
        short = make(8)
        missing = length - tokens(short)
        lines.append(json.dumps({"messages": make(8 + missing)}))
    write_text(file, "\n".join(lines) + "\n")
