"""A headless Chromium for the tests of pages, spoken to over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

SECONDS = 120.0


class Chromium:
    """One page in a browser. `complaints` holds what the page wrote as errors to the console, and its exceptions."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._number, self.complaints = 0, []
        self._session = self._run(self._connect(address))
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._page = None
        self._page = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict:
        """Call a method of the protocol, and return its result."""
        return self._run(asyncio.wait_for(self._call(method, parameters), SECONDS))

    def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = SECONDS) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < until, (
                f"not true in {seconds} s: {expression}\n{self.value('document.body.innerText')}"
            )
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in an input of the page, as its dialog does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def close(self) -> None:
        """Close the connection."""
        self._run(self._close())
        self._loop.close()

    def _run(self, what: Any) -> Any:
        return self._loop.run_until_complete(what)

    async def _connect(self, address: str) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession()
        self._socket = await session.ws_connect(address, max_msg_size=0)
        return session

    async def _close(self) -> None:
        await self._socket.close()
        await self._session.close()

    async def _call(self, method: str, parameters: dict) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        page = getattr(self, "_page", None)
        await self._socket.send_json(message | ({"sessionId": page} if page else {}))
        while True:
            answer = json.loads((await self._socket.receive()).data)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            given = answer.get("params", {})
            if answer.get("method") == "Runtime.exceptionThrown" or (
                answer.get("method") == "Log.entryAdded" and given["entry"]["level"] == "error"
            ):
                self.complaints.append(given)


@contextlib.contextmanager
def chromium(folder: Path, width: int = 1280, height: int = 900) -> Iterator[Chromium]:
    """A browser whose profile is in `folder`. Skips the test where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not on PATH: pages are tested where it is (Debian's package chromium)")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    flags += ["--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    with subprocess.Popen([program, *flags], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            address = next(
                found[1] for line in lines if (found := re.search(r"DevTools listening on (ws://\S+)", line))
            )
            page = Chromium(address)
            try:
                yield page
            finally:
                page.close()
        finally:
            process.kill()
