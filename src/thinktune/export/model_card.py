"""The model card of an adapter or a merged model: a README.md with a header that hubs read.

The header's keys: https://huggingface.co/docs/hub/model-cards. It is read from the run folder; nothing is made up:
what a run does not record, such as a licence, is not on its card.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from thinktune.config import Config, Lora
from thinktune.errors import UsageError
from thinktune.files import write_text
from thinktune.models import builtin
from thinktune.models.folder import is_adapter
from thinktune.records import EvalSummary, RunRecord, read_record
from thinktune.run_folder import RunFolder

_PLACEHOLDER = "OWNER/NAME"
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as --max-lora-rank
_RATES = {"format_rate": "well-formed", "accuracy": "right", "accuracy_lenient": "right, leniently"}


@dataclass(frozen=True)
class Base:
    """The base model as others find it: its id, and whether it is ModelScope's. No id: a path of this machine."""

    id: str | None
    name: str
    on_modelscope: bool = False


def base_of(model: str, given: str | None = None) -> Base:
    """Tell the hub id of a base model.

    Args:
        given: the id, where `model` is a local path.

    >>> base_of("builtin:smollm2").id, base_of("ms:Qwen/Qwen3-4B").id, base_of("/models/mine").id
    ('HuggingFaceTB/SmolLM2-135M-Instruct', 'Qwen/Qwen3-4B', None)
    """
    if given:
        return Base(given, given)
    if model == builtin.NAME:
        return Base(builtin.HUB_ID, builtin.HUB_ID)
    if model.startswith("ms:"):
        return Base(model.removeprefix("ms:"), model.removeprefix("ms:"), on_modelscope=True)
    if Path(model).expanduser().exists() or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        return Base(None, Path(model).name)
    return Base(model, model)


def require_id(base: Base) -> str:
    """Return the base's id.

    Raises:
        UsageError: it has none.
    """
    if base.id is None:
        raise UsageError(
            f"the base model {base.name} is a folder of this machine: nobody else could load the adapter",
            hint="--base OWNER/NAME says which model of the hub it is",
        )
    return base.id


def write_card(run: RunFolder, folder: Path, *, base: Base | None = None, name: str = _PLACEHOLDER) -> None:
    """Write README.md into the adapter or merged folder of a run."""
    config = run.read_config()
    base = base or base_of(config.model)
    record = read_record(run.record, RunRecord, whole=True)
    lines = _lines(run, config, record, base, name, adapter=is_adapter(folder))
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def write_cards(run: RunFolder) -> None:
    """Write the cards of whatever the run has: its adapter, its merged model."""
    for folder in (run.adapter, run.merged):
        if folder.is_dir():
            write_card(run, folder)


def _lines(
    run: RunFolder, config: Config, record: dict[str, Any], base: Base, name: str, *, adapter: bool
) -> Iterator[str]:
    yield "---"
    yield yaml.safe_dump(_header(config, base, adapter=adapter), sort_keys=False, allow_unicode=True).rstrip()
    yield "---"
    yield f"\n# {name if name != _PLACEHOLDER else run.path.resolve().name}\n"
    merged = "A model, all of its weights fine-tuned," if config.lora is None else "A model, its LoRA adapter merged,"
    kind = "A LoRA adapter" if adapter else merged
    yield f"{kind} that has {base.id or base.name} think before it answers: `<think>…</think> <answer>…</answer>`."
    yield from _scores(run)
    yield from _training(config, record)
    yield from _usage(name, base, config, adapter=adapter)
    yield "\n## Versions\n"
    yield ", ".join(f"{library} {version}" for library, version in record.get("versions", {}).items()) + "."
    yield "\nThis card was written by [thinktune](https://pypi.org/project/thinktune/) from the records of the run."


