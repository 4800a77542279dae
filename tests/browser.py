"""A real browser, driven through Chromium's DevTools protocol over pipes: real clicks and keys, and its console.

The protocol: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

SECONDS = 120.0
"""To wait for an answer: machines that run tests are busy."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--remote-debugging-pipe", "--disable-background-networking", "--disable-extensions"),
)


class Browser:
    """One page of a headless Chromium; a context manager. Skips the test where there is no chromium on PATH.

    errors: what the console showed as an error, and exceptions of scripts. requests: URLs that the page asked for.
    """

    def __init__(self) -> None:
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("chromium is not on PATH: the page is tried where it is (Debian's package chromium)")
        self._program = program
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._number, self._data = 0, b""
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> "Browser":
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        redirected = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        flags = [*FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, self._program, *flags],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in targets if each["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        self._process.terminate()
        self._process.wait()
        os.close(self._in)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._events.append(answer)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page: Path | str) -> None:
        """Load a file or a URL, to its end."""
        self._note_events()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not any(each.get("method") == "Page.loadEventFired" for each in self._events):
            self._events.append(self._next())
        self.evaluate("Promise.all([...document.images].filter((image) => image.src).map((image) => image.decode()))")

    def evaluate(self, script: str) -> Any:
        """The value of an expression on the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        self._note_events()
        return found["result"].get("value")

    def wait_for(self, script: str, seconds: float = SECONDS) -> None:
        """Wait until an expression on the page is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(script):
            if time.monotonic() > end:
                raise AssertionError(f"not true in {seconds} s: {script}\n{self.evaluate('document.body.innerText')}")
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in an input, as its dialog does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def drop(self, *paths: Path) -> None:
        """Drop files or folders on the middle of the window, as from a file manager."""
        x, y = self.evaluate("[innerWidth / 2, innerHeight / 2]")
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def click(self, selector: str) -> None:
        """A click with the mouse on the middle of an element."""
        script = (
            f"(() => {{ const each = document.querySelector({json.dumps(selector)}); each.scrollIntoView("
            "{block: 'center'}); const box = each.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        x, y = self.evaluate(script)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int) -> None:
        """A key, such as Tab, by its name and its Windows code."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Letters, to what has the focus."""
        self.call("Input.insertText", text=text)

    def look(self, width: int, height: int, is_dark: bool = False, is_print: bool = False) -> None:
        """Set the size of the window in CSS pixels, the colours that the user prefers, and the medium."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        colours = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if is_print else "", features=[colours])

    def screenshot(self, path: Path) -> None:
        """Write what is in the window as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._data:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError(f"the browser did not answer in {SECONDS} s")
            part = os.read(self._in, 2**20)
            if not part:
                raise AssertionError("the browser ended")
            self._data += part
        message, _, self._data = self._data.partition(b"\0")
        return json.loads(message)

    def _note_events(self) -> None:
        for event in self._events:
            method, values = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                self.errors.append(str(values["exceptionDetails"]))
            elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
                self.errors.append(values["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
                self.errors.append(str(values["args"]))
            elif method == "Network.requestWillBeSent":
                self.requests.append(values["request"]["url"])
        self._events.clear()
