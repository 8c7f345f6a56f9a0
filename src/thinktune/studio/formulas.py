r"""Formulas in Markdown, told from prices: `$x^2$`, `\(…\)`, `\[…\]` and `$$…$$` are formulas, "$5 and $7" is money.

A single dollar begins a formula only if the text up to the next one can be a formula: no white space and no digit at
its edges, no digit after it, and further rules for the habits of models and people: `5$ and 6$`, `US$5`, `$5 (in US$)`.
A digit may stand at an edge where one of `\ ^ _ { }` stands inside, which no price has: else `$x^2$` would be none.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

LATEX: list[dict[str, str | bool]] = [
    {"left": "\ue000", "right": "\ue001", "display": False},
    {"left": "\ue002", "right": "\ue003", "display": True},
]
"""How formulas are marked for the page: by characters of the private use area, which are taken out of texts first."""
PRIVATE = re.compile("[\ue000-\ue003]")

_STRONG = re.compile(r"[\\^_{}]")  # nobody writes these between two prices
_WORD = re.compile(r"[^\W\d_]{2,}")
_FUNCTIONS = frozenset(
    re.findall(r"\w+", "sin cos tan cot sec csc log ln exp mod gcd lcm max min lim det deg cm mm km kg")
)
_IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]")
_UNFINISHED = tuple("=+-−–—×*/(<,:;")
_LIST = re.compile(r"[,;] ")  # "$12, B 15$"
_PRODUCT = re.compile(r"(?<=[A-Za-z0-9)\]])(\*(?=[A-Za-z0-9($\[])|\*\*(?=[0-9(]))", re.ASCII)
_OPENING = re.compile(r"[ ]{0,3}(\$\$|\\\[)")


def add_formulas(markdown: MarkdownIt) -> None:
    """Let a parser find formulas, before escapes and emphasis are looked for."""
    markdown.inline.ruler.before("escape", "formula", _inline)
    markdown.inline.ruler.before("emphasis", "product", _product)
    markdown.block.ruler.before("fence", "formula", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    markdown.add_render_rule("formula", lambda _, tokens, at, *rest: _marked(tokens[at].content, display=False))
    markdown.add_render_rule("formula_display", lambda _, tokens, at, *rest: _marked(tokens[at].content, display=True))


def _marked(tex: str, *, display: bool) -> str:
    left, right = "\ue002\ue003" if display else "\ue000\ue001"
    return f"{left}{escape(tex)}{right}"


def _inline(state: StateInline, silent: bool) -> bool:
    text, start = state.src, state.pos
    for left, right in (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)")):
        if text.startswith(left, start):
            end = text.find(right, start + 2, state.posMax)
            inner = text[start + 2 : end] if end >= 0 else ""
            if not inner.strip() or (left == "$$" and not _is_display(inner, state.src[end + 2 : end + 3])):
                return False
            return _take(state, silent, inner, end + 2, display=left != "\\(")
    if text[start] != "$":
        return False
    end = _closing(text, start, state.posMax)
    return end > 0 and _take(state, silent, text[start + 1 : end], end + 1, display=False)


def _is_display(inner: str, after: str) -> bool:
    """Return whether the text between two pairs of dollars is a formula: not so in "$$5 or $$6"."""
    return "$" not in inner.replace("\\$", "") and not after.isdigit() and inner[0].isspace() == inner[-1].isspace()


def _take(state: StateInline, silent: bool, tex: str, end: int, *, display: bool) -> bool:
    if not silent:
        state.push("formula_display" if display else "formula", "", 0).content = tex.strip()
    state.pos = end
    return True


def _closing(text: str, start: int, most: int) -> int:
    """Find the end of the formula that a single dollar begins; -1 if it begins none."""
    end = start + 1
    while end < most and text[end] != "$":
        end += 2 if text[end] == "\\" else 1
    if end >= most:
        return -1
    before, inner, after = text[start - 1 : start], text[start + 1 : end], text[end + 1 : end + 2]
    strong = bool(_STRONG.search(inner))
    if not strong and _LIST.search(inner):
        return -1
    if not inner or inner[0].isspace() or inner[-1].isspace() or "`" in inner or after.isdigit() or after == "$":
        return -1
    suffix = len(inner) == 1 and inner.isalpha() and not before.isalnum()  # $n$th
    if not strong and (before.isalnum() or (after.isalnum() and not suffix)):
        return -1
    if not strong and (inner.endswith(_UNFINISHED) or ">>" in inner):
        return -1
    if not strong and (inner[0].isdigit() or inner[-1].isdigit()):
        return -1
    if strong and inner[0].isdigit() and _is_prose(re.sub(r"\\[A-Za-z]+(\{[^{}]*\})*|\{[^{}]*\}", "", inner)):
        return -1
    return -1 if _IDEOGRAPH.search(inner) and not strong else end


def _product(state: StateInline, silent: bool) -> bool:
    """Read `5*3 and 2*4` as products, not as emphasis."""
    match = _PRODUCT.match(state.src, state.pos)
    if match is None or state.src[state.pos + len(match[1]) :].startswith("*"):
        return False
    if not silent:
        state.pending += match[1]
    state.pos = match.end()
    return True


def _is_prose(text: str) -> bool:
    return any(word.lower() not in _FUNCTIONS for word in _WORD.findall(text))


def _block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    r"""Read `$$` or `\[` at the beginning of a line, closed at the end of one; no list or quote begins inside."""
    line = state.src[state.bMarks[first] + state.tShift[first] : state.eMarks[first]]
    opening = _OPENING.match(line)
    if opening is None or state.sCount[first] - state.blkIndent >= 4:
        return False
    closing = "$$" if opening[1] == "$$" else "\\]"
    lines = [line[opening.end() :]]
    at = first
    while closing not in lines[-1]:
        at += 1
        if at >= last or state.sCount[at] < state.blkIndent:
            return False
        lines.append(state.src[state.bMarks[at] + state.tShift[at] : state.eMarks[at]])
    inner, _, rest = lines[-1].partition(closing)
    tex = "\n".join([*lines[:-1], inner]).strip()
    if rest.strip() or not tex or "$" in tex.replace("\\$", ""):
        return False
    if not silent:
        token = state.push("formula_display", "", 0)
        token.content = "\n".join(part for part in tex.splitlines() if part.strip())
        token.map = [first, at + 1]
        state.line = at + 1
    return True
