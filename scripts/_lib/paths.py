"""Where things lie: the repository, and the git-ignored cache that the scripts fill."""

from __future__ import annotations

import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
COMFYUI_VERSION = "0.3.75"


def cache_dir() -> Path:
    """The folder for everything that is made or downloaded: ``AUTOLORA_CACHE``, else ``<repo>/.cache``."""
    chosen = os.environ.get("AUTOLORA_CACHE", "").strip()
    return Path(chosen).expanduser().resolve() if chosen else REPO / ".cache"


def venv_python(venv: Path) -> Path:
    """The interpreter inside a virtual environment on this operating system."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"
