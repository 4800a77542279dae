"""Small files as microscopes' own programs write them, for tests.

CZI is written by Zeiss's own library. Nobody else's program writes ND2 and LIF, so these are put together here, byte by
byte, as the formats are described: by the reader nd2 (chunks, their map, and metadata in Nikon's "lite variant"), and
in Leica's "LAS AF: Image File Formats" (blocks, and an XML that describes them).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("Phase", "GFP", "RFP")
PIXEL_UM, INTERVAL_S = 0.325, 1800.0
ND2_CHUNK, ND2_NAME = 0x0ABECEDA, 4072
BOOL, UINT32, DOUBLE, STRING, LEVEL = 1, 3, 6, 8, 11


def draw_planes(scenes: int, times: int, channels: int, pages: int, height: int = 40, width: int = 56) -> np.ndarray:
    """Planes that all differ: uint16 (scenes, times, channels, pages, height, width)."""
    shape = (scenes, times, channels, pages, height, width)
    return np.random.default_rng(5).integers(1, 4096, shape).astype(np.uint16)


def write_nd2(path: Path, planes: np.ndarray, probe: bool = True) -> None:
    """Write an uncompressed ND2, version 3. probe: whether channels tell of their fluorescent probe."""
    scenes, times, channels, pages, height, width = planes.shape
    attributes = {
        "uiWidth": width,
        "uiWidthBytes": 2 * width * channels,
        "uiHeight": height,
        "uiComp": channels,
        "uiBpcInMemory": 16,
        "uiBpcSignificant": 12,
        "uiSequenceCount": scenes * times * pages,
        "eCompression": 2,
    }
    picture = {
        "bCalibrated": True,
        "dCalibration": PIXEL_UM,
        "sPicturePlanes": {
            "uiCount": channels,
            "sPlaneNew": {
                f"a{i}": {
                    "uiCompCount": 1,
                    "sDescription": NAMES[i],
                    **({"pFluorescentProbe": {"m_sName": NAMES[i]}} if probe else {}),
                }
                for i in range(channels)
            },
        },
    }
    points = {f"i{i:010}": {"dPosX": float(i), "dPosY": 0.0, "dPosZ": 0.0} for i in range(scenes)}
    time = {"uiCount": times, "dStart": 0.0, "dPeriod": 1000 * INTERVAL_S, "dDuration": 0.0}
    depth = {"uiCount": pages, "dZLow": 0.0, "dZHigh": 1.0 * pages, "dZStep": 1.0}
    loops = [(1, time, times), (2, {"Points": points}, scenes), (4, depth, pages)]
    experiment: dict[str, Any] = {}
    for kind, parameters, count in reversed(loops):
        if count > 1:
            inner = {"ppNextLevelEx": {"i0000000000": experiment}} if experiment else {}
            experiment = {"eType": kind, "uLoopPars": parameters, **inner}
    frames = planes.transpose(1, 0, 3, 4, 5, 2).reshape(-1, height, width, channels)
    chunks = {
        b"ImageAttributesLV!": _lite({"SLxImageAttributes": attributes}),
        b"ImageMetadataSeqLV|0!": _lite({"SLxPictureMetadata": picture}),
        **({b"ImageMetadataLV!": _lite({"SLxExperiment": experiment})} if experiment else {}),
        **{f"ImageDataSeq|{i}!".encode(): bytes(8) + frame.tobytes() for i, frame in enumerate(frames)},
    }
    signature = struct.pack("<IIQ32s64s", ND2_CHUNK, 32, 64, b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0")
    data = bytearray(signature)
    places = b""
    for name, content in chunks.items():
        places += name + struct.pack("<QQ", len(data), len(content))
        data += struct.pack("<IIQ", ND2_CHUNK, ND2_NAME, len(content)) + name.ljust(ND2_NAME, b"\0") + content
    end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", len(data))
    places += end
    data += struct.pack("<IIQ", ND2_CHUNK, 32, len(places)) + b"ND2 FILEMAP SIGNATURE NAME 0001!" + places
    path.write_bytes(bytes(data))


def _lite(content: dict[str, Any]) -> bytes:
    """Metadata as Nikon packs them: for each a kind, the length of its name, the name, and the value."""
    data = b""
    for name, value in content.items():
        text = (name + "\0").encode("utf-16-le")
        if isinstance(value, dict):
            inner, head = _lite(value), 2 + len(text) + 12
            body = struct.pack("<IQ", len(value), head + len(inner)) + inner + bytes(8 * len(value))
            kind = LEVEL
        elif isinstance(value, bool):
            kind, body = BOOL, struct.pack("<B", value)
        elif isinstance(value, int):
            kind, body = UINT32, struct.pack("<I", value)
        elif isinstance(value, float):
            kind, body = DOUBLE, struct.pack("<d", value)
        else:
            kind, body = STRING, (value + "\0").encode("utf-16-le")
        data += struct.pack("<BB", kind, len(name) + 1) + text + body
    return data


def write_lif(path: Path, planes: np.ndarray) -> None:
    """Write a LIF, version 2, each scene an image and a block of its own."""
    _, times, channels, pages, height, width = planes.shape
    plane_bytes = 2 * height * width
    elements, blocks = [], b""
    for number, scene in enumerate(planes.transpose(0, 1, 3, 2, 4, 5)):
        steps = [("1", width, 2, "m"), ("2", height, 2 * width, "m"), ("3", pages, channels * plane_bytes, "m")]
        steps.append(("4", times, pages * channels * plane_bytes, "s"))
        metres = {"1": PIXEL_UM * 1e-6, "2": PIXEL_UM * 1e-6, "3": 1e-6, "4": INTERVAL_S}
        dimensions = "".join(
            f'<DimensionDescription DimID="{axis}" NumberOfElements="{count}" Origin="0" '
            f'Length="{metres[axis] * (count - 1)!r}" Unit="{unit}" BytesInc="{increment}" BitInc="0"/>'
            for axis, count, increment, unit in steps
        )
        described = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="16" NameOfMeasuredQuantity="" Min="0" '
            f'Max="65535" Unit="" LUTName="{NAMES[i]}" IsLUTInverted="0" BytesInc="{i * plane_bytes}" BitInc="0"/>'
            for i in range(channels)
        )
        elements.append(
            f'<Element Name="Position {number + 1}" UniqueID="{number}"><Data><Image><ImageDescription><Channels>'
            f"{described}</Channels><Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{scene.nbytes}" MemoryBlockID="MemBlock_{number}"/></Element>'
        )
        name = f"MemBlock_{number}".encode("utf-16-le")
        head = struct.pack("<BQBI", 0x2A, scene.nbytes, 0x2A, len(name) // 2) + name
        blocks += struct.pack("<II", 0x70, len(head)) + head + scene.tobytes()
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="drawn" UniqueID="0"><Data><Experiment/></Data>'
        f'<Memory Size="0" MemoryBlockID="MemBlock_x"/><Children>{"".join(elements)}</Children></Element>'
        "</LMSDataContainerHeader>"
    ).encode("utf-16-le")
    path.write_bytes(struct.pack("<IIBI", 0x70, len(xml) + 5, 0x2A, len(xml) // 2) + xml + blocks)


def write_czi(path: Path, planes: np.ndarray) -> None:
    """Write a CZI by Zeiss's library, each scene at a place of its own."""
    from pylibCZIrw import czi

    with czi.create_czi(str(path)) as file:
        for place in np.ndindex(planes.shape[:4]):
            scene, time, channel, page = place
            file.write(
                planes[place][..., None],
                plane={"T": time, "C": channel, "Z": page},
                scene=scene,
                location=(scene * 1000, 7),
            )
        names = dict(enumerate(NAMES[: planes.shape[2]]))
        file.write_metadata("drawn", channel_names=names, scale_x=PIXEL_UM * 1e-6, scale_y=PIXEL_UM * 1e-6)


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {".nd2": write_nd2, ".lif": write_lif, ".czi": write_czi}
"""By suffix. CZI's writer tells no times."""
