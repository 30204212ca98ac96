"""A headless Chromium driven over its DevTools protocol: loads a page, clicks, evaluates, keeps what went wrong."""

import base64
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import websocket

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*"),
)
PATIENCE = 60


class Browser:
    """`requests`: URLs that the page asked for; `faults`: messages of errors on its console and exceptions."""

    def __init__(self, profile: Path) -> None:
        self.requests: list[str] = []
        self.faults: list[str] = []
        self._number = 0
        self._process = subprocess.Popen(
            [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"ws://\S+", line):
                break
        else:
            raise RuntimeError("chromium ended without saying where it listens")
        self._socket = websocket.create_connection(found[0], timeout=PATIENCE)
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; what the page reports meanwhile is kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps({**message, **({"sessionId": self._session} if self._session else {})}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._keep(answer.get("method", ""), answer.get("params", {}))

    def _keep(self, event: str, details: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.faults.append(str(details["exceptionDetails"])[:500])
        elif event == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.faults.append(details["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and details["type"] in ("error", "assert"):
            self.faults.append(str(details["args"])[:500])

    def evaluate(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str) -> Any:
        """The script's value once it is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.1)
        return value

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.as_uri())
        self.until("document.readyState === 'complete'")

    def _steady(self, script: str) -> Any:
        """The script's value once it stays the same: a page that is still being laid out moves under the mouse."""
        before = None
        while (value := self.until(script)) != before:
            before = value
            time.sleep(0.3)
        return value

    def click(self, text: str, selector: str = "a, button, span, div, p") -> None:
        """Click the middle of the smallest element that shows exactly this text, with the mouse."""
        place = self._steady(
            f"""(() => {{
              const found = [...document.querySelectorAll({json.dumps(selector)})]
                .filter(e => e.textContent.trim() === {json.dumps(text)} && e.getClientRects().length);
              if (!found.length) return null;
              const e = found[found.length - 1]; e.scrollIntoView({{block: 'center'}});
              const r = e.getBoundingClientRect();
              return [r.left + r.width / 2, r.top + r.height / 2];
            }})()"""
        )
        self.click_at(*place)

    def click_icon(self, row: str, icon: str) -> None:
        """Click an icon in the row of a table of results that begins with this text."""
        place = self._steady(
            f"""(() => {{
              const found = [...document.querySelectorAll('tbody tr')]
                .find(e => e.textContent.trim().startsWith({json.dumps(row)}));
              if (!found) return null;
              const r = found.querySelector('a[iconname="{icon}"]').getBoundingClientRect();
              return [r.left + r.width / 2, r.top + r.height / 2];
            }})()"""
        )
        self.click_at(*place)

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
