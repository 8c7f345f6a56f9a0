"""What the benchmarks train: models of known shapes with random weights, a tokenizer, and rows of known lengths.

Speed and memory do not depend on what the weights are; random ones keep the device as busy as real ones do. Folders
are made once, on the device, and found again by later runs. Those of large models have no weights on the disk: they are
drawn as they are read.
"""

from __future__ import annotations

import json
import random
import struct
import tempfile
import zlib
from array import array
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from published import is_published, published_config
from thinktune.data.examples import Example
from thinktune.data.tokens import Tokens
from thinktune.files import replacing, write_text

QWEN = {"max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "3b": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
    "14b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40},
    "32b": {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40},
    "72b": {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "tiny-drawn": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
"""Qwen2.5's; SmolLM2-135M's sizes; two for a CPU."""
DRAWN = ("3b-drawn", "7b", "14b", "32b", "72b", "tiny-drawn")
"""Shapes whose weights are drawn as they are read."""
SHAPES["3b-drawn"] = dict(SHAPES["3b"])
for _shape in SHAPES.values():
    _shape |= {**QWEN, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
SHAPES["135m"] |= {"num_key_value_heads": 3, "vocab_size": 49152}
SHAPES["7b"] |= {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}
for _name in ("14b", "32b", "72b"):
    SHAPES[_name] |= {"num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False}
SHAPES["tiny"] |= {"num_key_value_heads": 1, "vocab_size": 512}
SHAPES["tiny-drawn"] |= {"vocab_size": 512, "tie_word_embeddings": False}

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def model_folder(shape: str, root: Path | None = None) -> Path:
    """A folder with a model of this shape (Qwen2's, or a published one), random in bfloat16, and a tokenizer.

    Of large shapes it holds names and sizes of the weights; this process draws them when it reads them.
    """
    drawn = shape in DRAWN or is_published(shape)
    if drawn:
        draw_weights_when_read()
    folder = (root or Path(tempfile.gettempdir()) / "thinktune-bench") / shape
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    folder.parent.mkdir(parents=True, exist_ok=True)
    if drawn:
        with torch.device("meta"):
            if is_published(shape):
                model = AutoModelForCausalLM.from_config(published_config(shape))
            else:
                model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape], pad_token_id=0, dtype="bfloat16"))
        with replacing(folder) as temporary:
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(temporary)
            byte_tokenizer().save_pretrained(temporary)
            write_hollow_weights(temporary / "model.safetensors", model)
        return folder
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


def write_hollow_weights(file: Path, model: Any) -> None:
    """Write a safetensors file of a model's names and shapes, in bfloat16, whose data is a hole without blocks."""
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        start, end = end, end + 2 * parameter.numel()
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


def draw_weights_when_read() -> None:
    """Let transformers draw weights in the place of reading them, for the rest of this process.

    All else of loading is as it is: names, shapes and sizes come from the file, and each weight is placed and quantised
    when its turn comes. Only the disk, and the way from it to the device, are not there.
    """
    from transformers import modeling_utils

    modeling_utils.safe_open = _DrawnFile


class _DrawnFile:
    """As much of safetensors' `safe_open` as transformers uses."""

    def __init__(self, file: str, **_: Any) -> None:
        from thinktune.models.folder import read_safetensors_header

        self._shapes = {name: entry["shape"] for name, entry in read_safetensors_header(Path(file)).items()}

    def __enter__(self) -> _DrawnFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing."""

    def keys(self) -> list[str]:
        return list(self._shapes)

    def get_slice(self, name: str) -> _DrawnWeight:
        return _DrawnWeight(name, self._shapes[name])


@dataclass(frozen=True)
class _DrawnWeight:
    """A weight as it is before training: a norm's is 1, a bias 0, all else is drawn around 0."""

    name: str
    shape: list[int]

    def get_shape(self) -> list[int]:
        return self.shape

    def get_dtype(self) -> str:
        return "BF16"

    def __getitem__(self, _: Any) -> Any:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        if len(self.shape) == 1:
            fill = 1.0 if self.name.endswith("norm.weight") else 0.0
            return torch.full(self.shape, fill, dtype=torch.bfloat16, device=device)
        generator = torch.Generator(device).manual_seed(zlib.crc32(self.name.encode()))
        weight = torch.empty(prod(self.shape), dtype=torch.bfloat16, device=device)
        return weight.normal_(0, 0.02, generator=generator).view(self.shape)


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
