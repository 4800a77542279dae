"""Writing to an object store: complete objects, each try bounded in time, with conditions where the store knows them.

An object store has no append and no rename. Whoever writes several objects writes one more at the end that names them;
`Store.replace` writes that one only where nobody else has changed it meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from glioma_dist.data.shards import hub_commits
from glioma_dist.data.shards.storage import Patience, RemoteFolder, is_final, pause, words_of
from glioma_dist.data.shards.transfer import PACE_BYTES, within
from glioma_dist.errors import InputError, UnavailableError, one_sentence
from glioma_dist.files import cannot_read

PART_BYTES = 2**24
"""Of a file that is uploaded in parts (S3): each part has its own tries and its own end in time."""
WRITE_TEST = ".glioma-dist-write-test"
PRECONDITION_FAILED, NOT_IMPLEMENTED = 412, 501
BROKEN_ON_THE_WAY = ("BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch")
"""S3's codes of requests that can be right the next time."""
REFUSED = (errno.EINVAL, errno.EPERM, errno.ENAMETOOLONG, errno.EMSGSIZE)
"""What s3fs makes of S3's codes for requests that stay wrong."""


class ChangedError(Exception):
    """A conditional write was refused: the object is not what it was expected to be."""


class Store(RemoteFolder):
    """A folder at a URL that this process writes to. Raises InputError as `RemoteFolder`.

    `until`: time.monotonic() at which every try ends; None for no such bound. Errors of all methods: InputError where
    the store refuses, UnavailableError where another time may end well.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        super().__init__(url, patience)
        self.until: float | None = None
        self.knows_conditions = url.startswith("s3://")
        """Whether `replace` is safe against another writer."""
        self._is_repository = hub_commits.is_repository(url)

    def put(self, name: str, data: bytes) -> None:
        """Write an object."""
        if self._is_repository:
            self.put_files({name: data})
            return
        self._write(name, lambda seconds: self._call(seconds, "pipe_file", self.where(name), data), len(data))

    def check(self) -> None:
        """Find out whether this process may write here, before hours are spent on what it is to write."""
        self.put(WRITE_TEST, b"")
        self.remove([WRITE_TEST])

    def put_file(self, name: str, path: Path) -> None:
        """Upload a local file. It must not change meanwhile."""
        try:
            size = path.stat().st_size
            if self._is_repository:
                self.put_files({name: path})
            elif self.knows_conditions and size > PART_BYTES:
                self._put_parts(name, path, size)
            elif size <= PART_BYTES:
                self.put(name, path.read_bytes())
            else:
                url, local = self.where(name), str(path)
                self._write(name, lambda seconds: self._call(seconds, "put_file", local, url), size)
        except FileNotFoundError as error:
            raise cannot_read(path, error) from None

    def put_files(self, contents: Mapping[str, bytes | Path]) -> None:
        """Write several objects, of bytes or local files, in their order; to a repository of the hub in one commit."""
        if not contents:
            return
        if not self._is_repository:
            for name, source in contents.items():
                if isinstance(source, bytes):
                    self.put(name, source)
                else:
                    self.put_file(name, source)
            return
        num_bytes = sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in contents.values())
        name = next(iter(contents)) if len(contents) == 1 else ""
        self._commit(name, lambda files: hub_commits.write_files(files, self.url, contents), num_bytes)

    def replace(self, name: str, data: bytes, tag: str | None) -> str:
        """Write an object where it still is the one of `tag`, or is missing where `tag` is None. Returns its new tag.

        The bytes must differ from whatever another process would write: after an answer that was lost, an object of
        these bytes is taken for this one's. Raises ChangedError where it is another. A store that knows no conditions
        writes in any case.
        """
        if not self.knows_conditions:
            self.put(name, data)
            return ""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}

        def write(seconds: float) -> str:
            try:
                return self._s3(seconds, "put_object", name, Body=data, **condition)["ETag"]
            except Exception as error:
                status = _status(error)
                if status == NOT_IMPLEMENTED:
                    self.knows_conditions = False
                    self._call(seconds, "pipe_file", self.where(name), data)
                    return ""
                if status != PRECONDITION_FAILED and not (status == 404 and _code(error) == "NoSuchKey"):
                    raise
            found = self.read_tagged(name, len(data) + 1)
            if found is None or found[0] != data:
                raise ChangedError(name)
            return found[1]

        return self._write(name, write, len(data))

    def read_tagged(self, name: str, max_bytes: int) -> tuple[bytes, str] | None:
        """An object and its tag for `replace`; None where it is missing, or has more than `max_bytes`."""
        if not self.knows_conditions:
            data = self.read_optional(name, max_bytes)
            return None if data is None else (data, "")

        async def read(files: Any) -> tuple[bytes, str] | None:
            bucket, key, _ = files.split_path(self.where(name))
            try:
                answer = await files._call_s3("get_object", Bucket=bucket, Key=key)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return None
            async with answer["Body"] as body:
                data = await body.read() if answer["ContentLength"] <= max_bytes else None
            return None if data is None else (data, answer["ETag"])

        return self._write(name, lambda seconds: self._run(seconds, read), verb="read")

    def read_start(self, name: str, num_bytes: int) -> bytes:
        """The first `num_bytes` of an object, or all of a shorter one."""
        url = self.where(name)
        return self._write(
            name, lambda seconds: self._call(seconds, "cat_file", url, start=0, end=num_bytes), verb="read"
        )

    def describe(self, name: str) -> dict[str, Any]:
        """What the store says of an object: its size, and whatever changes where the object does."""
        url = self.where(name)
        return self._write(name, lambda seconds: self._call(seconds, "info", url), verb="read")

    def entries(self, folder: str = "") -> list[str]:
        """Names of the objects and folders in a folder, without those below."""
        url = f"{self.url}/{folder}".rstrip("/")
        return [each.rpartition("/")[2] for each in self._list(url, "ls", detail=False)]

    def names(self, folder: str) -> list[str]:
        """Names of all objects below a folder, as `put` takes them."""
        url = f"{self.url}/{folder}".rstrip("/")
        root = self._file_system()._strip_protocol(self.url).rstrip("/")
        return [each.removeprefix(f"{root}/") for each in self._list(url, "find")]

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects that may be there."""
        if self._is_repository:
            if given := list(names):
                self._commit("", lambda files: hub_commits.remove_files(files, self.url, given), verb="removed")
            return
        for name in names:
            url = self.where(name)

            def remove(seconds: float, url: str = url) -> None:
                with contextlib.suppress(FileNotFoundError):
                    self._call(seconds, "rm_file", url)

            self._write(name, remove, verb="removed")

    def _commit(self, name: str, work: Callable[[Any], None], num_bytes: int = 0, verb: str = "written") -> None:
        files = self._file_system()
        self._write(name, lambda seconds: within(seconds, lambda: work(files)), num_bytes, verb)

    def _list(self, url: str, method: str, **options: Any) -> list[str]:
        def read(seconds: float) -> list[str]:
            self._file_system().invalidate_cache()
            try:
                return list(self._call(seconds, method, url, **options))
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return []

        found = self._write("", read, verb="listed")
        own = self._file_system()._strip_protocol(url).rstrip("/")
        return [each for each in (name.rstrip("/") for name in found) if each != own]

    def _put_parts(self, name: str, path: Path, size: int) -> None:
        """Upload a large file to S3, part by part. What is given up leaves no object."""
        upload = self._write(name, lambda seconds: self._s3(seconds, "create_multipart_upload", name))["UploadId"]
        parts = []
        try:
            with path.open("rb") as file:
                for number in range(1, 1 + -(-size // PART_BYTES)):
                    data = file.read(PART_BYTES)
                    here = {"UploadId": upload, "PartNumber": number, "Body": data}
                    answer = self._write(
                        name, lambda seconds, here=here: self._s3(seconds, "upload_part", name, **here), len(data)
                    )
                    parts.append({"ETag": answer["ETag"], "PartNumber": number})
            told = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
            self._write(name, lambda seconds: self._s3(seconds, "complete_multipart_upload", name, **told))
        except BaseException:
            with contextlib.suppress(Exception):
                self._s3(self.patience.seconds, "abort_multipart_upload", name, UploadId=upload)
            raise

    def _s3(self, seconds: float, method: str, name: str, **options: Any) -> Any:
        async def call(files: Any) -> Any:
            bucket, key, _ = files.split_path(self.where(name))
            return await files._call_s3(method, Bucket=bucket, Key=key, **options)

        return self._run(seconds, call)

    def _call(self, seconds: float, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of fsspec's file system, within `seconds`."""
        files = self._file_system()
        if files.async_impl:
            own = "_rm_file" if method == "rm_file" else f"_{method}"
            return self._run(seconds, lambda files: getattr(files, own)(*arguments, **options))
        return within(seconds, lambda: getattr(files, method)(*arguments, **options))

    def _run(self, seconds: float, function: Callable[[Any], Any]) -> Any:
        """Run a coroutine on fsspec's loop; it is called off where it takes longer."""
        from fsspec.asyn import sync

        files = self._file_system()
        return sync(files.loop, function, files, timeout=seconds)

    def _write(self, name: str, work: Callable[[float], Any], num_bytes: int = 0, verb: str = "written") -> Any:
        """What `work` returns, tried as often as `patience` says. It gets the seconds that a try may take."""
        url = self.where(name) if name else self.url
        wait, attempts, asked, last = self.patience.wait_seconds, 0, 0.0, "there was no time for a try"
        while attempts < self.patience.attempts:
            if attempts:
                time.sleep(max(0.0, min(pause(wait, asked), self._left())))
                wait *= 2
            seconds = min(self.patience.seconds * (1 + num_bytes // PACE_BYTES), self._left())
            if seconds <= 0:
                break
            attempts += 1
            try:
                return work(seconds)
            except (InputError, ChangedError):
                raise
            except Exception as error:
                last, asked = words_of(error, seconds), getattr(error, "retry_after", 0.0)
                if _stays_wrong(error):
                    advice = "is the URL right, does the bucket exist, and do your credentials allow it?"
                    raise InputError(one_sentence(f"{url} cannot be {verb} ({last}); {advice}")) from None
        tries = "1 try" if attempts == 1 else f"{attempts} tries"
        raise UnavailableError(one_sentence(f"{url} cannot be {verb} after {tries} (the last: {last}); try later"))

    def _left(self) -> float:
        return float("inf") if self.until is None else self.until - time.monotonic()


def _stays_wrong(error: Exception) -> bool:
    if _code(error) in BROKEN_ON_THE_WAY:
        return False
    return is_final(error) or (isinstance(error, OSError) and error.errno in REFUSED)


def _answer(error: BaseException | None) -> dict:
    """What S3 answered, as botocore keeps it; empty where it did not."""
    found = getattr(error, "response", None) or getattr(getattr(error, "__cause__", None), "response", None)
    return found if isinstance(found, dict) else {}


def _code(error: BaseException) -> str:
    return _answer(error).get("Error", {}).get("Code", "")


def _status(error: BaseException) -> int | None:
    return _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
