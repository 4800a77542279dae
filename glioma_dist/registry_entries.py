"""What a registry holds: an entry of each kind, and what can be wrong with one. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from glioma_dist.errors import InputError, RunError, one_line


class UnknownNameError(InputError):
    """No entry has this name."""


class BrokenEntryError(InputError):
    """An entry cannot be imported, or is not of the right kind."""


@dataclass(frozen=True)
class Entry:
    """An entry of a registry."""

    name: str
    target: str | Callable[..., Any]
    """The text "package.module:attribute", or the object itself if a script registered it."""
    aliases: tuple[str, ...] = ()
    """Other names of the entry, in lower case, with `_` instead of spaces and hyphens."""
    distribution: str | None = None
    """Name and version of the installed distribution that declares the entry point."""

    def load(self) -> Any:
        """Import the target. Raises BrokenEntryError, naming the distribution, if that fails."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            found = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (RunError, MemoryError):
            raise
        except Exception as error:
            reason = one_line(f"{type(error).__name__}: {error}", 160)
            raise BrokenEntryError(f"{self.described}: cannot be imported ({reason}); {self._advice}") from error
        return found

    @property
    def described(self) -> str:
        """Name, target and distribution as text, for messages."""
        source = f", an entry point of {one_line(self.distribution, 80)}" if self.distribution else ""
        target = (
            self.target if isinstance(self.target, str) else getattr(self.target, "__qualname__", repr(self.target))
        )
        return f"{one_line(self.name, 60)} ({one_line(target, 100)}{source})"

    @property
    def _advice(self) -> str:
        return "reinstall or uninstall this distribution" if self.distribution else "correct its registration"


@dataclass(frozen=True)
class EncoderEntry(Entry):
    """An encoder. Its target is called with the name and returns an `Encoder` (model/encoders/contract.py)."""

    family: str = "own"
    smp_name: str | None = None
    """Its name in segmentation_models.pytorch, if that library has it."""
    has_spatial_layers: bool = False
    """Whether large images can be computed with it in strips: its layers have counterparts for strips
    (`scale/spatial_layers.py`), as a test proves."""


@dataclass(frozen=True)
class LossEntry(Entry):
    """A loss. Its target is a function of logits and masks that returns one number per image (losses/)."""

    classes: str = "any"
    """Masks that it can compare: of one class (one), of several (several), or any."""


@dataclass(frozen=True)
class AugmentationEntry(Entry):
    """An augmentation. Its target depends on `kind`; see data/transforms.py."""

    kind: str = "function"


@dataclass(frozen=True)
class TrackerEntry(Entry):
    """An experiment tracker. Its target is called with a `TrackedRun` and returns a `Tracker`
    (training/trackers/contract.py)."""

    library: str | None = None
    """The module that it imports; None where it needs none that may be missing."""
    package: str | None = None
    """What pip installs for it, where this package has no extra of the tracker's name."""


@dataclass(frozen=True)
class SourceEntry(Entry):
    """A kind of labelled data. Its target is called with the folder of the labels and the folder of the images, or
    None, and returns a `Source` (data/convert/sources.py)."""

    layout: str = ""
    """What the folder holds, for `--help`, as the end of a sentence."""
    summary: str = ""
    """One line for the list of commands."""
    command: str = ""
    """module:attribute of its command, where that has flags of its own."""
    names_labels: bool = True
    """Whether labels have names, so that --categories, --classes and --ignore have an effect."""
    numbers_frames: bool = True
    """Whether frames are numbered, so that --frame-minutes has an effect."""


@dataclass(frozen=True)
class WriterEntry(Entry):
    """A format of predict's results. Its target is called with a path and a `SegmentedImage`, and writes the path: a
    file, or a folder (inference/writers/contract.py)."""

    ending: str = ""
    """What follows the image's name in the file's; by default a dot and the entry's name."""
    large_ending: str = ""
    """The same for an image of more than `MAX_PNG_PIXELS`, where it is another."""
    library: str | None = None
    """The module that it imports, of the extra `formats`; None where it needs none that may be missing."""
    description: str = ""
    """One line for people."""
