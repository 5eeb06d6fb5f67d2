"""Every error the pack raises on purpose.

AutoLoRAError                      carries .path, .key and .fix; its text names them
├── FileFormatError                the bytes are not a usable safetensors file
├── LoraError                      readable, but not usable as a LoRA
│   ├── UnsupportedAdapterError    a kind of adapter that this operation cannot apply
│   └── NoUpdatesError             no module carries an update (empty, all zero, unknown keys)
├── FamilyError                    the LoRA and the model are of different base families
│   └── NothingMatchesError        not one layer of the LoRA exists in the model
├── LibraryError                   the index folder cannot be used
│   ├── LibraryVersionError        written by another, incompatible version
│   └── EncoderMismatchError       vectors of one encoder met another encoder
├── InputError                     a node was given a thing of another kind than the input is for
├── SelectionError                 a selection or stack is malformed or names a missing file
├── TowerError                     a text tower is missing or damaged
├── GateError                      a gate file is damaged or does not fit the model
├── FileInUseError                 Windows: somebody has the file open (a PermissionError, too)
└── NotWrittenError                a full or read-only disk: nothing was changed (an OSError, too)
"""

from __future__ import annotations

import os


class AutoLoRAError(Exception):
    """Base of all errors of this pack.

    ``path`` is the file concerned, ``key`` the tensor, module or input concerned, ``fix`` one sentence saying what
    to do. All three are optional and appear in ``str(error)``.
    """

    def __init__(
        self, message: str, *, path: str | os.PathLike | None = None, key: str | None = None, fix: str | None = None
    ):
        self.message = message
        self.path = os.fspath(path) if path is not None else None
        self.key = key
        self.fix = fix
        parts = [message]
        if self.path is not None and self.path not in message:
            parts.append(f"[file: {self.path}]")
        if key is not None and key not in message:
            parts.append(f"[key: {key}]")
        said = " ".join(parts)
        if fix:
            # ComfyUI's dialog shows it all as one line: without a full stop the two run into one sentence.
            said += f"{'' if said.endswith(('.', '!', '?')) else '.'} What to do: {fix}"
        super().__init__(said)


class FileFormatError(AutoLoRAError):
    """The bytes are not a usable safetensors file."""


class LoraError(AutoLoRAError):
    """The file can be read but not used as a LoRA."""


class UnsupportedAdapterError(LoraError):
    """An adapter kind that this operation cannot apply exactly."""


class NoUpdatesError(LoraError):
    """Not one module carries an update."""


class FamilyError(AutoLoRAError):
    """The LoRA was made for another base family than the model."""


class NothingMatchesError(FamilyError):
    """Not one layer of the LoRA exists in the model."""


class LibraryError(AutoLoRAError):
    """The index folder cannot be used."""


class LibraryVersionError(LibraryError):
    """The index was written by an incompatible version."""


class EncoderMismatchError(LibraryError):
    """Vectors of one encoder met another encoder."""


class InputError(AutoLoRAError):
    """A node was given a thing of another kind than its input is for; ``key`` is the input's name."""


class SelectionError(AutoLoRAError):
    """A selection or LoRA stack is malformed, or names a file that is not there."""


class TowerError(AutoLoRAError):
    """A text tower is missing or damaged."""


class GateError(AutoLoRAError):
    """A gate file is damaged or does not fit the model."""


class FileInUseError(AutoLoRAError, PermissionError):
    """Windows: a file cannot be replaced while somebody has it open."""


class NotWrittenError(AutoLoRAError, OSError):
    """A file could not be written; what was there before is still there, whole. ``errno`` says why, when known."""
