"""Registries of encoders, losses, augmentations, trackers, sources of data and formats of results by name. No torch.

An entry is a name, "module:attribute", and metadata; the module is imported only when the entry is loaded. The
package's own entries are declared in small modules next to the code. Others come from `Registry.register`, or from the
entry points of installed distributions, which are read only for a name that is otherwise unknown, and to list all.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cached_property
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, Generic, TypeVar

from glioma_dist.errors import InputError, one_line
from glioma_dist.registry_entries import (
    AugmentationEntry,
    BrokenEntryError,
    EncoderEntry,
    Entry,
    LossEntry,
    SourceEntry,
    TrackerEntry,
    UnknownNameError,
    WriterEntry,
)

LEAST_LIKENESS = 0.6
"""Of 1, by difflib: below it, a name is another one, not one that was mistyped."""
NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,98}\w)?", re.ASCII)


__all__ = [
    "AugmentationEntry",
    "BrokenEntryError",
    "EncoderEntry",
    "LossEntry",
    "Registry",
    "SourceEntry",
    "TrackerEntry",
    "UnknownNameError",
    "WriterEntry",
    "augmentations",
    "encoders",
    "losses",
    "sources",
    "trackers",
    "writers",
]

AnyEntry = TypeVar("AnyEntry", bound=Entry)
Registered = TypeVar("Registered", bound=Callable[..., Any])


class Registry(Generic[AnyEntry]):
    """Entries of one kind, by name."""

    def __init__(
        self,
        what: str,
        group: str,
        entry: type[AnyEntry],
        declarations: tuple[str, ...],
        prefixes: tuple[str, ...] = (),
        takes_targets: bool = False,
        listed_by: str = "",
    ) -> None:
        """what: the kind, for messages. group: name of the entry points' group. declarations: modules with a list
        DECLARED of entries. prefixes: such as timm/; a name is accepted with any text after it, which the target
        checks. takes_targets: "module:attribute" is a name, too, of what stands there. listed_by: the command that
        lists the entries."""
        self.what, self.group = what, group
        self._entry, self._declarations, self._prefixes = entry, declarations, prefixes
        self._takes_targets, self._listed_by = takes_targets, listed_by
        self._added: dict[str, AnyEntry] = {}

    def register(self, name: str, target: str | Registered | None = None, **metadata: Any) -> Any:
        """Add an entry: `register("mine", "my_module:Mine")`, `register("mine", Mine)`, or as a decorator.

        metadata: fields of the registry's kind of entry. A second call for the same target replaces the first, so a
        notebook's cell can run again. Raises InputError if the name is invalid or taken.
        """
        if target is None:
            return lambda each: self.register(name, each, **metadata) and each
        self._check_name(name)
        unknown = set(metadata) - {each.name for each in fields(self._entry)}
        if unknown:
            raise InputError(f"{self.what} {name}: no such metadata: {', '.join(sorted(unknown))}")
        if not callable(target) and not (isinstance(target, str) and _is_target(target)):
            raise InputError(f'{self.what} {name}: {one_line(target, 100)} is neither "module:attribute" nor callable')
        entry = self._entry(name, target, **metadata)
        for each in (name, *entry.aliases):
            other = self._by_name.get(each) or next(
                (e for e in self._added.values() if each in (e.name, *e.aliases)), None
            )
            if other is not None and (other.name != name or _place(other.target) != _place(target)):
                raise InputError(f"{self.what} {each}: the name is taken by {other.described}; choose another")
        self._added[name] = entry
        return target

    def find(self, name: str, flag: str = "") -> AnyEntry:
        """Return the entry of a name or alias. flag: where the name was given, for messages.

        Raises UnknownNameError with the nearest names, and BrokenEntryError if several distributions declare the name.
        """
        ours = self.canonical(name)
        prefix = self._prefix_of(ours)
        if prefix is not None:
            return replace(self._by_name[prefix], name=ours)
        entry = self._by_name.get(ours) or self._added.get(ours)
        if entry is not None and ours not in self._prefixes:
            return entry
        claims = self._installed.get(ours, [])
        if len(claims) == 1:
            return claims[0]
        if self._takes_targets and _is_target(ours):
            return self._entry(ours, ours)
        told = f"{flag or self.what} {one_line(name, 60)}"
        if claims:
            named = ", ".join(str(each.distribution) for each in claims)
            raise BrokenEntryError(f"{told}: several distributions declare it ({named}); uninstall all but one")
        opened = next((each for each in self._prefixes if f"{name}/".lower().startswith(each)), None)
        advice = f"write {opened}NAME, with NAME of letters, digits, `_`, `.` and `-`" if opened else self._near(name)
        raise UnknownNameError(f"{told}: unknown; {advice}")

    def load(self, name: str, flag: str = "") -> Any:
        """Import the target of a name or alias. Raises as `find` and `Entry.load`."""
        entry = self.find(name, flag)
        try:
            return entry.load()
        except BrokenEntryError as error:
            raise BrokenEntryError(f"{flag or self.what} {error}") from error.__cause__

    def canonical(self, name: str) -> str:
        """Return this package's name for an alias such as ResNet-50. An unknown name is returned unchanged."""
        name = name.strip()
        if name in self._by_name or name in self._added or self._prefix_of(name) is not None:
            return name
        known = {
            alias: each.name for each in (*self._by_name.values(), *self._added.values()) for alias in each.aliases
        }
        plain = re.sub(r"[\s-]+", "_", name.lower())
        for each in (name, plain, re.sub(r"(?<=[a-z])_(?=\d)", "", plain)):
            ours = known.get(each, each)
            if ours in self._by_name or ours in self._added:
                return ours
        return name

    def names(self) -> tuple[str, ...]:
        """Return the names of the package's own entries, in the order of their declaration."""
        return tuple(name for name in self._by_name if name not in self._prefixes)

    def entries(self) -> tuple[AnyEntry, ...]:
        """Return the package's own entries, registered entries, and those of installed distributions; imports none.

        Raises BrokenEntryError if a distribution declares a name that is taken.
        """
        own = [each for name, each in self._by_name.items() if name not in self._prefixes]
        for name, claims in self._installed.items():
            taken = self._by_name.get(name) or self._added.get(name)
            if taken is not None:
                raise BrokenEntryError(f"{self.what} {claims[0].described}: the name is taken by {taken.described}")
        return (*own, *self._added.values(), *(self.find(name) for name in self._installed))

    def unread(self) -> list[str]:
        """Return a line for each entry point, or distribution, that cannot be used."""
        _ = self._installed
        return list(self._faults)

    @cached_property
    def _by_name(self) -> dict[str, AnyEntry]:
        return {each.name: each for module in self._declarations for each in import_module(module).DECLARED}

    @cached_property
    def _installed(self) -> dict[str, list[AnyEntry]]:
        found: dict[str, list[AnyEntry]] = {}
        self._faults: list[str] = []
        for distribution, point in _entry_points(self.group, self._faults):
            try:
                self._check_name(point.name)
                if not _is_target(point.value):
                    raise InputError(f'{one_line(point.value, 100)} is not "module:attribute"')
            except InputError as error:
                self._faults.append(f"{distribution}: {error}")
                continue
            entry = self._entry(point.name, point.value.replace(" ", ""), distribution=distribution)
            found.setdefault(point.name, []).append(entry)
        return found

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(
                f"{self.what} {one_line(repr(name), 80)}: give a name of letters, digits, `_`, `.` and `-`, at most 100"
            )

    def _prefix_of(self, name: str) -> str | None:
        return next((p for p in self._prefixes if name.startswith(p) and NAME.fullmatch(name.removeprefix(p))), None)

    def _near(self, name: str) -> str:
        names = dict.fromkeys([*self.names(), *self._added, *self._installed])
        near = difflib.get_close_matches(name[:100], names, n=1, cutoff=LEAST_LIKENESS)
        # b3 means mit_b3, which is not near by its letters.
        near = near or sorted((each for each in names if each.endswith(f"_{name[:100]}")), key=len)
        known = ", ".join([*names, *(f"{prefix}NAME" for prefix in self._prefixes)])
        listed = f"; `{self._listed_by}` lists them" if self._listed_by else ""
        unread = f"; not read: {one_line('; '.join(self._faults), 80)}" if self._faults else ""
        told = f"known: {one_line(known, 300)}{listed}{unread}"
        return f"did you mean {near[0]}? ({told})" if near else told


