"""A browser for the tests of the real front end: found on this machine, else (Debian, as root) installed."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from .paths import cache_dir
from .process import run_logged, tail
from .steps import Step, StepError, Tick

PLAYWRIGHT = "playwright-core@1.64.1"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge", "microsoft-edge")
_PLACES = {
    "darwin": (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    ),
    "win32": (
        r"C:\Program Files\Google\Chrome\Application\chrome.exe",
        r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
        r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
    ),
}


class BrowserMissing(Exception):
    """What the browser tests need and this machine lacks, in words."""


@dataclass(frozen=True)
class Browser:
    """What a browser test needs: the browser's program, Node's, and the folder that holds ``playwright-core``."""

    executable: Path
    node: Path
    modules: Path

    def env(self) -> dict[str, str]:
        """Environment for a Node script: it finds ``playwright-core`` (CommonJS ``require``) and the browser."""
        return {**os.environ, "NODE_PATH": str(self.modules), "AUTOLORA_BROWSER": str(self.executable)}


def find() -> Browser:
    """The browser to test with. Raises `BrowserMissing`, naming each thing that is not there."""
    executable, node, modules = _executable(), shutil.which("node"), _prefix() / "node_modules"
    missing = []
    if executable is None:
        missing.append("a Chromium, Chrome or Edge (set AUTOLORA_BROWSER to its program if it lies elsewhere)")
    if node is None:
        missing.append("Node.js 18 or later, with npm, on the PATH")
    if not (modules / "playwright-core" / "package.json").is_file():
        missing.append(f"the npm package {PLAYWRIGHT} in {modules} (python scripts/test.py installs it)")
    if executable is None or node is None or missing:
        raise BrowserMissing("The browser tests need " + "; and ".join(missing) + ".")
    return Browser(executable, Path(node), modules)


def step() -> Step:
    """Installs what can be installed: ``playwright-core`` with npm, and Debian's Chromium where we may."""

    def make(tick: Tick) -> None:
        if _executable() is None and sys.platform == "linux" and shutil.which("apt-get") and os.geteuid() == 0:
            _run(["apt-get", "update"], tick)
            _run(["apt-get", "install", "-y", "--no-install-recommends", "chromium"], tick)
        npm = shutil.which("npm")
        if npm is not None:
            _prefix().mkdir(parents=True, exist_ok=True)
            _run([npm, "install", "--prefix", str(_prefix()), "--no-audit", "--no-fund", PLAYWRIGHT], tick)
        try:
            find()
        except BrowserMissing as error:
            raise StepError(str(error)) from error

    return Step(
        "browser",
        "Browser for the front-end tests",
        _prefix() / ".autolora.json",
        (PLAYWRIGHT,),
        make,
        "install what is named above. The other tests do not need it.",
        "15 MB to download; Debian's Chromium, when none is there, another 100 MB",
        lambda: _executable() is not None,
    )


def _prefix() -> Path:
    return cache_dir() / "browser"


def _executable() -> Path | None:
    chosen = os.environ.get("AUTOLORA_BROWSER", "").strip()
    if chosen:
        return Path(chosen) if Path(chosen).is_file() else None
    for name in _NAMES:
        found = shutil.which(name)
        if found:
            return Path(found)
    return next((Path(place) for place in _PLACES.get(sys.platform, ()) if Path(place).is_file()), None)


def _run(command: list[str], tick: Tick) -> None:
    log = cache_dir() / "logs" / "browser.log"
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run_logged(command, log, env=env, on_tick=lambda: tick(tail(log, 1).strip()))
