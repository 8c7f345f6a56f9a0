"""`thinktune export MODEL --gguf q4_k_m`: a model for llama.cpp and Ollama, proven by reading it back.

The GGUF file is loaded again by a reader that knows nothing of how it was written (transformers', or llama.cpp itself
for model types that transformers cannot read), and both models continue a few prompts greedily. Beside it lies a
Modelfile, with which Ollama asks the model in the words that it was trained on.
"""

from __future__ import annotations

import gc
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thinktune.config import QUESTIONS, Load
from thinktune.errors import ModelError, UsageError
from thinktune.export.checks import alike
from thinktune.export.compared_models import continue_greedily
from thinktune.export.gguf_kinds import kind_of, read_text_config
from thinktune.export.gguf_types import Precision, require_quantizer
from thinktune.export.gguf_writer import write_gguf
from thinktune.export.llama_cpp import read_by_llama_cpp
from thinktune.files import replacing, write_text
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.models import Chat, load_model, make_chat, resolve
from thinktune.models.tokenizer import read_tokenizer, require_gguf

logger = logging.getLogger(__name__)

AGREEMENT: dict[Precision, float] = {"f16": 0.95, "q8_0": 0.8, "q6_k": 0.7, "q5_k_m": 0.6, "q4_k_m": 0.5}
"""Share of greedy tokens that must be the same, counted up to where two continuations part."""
_TOKENS = 32
_PROBES = ("2 + 2 = 4, isn't it?", "  indented\n\n\tand tabbed", "naïve 小明 🙂 12345.678", "\\frac{3}{4} <think>")


@dataclass(frozen=True)
class Exported:
    """The result of an export; `agreement` is that of greedy tokens between the model and the file read back."""

    file: Path
    modelfile: Path
    size: int
    agreement: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"{self.file} ({self.size / 2**20:,.0f} MiB); read back, {self.agreement:.1%} of {self.tokens} greedy "
            f"tokens are the same\nOllama: ollama create NAME -f {self.modelfile}"
        )


