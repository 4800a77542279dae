"""A stand-in for the Hugging Face hub with one repository: what huggingface_hub asks when it lists, reads and commits.

Written after the calls of huggingface_hub 2.4 (without Xet) and git-lfs's batch API.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import HfFileSystem, constants

REPOSITORY = "lab/cells"
TOKEN = "hf_of_the_lab"
LARGE_BYTES = 2**16
"""From this size on files go to the large file storage."""
PAGE = 3
"""Entries of a listing that come at once."""


class Hub:
    """The repository's files, and how often it was committed to. refused: a status that further commits get."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        """The paths that each commit wrote or removed."""
        self.refused: int | None = None
        self.lock = threading.Lock()

    def commit(self, lines: list[dict]) -> str | None:
        """Take a commit. Returns what is wrong with it."""
        with self.lock:
            files, changed = dict(self.files), []
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    continue
                changed.append(value["path"])
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.large[value["oid"]]
                elif value["path"] not in files:
                    return "EntryNotFound"
                else:
                    del files[value["path"]]
            self.files = files
            self.commits.append(changed)
        return None

    def entries(self, folder: str, recursive: bool) -> list[dict] | None:
        """What a folder has; None where there is none of this name."""
        start = f"{folder}/" if folder else ""
        inside = {path: data for path, data in sorted(self.files.items()) if path.startswith(start)}
        if not inside and folder:
            return None
        found: dict[str, dict] = {}
        for path in inside:
            parts = path.removeprefix(start).split("/")
            for depth in range(1, len(parts)) if recursive else range(1, min(2, len(parts))):
                name = start + "/".join(parts[:depth])
                found[name] = {"type": "directory", "oid": _oid(name.encode()), "size": 0, "path": name}
            if recursive or len(parts) == 1:
                found[path] = self.describe(path)
        return list(found.values())

    def oid(self, path: str) -> str | None:
        """What names a file's content; None where there is no such file."""
        data = self.files.get(path)
        return None if data is None else hashlib.sha256(data).hexdigest() if len(data) >= LARGE_BYTES else _oid(data)

    def describe(self, path: str) -> dict:
        data = self.files[path]
        return {"type": "file", "oid": _oid(data), "size": len(data), "path": path}


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        if re.fullmatch(f"/api/models/{REPOSITORY}(/revision/main)?", path):
            self._answer({"id": REPOSITORY, "sha": "0" * 40, "private": False, "tags": [], "siblings": []})
        elif found := re.fullmatch(f"/api/models/{REPOSITORY}/tree/main/?(.*)", path):
            entries = self.hub.entries(found[1], query.get("recursive", ["false"])[0].lower() == "true")
            if entries is None:
                self._refuse(404, "EntryNotFound")
                return
            start = int(query.get("cursor", ["0"])[0])
            further = {key: value[0] for key, value in query.items()} | {"cursor": str(start + PAGE)}
            url = f"http://{self.headers['Host']}{address.path}?" + "&".join(f"{k}={v}" for k, v in further.items())
            link = {"Link": f'<{url}>; rel="next"'} if start + PAGE < len(entries) else {}
            self._answer(entries[start : start + PAGE], link)
        elif (found := re.fullmatch(f"/{REPOSITORY}/resolve/main/(.+)", path)) and found[1] in self.hub.files:
            data, status = self.hub.files[found[1]], 200
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                data, status = data[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None], 206
            self._send(status, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": "0" * 40})
        else:
            self._refuse(404, "EntryNotFound" if REPOSITORY in path else "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == f"/api/models/{REPOSITORY}/paths-info/main":
            is_json = "json" in self.headers.get("Content-Type", "")
            wanted = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
            self._answer([self.hub.describe(each) for each in wanted if each in self.hub.files])
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(403, "")
        elif path == f"/api/models/{REPOSITORY}/preupload/main":
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["size"] >= LARGE_BYTES else "regular",
                    "shouldIgnore": False,
                    "oid": self.hub.oid(each["path"]),
                }
                for each in json.loads(body)["files"]
            ]
            self._answer({"files": modes})
        elif path == f"/{REPOSITORY}.git/info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"http://{self.headers['Host']}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif path == f"/api/models/{REPOSITORY}/commit/main":
            refused = self.hub.refused
            error = None if refused else self.hub.commit([json.loads(line) for line in body.splitlines()])
            if refused or error:
                self._refuse(refused or 404, error or "")
            else:
                url = f"http://{self.headers['Host']}/{REPOSITORY}/commit/{'0' * 40}"
                self._answer({"commitUrl": url, "commitOid": "0" * 40, "success": True, "hookOutput": ""})
        else:
            self._refuse(404, "RepoNotFound")

    def do_PUT(self) -> None:
        data, oid = self._body(), self.path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() != oid:
            self._refuse(400, "")
            return
        self.hub.large[oid] = data
        self._send(200, b"", {})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: object, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "refused"}', {"X-Error-Code": code} if code else {})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serve_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve an empty repository at hf://REPOSITORY, for this process."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    HfFileSystem.clear_instance_cache()  # those of another test have its address
    try:
        yield hub
    finally:
        HfFileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
