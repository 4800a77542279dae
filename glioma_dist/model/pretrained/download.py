"""Weights from the internet: out of the local cache, or fetched with a bound on how long nothing comes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled as bars_are_off
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, logging
from torch.hub import get_dir, load_state_dict_from_url

SECONDS_WITHOUT_A_BYTE = 8.0
"""Given up after that. The libraries' own retries take minutes in all."""
SLOW_SECONDS = 60.0
LEAST_BYTES = 60 * 2**10
"""That come within `SLOW_SECONDS`, or the server counts as silent: one that sends a byte a second would take years."""
HUB_CHUNK_BYTES = 2**16
"""That the hub's client gathers before it writes them. Its own 10 MiB take longer than `SECONDS_WITHOUT_A_BYTE` over a
line of 10 Mbit/s, during which the file does not grow."""
POLL_SECONDS = 0.2
THREAD = "download"


class NotReachedError(Exception):
    """A server did not answer, or refused."""


def from_hub(name: str, files: tuple[str, ...]) -> Path:
    """The first of `files` that the repository `name` of the Hugging Face hub has, from the local cache where it is
    there. Raises NotReachedError, within `SECONDS_WITHOUT_A_BYTE` of the last byte that came."""
    found = next(filter(None, (cached(name, file) for file in files)), None)
    for file in files if found is None else ():
        found = from_hub_if_there(name, file, tells=True)
        if found is not None:
            break
    if found is None:
        raise NotReachedError(f"it has none of {', '.join(files)}")
    return found


def cached(name: str, file: str, commit: str | None = None) -> Path | None:
    """A file of a repository of the hub, if it is in the local cache. The network is not asked, which the client does
    even for files that are here. commit: by default the newest that is here."""
    path = try_to_load_from_cache(name, file, revision=commit)
    return Path(path) if isinstance(path, str) else None


def from_hub_if_there(name: str, file: str, commit: str | None = None, tells: bool | None = None) -> Path | None:
    """The same from the hub; None where the repository has no such file. Raises as `from_hub`.

    commit: by default the hub's newest. tells: whether the download is told on the screen; None: that of weights.
    """
    cache = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    is_told = tells if tells is not None else not file.endswith((".json", ".md"))
    try:
        what = f"{name}, {file}" if is_told else None
        return Path(within_bound(lambda: hf_hub_download(name, file, revision=commit), cache, what))
    except errors.LocalEntryNotFoundError as error:
        raise NotReachedError(cause_in_words(error)) from error
    except errors.EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise NotReachedError(cause_in_words(error)) from error


def from_url(url: str) -> dict[str, Any]:
    """The state dict at a URL, from torch's cache where it is there. Raises as `from_hub`."""
    cache = Path(get_dir()) / "checkpoints"

    def load() -> dict[str, Any]:
        return load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True, progress=False)

    try:
        return within_bound(load, cache, None)  # torch tells itself what it downloads
    except OSError as error:
        raise NotReachedError(cause_in_words(error)) from error


def within_bound(fetch: Callable[[], Any], folder: Path, what: str | None) -> Any:
    """What `fetch` returns or raises; NotReachedError where nothing in `folder` grows for `SECONDS_WITHOUT_A_BYTE`, or
    less than `LEAST_BYTES` come in `SLOW_SECONDS`.

    A thread that is given up does not keep the process from ending. what: told on the screen, because it can take long.
    """
    if what and os.environ.get("RANK", "0") == "0":
        print(f"downloading {what}", flush=True)
    ended: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            ended.append((fetch(), None))
        except BaseException as error:
            ended.append((None, error))

    with _watched_hub():
        thread = threading.Thread(target=work, daemon=True, name=THREAD)
        thread.start()
        size, since = _bytes_below(folder), time.monotonic()
        before, start = size, since
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            found, now = _bytes_below(folder), time.monotonic()
            if found != size:
                size, since = found, now
            elif now - since > SECONDS_WITHOUT_A_BYTE and thread.is_alive():
                raise NotReachedError(f"nothing came for {SECONDS_WITHOUT_A_BYTE:g} s")
            if now - start > SLOW_SECONDS:
                if found - before < LEAST_BYTES and thread.is_alive():
                    raise NotReachedError(f"only {max(0, found - before)} bytes came in {SLOW_SECONDS:g} s")
                before, start = found, now
    value, error = ended[0]
    if error is not None:
        raise error
    return value


@contextmanager
def _watched_hub() -> Iterator[None]:
    """Without the client's bars and its line for each retry, and writing often enough that its files can be watched."""
    verbosity, were_off, chunk_bytes = logging.get_verbosity(), bars_are_off(), constants.DOWNLOAD_CHUNK_SIZE
    constants.DOWNLOAD_CHUNK_SIZE = HUB_CHUNK_BYTES
    logging.set_verbosity(logging.CRITICAL)
    if not were_off:
        disable_progress_bars()
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = chunk_bytes
        # A thread that was given up would continue to write.
        if not any(thread.name == THREAD for thread in threading.enumerate()):
            logging.set_verbosity(verbosity)
            if not were_off:
                enable_progress_bars()


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:  # renamed meanwhile
            continue
    return total


def cause_in_words(error: Exception) -> str:
    """The first line of the innermost cause, which says what the network did."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
