"""Inputs and outputs by which a gold record judges a program, as LiveCodeBench, APPS and TACO have them.

`input_output` holds `inputs` and `outputs`, which the program reads and writes; `public_test_cases` and
`private_test_cases` are LiveCodeBench's lists of `input` and `output`, as JSON or as its archive packs them. A name
under `fn_name` there, or under `func_name` in LiveCodeBench's `metadata`, is that of a function (of `Solution`, if the
program has such a class): then a case is its arguments as JSON, a line each, and its result.
"""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from thinktune.scoring.base import Verdict
from thinktune.scoring.sandbox.run import run_program, run_trial

KEYS = ("input_output", "public_test_cases", "private_test_cases")

_STARRED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
GIVEN = "\n".join(
    [
        *(f"from {name} import *" for name in _STARRED),
        "import " + ", ".join(_STARRED[:-2]),
        "sys.setrecursionlimit(50000)\n",
    ]
)
"""The imports that LiveCodeBench's own checker puts before a program, which its published figures rest on."""

_MOST_UNPACKED = 2**29  # characters of the cases of one problem
_TEXT_OPERATIONS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_HARMLESS_OPERATIONS = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}


@dataclass(frozen=True)
class InputCases:
    """Pairs of input and expected output. `function`: the name of the function they are for; None: a whole program."""

    pairs: Sequence[tuple[str, str]]
    function: str | None


def cases_fault(gold: Mapping[str, Any]) -> str | None:
    """Explain why the cases of a gold record cannot be used, by their types: to unpack them all takes minutes.

    >>> cases_fault({"input_output": 5})
    'input_output is neither a text nor an object'
    """
    if not isinstance(gold.get("input_output") or "", str | Mapping):
        return "input_output is neither a text nor an object"
    wrong = (name for name in KEYS[1:] if not isinstance(gold.get(name) or "", str | list))
    return next((f"{name} is neither a text nor a list" for name in wrong), None)


def cases_of(gold: Mapping[str, Any]) -> InputCases | None:
    """Return the cases of a gold record, the public ones first; None if it has none.

    Raises:
        ValueError: they cannot be read.
    """
    if gold.get("input_output"):
        found = _as_object(gold["input_output"])
        inputs, outputs = found.get("inputs"), found.get("outputs")
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise ValueError("input_output has no lists of as many inputs as outputs")
        function = found.get("fn_name")
        pairs = [(_text(given), _text(expected)) for given, expected in zip(inputs, outputs, strict=True)]
    else:
        function = _as_object(gold.get("metadata") or {}).get("func_name")
        pairs = [pair for name in KEYS[1:] if gold.get(name) for pair in _unpacked_pairs(gold[name])]
    if function is not None and not (isinstance(function, str) and function.isidentifier()):
        raise ValueError(f"{function!r} is no name of a function")
    return InputCases(pairs, function) if pairs else None


def _unpacked_pairs(value: Any) -> Sequence[tuple[str, str]]:
    return _unpack(value) if isinstance(value, str) else _pairs(value)


@lru_cache(maxsize=8)  # a problem's completions are scored one after the other
def _unpack(text: str) -> Sequence[tuple[str, str]]:
    try:
        return _pairs(json.loads(text))
    except json.JSONDecodeError:
        return _pairs(json.loads(_unpickled_text(_inflated(text))))


def _inflated(text: str) -> bytes:
    try:
        inflating = zlib.decompressobj()
        data = inflating.decompress(base64.b64decode(text, validate=True), _MOST_UNPACKED)
    except (ValueError, zlib.error):
        raise ValueError("the cases are neither JSON nor packed as LiveCodeBench packs them") from None
    if inflating.unconsumed_tail:
        raise ValueError(f"the cases unpack to more than {_MOST_UNPACKED >> 20} MiB")
    return data


def _unpickled_text(data: bytes) -> str:
    """Return the text of a pickle that holds a text and nothing else; a pickle can run any code, and is not run."""
    texts: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name in _TEXT_OPERATIONS:
                texts.append(str(argument))
            elif operation.name not in _HARMLESS_OPERATIONS:
                raise ValueError(f"a pickle with {operation.name}, where only a text is expected")
    except (ValueError, EOFError, UnicodeError) as error:
        raise ValueError(f"the packed cases hold no text: {error}") from None
    if len(texts) != 1:
        raise ValueError("the packed cases hold no text")
    return texts[0]


def _pairs(cases: Any) -> list[tuple[str, str]]:
    if not isinstance(cases, list) or not all(isinstance(each, Mapping) for each in cases):
        raise ValueError("the cases are no list of objects")
    return [(_text(each.get("input")), _text(each.get("output"))) for each in cases]


def _text(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):  # lines, in APPS
        value = "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"an input or output is no text: {str(value)[:40]}")
    return value


def _as_object(value: Any) -> Mapping[str, Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        raise ValueError("input_output or metadata is no JSON object")
    return found


def judge(program: str, cases: InputCases, *, given: str = GIVEN) -> Verdict:
    """Return whether a program is right on every case, each in confined processes of its own; it ends at the first
    one that is not."""
    count = len(cases.pairs)
    for number, (input, expected) in enumerate(cases.pairs, start=1):
        verdict = (
            _called(program, cases.function, input, expected, given)
            if cases.function
            else _read_and_written(program, input, expected, given)
        )
        if not verdict.equal:
            return Verdict(False, f"case {number} of {count}: {verdict.note}", verdict.failed)
    return Verdict(True)


def _read_and_written(program: str, input: str, expected: str, given: str) -> Verdict:
    ran = run_program(program, input, given=given)
    if ran.fault:
        return Verdict(False, ran.fault, failed=ran.unsaid)
    difference = output_difference(ran.output, expected)
    return Verdict(difference is None, difference)


def _called(program: str, function: str, input: str, expected: str, given: str) -> Verdict:
    test = (
        f"import json\narguments = [json.loads(line) for line in {input.strip()!r}.split('\\n')]\n"
        f"found = candidate(*arguments)\n"
        f"assert (list(found) if isinstance(found, tuple) else found) == json.loads({expected!r})\n"
    )
    entry_point = f"Solution().{function}" if "class Solution" in program else function
    return run_trial(program, test, entry_point, given=given, whole=True)  # as LiveCodeBench's checker


def output_difference(written: str, expected: str) -> str | None:
    """Compare outputs as LiveCodeBench does: as many lines, each alike but for space around it, or the same numbers.

    >>> output_difference("1 2.50\\n", "1 2.5") is None
    True
    >>> output_difference("1\\n3", "1\\n2")
    "line 2 is '3', not '2'"
    """
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (written, expected))
    for number, (line, other) in enumerate(zip(ours, theirs, strict=False), start=1):
        if line != other and not _same_numbers(line, other):
            return f"line {number} is {_short(line)}, not {_short(other)}"
    return None if len(ours) == len(theirs) else f"{len(ours)} lines, not {len(theirs)}"


def _same_numbers(line: str, other: str) -> bool:
    try:
        numbers, others = ([Decimal(each) for each in text.split()] for text in (line, other))
        return numbers == others
    except InvalidOperation:  # no number, or a NaN that signals
        return False


def _short(line: str) -> str:
    return repr(line if len(line) <= 60 else f"{line[:60]}…")
