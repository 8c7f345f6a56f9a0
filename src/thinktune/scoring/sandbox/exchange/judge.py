"""The tests' side: give the tests the names they need of the program, run them, and report the outcome."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
import re
import sys
import types

from thinktune.scoring.sandbox.exchange.crossing import described
from thinktune.scoring.sandbox.exchange.peer import Lost, Peer
from thinktune.scoring.sandbox.exchange.pipes import take_over_pipes
from thinktune.scoring.sandbox.exchange.runners import Faulty, run_defined

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes its time to be imported, in each process anew
    from typing import Any

_UNUSUAL = {
    "StopIteration",
    "StopAsyncIteration",
    "SystemExit",
    "KeyboardInterrupt",
    "GeneratorExit",
    "BaseException",
}
_SAYS = re.compile(r"assert|raises|fail|expect", re.IGNORECASE)
_CLASS_NAME = re.compile(r"[A-Z]\w*[a-z]\w*")
_FILES = {"open", "tempfile", "os", "pathlib", "Path", "shutil", "glob", "sqlite3"}
_CARRIED = {"sys.stdout", "builtins.input", "sys.stdin"}


def main() -> None:
    incoming, outgoing = take_over_pipes()
    message = json.loads(incoming.readline())
    peer = Peer(incoming, outgoing, guarded=True)
    verdict = Trial(peer, message["test"], message["entry_point"], message["names"]).verdict()
    outgoing.write("!" + json.dumps(verdict) + "\n")
    outgoing.flush()


class Trial:
    """Tests, and the facts read from their text."""

    def __init__(self, peer: Peer, test: str, entry_point: str, names: list[str]) -> None:
        self._peer, self._test, self._entry_point, self._names = peer, test, entry_point, set(names)

    def verdict(self) -> dict[str, Any]:
        """Run the tests; return `outcome` (passed, failed, or error if it cannot be told) and the reason."""
        try:
            self._tree = ast.parse(self._test)
            code = compile(self._tree, "tests.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return _verdict("error", f"the tests are no Python: {described(error)}")
        try:
            self._run(code)
        except Faulty as fault:
            return _verdict("error", str(fault))
        except BaseException as error:  # noqa: BLE001 - an assertion, or what the program raised
            return self._failure(error)
        return self._success()

    def _run(self, code: types.CodeType) -> None:
        module = types.ModuleType("__main__")  # so that tests below a main guard are run
        sys.modules["__main__"] = module
        namespace = module.__dict__
        self._used = sorted(self._free_names() & self._names)
        self._peer.allowed_errors = _UNUSUAL & _names_in(self._tree)
        self._peer.refresh([name for name in {*self._used, self._first} if name in self._names], namespace)
        if self._seeds():
            self._carry_seeds()
        self._peer.calls = 0
        candidate = self._candidate(namespace)
        if "candidate" not in _bound_in(self._tree):
            namespace["candidate"] = candidate
        run_defined(self._test, code, self._tree, namespace, candidate)

    @property
    def _first(self) -> str:
        return re.split(r"[.(]", self._entry_point)[0]

    def _candidate(self, namespace: dict[str, Any]) -> Any:
        """Return the object of the entry point; `Solution().add` and `Solution.add` are methods."""
        value = namespace.get(self._first)
        for part in self._entry_point.split(".")[1:]:
            owner, name = value() if isinstance(value, type) else value, part.removesuffix("()")
            value = getattr(owner, name)
            self._peer.tested = (owner, name)
        self._peer.objects.clear()  # it was not the tests that asked for the method,
        self._peer.doubts.clear()  # which may be static, and have the name of a method of values
        return value

    def _free_names(self) -> set[str]:
        """List the names that the tests use and do not define, and that are not Python's own."""
        used = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)}
        return used - _bound_in(self._tree) - vars(builtins).keys() - {"candidate", "unittest", "pytest"}

    def _seeds(self) -> bool:
        return "seed" in _names_in(self._tree)

    def _carry_seeds(self) -> None:
        """Let a seed that the tests set hold for the program too."""
        modules: list[Any] = [importlib.import_module("random")]
        if "numpy" in self._test and importlib.util.find_spec("numpy"):
            modules.append(importlib.import_module("numpy.random"))
        for module in modules:
            module.seed = self._seed(module.__name__, module.seed)

    def _seed(self, module: str, own: Any) -> Any:
        def seed(*arguments: Any) -> None:
            own(*arguments)
            self._peer.ask("seed", module, *arguments[:1])

        return seed

    def _failure(self, error: BaseException) -> dict[str, Any]:
        if self._peer.lost:
            return _verdict("failed", f"the program {self._peer.lost}")
        if self._peer.undecided:
            return _verdict("error", self._peer.undecided[0])
        theirs = "_thinktune_theirs" in getattr(error, "__dict__", {})
        if isinstance(error, ImportError) and not theirs:
            return _verdict("error", f"the tests cannot be run here: {described(error)}")
        if outside := self._reaches_outside():
            return _verdict("error", f"{described(error)}; but the tests {outside}, which the program cannot see")
        return _verdict("failed", described(error))

    def _success(self) -> dict[str, Any]:
        if self._peer.lost or self._peer.undecided:
            return self._failure(Lost())
        if not self._peer.calls:
            return _verdict("error", "the tests never call the program")
        if not any(map(_says_something, ast.walk(self._tree))):
            return _verdict("error", "the tests assert nothing")
        named = {name for name in self._used if _CLASS_NAME.fullmatch(name)}
        for kind, what in self._peer.doubts.items():
            if kind not in self._peer.objects | named:
                return _verdict("error", f"the program's {kind} would decide by {what} what the tests ask of a value")
        return _verdict("passed", None)

    def _reaches_outside(self) -> str | None:
        """Name the effects of the tests that do not reach the program."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call) and "patch" in ast.unparse(node.func):
                target = node.args[0] if node.args else None
                if not (isinstance(target, ast.Constant) and target.value in _CARRIED):
                    return "replace what the program uses"
            if isinstance(node, ast.arg) and node.arg == "monkeypatch":
                return "replace what the program uses"
            if (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in _FILES) or (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FILES
            ):
                return "use files"
        return None


def _verdict(outcome: str, why: str | None) -> dict[str, Any]:
    return {"outcome": outcome, "why": why}


def _says_something(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return isinstance(node, ast.Assert | ast.Raise) or bool(_SAYS.search(name))


def _names_in(tree: ast.AST) -> set[str]:
    nodes = list(ast.walk(tree))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


def _bound_in(tree: ast.Module) -> set[str]:
    """List the names that the tests bind at their top level."""
    import symtable

    table = symtable.symtable(ast.unparse(tree), "tests.py", "exec")
    return {each.get_name() for each in table.get_symbols() if each.is_assigned() or each.is_imported()}
