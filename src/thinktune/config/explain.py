"""Faults of a config in a sentence each, with the nearest valid key for one that is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

NAME, LIST = "(name)", "(list)"
"""The two ways to write data.source, told apart before checking, so that a mistake is reported for one of them."""


def explain(problem: Any, root: type[BaseModel]) -> str:
    """Locate a pydantic error in `root`, and suggest the nearest key for an unknown one."""
    where = ".".join(str(part) for part in problem["loc"] if part not in (NAME, LIST))
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    known = list(_keys_beside(problem["loc"], root))
    near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
    return f"{where}: unknown key; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}")


def _keys_beside(location: tuple[Any, ...], root: type[BaseModel]) -> Iterator[str]:
    model: Any = root
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue
        model = next((kind for kind in _models_in(field.annotation)), model)
    yield from model.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
