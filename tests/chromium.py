"""A headless Chromium driven over its DevTools protocol: what a reader's browser does and says."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--hide-scrollbars", "--remote-debugging-port=0", "--remote-allow-origins=*")


class Browser:
    """One tab. `said` holds its errors and `asked` the addresses it fetched, since `open`."""

    def __init__(self, home: Path):
        self.process = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={home}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = home / "DevToolsActivePort"
        self._until(lambda: port.exists() and port.read_text().count("\n"), 30)
        self.socket = websocket.create_connection(
            "ws://127.0.0.1:{}{}".format(*port.read_text().split()), timeout=120)
        self.count, self.session = 0, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"]
        self.said, self.asked, self.loaded = [], [], False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        """End the process that was started."""
        try:
            self.session = None
            self.send("Browser.close")
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; events that come before its answer are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        self.socket.send(json.dumps(message))
        while (answer := self._receive()).get("id") != self.count:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, address: str, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a page and wait until it and its equations are drawn."""
        self.said, self.asked = [], []
        self.view(width, height)
        self.scheme(dark)
        with self.arrival():
            self.send("Page.navigate", url=address)
        self.run("window.MathJax?.startup?.promise")
        self.run("document.fonts.ready.then(() => 1)")

    @contextmanager
    def arrival(self) -> Iterator[None]:
        """Until the page that the block asks for is loaded: one that leaves answers no more."""
        self.loaded = False
        yield
        while not self.loaded:
            self._receive()

    def view(self, width: int, height: int = 900) -> None:
        """The size of the window, in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)

    def scheme(self, dark: bool) -> None:
        """What the reader's system prefers."""
        self.send("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited where it is a promise."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True,
                          returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 10) -> None:
        """Until an expression in the page is true."""
        self._until(lambda: self.run(script), seconds, script)

    def key(self, name: str, code: int, text: str = "") -> None:
        """Press and let go one key."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, text=text,
                      windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Text, into what has the focus."""
        self.send("Input.insertText", text=text)

    @staticmethod
    def _until(done, seconds: float, what: str = "Chromium") -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"after {seconds} s still not: {what}"
            time.sleep(0.05)

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self.socket.recv())
        method, given = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            self.asked.append(given["request"]["url"])
        elif method == "Network.responseReceived" and given["response"]["status"] >= 400:
            self.said.append(f"{given['response']['status']} {given['response']['url']}")
        elif method == "Runtime.exceptionThrown":
            self.said.append(given["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "assert"):
            self.said.append(" ".join(str(a.get("value", a)) for a in given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.said.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")
        return message
