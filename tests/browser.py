"""A real browser, driven over two pipes: what it says, what it asks for, and how a page looks.

Chromium speaks its debugging protocol over the file descriptors 3 and 4, one JSON text after another with a zero byte
between, so nothing but the browser is needed: no port, no driver.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-extensions",
         "--no-default-browser-check", "--disable-default-apps", "--mute-audio", "--hide-scrollbars")  # fmt: skip


def binary() -> str | None:
    """The browser that is installed, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None) if sys.platform == "linux" else None


def _high(end: int) -> int:
    """Move a descriptor out of the way of those that the browser expects."""
    moved = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(end)
    return moved


class Browser:
    """One headless browser with a profile of its own; use it as a context."""

    def __init__(self, profile: Path) -> None:
        to_browser, self.write = map(_high, os.pipe())
        self.read, from_browser = map(_high, os.pipe())
        command = [binary(), *QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        places = [(os.POSIX_SPAWN_DUP2, to_browser, 3), (os.POSIX_SPAWN_DUP2, from_browser, 4)]
        places += [(os.POSIX_SPAWN_OPEN, end, os.devnull, os.O_RDWR, 0) for end in (1, 2)]
        self.process = os.posix_spawn(command[0], command, dict(os.environ), file_actions=places)
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.buffer, self.events, self.session = 0, b"", [], None

    def __enter__(self) -> Browser:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.process, signal.SIGTERM)
        os.waitpid(self.process, 0)
        os.close(self.read)
        os.close(self.write)

    def call(self, method: str, **params: object) -> dict:
        """Ask the browser for something and wait for the answer; what happens meanwhile is kept in ``events``."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self, seconds: float = 120) -> dict:
        until = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self.read, 1 << 20) if ready else b""
            assert part, "the browser fell silent"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def open(self, page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open a file at a width in CSS pixels, light or dark, and wait until it is there."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> object:
        """What an expression comes to inside the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self) -> list[dict]:
        """Everything that the page put on the console, and every exception."""
        wanted = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event for event in self.events if event.get("method") in wanted]

    def requests(self) -> list[str]:
        """The addresses that the page asked for, itself and data inside it apart."""
        urls = [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in urls[1:] if not url.startswith("data:")]

    def picture(self, out: Path, whole: bool = True) -> Path:
        """Take a picture of the page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))
        out.write_bytes(base64.b64decode(found["data"]))
        return out

    def _clip(self, whole: bool) -> dict:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def print(self, out: Path) -> Path:
        """Print the page as PDF."""
        found = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        out.write_bytes(base64.b64decode(found["data"]))
        return out
