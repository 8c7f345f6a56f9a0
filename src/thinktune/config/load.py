"""From a YAML file and `key=value` overrides to a checked config, and back.

Unknown keys are refused with the nearest valid one. `configs/*.yaml` are the shipped ones; `thinktune config FILE`
prints the resolved config, and `thinktune config --schema` the JSON schema for editors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from thinktune.config.explain import explain
from thinktune.config.sections import Config, Load
from thinktune.errors import ConfigError
from thinktune.files import read_text

_LONGEST = 4 * 2**20
"""Bytes of a config file."""
_MOST_VALUES = 10**6


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML).

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value does not fit.
    """
    path = Path(path)
    values = read_values(path)
    for override in overrides:
        _apply_override(values, override)
    config = parse_config(values, where=str(path))
    if config.output is None:
        config = config.model_copy(update={"output": Path("runs") / path.stem})
    return config


def parse_config(values: dict[str, Any], where: str = "config") -> Config:
    """Check plain values (from YAML, JSON or a form) and return the typed config.

    Raises:
        ConfigError: all problems at once, a line each.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [explain(item, Config) for item in error.errors()]
        hint = "thinktune config --schema lists every key"
        raise ConfigError(f"{where}: " + "\n".join(problems), hint) from None


def parse_load(settings: Sequence[str] | None, base: Load | None = None) -> Load:
    """Parse `load.*` settings such as `device=cpu`, over those of `base`.

    Raises:
        ConfigError: as `load_config`.
    """
    values = {"load": (base or Load()).model_dump()}
    for setting in settings or ():
        _apply_override(values, f"load.{setting}")
    return parse_config(values, where="--load").load


def dump_config(config: Config) -> str:
    """Write the resolved config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, allow_unicode=True)


def read_values(path: Path) -> dict[str, Any]:
    """Read the values of a config file, unchecked.

    Raises:
        ConfigError: the file is missing, not YAML, or no mapping.
    """
    try:
        text = read_text(path, _LONGEST)
    except FileNotFoundError:
        raise ConfigError(f"no config file {path}", hint="shipped ones are in configs/") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    values = _parse_yaml(text, str(path))
    if values is None:
        raise ConfigError(f"{path}: is empty", hint="at least `model:` and `data:` belong in it")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, not a {type(values).__name__}")
    return values


def _parse_yaml(text: str, where: str) -> Any:
    try:
        values = yaml.load(text, Loader=_Loader)
        written_out = _size(values, {})
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from None
    except UnicodeEncodeError:
        raise ConfigError(f"{where} holds half of a surrogate pair, which is no text") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deep") from None
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:  # as YAML's types fail: a 32nd of May, `!!bool 5`
        raise ConfigError(f"{where} holds a value that cannot be read: {error}") from None
    if written_out > _MOST_VALUES:
        raise ConfigError(f"{where} has aliases (*name) that stand for {written_out:,} values")
    return values


def _size(value: Any, known: dict[int, int]) -> int:
    """Count the values once aliases are written out; `known` has those of lists and mappings by identity.

    Raises:
        UnicodeEncodeError: a text is none.
        RecursionError: an alias stands for a value that contains it.
    """
    if isinstance(value, str):
        value.encode()
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(each, known) for each in inner)
    return known[id(value)]


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number (YAML 1.1 reads a text) and refuses a key that is set twice.

    `lora:` with nothing behind it is left out, as all of its lines may be comments; only `lora: null` is no adapter.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is set twice", node.start_mark)
        empty = ("lora", "", "tag:yaml.org,2002:null")
        node.value = [(key, value) for key, value in node.value if (key.value, value.value, value.tag) != empty]
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {key: list(pairs) for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not key=value", hint="for example lora.r=16")
    value = _parse_yaml(text, f"override {override!r}: the value")
    *path, last = key.split(".")
    section = values
    for name in path:
        inner = section.get(name)
        if inner is None:
            inner = section[name] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {name} is not a section")
        section = inner
    section[last] = value


def config_schema() -> str:
    """Return the JSON schema of config files, for editors (configs/schema.json is this text)."""
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False)
