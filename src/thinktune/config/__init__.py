"""The typed configuration: sections with their defaults, and how files become them."""

from thinktune.config.data_section import Data, Source
from thinktune.config.load import config_schema, dump_config, load_config, parse_config, parse_load, read_values
from thinktune.config.sections import (
    QUESTIONS,
    SEED,
    Ask,
    Config,
    Dpo,
    Endpoint,
    Format,
    Infer,
    ItemType,
    Load,
    Method,
    Profile,
    Quantize,
    Rl,
    Sampling,
    Vllm,
)
from thinktune.config.train_section import Lora, Stop
from thinktune.config.trainer_fields import OWNED_TRAINER_FIELDS

__all__ = [
    "OWNED_TRAINER_FIELDS",
    "QUESTIONS",
    "SEED",
    "Ask",
    "Config",
    "Data",
    "Dpo",
    "Endpoint",
    "Format",
    "Infer",
    "ItemType",
    "Load",
    "Lora",
    "Method",
    "Profile",
    "Quantize",
    "Rl",
    "Sampling",
    "Source",
    "Stop",
    "Vllm",
    "config_schema",
    "dump_config",
    "load_config",
    "parse_config",
    "parse_load",
    "read_values",
]