def _header(config: Config, base: Base, *, adapter: bool) -> dict[str, Any]:
    sources = [source.source.removeprefix("ms:").split(":")[0] for source in config.data.sources]
    public = [each for each in sources if each.count("/") == 1 and not Path(each).exists()]
    return {
        **({"base_model": base.id, "base_model_relation": "adapter" if adapter else "finetune"} if base.id else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["thinktune", "full-fine-tuning" if config.lora is None else "lora", "reasoning"],
        **({"datasets": public} if public else {}),
    }


def _scores(run: RunFolder) -> Iterator[str]:
    found = {
        name: read_record(file, EvalSummary)
        for name in ("base", "tuned")
        if (file := run.eval / name / "summary.json").is_file()
    }
    if not found:
        yield "\nIt has not been scored."
        return
    count = max(summary.get("n", 0) for summary in found.values())
    yield f"\n## Scores\n\nOn {count:,} problems that were not trained, with 95% Wilson intervals:\n"
    yield "| | " + " | ".join(found) + " |"
    yield "|---" * (len(found) + 1) + "|"
    for field, label in _RATES.items():
        yield f"| {label} | " + " | ".join(_rate(summary, field) for summary in found.values()) + " |"
    if any(summary.get("told_format") for summary in found.values()):
        yield "\nThe base model was told the format in its prompt, for which it was not trained."


def _rate(summary: dict[str, Any], field: str) -> str:
    if field not in summary:
        return "–"
    low, high = summary[f"{field}_interval"]
    return f"{summary[field]:.1%} ({low:.1%} to {high:.1%})"


def _training(config: Config, record: dict[str, Any]) -> Iterator[str]:
    lora, train = config.lora, config.train
    sources = ", ".join(_named(source.source) for source in config.data.sources)
    rate = record.get("learning_rate", train.learning_rate)  # the number of auto
    yield "\n## Training\n"
    rows = {
        "data": f"{sources}; {record['tokens']:,} tokens, {record['trained_tokens']:,} of them trained",
        "adapter": "none: full fine-tuning, in float32" if lora is None else _adapter(lora),
        "parameters trained": f"{record['trainable_parameters']:,} of {record['parameters']:,}",
        "optimisation": f"{record['steps']:,} steps, learning rate {rate}, {train.scheduler}, seed {record['seed']}",
        "base weights": f"{record['dtype']}"
        + ("" if config.quantize == "none" else f", quantised to {config.quantize}"),
        "final loss": f"{record['final_loss']:.4f} nats a trained token"
        + (f", {accuracy:.1%} of tokens right" if (accuracy := record.get("final_token_accuracy")) else ""),
        **({"checkpoint": f"the best, of step {best['step']}"} if (best := record.get("best")) else {}),
        "system text": record["system"] or "none",
    }
    yield "| | |\n|---|---|"
    yield from (f"| {label} | {_cell(value)} |" for label, value in rows.items())


def _adapter(lora: Lora) -> str:
    targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
    return f"rank {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, targets {targets}"


def _named(source: str) -> str:
    """Name a data source without the folders of this machine."""
    return Path(source).name if Path(source).exists() else source


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _usage(name: str, base: Base, config: Config, *, adapter: bool) -> Iterator[str]:
    yield "\n## How to load it\n"
    own = config.lora.r if config.lora else 0
    values = {
        "name": name,
        "base": base.id or "PATH/OF/THE/BASE",
        "rank": next((rank for rank in _VLLM_RANKS if rank >= own), own),
    }
    yield (_ADAPTER_USAGE if adapter else _MERGED_USAGE).format_map(values)


_ADAPTER_USAGE = """PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

vLLM:

```sh
vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules tuned={name}
```

Ollama and llama.cpp take the merged model:

```sh
thinktune merge {name} -o merged && thinktune export merged -o model.gguf && ollama create tuned -f model.Modelfile
```"""
_MERGED_USAGE = """transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")
```

vLLM:

```sh
vllm serve {name}
```

Ollama and llama.cpp:

```sh
thinktune export {name} -o model.gguf && ollama create tuned -f model.Modelfile
```"""
