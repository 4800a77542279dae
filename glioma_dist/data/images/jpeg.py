"""Whether a JPEG or JPEG XR stream within a TIFF is whole, and the strip or tile that it should be: decoders fill what
is missing with grey, without a word."""

from __future__ import annotations

import struct

START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xD8, 0xD9, 0xDA
ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a length: TEM, RST0 to RST7, SOI."""
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frame headers (ITU T.81, table B.1); the three between them are tables."""
XR_SIGNATURE = b"II\xbc\x01"
XR_OFFSETS, XR_COUNTS = (0xBCC0, 0xBCC2), (0xBCC1, 0xBCC3)
"""Tags of JPEG XR's container (ITU T.832, annex A): where image and alpha lie, and how many bytes they take."""


def fault_of_jpeg(data: bytes, width: int, heights: range, components: int) -> str | None:
    """What is wrong with a JPEG stream that should have `width` x one of `heights` pixels of so many components; None
    where nothing is. Damage between its headers and its end is not found."""
    start, frame = 0, None
    if data[:2] != bytes((0xFF, START_OF_IMAGE)):
        return "are no JPEG"
    while True:
        start = data.find(0xFF, start)
        while 0 <= start < len(data) - 1 and data[start + 1] == 0xFF:  # fill bytes
            start += 1
        if start < 0 or start + 4 > len(data):
            return "are cut short"
        marker = data[start + 1]
        start += 2
        if marker in ALONE:
            continue
        (length,) = struct.unpack_from(">H", data, start)
        if marker in FRAMES and length >= 8 and start + 8 <= len(data):
            frame = struct.unpack_from(">BHHB", data, start + 2)
        start += max(length, 2)
        if marker == START_OF_SCAN:
            break
    # Within a scan a byte of 0xFF is followed by 0 or by a marker.
    if data.find(bytes((0xFF, END_OF_IMAGE)), start) < 0:
        return "are cut short"
    if frame is None:
        return "are a JPEG without a header"
    _, height, found, number = frame
    if (found, number) != (width, components) or (height and height not in heights):
        return f"are a JPEG of {found}x{height} pixels of {number} components, not {width}x{heights[0]} of {components}"
    return None


def fault_of_jpeg_xr(data: bytes) -> str | None:
    """What is wrong with the length of a JPEG XR stream; None where nothing is."""
    if not data.startswith(XR_SIGNATURE):
        return None  # a codestream without its container does not tell its length
    try:
        (first,) = struct.unpack_from("<I", data, 4)
        (num_tags,) = struct.unpack_from("<H", data, first)
        tags = {}
        for number in range(num_tags):
            tag, kind, _, value = struct.unpack_from("<HHII", data, first + 2 + 12 * number)
            tags[tag] = value & 0xFFFF if kind == 3 else value
    except struct.error:
        return "are cut short"
    ends = [tags.get(at, 0) + tags.get(size, 0) for at, size in zip(XR_OFFSETS, XR_COUNTS, strict=True)]
    return "are cut short" if max(ends) > len(data) else None
