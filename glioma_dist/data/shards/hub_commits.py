"""Writing to a repository of the Hugging Face hub: several files in one commit, because the hub limits commits by the
hour. A commit is there completely or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def is_repository(url: str) -> bool:
    """Whether a URL is that of a repository on the hub, or of something in it."""
    return url.startswith("hf://") and not url.startswith("hf://buckets/")


def write_files(files: Any, url: str, contents: Mapping[str, bytes | Path]) -> None:
    """Write files below `url` in one commit. files: huggingface_hub's HfFileSystem. contents: by their names below the
    URL. Raises what huggingface_hub raises."""
    from huggingface_hub import CommitOperationAdd

    place = files.resolve_path(url)
    sources = {name: source if isinstance(source, bytes) else str(source) for name, source in contents.items()}
    _commit(files, place, [CommitOperationAdd(_inside(place, name), source) for name, source in sources.items()])


def remove_files(files: Any, url: str, names: Iterable[str]) -> None:
    """Remove those of the files below `url` that are there, in one commit. See `write_files`."""
    from huggingface_hub import CommitOperationDelete

    place = files.resolve_path(url)
    wanted = [_inside(place, name) for name in names]
    # A commit that removes a missing file is refused as a whole.
    found = _api(files).get_paths_info(place.repo_id, wanted, revision=place.revision, repo_type=place.repo_type)
    there = {each.path for each in found}
    _commit(files, place, [CommitOperationDelete(each, is_folder=False) for each in wanted if each in there])


def _commit(files: Any, place: Any, operations: list) -> None:
    if operations:
        with _silent():
            _api(files).create_commit(
                place.repo_id,
                operations,
                commit_message="glioma-dist",
                revision=place.revision,
                repo_type=place.repo_type,
            )
        files.invalidate_cache()


def _api(files: Any) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=files.endpoint, token=files.token)


def _inside(place: Any, name: str) -> str:
    return f"{place.path_in_repo}/{name}" if place.path_in_repo else name


@contextmanager
def _silent() -> Iterator[None]:
    """Without the client's bars, and its warning where a file is there already."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    verbosity, had_bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(logging.ERROR)
    if had_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            enable_progress_bars()