def export(
    reference: str | Path,
    out: Path,
    precision: Precision,
    *,
    load: Load | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write `out` and a Modelfile beside it.

    Raises:
        UsageError: `out` is there already, or is not called *.gguf.
        ModelError: an unmerged adapter, a model of an unknown kind, one that does not read back as it was, or one
            whose conversations a Modelfile cannot hold.
    """
    load = load or Load()
    require_gguf()
    require_quantizer(precision)
    if out.suffix != ".gguf":
        raise UsageError(f"{out} should be called *.gguf", hint=f"for example -o {out.with_suffix('.gguf')}")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already", hint="--overwrite it, or choose another -o FILE")
    resolved = resolve(reference, load)
    if resolved.adapters:
        raise ModelError(f"{reference} is an adapter beside its base", hint=f"thinktune merge {reference}")
    if resolved.gguf:
        raise UsageError(f"{reference} is GGUF already")
    tokenizer = read_tokenizer(resolved, load)
    chat = make_chat(tokenizer, resolved.settings)
    told = ollama_modelfile(out.name, chat)  # refuses a template before minutes of writing
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        # A reader tells the format by the name.
        unproven = temporary.with_name(f"{temporary.name}.gguf")
        try:
            logger.info(f"writing {out} as {precision}")
            write_gguf(resolved.folder, unproven, tokenizer, chat, precision, Path(reference).name)
            agreement, tokens = _prove(resolved.folder, unproven, chat, load)
            if agreement < AGREEMENT[precision]:
                raise ModelError(
                    f"the file does not read back as the model: {agreement:.1%} of {tokens} greedy tokens are the "
                    f"same, and {AGREEMENT[precision]:.0%} should be"
                )
            unproven.rename(temporary)
        finally:
            unproven.unlink(missing_ok=True)
    modelfile = out.with_name(f"{out.stem}.Modelfile")
    write_text(modelfile, told)
    return Exported(out, modelfile, out.stat().st_size, agreement, tokens)


def ollama_modelfile(file: str, chat: Chat) -> str:
    """Write a Modelfile for a GGUF file beside it (https://docs.ollama.com/modelfile).

    Its template is written in Go's language, and is derived from the chat template's rendering of marked texts.

    Raises:
        ModelError: the chat template refuses a conversation of several turns, or its text around a turn depends on more
            than the turn's role; or a system text that a Modelfile cannot hold.
    """
    turns = _turns_of(chat)
    branches = "".join(
        f'{{{{ {"else " if number else ""}if eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}'
        for number, (role, (before, after)) in enumerate(turns.roles.items())
    )
    begin = f'{{{{ if and (eq $at 0) (eq .Role "user") }}}}{_go(turns.begin)}{{{{ end }}}}'
    template = f"{{{{ range $at, $_ := .Messages }}}}{begin}{branches}{{{{ end }}}}{{{{ end }}}}"
    told = f'SYSTEM """{chat.system_text}"""\n' if chat.system_text and "system" in turns.roles else ""
    if '"""' in told.removeprefix('SYSTEM """').removesuffix('"""\n'):
        raise ModelError("a Modelfile cannot hold a system text with three double quotes in a row")
    stops = chat.tokenizer.convert_ids_to_tokens(sorted(chat.stop_ids))
    parameters = "".join(f'PARAMETER stop "{text}"\n' for text in stops)  # Ollama reads what stands there as it is
    return f'FROM ./{file}\nTEMPLATE """{template}"""\n{told}{parameters}'


@dataclass(frozen=True)
class _Turns:
    """The text that a chat template writes around messages.

    Attributes:
        begin: before a conversation whose first turn is the user's.
        roles: the text before and after a turn's content, by role.
    """

    begin: str
    roles: dict[str, tuple[str, str]]

    def write(self, turns: Sequence[tuple[str, str]]) -> str:
        begin = self.begin if turns[0][0] == "user" else ""
        return begin + "".join(self.roles[role][0] + text + self.roles[role][1] for role, text in turns)


def _turns_of(chat: Chat) -> _Turns:
    system, first, user, reply, again = [uuid.uuid4().hex for _ in range(5)]
    told = [[("system", system)], []] if chat.takes_system else [[]]
    alone = _rendered(chat, [("user", first)]).partition(first)[0]
    for opening in told:  # where the system text finds no place that is always the same, the user's and the model's may
        whole = _rendered(chat, [*opening, ("user", user), ("assistant", reply), ("user", again)])
        # What stands between two texts goes with the first of them; only what begins a conversation has none before.
        roles = {
            "user": ("", whole.partition(again)[2]),
            "assistant": ("", _between(whole, reply, again)),
        }
        if opening:
            roles = {"system": (whole.partition(system)[0], _between(whole, system, user)), **roles}
        found = _Turns(alone, roles)
        short = [("user", user)]
        longer = [("user", user), ("assistant", reply), ("user", again)]
        longest = [*longer, ("assistant", first), ("user", system)]
        asked = [*([*opening, *turns] for turns in (short, longer)), short, longer, longest]
        if all(found.write(turns) == _rendered(chat, turns) for turns in asked):
            return found
    raise ModelError(
        "the chat template cannot be written as a Modelfile: what it puts around a turn depends on more than its role",
        hint="llama.cpp's convert_hf_to_gguf.py writes the GGUF file alone",
    )


def _rendered(chat: Chat, turns: Sequence[tuple[str, str]]) -> str:
    ids = chat.prompt_ids([{"role": role, "content": text} for role, text in turns])
    text: str = chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text


def _between(text: str, one: str, other: str) -> str:
    return text.partition(one)[2].partition(other)[0]


def _go(text: str) -> str:
    """Quote literal text for a Go template."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""  # Go knows no surrogate pairs


def _prove(folder: Path, file: Path, chat: Chat, load: Load) -> tuple[float, int]:
    """Read the file back; return the share of greedy tokens that equal the model's, and the number of compared tokens.

    Raises:
        ModelError: the tokenizers differ.
        MissingExtra: only llama.cpp reads files of this model type, and it is not installed.
    """
    prompts = [chat.prompt_ids([{"role": "user", "content": question}]) for question in QUESTIONS]
    found = [_by_transformers(folder, prompts, chat, load)]
    if kind_of(read_text_config(folder)).reader == "llama.cpp":
        found.append(_by_llama_cpp(file, prompts, chat))
    else:
        found.append(_by_transformers(file, prompts, chat, load))
    pairs = [alike(one, other) for one, other in zip(*found, strict=True)]
    tokens = sum(total for _, total in pairs)
    return sum(equal for equal, _ in pairs) / tokens, tokens


def _by_transformers(reference: Path, prompts: Sequence[list[int]], chat: Chat, load: Load) -> list[Sequence[int]]:
    """Continue prompts greedily, by a model folder or a GGUF file."""
    loaded = load_model(reference, load=load)
    for text, ids in _tokens_of_probes(chat):
        _require_same_tokens(text, loaded.tokenizer(text, add_special_tokens=False).input_ids == ids)
    engine = TransformersEngine(loaded.model, loaded.tokenizer, chat.stop_ids)
    found = [_without_end(completion.token_ids, chat) for completion in continue_greedily(engine, prompts, _TOKENS)]
    del loaded, engine
    gc.collect()
    return found


def _by_llama_cpp(file: Path, prompts: Sequence[list[int]], chat: Chat) -> list[Sequence[int]]:
    """Continue prompts greedily by llama.cpp, from a GGUF file."""
    probes = _tokens_of_probes(chat)
    counts, found = read_by_llama_cpp(file, [text for text, _ in probes], prompts, _TOKENS)
    for (text, ids), count in zip(probes, counts, strict=True):
        _require_same_tokens(text, count == len(ids))
    return [_without_end(ids, chat) for ids in found]


def _tokens_of_probes(chat: Chat) -> list[tuple[str, list[int]]]:
    return [(text, chat.tokenizer(text, add_special_tokens=False).input_ids) for text in _PROBES]


def _require_same_tokens(text: str, same: bool) -> None:
    if not same:
        raise ModelError(f"the tokenizer does not read back as it was: {text!r} becomes other tokens")


def _without_end(ids: Sequence[int], chat: Chat) -> Sequence[int]:
    return ids[:-1] if ids and ids[-1] in chat.stop_ids else ids
