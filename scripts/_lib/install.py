"""Which ComfyUI and which Python to use: our own in the cache, or the user's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .paths import COMFYUI_VERSION, cache_dir, venv_python


class NoComfyUI(Exception):
    """The folder given as ComfyUI is not one, or no Python can be found for it."""


@dataclass(frozen=True)
class Install:
    """A ComfyUI folder and the interpreter that runs it; `owned` when both are ours, in the cache.

    `site` is a private folder of packages that a user's own Python lacks; it is put on PYTHONPATH, and in
    AUTOLORA_SITE for the embedded Python of ComfyUI's Windows package, which does not read PYTHONPATH.
    """

    comfyui: Path
    python: Path
    owned: bool
    site: Path | None = None

    @property
    def version(self) -> str:
        """ComfyUI's own version, '?' when its folder does not say."""
        file = self.comfyui / "comfyui_version.py"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return text.partition('__version__ = "')[2].partition('"')[0] or "?"

    def accepts(self, option: str) -> bool:
        """Whether this ComfyUI knows a command-line option (read from its source: starting it takes seconds)."""
        return f'"{option}"' in (self.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8")

    def env(self) -> dict[str, str]:
        """The environment for this install's Python: offline, unbuffered, with `site` in front."""
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
        if not self.owned:
            env["PYTHONDONTWRITEBYTECODE"] = "1"  # a user's folders stay untouched
        if self.site is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(self.site), env.get("PYTHONPATH")]))
            env["AUTOLORA_SITE"] = str(self.site)
        return env


def find(comfyui: str | None = None, python: str | None = None) -> Install:
    """The install to use.

    Args:
        comfyui: a ComfyUI folder; None takes ``COMFYUI_PATH``, and without that our own copy in the cache.
        python: the interpreter for a user's own ComfyUI when it is not inside or beside its folder; None takes
            ``COMFYUI_PYTHON``.

    Raises:
        NoComfyUI: with what was looked for.
    """
    cache = cache_dir()
    own = Install(cache / f"ComfyUI-{COMFYUI_VERSION}", venv_python(cache / "venv"), owned=True)
    chosen = comfyui or os.environ.get("COMFYUI_PATH", "").strip()
    if not chosen:
        return own
    folder = Path(chosen).expanduser().resolve()
    if folder == own.comfyui.resolve():
        return own
    if not (folder / "main.py").is_file() or not (folder / "comfy" / "cli_args.py").is_file():
        raise NoComfyUI(f"{folder} is not a ComfyUI folder: it has no main.py and comfy/cli_args.py")
    python = python or os.environ.get("COMFYUI_PYTHON", "").strip()
    found = Install(folder, _python_of(folder, python), owned=False, site=cache / "site")
    if not found.accepts("--base-directory"):
        raise NoComfyUI(f"{folder} is a ComfyUI without --base-directory (version {found.version}): update it first")
    return found


def _python_of(folder: Path, python: str) -> Path:
    """The interpreter a user's ComfyUI runs on."""
    if python:
        chosen = Path(python).expanduser()
        if not chosen.is_file():
            raise NoComfyUI(f"{chosen}, given by --python or COMFYUI_PYTHON, does not exist")
        return chosen.absolute()  # not resolve(): a venv's python is a link that must stay inside the venv
    candidates = [venv_python(folder / name) for name in ("venv", ".venv")]
    candidates += [folder.parent / "python_embeded" / "python.exe", folder / "python_embeded" / "python.exe"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = "\n".join(f"  {candidate}" for candidate in candidates)
    raise NoComfyUI(f"no Python found for {folder}. Say which one runs it with --python FILE. Looked for:\n{looked}")
