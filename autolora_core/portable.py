"""What other systems do otherwise: files in use and long paths on Windows, names no disk takes, sums no GPU makes.

Nothing here asks which system it is more than once, so that a test can say that it is another one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import ntpath
import os
import re
import shutil
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from .errors import FileInUseError, NotWrittenError

log = logging.getLogger(__name__)
WINDOWS = os.name == "nt"
# Virus scanners and indexers hold a new file for a moment; a file that is mapped or open stays held.
WAITS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
MAX_PATH = 259  # characters, for programs and systems that have not been told otherwise
# What a process that was killed leaves behind carries this name, and is cleared away after a day.
TEMPORARY, STALE = ".autolora-", 86400.0
# A full disk, quota or largest file: what safetensors says of them too.
FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG})
_SAID_BY_SAFETENSORS = re.compile(r"(?:code: |os error )(\d+)")
LONGEST_STEM = 120  # bytes; file systems take 255 for a whole name
_FORBIDDEN = frozenset('<>:"|?*/\\')
# Windows opens devices under these names, with any ending: "nul.old" is NUL.
DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³")]
)


def replace(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """``os.replace``. On Windows, where a file that somebody has open cannot be replaced, it is tried for a moment.

    Raises :class:`FileInUseError`, which is a ``PermissionError`` too, when it stays open.
    """
    for wait in (*WAITS, None):
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if not WINDOWS:
                raise
            if wait is None:
                raise FileInUseError(
                    "the file cannot be replaced: another program, or another part of ComfyUI, has it open",
                    path=target,
                    fix="close what uses it (a model that is loaded, a viewer, a backup), or give another name",
                ) from error
            time.sleep(wait)


def remove(path: str | os.PathLike) -> bool:
    """Delete a file that is no longer needed; False, and a line in the log, where it is open and stays for now."""
    for wait in (*(WAITS[:3] if WINDOWS else ()), None):
        try:
            Path(path).unlink(missing_ok=True)
            return True
        except PermissionError as error:
            if wait is None:
                log.info("%s stays for now: %s", path, error)
                return False
            time.sleep(wait)
    return False


def write_whole(path: str | os.PathLike, write: Callable[[str], None], fresh: bool = False) -> None:
    """``write(temporary)`` a file beside ``path``, then put it there: a reader, or a crash, sees the old or the new.

    The temporary name is short, whatever the file's own is: names and paths have limits. ``fresh``: nothing may be
    there, not even since a moment ago: FileExistsError. Raises :class:`NotWrittenError`, an OSError, which names the
    file and says what to do; nothing has changed then.
    """
    folder, temporary = Path(path).parent, ""
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=TEMPORARY, suffix=".tmp")
        os.close(handle)
        write(temporary)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        with contextlib.suppress(OSError):  # shares and FAT know no permissions
            os.chmod(temporary, 0o644)
        if fresh:
            _put_fresh(temporary, path)
        else:
            replace(temporary, path)
    except BaseException as error:
        if temporary:
            remove(temporary)
        if isinstance(error, (FileInUseError, NotWrittenError, FileExistsError)):
            raise
        if isinstance(error, (OSError, SafetensorError)):
            raise not_written(path, error) from error
        raise
    sync_folder(folder)


def _put_fresh(temporary: str, path: str | os.PathLike) -> None:
    """Give a file its name unless somebody has it: FileExistsError."""
    if not WINDOWS:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            pass  # FAT and some shares know no links: what follows leaves a moment between looking and taking
        else:
            remove(temporary)
            return
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
    (os.rename if WINDOWS else os.replace)(temporary, path)


def not_written(path: str | os.PathLike, error: Exception) -> NotWrittenError:
    """``error`` (an OSError, or safetensors' own) of writing ``path``, with what to do about it."""
    said = _SAID_BY_SAFETENSORS.search(str(error))
    number = getattr(error, "errno", None) or (int(said[1]) if said else None)
    why = os.strerror(number) if number else str(error)
    if number in FULL:
        with contextlib.suppress(OSError):
            why += f", {shutil.disk_usage(Path(path).parent).free / 1e6:.0f} MB are free"
        fix = "make room on this drive, then run it again; nothing that was there before is lost"
    elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
        fix = "make its folder writable, or choose a folder that is"
    else:
        fix = "check that the drive is connected and has room, then run it again"
    made = NotWrittenError(f"the file cannot be written: {why}", path=path, fix=fix)
    made.errno = number
    return made


def sweep(folder: str | os.PathLike) -> None:
    """Delete what processes that were killed left half written by :func:`write_whole`; young files may be at work."""
    now = time.time()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY) and entry.name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    if now - entry.stat().st_mtime <= STALE:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        remove(entry.path)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """:func:`write_whole` of ``data``."""

    def write(temporary: str) -> None:
        Path(temporary).write_bytes(data)

    write_whole(path, write)


