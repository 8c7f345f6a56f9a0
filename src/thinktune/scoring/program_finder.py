"""The program in an answer: the code that defines the entry point, with the code that it needs."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

_FENCE = re.compile(r"(?P<before>.*?)(?P<marks>`{3,}|~{3,})[ \t]*(?P<language>[\w.+#-]*)(?P<more>[^`]*)")
_PYTHON = re.compile(r"(i?py\w*|python[\w.]*|code|text|plaintext)?", re.IGNORECASE)
_IN_LINE = re.compile(r"(`{3,})(?:python3?|py)?[ \t]*([^`\n]+?)[ \t]*\1|^`([^`\n]+)`$", re.MULTILINE)
_START = re.compile(r"\s*(?:(?:from|import|def|class|async def)\b|@\w)|[A-Za-z_]\w*(?:\s*:[^=]+)?\s*=(?!=)")
_LONGEST = 100_000  # characters; what is longer is taken as it is
_TRIES = 200  # pieces of one answer that are tried as code: each takes milliseconds
_DEFINES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


@dataclass(frozen=True)
class Block:
    """A piece of code of an answer. `python`: it is called so, or not called anything."""

    code: str
    python: bool = True

    @cached_property
    def tree(self) -> ast.Module | None:
        return _parse(self.code)

    @cached_property
    def defined(self) -> set[str]:
        """Names that the code defines at its top level, also below `if`, `try` and `with`."""
        return set(_defined_in(self.tree.body)) if self.tree else set(_NAME_DEFINED.findall(self.code))

    @cached_property
    def missing(self) -> set[str]:
        """Names that the code uses anywhere and defines nowhere."""
        if self.tree is None:
            return set()
        nodes = list(ast.walk(self.tree))
        bound = {each.id for each in nodes if isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Load)}
        bound |= {each.arg for each in nodes if isinstance(each, ast.arg)} | set(_defined_in(nodes))
        used = {each.id for each in nodes if isinstance(each, ast.Name)}
        return used - bound - vars(builtins).keys()


_NAME_DEFINED = re.compile(r"^(?:(?:async[ \t]+)?def|class)[ \t]+(\w+)|^(\w+)[ \t]*=", re.MULTILINE)


def program_in(answer: str, entry_point: str, *, last: bool = False) -> str:
    """Find the program in an answer: the first piece of code that defines the entry point and is more than its frame,
    behind the definitions of other pieces that it uses (imports, helpers).

    Args:
        last: take the last such piece, as the graders of contests do.

    >>> program_in("First:\\n```python\\nimport math\\n```\\n```python\\ndef f(x):\\n    return math.sqrt(x)```", "f")
    'import math\\ndef f(x):\\n    return math.sqrt(x)'
    """
    answer = answer.replace("\r\n", "\n").replace("\r", "\n")
    answer = re.sub(r"(?m)^[ \u00a0]+", lambda found: " " * len(found[0]), answer)
    if len(answer) > _LONGEST:
        return answer
    name = re.split(r"[.(]", entry_point)[0]
    tries = iter(range(_TRIES))
    fenced = list(_fenced(answer, tries))
    readers: list[Callable[[], list[Block]]] = [
        lambda: fenced, lambda: _whole(answer), lambda: list(_bare(answer, tries)), lambda: _in_line(answer),
    ]  # fmt: skip
    for read in readers:
        blocks = read()
        known = [block for block in blocks if name in block.defined and (block.tree or blocks is fenced)]
        known = [block for block in known if block.tree] or known
        known = [block for block in known if block.python] or known
        if known:
            known = known[::-1] if last else known
            chosen = next((block for block in known if not _is_frame(block, name)), known[0])
            return _completed(chosen, [block for block in blocks if block is not chosen])
    code = [block for block in fenced if block.python and block.code.strip()] or list(_bare(answer, tries))
    return next((block.code for block in code if block.defined), code[0].code if code else answer)


def whole_program_in(answer: str) -> str:
    """Find the program in an answer that is to read its input: the last piece of code that does, else the last one
    that calls anything, as an example of an input is no program.

    >>> whole_program_in("Run:\\n```python\\nprint(int(input()) + 1)\\n```\\nFor\\n```\\n5\\n```\\nit prints 6.")
    'print(int(input()) + 1)\\n'
    """
    answer = answer.replace("\r\n", "\n").replace("\r", "\n")
    tries = iter(range(_TRIES))
    fenced = [block for block in _fenced(answer, tries) if block.python] if len(answer) <= _LONGEST else []
    blocks = fenced or (_whole(answer) or list(_bare(answer, tries)) if len(answer) <= _LONGEST else [])
    for wanted in (_READS, re.compile(r"\w\s*\(")):
        if found := [block for block in blocks if block.tree and wanted.search(block.code)]:
            return found[-1].code
    return blocks[-1].code if blocks else answer


_READS = re.compile(r"\b(?:input\s*\(|stdin\b|fileinput\b|(?:open|read)\s*\(\s*0\b)")


def _fenced(answer: str, tries: Iterator[int]) -> Iterator[Block]:
    lines = answer.split("\n")
    at = 0
    while at < len(lines):
        opening = _FENCE.fullmatch(lines[at])
        at += 1
        if not opening or (opening["before"].strip() and (opening["more"].strip() or opening["marks"][0] == "~")):
            continue
        if opening["before"].strip() == ">":  # a quotation
            lines[at:] = [line.removeprefix(opening["before"].rstrip()).removeprefix(" ") for line in lines[at:]]
        code, at = _up_to_closing(lines, at, opening["marks"], tries)
        yield Block(textwrap.dedent(code), bool(_PYTHON.fullmatch(opening["language"])))


def _up_to_closing(lines: list[str], start: int, marks: str, tries: Iterator[int]) -> tuple[str, int]:
    """Split off the code up to the first closing fence that leaves whole code before it (a fence may stand in a
    docstring), else to the first one, else to the end; return also the line behind it."""
    first: tuple[str, int] | None = None
    closing = re.compile(rf"(.*?){re.escape(marks[0])}{{{len(marks)},}}[ \t]*")
    for at in range(start, len(lines)):
        if not (found := closing.fullmatch(lines[at])):
            continue
        code = "\n".join([*lines[start:at], *([found[1].rstrip()] if found[1].strip() else [""])])
        if next(tries, None) is None or _parse(textwrap.dedent(code)):
            return code, at + 1
        first = first or (code, at + 1)
    rest = "\n".join(lines[start:])
    if first is None or _parse(textwrap.dedent(rest)):
        return rest, len(lines)
    return first


def _whole(answer: str) -> list[Block]:
    """Return the answer as it is, if it is code; without a word that stands alone, which is a name that means
    nothing."""
    block = Block(answer)
    if block.tree is None:
        return []
    kept = [node for node in block.tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Name))]
    return [block if len(kept) == len(block.tree.body) else Block(_source(answer, kept))]


def _bare(answer: str, tries: Iterator[int]) -> Iterator[Block]:
    """Yield the pieces of code that stand in prose without fences."""
    lines = answer.split("\n")
    at = 0
    while at < len(lines):
        if not _START.match(lines[at]):
            at += 1
            continue
        block, used = _longest_code(lines[at:], tries)
        if block:
            yield block
        at += max(used, 1)


def _longest_code(lines: list[str], tries: Iterator[int]) -> tuple[Block | None, int]:
    """Return the code that lines begin with, and the number of its lines."""
    count = len(lines)
    while count > 0 and next(tries, None) is not None:
        code = textwrap.dedent("\n".join(lines[:count]))
        try:
            tree = ast.parse(code)
        except SyntaxError as error:
            count = min(count - 1, (error.lineno or count) - 1)
            continue
        except (ValueError, RecursionError, MemoryError):
            return None, count
        kept = [node for node in tree.body if not (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call))]
        return (Block(_source(code, kept)) if kept else None), count
    return None, 0


def _in_line(answer: str) -> list[Block]:
    return [Block(found[2] or found[3]) for found in _IN_LINE.finditer(answer)]


def _completed(chosen: Block, others: list[Block]) -> str:
    """Put the definitions of other pieces that the code uses, and that those use, before it."""
    parts, missing = [chosen.code], set(chosen.missing)
    left = [block for block in others if block.tree and block.python]
    while used := next((block for block in left if missing & block.defined or (missing and _takes_all(block))), None):
        left.remove(used)
        assert used.tree is not None
        parts.insert(0, _source(used.code, [node for node in used.tree.body if _only_defines(node)]))
        missing = (missing | used.missing) - used.defined - chosen.defined
    return "\n".join(part.rstrip("\n") for part in parts[:-1]) + "\n" * (len(parts) > 1) + parts[-1]


def _only_defines(node: ast.stmt) -> bool:
    return isinstance(node, _DEFINES) or (isinstance(node, ast.Try | ast.If) and not _is_main_guard(node))


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and any(
        isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node.test)
    )


def _takes_all(block: Block) -> bool:
    """Return whether the block has `from … import *`."""
    return block.tree is not None and any(
        isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in block.tree.body
    )


def _source(code: str, nodes: list[ast.stmt]) -> str:
    lines = code.split("\n")
    pieces = []
    for node in nodes:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        pieces.append("\n".join(lines[first - 1 : node.end_lineno]))
    return "\n".join(pieces)


def _defined_in(nodes: list[ast.stmt] | list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((each.asname or each.name.split(".")[0]) for each in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))
        elif isinstance(node, ast.If | ast.Try | ast.With) and not _is_main_guard(node):
            for field in ("body", "orelse", "finalbody"):
                yield from _defined_in(getattr(node, field, []))


def _is_frame(block: Block, name: str) -> bool:
    """Return whether a function, or a class by all its methods, is only announced: the body is a docstring, `pass`,
    `...` or `raise NotImplementedError`."""
    nodes = block.tree.body if block.tree else []
    found = next((node for node in nodes if getattr(node, "name", None) == name), None)
    inside = found.body if isinstance(found, ast.ClassDef) else [found]
    functions = [node for node in inside if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return bool(functions) and all(
        isinstance(node, ast.Pass | ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for function in functions
        for node in function.body
    )


def _parse(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
