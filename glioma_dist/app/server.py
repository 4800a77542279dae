"""The web server of the page: for this machine only, on the standard library."""

from __future__ import annotations

import gzip
import json
import re
import sys
import tempfile
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

from glioma_dist.app.pictures import KeptPictures, Segmenter, ShownPicture
from glioma_dist.errors import InputError, MemoryFullError, RunError, UnavailableError, one_line, printable
from glioma_dist.files import cannot_write

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
}
MAX_UPLOAD_BYTES = 2**29
PIECE_BYTES = 2**20
SECONDS = 60.0
"""How long a browser may be silent in the middle of a request."""
PICTURE = re.compile(r"/pictures/([\w-]{22})/(picture\.png|levels|mask\.png)")
LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class RefusedError(Exception):
    """A request that gets no answer but a status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class AppServer(ThreadingHTTPServer):
    """Serves the page and the pictures that are dropped on it. Several people of this machine may use it at once.

    title: the network's name. folder: for uploaded files, until they are segmented. port 0: any free one.
    Raises InputError where the port cannot be used.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024
    """Connections that wait to be accepted; the system may allow fewer. Others are reset, which a browser shows as an
    upload that failed."""

    def __init__(self, segmenter: Segmenter, title: str, folder: Path, port: int) -> None:
        self.segmenter, self.title, self.folder, self.pictures = segmenter, title, folder, KeptPictures()
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"--port {port}: cannot be used ({why}); give another, or 0 for any free one") from None

    @property
    def address(self) -> str:
        """The URL of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Print an error, unless a browser closed its connection."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: AppServer
    timeout = SECONDS

    def do_GET(self) -> None:
        """Send a file of the page, or a picture that was uploaded."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Take a picture, and answer when it is segmented."""
        self._answer(self._post)

    def log_message(self, format: str, *values: object) -> None:
        """Print nothing for a request."""

    def _answer(self, function) -> None:
        try:
            self._check_sender()
            function()
        except RefusedError as error:
            self._send_error(error.status, str(error))
        except MemoryFullError as error:
            self._send_error(507, one_line(error))
        except UnavailableError as error:
            self._send_error(503, one_line(error))
        except RunError as error:
            self._send_error(400, one_line(error))
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:
            self._send_error(507, one_line(cannot_write(self.server.folder, error)))
        except Exception:
            traceback.print_exc()
            self._send_error(500, "an error of the program; the terminal shows it")

    def _check_sender(self) -> None:
        """Refuse pages of other origins, which a browser would let send requests here: by a name of their own that
        leads to this machine, or by a form. The port may be another: that of an SSH tunnel."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not LOCAL_HOST.fullmatch(host) or origin not in (None, f"http://{host}"):
            raise RefusedError(403, f"open {self.server.address}: requests from other pages are refused")

    def _url(self) -> SplitResult:
        try:
            return urlsplit(self.path)
        except ValueError:
            raise RefusedError(404, "no such page") from None

    def _get(self) -> None:
        url = self._url()
        if url.path in FILES:
            name, kind = FILES[url.path]
            text = (PAGE / name).read_text("utf-8")
            self._send(200, kind, text.replace("{{network}}", _escaped(self.server.title)).encode())
            return
        if url.path == "/settings":
            self._send_json(200, {"max_bytes": MAX_UPLOAD_BYTES})
            return
        found = PICTURE.fullmatch(url.path)
        picture = self.server.pictures.find(found[1]) if found else None
        if not found:
            raise RefusedError(404, "no such page")
        if picture is None:
            raise RefusedError(404, "this picture is not kept any more; drop it again")
        self._send_part(picture, found[2], parse_qs(url.query))

    def _send_part(self, picture: ShownPicture, part: str, query: dict[str, list[str]]) -> None:
        if part == "picture.png":
            self._send(200, "image/png", picture.png)
        elif part == "levels":
            packed = gzip.compress(picture.levels.tobytes(), 1)
            self._send(200, "application/octet-stream", packed, {"Content-Encoding": "gzip"})
        else:
            threshold = query.get("threshold", [""])[0]
            if not re.fullmatch(r"[1-9]\d?", threshold):
                raise RefusedError(400, "threshold: give a whole number of percent, from 1 to 99")
            name = quote(f"{Path(picture.name).stem}.mask.png", safe="")
            headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
            self._send(200, "image/png", picture.mask_png(int(threshold)), headers)

    def _post(self) -> None:
        url = self._url()
        if url.path != "/pictures":
            raise RefusedError(404, "no such page")
        given = parse_qs(url.query, errors="replace").get("name", ["picture"])[0]
        name = one_line(Path(given).name or "picture", 200)
        suffix = Path(name).suffix
        with tempfile.TemporaryDirectory(dir=self.server.folder) as folder:
            path = Path(folder) / f"picture{suffix if SUFFIX.fullmatch(suffix) else ''}"
            self._receive(path, name)
            picture = self.server.segmenter.segment(path, name)
        key = self.server.pictures.add(picture)
        answer = {"key": key, "name": name, "width": picture.width, "height": picture.height, "note": picture.note}
        self._send_json(201, answer)

    def _receive(self, path: Path, name: str) -> None:
        """Write what is sent to a file. Raises RefusedError, and OSError where the disk is full."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,15}", length):
            raise RefusedError(411, f"{name}: its length is not known; drop a file")
        left = int(length)
        if left > MAX_UPLOAD_BYTES:
            raise RefusedError(
                413, f"{name}: has {left} bytes, more than the {MAX_UPLOAD_BYTES} of this page; use glioma-dist predict"
            )
        with path.open("wb") as file:
            while left and (piece := self.rfile.read(min(left, PIECE_BYTES))):
                file.write(piece)
                left -= len(piece)
        if left:
            raise ConnectionAbortedError("the browser stopped sending")

    def _send_json(self, status: int, content: dict) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send_error(self, status: int, line: str) -> None:
        self.close_connection = True
        self._send_json(status, {"error": printable(line)})

    def _send(self, status: int, kind: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        given = {"Content-Type": kind, "Content-Length": str(len(data)), **HEADERS, **(headers or {})}
        for header, value in given.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(data)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