def _entry_points(group: str, faults: list[str]) -> Iterator[tuple[str, EntryPoint]]:
    """Yield the entry points of a group with the name and version of their distribution, sorted by name.

    If the path has several copies of a distribution, the first one counts, as in an import. What cannot be read adds a
    line to `faults`.
    """
    found: dict[str, Distribution] = {}
    for each in distributions():
        try:
            found.setdefault(str(each.metadata["Name"]).lower().replace("_", "-"), each)
        except Exception:  # a folder without metadata is no distribution
            continue
    for name, each in sorted(found.items()):
        try:
            points = [point for point in each.entry_points if point.group == group]
        except Exception as error:
            # Ignore broken distributions that have nothing to do with this group.
            if group in _text_of_entry_points(each):
                faults.append(f"{name}: its entry points cannot be read ({type(error).__name__})")
            continue
        yield from ((f"{each.metadata['Name']} {each.version}", point) for point in points)


def _text_of_entry_points(distribution: Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except Exception:  # not UTF-8, or not readable
        return ""


def _is_target(text: str) -> bool:
    module, colon, attribute = text.partition(":")
    parts = (*module.strip().split("."), *attribute.strip().split("."))
    return bool(colon) and all(part.isidentifier() for part in parts)


def _place(target: str | Callable[..., Any]) -> str:
    """Return the location of a target, to recognise it when it is registered again."""
    return target if isinstance(target, str) else f"{target.__module__}:{getattr(target, '__qualname__', repr(target))}"


encoders = Registry(
    "encoder",
    "glioma_dist.encoders",
    EncoderEntry,
    ("glioma_dist.model.encoders.mit_names", "glioma_dist.model.encoders.timm_names"),
    prefixes=("timm/",),
    listed_by="glioma-dist encoders",
)
losses = Registry("loss", "glioma_dist.losses", LossEntry, ("glioma_dist.loss_names",), takes_targets=True)
augmentations = Registry(
    "augmentation", "glioma_dist.augmentations", AugmentationEntry, ("glioma_dist.data.augmentation_names",)
)
trackers = Registry("tracker", "glioma_dist.trackers", TrackerEntry, ("glioma_dist.training.trackers.names",))
sources = Registry("source", "glioma_dist.sources", SourceEntry, ("glioma_dist.data.convert.source_names",))
writers = Registry("format", "glioma_dist.writers", WriterEntry, ("glioma_dist.inference.writers.names",))