def load_whole(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, read into memory: of one and the same file, and of nobody's later.

    Reading it through a map, as ``load_file`` and ``safe_open`` do, ends the whole program (SIGBUS) when somebody cuts
    the file off meanwhile, and on Windows lets nobody replace it. Raises OSError and SafetensorError.
    """
    data = Path(openable(path)).read_bytes()
    tensors = load(data)
    return tensors, json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}


def load_copies(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of :func:`load_whole`."""
    return load_whole(path)[0]


def sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` outlive a loss of power; Windows does so by itself and opens no folders, and some
    shares cannot: the file is there all the same."""
    if WINDOWS:
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def plain_console() -> None:
    """For programs of ours: characters that an old Windows console lacks (cp1252 has no Δ) come out as ``?``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def openable(path: str | os.PathLike) -> str:
    r"""The path to open a file by. On Windows one longer than 259 characters gets ``\\?\`` in front, which Windows
    takes whatever its settings; paths that are shown, stored or compared stay as they are."""
    plain = os.fspath(path)
    if not WINDOWS or not isinstance(plain, str) or len(plain) <= MAX_PATH or plain.startswith("\\\\?\\"):
        return plain
    whole = ntpath.normpath(plain)
    if whole.startswith("\\\\"):
        return "\\\\?\\UNC\\" + whole[2:]
    return "\\\\?\\" + whole if ntpath.isabs(whole) and whole[1:2] == ":" else plain


def why_not_a_name(name: str) -> str | None:
    """Why no file or folder can be called ``name`` on every system (Windows has the most rules); None when it can."""
    if any(sign in _FORBIDDEN or ord(sign) < 32 for sign in name):
        return 'a name cannot have any of < > : " | ? * / \\ or control characters on Windows'
    if name != name.strip() or name.endswith("."):
        return "Windows drops spaces and dots at the end of a name"
    if name.partition(".")[0].strip().casefold() in DEVICES:
        return "Windows keeps this name for a device"
    return None


def file_stem(typed: str) -> str:
    """A file's name without ending, after what somebody typed: letters and digits of any script, ``_ . -``, all else
    as ``-``, at most 120 bytes, no device of Windows; empty when nothing is left."""
    stem = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", typed)).strip("-.")
    stem = stem.encode("utf-8")[:LONGEST_STEM].decode("utf-8", "ignore").strip("-.")
    return f"_{stem}" if stem.partition(".")[0].casefold() in DEVICES else stem


def one_file(path: str) -> tuple[int, int] | str:
    """What two spellings of one file have in common: other case on disks that do not tell, links, shares."""
    try:
        status = os.stat(openable(path))
    except OSError:
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.normcase(path)


def reckoning_device(device: torch.device | str) -> torch.device:
    """Where to do what not every accelerator can: sums in float64, n-th values, pooling by odd factors.

    NVIDIA's and AMD's can (both are ``cuda``). Apple's has no float64 at all, nor have some of Intel's, and DirectML
    lacks many an operation; beside them the processor does it.
    """
    device = torch.device(device)
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")
