"""Changes of files and of JSON values, drawn from a seeded generator."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

INTERESTING = (0, 1, 2, 7, 8, 16, 32, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = (
    "",
    "..",
    "../x.tar",
    "/etc/passwd",
    "/dev/zero",
    "00001.tar",
    "\0",
    "\n",
    "\u2028",
    "a" * 10**5,
    "ä\udcf6",
    "NaN",
    "1e999",
)
MAX_CHANGES = 4
_NESTED = re.compile(rb'"nested (\d+)"')


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """`data` with one to four changes: bits, blocks, numbers, pieces moved, removed or put in, and the end cut off."""
    for _ in range(rng.randint(1, MAX_CHANGES)):
        data = rng.choice(_BYTE_CHANGES)(rng, bytearray(data))
    return data


def change_json(rng: random.Random, content: Any) -> Any:
    """A JSON value with one to four of its places changed, taken out or doubled; now and then the whole is another."""
    if rng.random() < 0.02:
        return _value(rng)
    content = json.loads(json.dumps(content))
    for _ in range(rng.randint(1, MAX_CHANGES)):
        places = _places(content)
        if not places:
            return _value(rng)
        holder, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.7:
            holder[key] = _value(rng, holder[key])
        elif kind < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            holder[rng.choice(TEXTS)] = holder[key]
    return content


def dump(content: Any) -> bytes:
    """JSON of what `change_json` gives, lone surrogates and all."""
    return _NESTED.sub(lambda found: b"[" * int(found[1]) + b"]" * int(found[1]), json.dumps(content).encode())


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each place within a JSON value: the list or object, and the number or name in it."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = []
    for key in keys:
        found.append((value, key))
        found += _places(value[key])
    return found


def _value(rng: random.Random, old: Any = None) -> Any:
    makers: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice(INTERESTING) * rng.choice((1, -1)),
        lambda: rng.randint(-(2**70), 2**70),
        lambda: rng.choice((float("nan"), float("inf"), -0.5, 1e300, 0.1)),
        lambda: rng.choice(TEXTS),
        list,
        dict,
        lambda: [old] * rng.choice((1, 2, 1000)),
        lambda: {"a": old},
        lambda: str(old),
        lambda: f"nested {rng.choice((50, 900, 10**5))}",  # deeper than Python can write; see dump
        lambda: old + 1 if isinstance(old, int | float) else old,
        lambda: -old if isinstance(old, int | float) else old,
    )
    return rng.choice(makers)()


def _flip(rng: random.Random, data: bytearray) -> bytes:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _overwrite(rng: random.Random, data: bytearray) -> bytes:
    start = rng.randint(0, len(data))
    size = rng.choice((1, 2, 4, 16, 256))
    data[start : start + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
    return bytes(data)


def _number(rng: random.Random, data: bytearray) -> bytes:
    """A number of one to eight bytes, of either order, often near the beginning, where headers are."""
    start = rng.randint(0, min(len(data), rng.choice((64, 512, len(data)))))
    form = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    data[start : start + size] = struct.pack(form, rng.choice(INTERESTING) % 2 ** (8 * size))
    return bytes(data)


def _cut(rng: random.Random, data: bytearray) -> bytes:
    return bytes(data[: rng.randint(0, len(data))])


def _remove(rng: random.Random, data: bytearray) -> bytes:
    start = rng.randint(0, len(data))
    del data[start : start + rng.choice((1, 2, 4, 100))]
    return bytes(data)


def _put_in(rng: random.Random, data: bytearray) -> bytes:
    start = rng.randint(0, len(data))
    data[start:start] = rng.randbytes(rng.choice((1, 2, 4, 100)))
    return bytes(data)


def _copy(rng: random.Random, data: bytearray) -> bytes:
    start, target = rng.randint(0, len(data)), rng.randint(0, len(data))
    size = rng.choice((4, 12, 100, 512))
    data[target : target + size] = data[start : start + size]
    return bytes(data)


_BYTE_CHANGES = (_flip, _flip, _overwrite, _number, _number, _cut, _remove, _put_in, _copy)
