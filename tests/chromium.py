"""A headless Chromium, driven through its DevTools protocol: with real mouse and key events, and no driver to install."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import websocket  # websocket-client, which comes with jupyter_server

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "End": 35, "Home": 36}


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """What a condition says when it is first true of something."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.1)
    return value


class Chromium:
    """One page. A context manager: the browser ends with it."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900):
        options = [f"--window-size={width},{height}", f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        options += ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        self._browser = subprocess.Popen(
            [find_chromium(), *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            port_file = profile / "DevToolsActivePort"
            wait_for(lambda: port_file.exists() and port_file.read_text().count("\n"), "Chromium")
            port = port_file.read_text().split()[0]
            with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                (page,) = (target for target in json.load(answer) if target["type"] == "page")
            self._socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=60, suppress_origin=True)
        except BaseException:
            self.close()
            raise
        self._calls, self._events = 0, []
        self.call("Page.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *failure: Any) -> None:
        self.close()

    def close(self) -> None:
        self._browser.terminate()
        self._browser.wait(30)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._calls:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def event(self, name: str) -> dict[str, Any]:
        """The parameters of the next event of that name; older ones are let go."""
        while True:
            event = self._events.pop(0) if self._events else json.loads(self._socket.recv())
            if event.get("method") == name:
                return event["params"]

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, or of its promise."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, element: str) -> None:
        """Bring an element, given as an expression, into view, move the mouse to its middle, press and release."""
        place = f"(e => (e.scrollIntoView({{block: 'center'}}), e.getBoundingClientRect().toJSON()))({element})"
        box = self.evaluate(place)
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
