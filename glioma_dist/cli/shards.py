"""What is in a folder of shards, here or at a URL, and whether it is whole; an index for somebody else's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import tyro

from glioma_dist.cli.arguments import read_arguments
from glioma_dist.config.idle_flags import idle_flags
from glioma_dist.config.paths import PathOrUrl
from glioma_dist.data.shards.inspection import (
    contact_sheet,
    find_unused,
    index_folder,
    pick_samples,
    tell_unused,
    verify,
)
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.storage import is_url, was_url
from glioma_dist.data.shards.unlisted import describe_unlisted
from glioma_dist.distributed.run_command import run_command
from glioma_dist.errors import InputError, one_line, printable
from glioma_dist.files import cannot_write, write_atomically

MOST_LINES = 20


@dataclass(frozen=True)
class InspectConfig:
    """List shards, verify their checksums, draw a contact sheet, or index plain WebDataset tars."""

    shards: Annotated[PathOrUrl, tyro.conf.Positional]
    """Folder or URL of shards."""
    verify: bool = False
    """Read every byte and decode every image; what is wrong is named shard by shard."""
    sheet: Path | None = None
    """PNG to draw some images into, with their masks outlined."""
    num_images: int = 12
    """How many images the contact sheet has."""
    index: bool = False
    """First write index.json and the tables of members for a folder of plain WebDataset tars."""
    image: str = "png"
    """With --index: what an image's name ends with in the tars, after the key and a dot; a PNG."""
    mask: str = "mask.png"
    """With --index: what a mask's name ends with, after the key and a dot; a PNG, black where no cell is."""
    dataset: str = "unnamed"
    """With --index: the data set's name."""
    split: str = "all"
    """With --index: the split's name."""
    licence: str = "unknown; see the data's publisher"
    """With --index: the data's licence; it is handed on to what is trained from it."""

    def without_effect(self) -> list[str]:
        """Flags that other flags leave without an effect, each with the reason."""
        names = ("image", "mask", "dataset", "split", "licence")
        metadata = [(name, self.index, "without --index") for name in names]
        return idle_flags(self, [*metadata, ("num_images", self.sheet is not None, "without --sheet")])

    def validate(self) -> None:
        if self.index and is_url(self.shards):
            raise InputError(
                f"--index {self.shards}: is written beside the tars; make it in a local copy, and upload it"
            )
        for ending in (self.image, self.mask):
            if self.index and ending.rpartition(".")[2] != "png":
                raise InputError(f"--index: {ending} is no PNG, and only PNG is read; convert the images first")
        if self.num_images < 1:
            raise InputError(f"--num-images {self.num_images}: give 1 or more")
        if self.sheet is not None and was_url(self.sheet):
            raise InputError(f"--sheet {self.sheet}: is a URL, and the sheet is written to this machine; name a file")
        if self.sheet is not None and self.sheet.suffix.lower() != ".png":
            raise InputError(f"--sheet {self.sheet}: name a .png")


def list_shards(reader: ShardReader) -> None:
    """Print what the index says, and the shards, the first MOST_LINES of them."""
    index, shards = reader.index, reader.index["shards"]
    num_bytes = sum(shard["bytes"] for shard in shards)
    head = f"{reader.source}: {index['dataset']}, split {index['split']}, licence {index['licence']}"
    print(one_line(head, 2000))
    print(f"{len(reader)} samples in {len(shards)} shards, {num_bytes / 1e6:.1f} MB")
    for shard in shards[:MOST_LINES]:
        print(f"  {shard['name']}  {shard['num_samples']} samples  {shard['bytes']} bytes  {shard['sha256'][:12]}")
    if len(shards) > MOST_LINES:
        print(f"  and {len(shards) - MOST_LINES} more")
    unused = index.get("unused_members")
    for line in (tell_unused(unused["names"], unused["count"]) if unused else None, describe_unlisted(reader)):
        if line:
            print(line)


def draw_sheet(path: Path, pixels: np.ndarray) -> None:
    """Write a contact sheet, uint8 (H, W, 3) RGB, as PNG. Raises InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    # OpenCV's own writer takes no name that is not UTF-8.
    encoded, data = cv2.imencode(".png", pixels[..., ::-1])
    if not encoded:
        raise ValueError(f"OpenCV could not write a PNG of {pixels.shape}")
    write_atomically(path, data.tobytes())


def inspect(config: InspectConfig) -> None:
    """Do what the flags ask for. Raises InputError where a shard is not whole, after all have been looked at."""
    if config.index:
        members = {"png": config.image, "mask.png": config.mask, "json": "json"}
        index_folder(Path(config.shards), config.dataset, config.split, config.licence, members)
    reader = ShardReader(config.shards)
    list_shards(reader)
    if config.sheet is not None:
        # Imported here, because it brings PyTorch along.
        from glioma_dist.inference.results import overlay

        samples = pick_samples(reader, config.num_images)
        draw_sheet(config.sheet, contact_sheet(samples, overlay))
        print(f"{len(samples)} images are in {printable(config.sheet)}")
    if config.verify:
        faults = []
        for name, fault in verify(reader):
            print(f"  {name}  {printable(fault or 'whole')}", flush=True)
            faults += [fault] if fault else []
        if faults:
            raise InputError(f"{len(faults)} of {len(reader.shard_sizes)} shards are not whole; the first: {faults[0]}")
        print("every checksum is right")
        if not is_url(config.shards) and "unused_members" not in reader.index:
            line = tell_unused(find_unused(reader))
            if line:
                print(line)


def main() -> None:
    config = read_arguments(InspectConfig)
    inspect(config)


if __name__ == "__main__":
    run_command(main)
