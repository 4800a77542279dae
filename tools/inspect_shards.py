"""What is in a folder of shards, here or at a URL, and whether it is whole; an index for somebody else's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import tyro

from glioma_dist.command_line import read_arguments
from glioma_dist.data.inspection import contact_sheet, find_unused, index_folder, pick_samples, tell_unused, verify
from glioma_dist.data.shards import ShardReader
from glioma_dist.data.storage import is_url
from glioma_dist.errors import InputError, one_line
from glioma_dist.files import write_atomically
from glioma_dist.paths import PathOrUrl
from glioma_dist.run_command import run_command

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
    line = tell_unused(unused["names"], unused["count"]) if unused else None
    if line:
        print(line)


def inspect(config: InspectConfig) -> None:
    """Do what the flags ask for. Raises InputError where a shard is not whole, after all have been looked at."""
    if config.index:
        members = {"png": config.image, "mask.png": config.mask, "json": "json"}
        index_folder(Path(config.shards), config.dataset, config.split, config.licence, members)
    reader = ShardReader(config.shards)
    list_shards(reader)
    if config.sheet is not None:
        # Imported here, for it brings PyTorch along.
        from glioma_dist.inference.results import overlay

        samples = pick_samples(reader, config.num_images)
        config.sheet.parent.mkdir(parents=True, exist_ok=True)
        _, png = cv2.imencode(".png", contact_sheet(samples, overlay)[..., ::-1])
        write_atomically(config.sheet, png.tobytes())
        print(f"{len(samples)} images are in {config.sheet}")
    if config.verify:
        faults = []
        for name, fault in verify(reader):
            print(f"  {name}  {fault or 'whole'}", flush=True)
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
