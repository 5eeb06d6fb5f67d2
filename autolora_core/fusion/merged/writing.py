"""Puts a merged LoRA on the disk: whole or not at all, and never over a file that nobody said may be overwritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from ...errors import LoraError
from ..files import replace_file
from .naming import free_path


def write_merged(
    path: Path, tensors: dict[str, Tensor], metadata: Callable[[Path], dict[str, str]], overwrite: bool
) -> Path:
    """Write ``path``, or unless ``overwrite`` the first free name like it; returns it. ``metadata`` of the name taken.

    Another program may save under the same name at the same time: then both have a file. Raises ``LoraError``.
    """
    while True:
        taken = path if overwrite else free_path(path)
        try:
            replace_file(taken, tensors, metadata(taken), fresh=not overwrite)
            return taken
        except FileExistsError as error:
            if overwrite:  # a folder's name is a file's
                raise _error(taken, error) from error
        except (OSError, SafetensorError) as error:
            raise _error(taken, error) from error


def _error(path: Path, error: Exception) -> LoraError:
    why = getattr(error, "message", None) or getattr(error, "strerror", None) or error
    fix = getattr(error, "fix", None) or "choose another name, or make room on the disk"
    return LoraError(f"the merged LoRA was not saved: {why}", path=path, fix=fix)
