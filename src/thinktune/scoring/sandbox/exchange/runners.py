"""Runs the definitions of tests: asserts in place, `check(candidate)`, unittest classes, pytest functions."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes its time to be imported, in each process anew
    import unittest
    from collections.abc import Callable, Iterator
    from typing import Any

_CHECK = re.compile(r"_*(check|test|run_tests?|verify|validate)(?![a-z])\w*")
_CANDIDATE = {"candidate", "func", "function", "fn", "f", "solution", "program", "candidate_function", "task_func"}


class Faulty(Exception):
    """The reason why the tests themselves cannot be run."""


def run_defined(text: str, code: types.CodeType, tree: ast.Module, namespace: dict[str, Any], candidate: Any) -> None:
    """Run the tests, and raise their errors.

    Raises:
        Faulty: they need something unsupported, such as fixtures.
    """
    if "unittest" in text or "TestCase" in text:  # it takes longer to import than all the rest
        import unittest

        setattr(unittest, "main", _end_quietly)  # noqa: B010 - the classes are run below
    try:
        exec(code, namespace)
    except SystemExit as end:
        if "_thinktune_theirs" in end.__dict__ or end.code not in (None, 0):
            raise
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    case = _case_of_unittest()
    for node in tree.body:
        value = namespace.get(getattr(node, "name", ""))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if _CHECK.fullmatch(node.name) and node.name not in used:
                _run_function(value, candidate)
        elif isinstance(node, ast.ClassDef) and isinstance(value, type):
            if case and issubclass(value, case):
                _run_unittest(value)
            elif node.name.startswith("Test") or node.name.endswith(("Test", "Tests")):
                _run_class(value, candidate)


def _case_of_unittest() -> type[unittest.TestCase] | None:
    """Return unittest.TestCase; None if nothing has imported unittest, so that no class can be one."""
    return unittest.TestCase if (unittest := sys.modules.get("unittest")) else None


def _end_quietly(*_: Any, **__: Any) -> None:
    """Stand in for unittest.main()."""


def _run_unittest(case: type[unittest.TestCase]) -> None:
    import unittest

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    if not suite.countTestCases():
        return
    result = _first_error_kept()
    suite.run(result)
    if result.first is not None:
        raise result.first
    if not result.wasSuccessful():
        raise AssertionError("a test did not fail as expected")
    if len(result.skipped) == suite.countTestCases():
        raise Faulty(f"all tests of {case.__name__} are skipped: {result.skipped[0][1]}")


def _first_error_kept() -> Any:
    import unittest

    class _Result(unittest.TestResult):
        """Keeps the first error itself instead of its text, as unittest would."""

        first: BaseException | None = None

        def addError(self, test: Any, err: Any) -> None:
            self._keep(err)
            super().addError(test, err)

        def addFailure(self, test: Any, err: Any) -> None:
            self._keep(err)
            super().addFailure(test, err)

        def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
            if err is not None:
                self._keep(err)
            super().addSubTest(test, subtest, err)

        def _keep(self, err: Any) -> None:
            self.first = self.first or err[1]

    return _Result()


def _run_class(kind: type, candidate: Any) -> None:
    """Run a class of tests as pytest does, an instance a test."""
    for name in [name for name in dir(kind) if name.startswith("test") and callable(getattr(kind, name))]:
        made = kind()
        before, after = getattr(made, "setup_method", None), getattr(made, "teardown_method", None)
        if before:
            _call_with_method(before, getattr(made, name))
        _run_function(getattr(made, name), candidate)
        if after:
            _call_with_method(after, getattr(made, name))


def _call_with_method(function: Callable[..., Any], method: Any) -> None:
    import inspect

    function(*[method] * len(inspect.signature(function).parameters))


def _run_function(function: Any, candidate: Any) -> None:
    parameters = _required(function)
    is_check = not function.__name__.startswith("test")
    for given in _parametrised(function):
        missing = [name for name in parameters if name not in given]
        if len(missing) == 1 and (is_check or missing[0] in _CANDIDATE):
            given[missing[0]] = candidate
        elif missing and is_check:
            return  # a helper that is not used
        elif missing:
            raise Faulty(f"the test {function.__name__} needs features of pytest itself: {', '.join(missing)}")
        try:
            result = function(**given)
            if result is not None and _is_awaitable(result):
                import asyncio

                asyncio.run(_wait(result))
        except BaseException as error:
            if type(error).__module__ == "_pytest.outcomes" and type(error).__name__ == "Skipped":
                raise Faulty(f"the test {function.__name__} is skipped: {error}") from None
            raise


def _required(function: Any) -> list[str]:
    """Name the parameters that have no default."""
    if type(function) is types.FunctionType and not function.__dict__:  # plain: spares the import of inspect
        code, defaults = function.__code__, len(function.__defaults__ or ())
        by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        with_default = function.__kwdefaults__ or {}
        return [
            *code.co_varnames[: code.co_argcount - defaults],
            *(name for name in by_name if name not in with_default),
        ]
    import inspect

    parameters = inspect.signature(function).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind not in several]


def _is_awaitable(value: Any) -> bool:
    import inspect

    return inspect.isawaitable(value)


async def _wait(awaitable: Any) -> Any:
    return await awaitable


def _parametrised(function: Any) -> Iterator[dict[str, Any]]:
    """List the arguments of each call that `pytest.mark.parametrize` asks for; no arguments once if it is not used."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    if any(mark.name in ("skip", "skipif", "xfail", "usefixtures") for mark in getattr(function, "pytestmark", [])):
        raise Faulty(f"the test {function.__name__} has a mark that only pytest knows")
    tables = [[_row(mark.args[0], row) for row in _rows(mark)] for mark in marks]
    for rows in itertools.product(*tables):
        yield {name: value for row in rows for name, value in row.items()}


def _rows(mark: Any) -> Any:
    return mark.args[1] if len(mark.args) > 1 else mark.kwargs["argvalues"]


def _row(names: Any, row: Any) -> dict[str, Any]:
    split = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    values = getattr(row, "values", row) if type(row).__name__ == "ParameterSet" else row
    single = len(split) == 1 and type(row).__name__ != "ParameterSet"
    return {split[0]: values} if single else dict(zip(split, values, strict=True))
