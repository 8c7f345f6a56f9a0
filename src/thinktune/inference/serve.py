"""`thinktune serve MODEL [--adapter NAME=RUN]…`: an OpenAI-compatible server, on this machine alone by default.

vLLM's own server if vLLM is installed, with the base model and every adapter under names of their own; else ours, with
one model that transformers runs (`openai_server`). Both render conversations with the chat template that the model was
trained with, and its system text, so that clients need not know it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from thinktune.errors import MissingExtra, UsageError
from thinktune.files import write_json, write_text
from thinktune.inference.engines.found_model import FoundModel, find_model
from thinktune.inference.engines.settings import EngineSettings
from thinktune.inference.engines.vllm.model import OWN, engine_arguments, vllm_environment
from thinktune.inference.engines.vllm.opening import vllm_model, why_not_vllm
from thinktune.inference.engines.vllm.process import has_vllm, vllm_python
from thinktune.models import make_chat
from thinktune.models.cache import cache_folder
from thinktune.models.folder import read_settings
from thinktune.tags import TAGS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Server:
    """A server that is ready to be started.

    Attributes:
        command: the program and its arguments.
        environment: of the program.
        models: the names that clients may ask for.
        url: of the API.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    models: tuple[str, ...]
    url: str

    def run(self) -> NoReturn:
        """Become the server. Signals, output and exit status are its own from here on."""
        os.execvpe(self.command[0], self.command, self.environment)


def serve(
    reference: str | Path,
    settings: EngineSettings | None = None,
    *,
    adapters: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
) -> Server:
    """Find out how to serve the model that a reference names.

    Args:
        settings: engine "auto" takes vLLM if it is installed.
        adapters: `NAME=RUN`, further adapters of the same base model; only vLLM has them.
        host: 127.0.0.1 is reached from this machine only. Neither server authenticates its clients.

    Raises:
        UsageError: an adapter without a name, a name used twice, or something that the engine cannot do.
        MissingExtra, ModelError, DownloadError, DeviceError: see `engines.open_engine`.
    """
    settings = settings or EngineSettings()
    model = find_model(reference, settings, _named(adapters))
    problem = why_not_vllm(model)
    if settings.engine == "vllm" and problem:
        raise UsageError(f"vLLM cannot run {reference}: {problem}", hint="use --engine transformers")
    by_vllm = settings.engine == "vllm" or (settings.engine == "auto" and has_vllm() and not problem)
    return (_vllm_server if by_vllm else _own_server)(model, host, port)


def _own_server(model: FoundModel, host: str, port: int) -> Server:
    if model.adapters or model.resolved.adapters or model.resolved.gguf:
        raise UsageError(
            "the server without vLLM has one model in safetensors, without adapters beside it",
            hint="thinktune merge makes one of model and adapter; or install vLLM",
        )
    if find_spec("uvicorn") is None:
        raise MissingExtra(
            "the server without vLLM needs uvicorn",
            hint="pip install 'thinktune[serve]'; or install vLLM: pip install 'thinktune[vllm]'",
        )
    folder, dtype = str(model.resolved.folder), str(model.dtype).removeprefix("torch.")
    program = (sys.executable, "-P", "-m", "thinktune.inference.openai_server", folder)
    arguments = {
        "name": _name(model.reference),
        "host": host,
        "port": port,
        "device": model.device.type,
        "dtype": dtype,
        "trust_remote_code": model.settings.load.trust_remote_code,
    }
    return Server((*program, *_flags(arguments)), dict(os.environ), (folder,), f"http://{host}:{port}/v1")


def _vllm_server(found: FoundModel, host: str, port: int) -> Server:
    own_name = _name(found.reference)
    if set(TAGS) & set(found.tokenizer.all_special_tokens):
        logger.info(
            "this server leaves special tokens out, and the tags are some: "
            'clients ask with "skip_special_tokens": false'
        )
    if found.resolved.adapters and own_name in found.adapters:
        raise _name_taken(own_name)
    model = vllm_model(found)
    base_name = _name(found.resolved.base) if found.resolved.adapters else own_name
    model = replace(model, adapters={own_name if name == OWN else name: path for name, path in model.adapters.items()})
    if base_name in model.adapters:
        raise UsageError(f"the adapter {base_name} has the model's own name", hint="give it another: NAME=RUN")
    for name, place in found.adapters.items():
        told = make_chat(found.tokenizer, read_settings(place)).system_text
        if told != found.chat.system_text:
            logger.info(f"clients of {name} have to send the system text that it was trained with: {told!r}")
    template = found.chat.told_template()
    arguments = {
        **engine_arguments(model, found.settings.vllm),
        "generation_config": _generation_folder(model.stop_ids, own_name),
        "served_model_name": base_name,
        "host": host,
        "port": port,
        "chat_template": _template_file(template, own_name) if template != found.tokenizer.chat_template else None,
        "lora_modules": [f"{name}={folder}" for name, folder in model.adapters.items()] or None,
    }
    # `vllm serve` looks for a distribution called vllm, which its CPU build is not.
    program = (vllm_python(), "-P", "-m", "vllm.entrypoints.openai.api_server")
    environment = vllm_environment(model)
    # Its server steps the engine in a process of its own, or not at all.
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    models = (base_name, *model.adapters)
    return Server((*program, *_flags(arguments)), environment, models, f"http://{host}:{port}/v1")


def _named(adapters: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for adapter in adapters:
        name, equals, run = adapter.partition("=")
        if not (name and equals and run):
            raise UsageError(f"--adapter {adapter}: is not NAME=RUN", hint="for example --adapter short=runs/short")
        if name in found:
            raise _name_taken(name)
        found[name] = run
    return found


def _name_taken(name: str) -> UsageError:
    return UsageError(f"two adapters are called {name}", hint="give one of them another name")


def _name(reference: str | Path) -> str:
    """Return the name by which clients call a model: a folder's last name, or the reference itself."""
    path = Path(reference)
    return path.resolve().name if path.exists() else str(reference)


def _template_file(template: str, name: str) -> str:
    file = _served_folder(name) / "chat_template.jinja"
    write_text(file, template)
    return str(file)


def _generation_folder(stop_ids: Collection[int], name: str) -> str:
    """Write a generation_config.json with the token ids that end a reply, and no sampling; return its folder.

    The model's own may lack the end of turn that a base model has learnt here: its replies would run on.
    """
    folder = _served_folder(name)
    write_json(folder / "generation_config.json", {"eos_token_id": sorted(stop_ids)})
    return str(folder)


def _served_folder(name: str) -> Path:
    return cache_folder() / "served" / re.sub(r"[^A-Za-z0-9.-]+", "-", name)


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """Write arguments as a command line takes them: None and False are left out, and True is a flag alone."""
    flags: list[str] = []
    for name, value in arguments.items():
        if value is None or value is False:
            continue
        flags.append(f"--{name.replace('_', '-')}")
        if value is not True:
            flags += [str(each) for each in value] if isinstance(value, list) else [str(value)]
    return flags
