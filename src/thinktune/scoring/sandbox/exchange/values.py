"""Values that cross by value, as JSON: scalars as they are, everything else as a list that begins with its kind.

Subclasses are not known here, so that no method of a program's own (`__eq__` above all) comes along.
"""

from __future__ import annotations

import binascii
import collections
import importlib
import sys
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes its time to be imported, in each process anew
    from typing import Any

    Code = Callable[[Any], Any]
    """Encodes or decodes the parts of a value."""
    Parts = dict[type, Callable[[Any], tuple[Any, ...]]]
    """Types that cannot be changed, and the arguments that make an equal value again."""

_DIRECT = 2**63  # integers beyond it go as hexadecimal text: JSON's decimal digits are limited and slow
_SIMPLE = "biufcMmSU"  # NumPy's kinds of types whose bytes are all of a value
CONTAINERS: dict[str, type] = {
    each.__name__: each
    for each in (
        list, dict, set, bytearray, collections.deque, collections.OrderedDict, collections.Counter,
        collections.defaultdict,
    )
}  # fmt: skip
"""Types of mutable values, which are shared, not copied."""
_KNOWN: Parts = {
    complex: lambda v: (v.real, v.imag),
    range: lambda v: (v.start, v.stop, v.step),
    slice: lambda v: (v.start, v.stop, v.step),
}
_LATER: dict[str, Callable[[Any], Parts]] = {
    "fractions": lambda module: {module.Fraction: lambda v: (v.numerator, v.denominator)},
    "decimal": lambda module: {module.Decimal: lambda v: (str(v),)},
    "datetime": lambda module: {
        module.date: lambda v: (v.year, v.month, v.day),
        module.datetime: lambda v: (v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.tzinfo),
        module.time: lambda v: (v.hour, v.minute, v.second, v.microsecond, v.tzinfo),
        module.timedelta: lambda v: (v.days, v.seconds, v.microseconds),
        module.timezone: lambda v: (v.utcoffset(None),),
    },
    "zoneinfo": lambda module: {module.ZoneInfo: lambda v: (v.key,)},
    "uuid": lambda module: {module.UUID: lambda v: (v.hex,)},
    "pathlib": lambda module: {
        type(module.PurePath()): lambda v: (str(v),),
        type(module.Path()): lambda v: (str(v),),
    },
}
"""Known types by module. Few programs need them, and they take as long to import as all the rest: a module is
looked into once something has imported it."""
_SINGLE = {"Ellipsis": ..., "NotImplemented": NotImplemented}
_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}


def plain(*, all_modules: bool = False) -> tuple[type, ...]:
    """List the types whose values cross by value, of the modules that are imported here, or of all."""
    return (str, bytes, int, float, tuple, frozenset, *CONTAINERS.values(), *_known(all_modules=all_modules))


def _known(*, all_modules: bool = False) -> Parts:
    for name in [name for name in _LATER if all_modules or name in sys.modules]:
        module = importlib.import_module(name) if all_modules else sys.modules[name]
        try:
            found = _LATER[name](module)
        except AttributeError:  # it is being imported, in another thread
            continue
        if all(isinstance(kind, type) for kind in found):  # else somebody's replacement
            _KNOWN.update(found)
            del _LATER[name]
    return _KNOWN


def _named(name: str) -> type:
    """Return a known type; this process may not have used it yet. Raises KeyError."""
    for all_modules in (False, True):
        for kind in _known(all_modules=all_modules):
            if kind.__qualname__ == name:
                return kind
    raise KeyError(name)


def _text_of(data: Any) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def encode_plain(value: Any, encode: Code) -> Any:
    """Return the JSON of an immutable value of exactly a known type; None for any other.

    >>> encode_plain((1, 2.5), lambda each: each)
    ['tuple', [1, 2.5]]
    """
    kind = type(value)
    if kind in (bool, str, float) or (kind is int and -_DIRECT < value < _DIRECT):
        return value
    if kind is int:
        return ["int", hex(value)]
    if kind in (tuple, frozenset):
        return [kind.__name__, [encode(item) for item in value]]
    if kind is bytes:
        return ["bytes", _text_of(value)]
    if (parts := _known().get(kind)) is not None:
        return ["known", kind.__qualname__, [encode(item) for item in parts(value)]]
    for name, single in _SINGLE.items():
        if value is single:
            return ["single", name]
    if kind in _VIEWS:
        return ["view", _VIEWS[kind], [encode(item) for item in value]]
    return _encode_numpy(value) or _encode_pandas(value, encode)


def decode_plain(kind: str, content: list[Any], decode: Code) -> Any:
    """Return the value of `[kind, *content]`.

    Raises:
        ValueError, TypeError, KeyError: malformed, as only a program that talks for itself would send.
    """
    if kind == "int":
        return int(content[0], 16)
    if kind in ("tuple", "frozenset"):
        return {"tuple": tuple, "frozenset": frozenset}[kind](decode(item) for item in content[0])
    if kind == "bytes":
        return binascii.a2b_base64(content[0])
    if kind == "known":
        return _named(content[0])(*(decode(item) for item in content[1]))
    if kind == "single":
        return _SINGLE[content[0]]
    if kind == "view":
        return _view(content[0], [decode(item) for item in content[1]])
    if kind == "scalar":
        return _array(content[0], [], content[1])[()]
    if kind in ("Missing", "Timestamp", "Series", "Index", "DataFrame"):
        return _decode_pandas(kind, content, decode)
    raise ValueError(f"no kind of value: {kind}")


