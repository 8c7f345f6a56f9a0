"""Every config in configs/ parses, and says what it claims to say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from thinktune.config import QUESTIONS, Config, Sampling, config_schema, load_config
from thinktune.config.data_section import Filter
from thinktune.config.shipped import purpose_of
from thinktune.planner.known_models import known_config
from thinktune.planner.plan_config import plan_config

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
RECOMMENDED = ["qwen2.5-3b", "qwen2.5-3b-16gb", "llama-3.2-3b", "llama-3.2-1b", "qwen3-4b", "qwen3-1.7b"]
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_the_shipped_configs_are_the_ones_the_readme_names() -> None:
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert CONFIGS
    assert [path.name for path in CONFIGS if f"configs/{path.name}" not in readme] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_parses_and_fits_the_schema_that_editors_use(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")
    config = load_config(path)
    assert config.run_folder == Path("runs") / path.stem
    jsonschema.validate(json.loads(config.model_dump_json()), json.loads(config_schema()))


def test_the_schema_file_is_current() -> None:
    current = (FOLDER / "schema.json").read_text(encoding="utf-8")
    assert current == config_schema() + "\n", "run: thinktune config --schema > configs/schema.json"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_says_what_it_is_for_and_the_guides_that_small_models_lose(path: Path) -> None:
    assert 40 < len(purpose_of(path)) < 115
    assert ("expect a loss on small models" in purpose_of(path)) == path.name.startswith("article")


@pytest.mark.parametrize("name", RECOMMENDED)
def test_a_recommended_config_follows_the_evidence(name: str) -> None:
    config = load_config(FOLDER / f"{name}.yaml")
    assert known_config(config.model) is not None  # so that thinktune plan needs no network
    assert config.train.learning_rate == "auto"
    assert config.lora is not None
    assert (config.lora.targets, config.lora.alpha, config.lora.dropout) == ("auto", 32, 0)
    assert config.data.overlong == "drop"
    scored = config.eval.sampling
    assert scored.think_budget is not None  # no completion is cut off
    assert (config.eval.sample, config.eval.every) == (None, None)
    if not name.startswith("qwen3"):
        mixture = [(each.weight, each.filter) for each in config.data.sources]
        assert mixture == [(4, Filter(max_tokens=4096)), (1, Filter(min_tokens=4097))]
        assert config.data.problems[0].source == config.eval.data


@pytest.mark.slow
@pytest.mark.parametrize("name", RECOMMENDED)
def test_a_recommended_config_is_planned_without_a_network_and_fits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    small = name in ("qwen2.5-3b-16gb", "llama-3.2-1b", "qwen3-1.7b")
    config = load_config(FOLDER / f"{name}.yaml", ["load.attempts=1"])
    assert plan_config(config, gpu="16GiB" if small else "24GiB").fits


def test_quickstart_needs_no_network() -> None:
    config = load_config(FOLDER / "quickstart.yaml")
    sources = [each.source for each in config.data.sources]
    used = [config.model, *sources, config.infer.file, config.eval.data]
    assert all(str(name).startswith("builtin:") for name in used)


def test_article_has_the_settings_of_the_article() -> None:
    config = load_config(FOLDER / "article.yaml")
    assert (config.model, config.quantize, config.seed) == ("Qwen/Qwen2.5-3B-Instruct", "int8", 3407)
    assert (config.data_seed, config.train_seed) == (3407, 3407)
    assert values(config, "load", "attempts", "wait", "max_memory") == (3, 5, 0.7)
    assert values(config, "data", "source", "split", "sample") == ("bespokelabs/Bespoke-Stratos-17k", "train", 2000)
    assert values(config, "data", "max_length", "overlong", "cache") == (1500, "cut", Path("data/reasoning"))
    assert values(config, "format", "answer", "clean_prompt") == ("boxed", True)
    assert values(config, "lora", "r", "alpha", "dropout", "targets") == (4, 8, 0.1, ALL_LINEAR)
    assert values(config, "train", "packing", "batch_size", "accumulation", "epochs") == (False, 1, 4, 2)
    assert values(config, "train", "learning_rate", "scheduler", "warmup_steps") == (1e-4, "linear", 3)
    assert values(config, "train", "weight_decay", "optimizer", "max_grad_norm") == (0.01, "adamw_8bit", 0.5)
    assert values(config, "train", "log_every", "save_every", "gradient_checkpointing") == (1, 10, False)
    assert config.ask.questions == list(QUESTIONS)
    assert (config.ask.sampling.temperature, config.ask.sampling.max_tokens) == (0.1, 2048)
    vllm = config.infer.vllm
    assert (vllm.enforce_eager, vllm.max_model_len, vllm.gpu_memory_utilization) == (True, 2048, 0.8)
    assert_article_inference(config)


def test_article_part2_has_its_variations() -> None:
    config = load_config(FOLDER / "article-part2.yaml")
    assert config.quantize == "nf4"
    assert values(config, "lora", "r", "alpha", "dropout", "targets") == (8, 16, 0.05, ALL_LINEAR[:4])
    assert values(config, "train", "batch_size", "accumulation", "epochs", "learning_rate") == (2, 4, 3, 2e-5)
    assert values(config, "train", "log_every", "save_every", "gradient_checkpointing") == (10, 100, True)
    assert values(config, "data", "max_length", "overlong") == (1024, "cut")
    assert values(config, "format", "answer", "clean_prompt") == ("solution", False)
    assert (config.ask.sampling.temperature, config.ask.sampling.no_repeat_ngram_size) == (0.7, 3)
    assert values(config, "infer", "merge") == (False,)
    assert (config.infer.vllm.max_num_seqs, config.infer.vllm.max_num_batched_tokens) == (8, 4096)
    assert_article_inference(config)


def test_what_article_part2_does_not_vary_is_as_in_the_article() -> None:
    first, second = (leaves(load_config(FOLDER / f"{name}.yaml")) for name in ("article", "article-part2"))
    varied = "lora data.max_length format train.batch_size train.epochs train.learning_rate train.log_every"
    varied += " train.save_every train.gradient_checkpointing quantize ask.sampling infer.merge infer.vllm output"
    differing = {key for key in first if first[key] != second[key]}
    assert {key for key in differing if not key.startswith(tuple(varied.split()))} == set()


def test_article_says_what_is_better_wherever_the_recommended_config_differs() -> None:
    article = FOLDER / "article.yaml"
    lines = article.read_text(encoding="utf-8").splitlines()
    better = leaves(load_config(FOLDER / "qwen2.5-3b.yaml"))
    own = leaves(load_config(article))
    missing = [
        key
        for key, line in lines_of(yaml.compose("\n".join(lines)))
        if own.get(key) != better.get(key) and "better:" not in _with_comment_above(lines, line)
    ]
    # The other profiles repeat that of math; three programs an item cost twice the tokens, not a better setting.
    assert [key for key in missing if not key.startswith("infer.profiles.code-generate")] == []


def assert_article_inference(config: Config) -> None:
    common = Sampling(temperature=0.3, top_p=0.9, repetition_penalty=1.5, max_tokens=1024, stop=("</answer>",))
    code = common.model_copy(update={"max_tokens": 2048, "n": 3})
    short = dict.fromkeys(("math", "choice", "generic-generate"), common)
    assert config.infer.profiles == {**short, "code-generate": code}


def values(config: Config, section: str, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(getattr(config, section), name) for name in names)


def leaves(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key."""
    return dict(_flatten(json.loads(config.model_dump_json()), ""))


def _flatten(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with_comment_above(lines: list[str], line: int) -> str:
    above = lines[line - 1] if line else ""
    return lines[line] + (above if above.lstrip().startswith("#") else "")


def lines_of(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """The dotted key and the line number (from 0) of every setting written in a file."""
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode):
            yield from lines_of(value, f"{prefix}{key.value}.")
        else:
            yield f"{prefix}{key.value}", key.start_mark.line
