"""A real browser without a screen: Chromium, spoken to by WebDriver.

WebDriver is a few HTTP requests with JSON; chromedriver, which understands them, comes with the
browser. Both are looked for on the PATH; where they are missing, tests are skipped.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 60.0

MISSING = [
    " or ".join(names)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
    if not any(map(shutil.which, names))
]

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root, in a container
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)


class Browser:
    """One window."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        binary = next(
            filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
        )
        options = {"args": list(_ARGUMENTS), "binary": binary}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"
        self._ask("POST", f"{self._session}/timeouts", {"script": int(PATIENCE * 1000)})

    def open(self, url: str) -> None:
        """Load a page; returns when it is loaded."""
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """Run a function's body in the page; what it returns, as JSON has it."""
        body = {"script": script, "args": list(arguments)}
        return self._ask("POST", f"{self._session}/execute/sync", body)

    def wait_for(self, condition: str, *arguments: object) -> Any:
        """Wait until this expression is true in the page; its value.

        Looked at after each change of the page and each answer that it gets, not by the clock.
        """
        script = """
            const [condition, args, done] = arguments;
            const holds = new Function("args", "return (" + condition + ")");
            const watcher = new MutationObserver(look);
            function look() {
                const found = holds(args);
                if (found) { watcher.disconnect(); done(found); }
                return found;
            }
            if (!look()) watcher.observe(document.documentElement,
                {subtree: true, childList: true, characterData: true, attributes: true});
        """
        body = {"script": script, "args": [condition, list(arguments)]}
        return self._ask("POST", f"{self._session}/execute/async", body)

    def appear(self, scheme: str, width: int, height: int) -> None:
        """Light or dark, and of this size."""
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": media})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", size)

    def screenshot(self, path: Path) -> None:
        """Write what is to be seen."""
        path.write_bytes(base64.b64decode(self._ask("GET", f"{self._session}/screenshot")))

    def complaints(self) -> list[str]:
        """What the browser has written to its console since the last time."""
        log = self._ask("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] in {"WARNING", "SEVERE"}]

    def close(self) -> None:
        self._ask("DELETE", self._session)

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        body = {"cmd": name, "params": parameters}
        return self._ask("POST", f"{self._session}/goog/cdp/execute", body)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._driver + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=2 * PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                told = json.load(error)["value"]
            raise AssertionError(f"{told['error']}: {told['message']}") from None


@contextmanager
def running() -> Iterator[Browser]:
    """Start a browser and end it."""
    # In a session of its own: it is ended with all that it has started. What it leaves is in a
    # directory that goes, too.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env=_environment(home),
        )
        try:
            assert driver.stdout is not None
            port = next(
                found[1]
                for line in driver.stdout
                if (found := re.search(r"started successfully on port (\d+)", line))
            )
            browser = Browser(f"http://127.0.0.1:{port}")
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.send_signal(signal.SIGTERM)
            driver.communicate()


def _environment(home: str) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": home,
        "TMPDIR": home,
        "XDG_CONFIG_HOME": home,
        "XDG_CACHE_HOME": home,
    }
