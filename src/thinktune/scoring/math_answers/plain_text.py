r"""Expressions typed as plain text, `2*sqrt(3) + pi/2`, as the LaTeX they stand for."""

from __future__ import annotations

import re

_FUNCTION_WORDS = """
sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp lg gcd lcm det lim
"""
_FUNCTIONS = frozenset(_FUNCTION_WORDS.split())
_RENAMED = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_GREEK_WORDS = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega pi
"""
_GREEK = frozenset(_GREEK_WORDS.split())
_INFINITY = frozenset({"infinity", "infty", "inf", "oo"})
NAMES = _FUNCTIONS | _GREEK | _INFINITY | set(_RENAMED) | {"sqrt", "cbrt", "abs"}
"""Words that are mathematics, so that none of them is a unit or a noun."""

_WORD = re.compile(
    r"(\\(?:text|textbf|mathrm|mathbf|mbox|operatorname|begin|end)\s?\{[^{}]*\}|\\[A-Za-z]+)|([A-Za-z]{2,})"
)
_SIGNS = (
    ("**", "^"), ("<=", r"\le "), ("=<", r"\le "), (">=", r"\ge "), ("!=", r"\ne "), ("*", r"\cdot "), ("+-", r"\pm "),
    ("+/-", r"\pm "), (r"\geqslant", r"\ge "), (r"\leqslant", r"\le "), (r"\geq", r"\ge "), (r"\leq", r"\le "),
    (r"\neq", r"\ne "), (r"\lt", "<"), (r"\gt", ">"),
)  # fmt: skip
_COMMAND_SIGNS = tuple(
    (re.compile(re.escape(sign) + r"(?![A-Za-z])"), into) for sign, into in _SIGNS if sign[0] == "\\"
)
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
_NEGATIVE_POWER = re.compile(r"\^\s?(-\s?(?:\d+|[A-Za-z]))")
_FACTOR = re.compile(r"(?<![\^_\d.\w}])(\d+(?:\.\d+)?)\s?(?=\()")  # to the parser 3(4) is the mixed number 3 + 4
_SUBSCRIPT = re.compile(r"_(\w)(?![\w{])")


def to_latex(text: str) -> str:
    r"""Convert plain text to LaTeX; LaTeX stays as it is.

    >>> to_latex("2*sqrt(3)"), to_latex("sin(x)/pi"), to_latex("x**(n+1)")
    ('2\\cdot \\sqrt{3}', '\\sin (x)/\\pi', 'x^{n+1}')
    """
    for sign, into in _SIGNS:
        if sign[0] != "\\":
            text = text.replace(sign, into)
    for pattern, into in _COMMAND_SIGNS:
        text = pattern.sub(lambda _, into=into: into, text)  # type: ignore[misc]
    text = _WORD.sub(_command, text)
    text = _brace(text, "^", "^{", "}")
    text = _brace(text, r"\sqrt", r"\sqrt{", "}")
    text = _brace(text, r"\cbrt", r"\sqrt[3]{", "}")
    text = _brace(text, r"\abs", "|", "|")
    text = _NEGATIVE_POWER.sub(r"^{\1}", text)
    return _SUBSCRIPT.sub(r"_{\1}", _FACTOR.sub(r"\1 \\cdot ", text)).strip()


def _command(match: re.Match[str]) -> str:
    if match[1]:
        return match[1]
    word = match[2]
    name = word.casefold() if word.casefold() in {"pi"} | _INFINITY else word
    if name in _INFINITY:
        return r"\infty "
    if name in {"sqrt", "cbrt", "abs"}:
        return f"\\{name}"
    if name in _FUNCTIONS | _GREEK or name in _RENAMED:
        return f"\\{_RENAMED.get(name, name)} "
    called = match.string[match.end() : match.end() + 1] in {"(", "^"}
    for length in (6, 5, 4, 3, 2):  # sinx, and xsin before a parenthesis
        if len(name) != length + 1:
            continue
        if name[:length] in _FUNCTIONS | {"pi"}:
            return f"\\{name[:length]} {name[length:]}"
        if name[1:] in _FUNCTIONS and called:
            return f"{name[0]}\\{name[1:]} "
    return word


def _brace(text: str, command: str, opening: str, closing: str) -> str:
    """Write `command(…)` as `opening…closing`, for the matching parentheses."""
    start = text.find(command)
    while start >= 0:
        at = start + len(command)
        begin = at + (text[at : at + 1] == " ")
        if text[begin : begin + 1] == "(" and (end := _closing(text, begin)) is not None:
            text = text[:start] + opening + text[begin + 1 : end] + closing + text[end + 1 :]
            at = start + len(opening)
        start = text.find(command, at)
    return text


def _closing(text: str, begin: int) -> int | None:
    depth = 0
    for at in range(begin, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    return None


def is_prose(text: str) -> bool:
    """Return whether a text has a word that is no name of mathematics."""
    text = re.sub(r"\\(?:begin|end|operatorname|mathbb|mathcal)\s?\{[^{}]*\}", "", text)
    return any(word.casefold() not in NAMES for word in _PROSE.findall(text))
