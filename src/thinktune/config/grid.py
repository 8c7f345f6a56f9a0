"""`lora.r=4,8 train.seed=1,2`: a config for every combination of the values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

from thinktune.config.load import load_config
from thinktune.config.sections import Config
from thinktune.errors import ConfigError

_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class Member:
    """One training of a sweep: `name` holds its settings, as in `r=4,seed=1`."""

    name: str
    config: Config


def plan_grid(file: str | Path, overrides: Sequence[str], *, most: int | None = None) -> list[Member]:
    """Make a member of every combination of the values in `overrides`, with a run folder of its own below the config's.

    Args:
        overrides: `key=value`, or `key=value,value,…`; commas inside brackets and quotes do not split.
        most: of the combinations.

    Raises:
        ConfigError: a value is missing, there are too many, or a config that comes of it is wrong.
    """
    keys, values = [], []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is not key=value", hint="for example lora.r=4,8,16")
        keys.append(key)
        values.append(list(dict.fromkeys(split_values(text))))
        if not all(values[-1]):
            raise ConfigError(f"{override!r}: a value is missing between the commas")
    if not any(len(each) > 1 for each in values):
        raise ConfigError("there is nothing to sweep over", hint="give a key several values: lora.r=4,8,16")
    if doubled := [key for key, count in Counter(keys).items() if count > 1]:
        raise ConfigError(f"{doubled[0]} is given twice")
    if most is not None and (count := prod(map(len, values))) > most:
        raise ConfigError(f"these are {count:,} trainings; {most} is the most")
    swept = [key for key, each in zip(keys, values, strict=True) if len(each) > 1]
    if "output" in swept:
        raise ConfigError("output cannot be swept over", hint="each member has its own folder below it")
    short = _short_names(swept)
    members = []
    for combination in product(*values):
        pairs = list(zip(keys, combination, strict=True))
        config = load_config(file, [f"{key}={value}" for key, value in pairs])
        name = ",".join(f"{short[key]}={value}" for key, value in pairs if key in short)
        output = config.run_folder / re.sub(r"[^\w.,=+-]+", "-", name)
        questions = config.ask.model_copy(update={"questions": []})  # nobody watches; `thinktune ask` is there
        members.append(Member(name, config.model_copy(update={"output": output, "ask": questions})))
    places = {member.config.output for member in members}
    if len(places) < len(members):
        raise ConfigError("values of the sweep differ only in characters that cannot stand in a folder's name")
    return members


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets and quotes.

    >>> split_values("[q_proj,v_proj],[q_proj]")
    ['[q_proj,v_proj]', '[q_proj]']
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
    return [part.strip() for part in parts]


def _short_names(keys: list[str]) -> dict[str, str]:
    """Shorten keys to their last part, where that tells them apart."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: name if last[name := key.rpartition(".")[2]] == 1 else key for key in keys}
