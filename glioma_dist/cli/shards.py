"""`glioma-dist shards`: inspect and verify shards, local or at a URL, and index the WebDataset tars of others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from glioma_dist.cli.command import Command
from glioma_dist.cli.inputs import check_folder_there, check_shards
from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.config.paths import LocalPath, PathOrUrl
from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.files import cannot_write, write_atomically
from glioma_dist.wording import counted

if TYPE_CHECKING:
    from numpy import ndarray

    from glioma_dist.data.shards.reader import ShardReader

MOST_LINES = 20


@dataclass(frozen=True)
class InspectConfig:
    """List the shards of a folder or URL, and draw a contact sheet of some images with their masks."""

    shards: Annotated[PathOrUrl, tyro.conf.Positional]
    """Folder or URL of shards."""
    sheet: Path | None = None
    """PNG file to write the contact sheet to: some images with their masks outlined."""
    num_images: int = 12
    """Number of images on the sheet."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        return idle_flags(self, [("num_images", self.sheet is not None, "without --sheet")])

    def validate(self) -> None:
        """Raises InputError for a sheet that cannot be written."""
        if self.num_images < 1:
            raise InputError(f"--num-images {self.num_images}: give 1 or more")
        if self.sheet is not None and self.sheet.suffix.lower() != ".png":
            raise InputError(f"--sheet {self.sheet}: give a file name that ends with .png")


@dataclass(frozen=True)
class VerifyConfig:
    """Verify a folder or URL of shards: read every byte, decode every image, and print the faults of each shard."""

    shards: Annotated[PathOrUrl, tyro.conf.Positional]
    """Folder or URL of shards."""


@dataclass(frozen=True)
class IndexConfig:
    """Write index.json and the tables of members for a folder of plain WebDataset tars, so that this toolkit reads
    them."""

    shards: Annotated[LocalPath, tyro.conf.Positional]
    """Local folder of tars. For tars at a URL, index a local copy and upload the index."""
    image: str = "png"
    """Extension of the images in the tars, after the key and a dot. Images must be PNG."""
    mask: str = "mask.png"
    """Extension of the masks in the tars, after the key and a dot. Masks must be PNG, black where there is no cell."""
    instances: str | None = None
    """Extension of the PNGs that have a number for each cell. By default: the tars have none."""
    classes: tuple[str, ...] = ()
    """Names of two or more classes whose numbers, from 1 on, are the masks' values. By default: all but black is
    cell."""
    ignore: bool = False
    """The masks have the value 255 where nobody labelled; 0 and 1, or the classes' numbers, elsewhere."""
    dataset: str = "unnamed"
    """Name of the data set."""
    split: str = "all"
    """Name of the split."""
    licence: str = "unknown; see the data's publisher"
    """Licence of the data. Checkpoints trained on the data name it."""

    def validate(self) -> None:
        """Raises InputError for members that are not PNG."""
        for flag, ending in (("--image", self.image), ("--mask", self.mask), ("--instances", self.instances)):
            if ending is not None and ending.rpartition(".")[2] != "png":
                raise InputError(f"{flag} {ending}: is not PNG, the only supported format; convert the images first")


def list_shards(reader: ShardReader) -> None:
    """Print the content of the index, and the first MOST_LINES shards."""
    from glioma_dist.data.shards.inspection import tell_unused
    from glioma_dist.data.shards.unlisted import describe_unlisted

    index, shards = reader.index, reader.index["shards"]
    num_bytes = sum(shard["bytes"] for shard in shards)
    head = f"{reader.source}: {index['dataset']}, split {index['split']}, licence {index['licence']}"
    print(one_line(head, 2000))
    print(f"{counted(len(reader), 'sample')} in {counted(len(shards), 'shard')}, {num_bytes / 1e6:.1f} MB")
    has = [f"classes {', '.join(reader.classes)}"] if reader.classes else []
    has += ["a number for each cell"] * reader.has_instances + ["ignored pixels"] * reader.has_ignore
    if has:
        print(one_line(f"labels: {'; '.join(has)}", 2000))
    for shard in shards[:MOST_LINES]:
        num_samples = counted(shard["num_samples"], "sample")
        print(f"  {shard['name']}  {num_samples}  {shard['bytes']} bytes  {shard['sha256'][:12]}")
    if len(shards) > MOST_LINES:
        print(f"  and {len(shards) - MOST_LINES} more")
    unused = index.get("unused_members")
    for line in (tell_unused(unused["names"], unused["count"]) if unused else None, describe_unlisted(reader)):
        if line:
            print(line)


