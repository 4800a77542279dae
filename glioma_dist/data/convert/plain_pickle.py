"""Read a pickle without running it: only numbers, texts, lists, dicts and NumPy arrays of numbers come out.

pickle's own reader calls whatever function the file names. Here pickletools takes the file apart, and the few
instructions that data need are carried out; names of functions are compared with a list, and nothing is imported.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from tokenize import TokenError
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from glioma_dist.errors import InputError, one_line

MAX_INSTRUCTIONS = 10**6
"""A file of Cellpose has some hundred, and some ten for each cell."""
NUMPY = ("numpy.core", "numpy._core")
"""Where NumPy 1 and NumPy 2 have its functions."""
_OF_DAMAGE = (
    *(ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, RecursionError, SyntaxError),
    *(AttributeError, AssertionError, struct.error, TokenError),
)
"""What NumPy's reader of headers and pickletools raise at bytes that are not theirs."""


class RefusedError(Exception):
    """The pickle holds something else than data; the text says what."""


class _Name(NamedTuple):
    """A function or class that the file names; it is never imported."""

    text: str


class _Array:
    """An array that is being built: numbers, or a list of the objects in it."""

    def __init__(self, value: np.ndarray | list | None = None) -> None:
        self.value = value


class _Kind:
    """A kind of numbers; its order of bytes comes after it is made."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


def read_npy_object(file: BinaryIO, where: str) -> Any:
    """The one object in an .npy file that `np.save` wrote of a dict: numbers, texts, lists, dicts, arrays of numbers.

    Raises InputError, naming the file `where`, for anything else.
    """
    advice = "save it again in Cellpose, or save the masks as PNG or TIFF and use glioma-dist convert folder"
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read_header(file)
        if kind != np.dtype(object) or shape not in ((), (1,)):
            raise RefusedError(f"an array of {kind}, {shape}, and no dict")
        found = _run(file)
    except RefusedError as error:
        raise InputError(f"{where}: holds {one_line(error, 160)}; {advice}") from None
    except _OF_DAMAGE as error:
        raise InputError(f"{where}: is damaged ({one_line(error, 120)}); {advice}") from None
    objects = found.value if isinstance(found, _Array) else None
    if not isinstance(objects, list) or len(objects) != 1:
        raise InputError(f"{where}: holds no single object; {advice}")
    return objects[0]


def as_array(value: Any) -> np.ndarray | None:
    """A value of `read_npy_object` as an array of numbers; None where it is none."""
    return value.value if isinstance(value, _Array) and isinstance(value.value, np.ndarray) else None


def _run(file: BinaryIO) -> Any:
    """Carry out the instructions of a pickle; returns what is left at its end."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for number, (instruction, argument, _) in enumerate(pickletools.genops(file)):
        name = instruction.name
        if number > MAX_INSTRUCTIONS:
            raise RefusedError(f"more than {MAX_INSTRUCTIONS} objects")
        if name == "STOP":
            return stack.pop()
        if name in _SKIPPED:
            continue
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _FROM_MARK:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            _FROM_MARK[name](stack, items)
        elif name in _FROM_TOP:
            count, act = _FROM_TOP[name]
            if len(stack) < count:
                raise ValueError("its instructions do not fit together")
            items = stack[len(stack) - count :]
            del stack[len(stack) - count :]
            act(stack, items)
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        else:
            raise RefusedError(f"the instruction {name}, which data do not need")
    raise ValueError("no end")


_SKIPPED = ("PROTO", "FRAME")
_VALUES = (
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "SHORT_BINSTRING", "BINSTRING"),
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple},
}


def _append(stack: list, items: list) -> None:
    _of(stack[-1], list).extend(items)


def _set_items(stack: list, items: list) -> None:
    target = _of(stack[-1], dict)
    for key, value in zip(items[0::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes | int | float):  # hashing tuples within tuples can take for ever
            raise RefusedError(f"a dict with a key that is a {type(key).__name__}")
        target[key] = value


def _of(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} where there should be a {kind.__name__}")
    return value


def _reduce(stack: list, items: list) -> None:
    """A call: the few that NumPy's arrays are made by."""
    function, arguments = items
    name = function.text if isinstance(function, _Name) else type(function).__name__
    if name == "numpy.dtype":
        stack.append(_kind(arguments))
    elif name in [f"{module}.multiarray._reconstruct" for module in NUMPY]:
        stack.append(_Array())
    elif name in [f"{module}.multiarray.scalar" for module in NUMPY]:
        stack.append(_numbers((), *arguments).item())
    elif name in [f"{module}.numeric._frombuffer" for module in NUMPY]:
        data, kind, shape, order = arguments
        stack.append(_Array(_numbers(shape, kind, data, order)))
    elif name == "_codecs.encode" and arguments[1:] == ("latin1",):
        stack.append(_of(arguments[0], str).encode("latin1"))
    else:
        raise RefusedError(f"a call of {name}, which is not carried out")


def _build(stack: list, items: list) -> None:
    """The state of an array, (version, shape, kind, is by columns, bytes), or of a kind of number."""
    state = items[0]
    target = stack.pop()
    if isinstance(target, _Array):
        _, shape, kind, by_columns, data = _of(state, tuple)
        if isinstance(data, list):  # an array of objects
            target.value = data
        else:
            target.value = _numbers(shape, kind, data, "F" if by_columns else "C")
        stack.append(target)
    elif isinstance(target, _Kind):
        if _of(state, tuple)[1] == ">":
            target.dtype = target.dtype.newbyteorder(">")
        stack.append(target)
    else:
        raise RefusedError(f"the state of a {type(target).__name__}")


def _kind(arguments: Any) -> _Kind:
    text = _of(arguments, tuple)[0]
    if not isinstance(text, str) or not (text in ("O8", "b1") or (text[:1] in "iufcUSM" and len(text) < 8)):
        raise RefusedError(f"an array of {one_line(repr(text), 40)}")
    return _Kind(np.dtype("O" if text == "O8" else text))


def _numbers(shape: Any, kind: Any, data: Any, order: str = "C") -> np.ndarray:
    """An array of bytes that are all there."""
    if not isinstance(kind, _Kind) or kind.dtype.hasobject or not isinstance(data, bytes | bytearray):
        raise RefusedError("an array of objects that are no numbers")
    return np.frombuffer(data, kind.dtype).reshape(_of(shape, tuple), order=order)


_FROM_MARK: dict[str, Callable[[list, list], None]] = {
    "APPENDS": _append,
    "SETITEMS": _set_items,
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "LIST": lambda stack, items: stack.append(items),
    "DICT": lambda stack, items: (stack.append({}), _set_items(stack, items))[-1],
}
_FROM_TOP: dict[str, tuple[int, Callable[[list, list], None]]] = {
    "APPEND": (1, _append),
    "SETITEM": (2, _set_items),
    **{f"TUPLE{n}": (n, lambda stack, items: stack.append(tuple(items))) for n in (1, 2, 3)},
    "STACK_GLOBAL": (2, lambda stack, items: stack.append(_Name(f"{items[0]}.{items[1]}"))),
    "REDUCE": (2, _reduce),
    "BUILD": (1, _build),
}