def encode_content(value: Any, encode: Code) -> Any:
    """Encode the present content of a container."""
    if isinstance(value, bytearray):
        return _text_of(value)
    if is_array(value):
        if value.dtype.kind == "O":
            return ["objects", list(value.shape), [encode(item) for item in value.ravel()]]
        return [value.dtype.str, list(value.shape), _text_of(value.tobytes())]
    if isinstance(value, dict):
        return [[encode(key), encode(item)] for key, item in dict.items(value)]
    return [encode(item) for item in value]


def fill(value: Any, content: Any, decode: Code) -> None:
    """Replace the content of a container. No method of a subclass is called."""
    base: Any = base_of(value)
    if base is bytearray:
        value[:] = binascii.a2b_base64(content)
    elif is_array(value):
        value[...] = new_array(content, decode)
    elif issubclass(base, dict):
        items = [(decode(key), decode(item)) for key, item in content]
        base.clear(value)
        for key, item in items:
            base.__setitem__(value, key, item)
    else:
        items = [decode(item) for item in content]
        base.clear(value)
        (base.update if base is set else base.extend)(value, items)


def look(value: Any) -> Any:
    """Take a snapshot that tells whether a container was changed: the very objects in it, or its bytes."""
    if isinstance(value, bytearray):
        return bytes(value)
    if is_array(value):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, dict):
        return [*dict.keys(value), *dict.values(value)]
    base: Any = base_of(value)
    return list(base.__iter__(value))


def base_of(value: Any) -> type | None:
    """Return the container that a value is, or that its class is made from; None for any other value."""
    return next((kind for kind in type(value).__mro__ if CONTAINERS.get(kind.__name__) is kind), None)


def container_kind(value: Any, encode: Code) -> list[Any] | None:
    """Return the kind of a container, with the data needed to make one; None for any other value."""
    if is_array(value):
        return ["array"]
    kind = base_of(value)
    if kind is None:
        return None
    if kind is collections.deque:
        return ["deque", value.maxlen]
    return [kind.__name__, encode(value.default_factory)] if kind is collections.defaultdict else [kind.__name__]


def new_container(kind: list[Any], content: Any, decode: Code) -> Any:
    """Make an empty container of a kind; of an array, one of the same form."""
    if kind[0] == "array":
        return new_array(content, decode)
    if kind[0] == "deque":
        return collections.deque(maxlen=kind[1])
    if kind[0] == "defaultdict":
        return collections.defaultdict(decode(kind[1]))
    return CONTAINERS[kind[0]]()


def is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and value.dtype.kind in _SIMPLE + "O"


def new_array(content: list[Any], decode: Code) -> Any:
    if content[0] != "objects":
        return _array(*content)
    import numpy

    array = numpy.empty(len(content[2]), dtype=object)
    for place, item in enumerate(content[2]):
        array[place] = decode(item)
    return array.reshape(content[1])


def _array(kind: str, shape: list[int], data: str) -> Any:
    import numpy

    if numpy.dtype(kind).kind not in _SIMPLE:
        raise ValueError(f"no array of {kind}")
    return numpy.frombuffer(binascii.a2b_base64(data), dtype=kind).reshape(shape).copy()


def _view(kind: str, items: list[Any]) -> Any:
    if kind == "values":
        return dict(enumerate(items)).values()
    return dict.fromkeys(items).keys() if kind == "keys" else dict(items).items()


def _encode_numpy(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.generic) or type(value) is not value.dtype.type:
        return None
    return ["scalar", value.dtype.str, _text_of(value.tobytes())] if value.dtype.kind in _SIMPLE else None


def _encode_pandas(value: Any, encode: Code) -> Any:
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return None
    if value is pandas.NaT or value is pandas.NA:
        return ["Missing", "NaT" if value is pandas.NaT else "NA"]
    if type(value) is pandas.Timestamp:
        return ["Timestamp", value.isoformat()]
    if type(value) in (pandas.Index, pandas.RangeIndex, pandas.DatetimeIndex):
        return ["Index", str(value.dtype), encode(value.name), [encode(item) for item in value.tolist()]]
    if type(value) is pandas.Series:
        return [
            "Series",
            str(value.dtype),
            encode(value.name),
            [encode(x) for x in value.tolist()],
            encode(value.index),
        ]
    if type(value) is pandas.DataFrame and value.columns.is_unique:
        return [
            "DataFrame",
            encode(value.columns),
            encode(value.index),
            [encode(value[name]) for name in value.columns],
        ]
    return None


def _decode_pandas(kind: str, content: list[Any], decode: Code) -> Any:
    import pandas

    if kind == "Missing":
        return {"NaT": pandas.NaT, "NA": pandas.NA}[content[0]]
    if kind == "Timestamp":
        return pandas.Timestamp(content[0])
    if kind == "DataFrame":
        columns, index = decode(content[0]), decode(content[1])
        found = [decode(each) for each in content[2]]
        frame = pandas.DataFrame(dict(enumerate(found)), index=index)
        frame.columns = columns
        return frame
    make = getattr(pandas, kind)
    more = {"index": decode(content[3])} if kind == "Series" else {}
    return make([decode(item) for item in content[2]], dtype=content[0], name=decode(content[1]), **more)