def draw_sheet(path: Path, pixels: ndarray) -> None:
    """Write a contact sheet, uint8 (H, W, 3) RGB, as PNG. Raises InputError if it cannot be written."""
    import cv2

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    # cv2.imwrite refuses file names that are not UTF-8.
    encoded, data = cv2.imencode(".png", pixels[..., ::-1])
    if not encoded:
        raise ValueError(f"OpenCV could not write a PNG of {pixels.shape}")
    write_atomically(path, data.tobytes())


def run_inspect(config: InspectConfig) -> None:
    """List, and draw the sheet."""
    from glioma_dist.data.shards.inspection import contact_sheet, pick_samples
    from glioma_dist.data.shards.reader import ShardReader

    reader = ShardReader(config.shards)
    list_shards(reader)
    if config.sheet is not None:
        # Imported here because it imports PyTorch.
        from glioma_dist.inference.writers.overlay import overlay

        samples = pick_samples(reader, config.num_images)
        draw_sheet(config.sheet, contact_sheet(samples, overlay))
        print(f"wrote {counted(len(samples), 'image')} to {printable(config.sheet)}")


def run_index(config: IndexConfig) -> None:
    """Write the index, and list its content."""
    from glioma_dist.data.shards.inspection import index_folder
    from glioma_dist.data.shards.reader import ShardReader

    members = {"png": config.image, "mask.png": config.mask, "json": "json"}
    if config.instances is not None:
        members["instances.png"] = config.instances
    index_folder(
        Path(config.shards), config.dataset, config.split, config.licence, members, config.classes, config.ignore
    )
    list_shards(ShardReader(config.shards))


def run_verify(config: VerifyConfig) -> None:
    """Verify all shards. Raises InputError afterwards if one is damaged."""
    from glioma_dist.data.shards.inspection import find_unused, tell_unused, verify
    from glioma_dist.data.shards.reader import ShardReader
    from glioma_dist.data.shards.urls import is_url

    reader = ShardReader(config.shards)
    list_shards(reader)
    faults = []
    for name, fault in verify(reader):
        print(f"  {name}  {printable(fault or 'ok')}", flush=True)
        faults += [fault] if fault else []
    if faults:
        raise InputError(f"{len(faults)} of {len(reader.shard_sizes)} shards are damaged; the first: {faults[0]}")
    print("all checksums match")
    if not is_url(config.shards) and "unused_members" not in reader.index:
        line = tell_unused(find_unused(reader))
        if line:
            print(line)


INSPECT = Command(
    InspectConfig,
    run_inspect,
    (
        "glioma-dist shards inspect shards/glioma_c6/train",
        "glioma-dist shards inspect shards/glioma_c6/train --sheet sheet.png --num-images 20",
        "glioma-dist shards inspect s3://cells/livecell/val",
    ),
    lambda config: check_shards("SHARDS", config.shards),
)
INDEX = Command(
    IndexConfig,
    run_index,
    (
        "glioma-dist shards index data/their_tars --dataset theirs --split train",
        "glioma-dist shards index data/their_tars --image input.png --mask target.png --licence 'CC BY 4.0'",
    ),
    lambda config: check_folder_there("SHARDS", Path(config.shards)),
)
VERIFY = Command(
    VerifyConfig,
    run_verify,
    ("glioma-dist shards verify shards/glioma_c6/train", "glioma-dist shards verify s3://cells/livecell/val"),
    lambda config: check_shards("SHARDS", config.shards),
)
