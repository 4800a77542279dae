"""Strips of one image that take turns in one process.

A strip does what a process of a spatial group does (`scale/spatial_group.py`), in a thread that computes until it needs
rows or tokens that another strip has not computed yet. Then the next strip takes its turn. One computes at a time,
always the first one that can. So strips finish from top to bottom, and if a network needs only neighbouring rows, few
strips are in memory at once. The feature maps of a strip that waits may be written to a file.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glioma_dist.inference.large.scratch import Scratch
from glioma_dist.scale.spatial_group import SpatialGroup

LEAST_BYTES = 2**16
"""Of a map that is worth a place in the file."""


class Abandoned(BaseException):
    """Ends the thread of a strip when another one has failed. No Exception, so that no layer catches it."""


class TurnsGroup(SpatialGroup):
    """A spatial group whose processes are strips that take turns in this process."""

    def __init__(self, num_strips: int, height: int) -> None:
        self.turns: Turns | None = None
        self.size, self.dp_rank, self.dp_size, self.group = num_strips, 0, 1, None
        self.cut(height)

    @property
    def rank(self) -> int:
        """The strip whose turn it is."""
        return 0 if self.turns is None or self.turns.current is None else self.turns.current.number

    def exchange(self, to_previous: Tensor, to_next: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """As `SpatialGroup.exchange`."""
        return self.turns.exchange(to_previous, to_next)

    def gather(self, part: Tensor, lengths: list[int]) -> Tensor:
        """As `SpatialGroup.gather`; all strips get the same tensor."""
        return self.turns.gather(part)


class Turns:
    """Computes a function for each strip.

    group: of as many strips. is_full: says whether a strip that begins to wait must give its memory back; its maps go
    to `scratch` then. The threads of the strips compute nothing themselves: all operations run in the thread that calls
    `run`, so that there is one pool of OpenMP threads and one memory arena.
    """

    def __init__(self, group: TurnsGroup, is_full: Callable[[], bool], scratch: Scratch) -> None:
        self.group, self.is_full, self.scratch = group, is_full, scratch
        group.turns = self
        self.current: Strip | None = None
        self.spilled_bytes = 0
        """Written to the file so far."""
        self._letters: dict[tuple[int, int, int], Tensor] = {}
        """Rows that a strip has sent: to which strip, in its exchange of which number, from which side."""
        self._parts: dict[int, dict[int, Tensor]] = {}
        self._gathered: dict[int, Tensor] = {}
        """Of each gathering: the strips' parts; and all of them joined, until every strip has taken it."""
        self._events: queue.SimpleQueue = queue.SimpleQueue()

    def run(self, compute: Callable[[int], Any], take: Callable[[int, Any], None]) -> None:
        """Compute `compute(number)` for each strip in its turn, and give each result to `take(number, result)`, from
        the first strip to the last. Raises what either of them raises."""
        strips = [Strip(number, self, compute) for number in range(self.group.size)]
        first, num_started = 0, 0
        try:
            while first < len(strips):
                ready = (strip for strip in strips[first:num_started] if strip.is_ready())
                strip = next(ready, None)
                if strip is None:
                    strip = strips[num_started]  # there is one: a strip waits for those after it only, or for all
                    num_started += 1
                self._give_turn(strip)
                while first < len(strips) and strips[first].is_done:
                    take(first, strips[first].result)
                    strips[first].result = None
                    first += 1
        finally:
            self.group.turns = self.current = None
            for strip in strips[first:num_started]:
                strip.abandon()

    def _give_turn(self, strip: Strip) -> None:
        """Let a strip compute until it waits or ends."""
        self.current = strip
        strip.bring_back()
        strip.go_on(None)
        while True:
            what, value = self._events.get()
            if what == "compute":
                try:
                    # The thread's call has passed autograd and its notes of views already.
                    with torch.inference_mode(), torch._C._AutoDispatchBelowADInplaceOrView():
                        answer = value()
                except Exception as error:
                    strip.go_on(error)  # the layer may know it; else the thread fails with it
                else:
                    strip.go_on((answer,))
                # What the strip lets go of must not live on here while the next operation computes.
                answer = value = None
                continue
            if what == "failed":
                raise value
            if what == "done":
                strip.result, strip.is_done, strip.is_ready = value, True, _never
            else:
                strip.is_ready = value
                if self.is_full():
                    self.spilled_bytes += strip.spill()
            self.current = None
            return

    def exchange(self, to_previous: Tensor, to_next: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """Called by a strip's thread; see `SpatialGroup.exchange`."""
        strip = self.current
        number, strip.num_exchanges = strip.num_exchanges, strip.num_exchanges + 1
        wanted = []
        with strip.untracked():  # others read these
            for side, sent, kept in ((-1, to_previous, to_next), (1, to_next, to_previous)):
                neighbour = strip.number + side
                if 0 <= neighbour < self.group.size:
                    self._letters[neighbour, number, -side] = sent.clone(memory_format=torch.contiguous_format)
                    wanted.append((strip.number, number, side))
                else:
                    wanted.append(kept)

        def wait() -> tuple[Tensor, Tensor]:
            keys = [each for each in wanted if isinstance(each, tuple)]
            strip.wait_until(lambda: all(key in self._letters for key in keys))
            received = [
                self._letters.pop(each)
                if isinstance(each, tuple)
                else torch.zeros(each.shape, dtype=each.dtype, device=each.device)
                for each in wanted
            ]
            return received[0], received[1]

        return wait

    def gather(self, part: Tensor) -> Tensor:
        """Called by a strip's thread. part: (B, C, any number, …). Returns all strips' parts, joined along dimension
        2."""
        strip = self.current
        number, strip.num_gatherings = strip.num_gatherings, strip.num_gatherings + 1
        parts = self._parts.setdefault(number, {})
        with strip.untracked():
            parts[strip.number] = part.clone()
        del part
        strip.wait_until(lambda: number in self._gathered or len(parts) == self.group.size)
        if number not in self._gathered:
            with strip.untracked():
                self._gathered[number] = torch.cat([parts[each] for each in range(self.group.size)], dim=2)
            parts.update(dict.fromkeys(parts))
        joined = self._gathered[number]
        del parts[strip.number]
        if not parts:
            del self._gathered[number], self._parts[number]
        return joined

    def ask(self, what: str, value: Any) -> Any:
        """Ask the thread of `run`, and wait until it answers. Called by a strip's thread."""
        strip = self.current
        self._events.put((what, value))
        return strip.answer()


class Strip:
    """A strip: the thread that computes it, what it waits for, and the maps that it holds."""

    def __init__(self, number: int, turns: Turns, compute: Callable[[int], Any]) -> None:
        self.number, self._turns, self._compute = number, turns, compute
        self.is_ready: Callable[[], bool] = _always
        self.is_done, self.result = False, None
        self.num_exchanges = self.num_gatherings = 0
        self._thread: threading.Thread | None = None
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        self._held: list[StorageWeakRef] = []
        self._spilled: list[tuple[torch.UntypedStorage, int, int]] = []
        self._tracks = True

    def go_on(self, answer: Any) -> None:
        """Let the thread compute; at the first time it is started."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"strip {self.number}", daemon=True)
            self._thread.start()
        else:
            self._answers.put(answer)

    def abandon(self) -> None:
        """End the thread, and free what its functions hold."""
        if self._thread is not None and self._thread.is_alive():
            self._answers.put(Abandoned())
            self._thread.join()

    def answer(self) -> Any:
        """Return the answer to what the thread asked, or raise it if it is an error."""
        found = self._answers.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Let other strips take their turns until `is_ready()`."""
        if not is_ready():
            self._turns.ask("wait", is_ready)

    def _run(self) -> None:
        try:
            with torch.inference_mode(), _InOneThread(self._turns, self):
                result = self._compute(self.number)
        except Abandoned:
            return
        except BaseException as error:
            self._turns._events.put(("failed", error))
        else:
            self._turns._events.put(("done", result))

    @contextmanager
    def untracked(self) -> Iterator[None]:
        """Return a context manager in which new tensors stay in memory while the strip waits."""
        self._tracks = False
        try:
            yield
        finally:
            self._tracks = True

    def note(self, args: Any, result: Any) -> None:
        """Remember new maps of an operation, so that they can be spilled."""
        if not self._tracks:
            return
        known = None
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() >= LEAST_BYTES:
                storage = leaf.untyped_storage()
                if known is None:
                    known = {each.untyped_storage()._cdata for each in tree_leaves(args) if isinstance(each, Tensor)}
                if storage._cdata not in known and storage.resizable():
                    self._held.append(StorageWeakRef(storage))
        if len(self._held) > 64:
            self._held = [each for each in self._held if not each.expired()]

    def spill(self) -> int:
        """Write all maps of the strip to the file and free their memory. Returns how many bytes."""
        for reference in self._held:
            if reference.expired():
                continue
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is not None and storage.nbytes():
                num_bytes = storage.nbytes()
                self._spilled.append((storage, self._turns.scratch.put(storage), num_bytes))
                storage.resize_(0)
        return sum(num_bytes for _, _, num_bytes in self._spilled)

    def bring_back(self) -> None:
        """Read the maps that `spill` wrote."""
        for storage, place, num_bytes in self._spilled:
            storage.resize_(num_bytes)
            self._turns.scratch.take(place, storage)
        self._spilled = []


class _InOneThread(TorchDispatchMode):
    """Has all operations of a strip's thread computed by the thread of `Turns.run`."""

    def __init__(self, turns: Turns, strip: Strip) -> None:
        super().__init__()
        self._turns, self._strip = turns, strip

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        def compute() -> Any:
            result = func(*args, **(kwargs or {}))
            self._strip.note((args, kwargs), result)
            return result

        return self._turns.ask("compute", compute)[0]


def _always() -> bool:
    return True


def _never() -> bool:
    return False
