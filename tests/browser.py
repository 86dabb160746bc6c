"""A real Chromium for the tests of pages (they skip where there is none).

It is spoken to in the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/), over a socket that
`--remote-debugging-pipe` reads: JSON messages that end in a zero byte. So a test waits for what a page does, however
slow the machine, where `--dump-dom` looks at it after a time.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SECONDS = 300  # until a browser that says nothing at all counts as hung


class Browser:
    """One page.

    Attributes:
        said: What the page wrote to its console, and what the browser had to say about it.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SECONDS)
        self.connection = connection
        self.rest = b""
        self.messages = 0
        self.loaded = False
        self.said: list[str] = []
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def read(self) -> dict[str, Any]:
        """The next message; events are noted."""
        while b"\0" not in self.rest:
            part = self.connection.recv(1 << 20)
            assert part, "the browser is gone"
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        event, params = message.get("method"), message.get("params", {})
        if event == "Page.loadEventFired":
            self.loaded = True
        elif event == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]))
        elif event == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        return message

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.messages += 1
        content = {"id": self.messages, "method": method, "params": params, **self.session}
        self.connection.sendall(json.dumps(content).encode() + b"\0")
        while (message := self.read()).get("id") != self.messages:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def open(self, address: str, before: str = "") -> None:
        """Loads a page, until its load event; the script `before` runs ahead of the page's own."""
        if before:
            self.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        self.loaded = False
        failure = self.call("Page.navigate", url=address).get("errorText")
        assert not failure, f"{address}: {failure}"
        while not self.loaded:
            self.read()

    def run(self, script: str) -> dict[str, Any]:
        """What statements write into the object `log`; they may await."""
        expression = f"(async () => {{ const log = {{}}; {script}\n; return log; }})()"
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"]["value"]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A fresh browser without a history; skips the test where no Chromium is installed."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        # It reads from descriptor 3 and writes to 4.
        line = ["sh", "-c", 'exec "$0" "$@" 3<&0 4>&0', program, *flags]
        process = subprocess.Popen(line, stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        theirs.close()
        try:
            browser = Browser(ours)
            yield browser
            browser.session = {}
            browser.call("Browser.close")
            process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
