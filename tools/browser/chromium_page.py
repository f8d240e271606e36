"""Owns one page in a headless Chromium, driven over its debugging pipe; what is on the page it does not know.

The pipe speaks the DevTools protocol: JSON messages, each ended by a zero byte, on descriptors 3 (in) and 4
(out) of the browser. So neither a driver program nor a websocket library is needed.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60.0
"""How long anything may take; far more than it does."""

_PIECE = 1 << 20


def find_chromium() -> str | None:
    """The browser's program, or None where none is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class ChromiumPage:
    """A browser with one page; a context manager that ends it.

    Attributes:
        complaints: what the browser logged as an error or warning, and exceptions that nobody caught.
        requests: every URL that the page asked for.
    """

    def __init__(self, program: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Start it. Args: program: as `find_chromium` says; width, height: of the window, in CSS pixels."""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._count, self._unread = 0, b""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # The browser wants the numbers 3 and 4; the shell puts the pipes there.
        script = f'exec "$@" 3<&{commands} 4>&{answers}'
        arguments = [
            program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}",
            "--no-first-run", "--disable-gpu", "--disable-extensions", "--disable-background-networking",
            "--disable-component-update", "--no-default-browser-check",
            # Inside a container root has no user namespaces; the page is our own.
            "--no-sandbox", "--disable-dev-shm-usage", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *arguments],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def __enter__(self) -> ChromiumPage:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the browser."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one DevTools command.

        Raises:
            RuntimeError: the browser refused, or ended.
            TimeoutError: it did not answer.
        """
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._note(answer)

    def open(self, url: str) -> None:
        """Go to `url`, and wait until the document is there."""
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise's when it is one.

        Raises:
            RuntimeError: it threw.
        """
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The first true value of `expression`.

        Raises:
            TimeoutError: it never was.
        """
        deadline = time.monotonic() + SECONDS
        while not (value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {expression}; complaints: {self.complaints}")
            time.sleep(0.05)
        return value

    def type_text(self, selector: str, text: str) -> None:
        """Put the focus on an element and type into it as a keyboard would."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press and release one named key, e.g. `Enter`, on what has the focus."""
        codes = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}
        stroke = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **stroke, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **stroke)

    def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG, beyond the window's height too."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(b64decode(shot["data"]))

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._read, _PIECE)
            if not piece:
                raise RuntimeError(f"the browser ended with status {self._process.wait()}")
            self._unread += piece
        message, self._unread = self._unread.split(b"\0", 1)
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(told["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
