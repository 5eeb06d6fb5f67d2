"""What a scan learns from one file, in one reading of it: content, words, sketches and response factors.

No database is touched here, so several files can be read at once.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..encode.features import ModuleFeatures, file_features
from ..encode.response_factors import ResponseFactors, response_factors
from ..encode.spaces import space_of
from ..encode.whole_file import Factors, Incomplete, WholeFile
from ..errors import AutoLoRAError
from ..lora.file import LoraFile, scalar, stock_scale, values_of
from ..lora.header import DTYPES, TensorInfo
from ..lora.modules import ModuleEntry
from ..portable import openable
from .content import Content, damaged, describe
from .garbage import uncollected
from .metadata import Reading, read_words
from .one_pass import BEING_WRITTEN, SUMMED, Gathering, Pass, Stamp, Tick, open_pass
from .responses import has_response
from .sketches import ENCODABLE_KINDS
from .walk import Found

log = logging.getLogger(__name__)
_PLAIN_ROLES = frozenset({"up", "down", "alpha"})
# Types, by the header's names, whose values float32 holds.
FLOATS = frozenset(name for name, (_, kind) in DTYPES.items() if kind and kind.is_floating_point and kind.itemsize <= 4)


@dataclass
class Encoded:
    """What is kept of a file's weights, each with the reason where there is nothing."""

    features: ModuleFeatures | None = None
    features_problem: str | None = None
    response: ResponseFactors | None = None
    response_problem: str | None = None


@dataclass(frozen=True)
class Read:
    """One file: what its bytes say. ``content`` is None where the bytes were only hashed, ``metadata`` where there is
    no header of a LoRA, ``encoded`` where it was not asked for or there is nothing to encode. ``cost``: the bytes that
    the drive gave, and the seconds that were waited for them."""

    digest: str
    content: Content | None
    metadata: Mapping[str, str] | None
    encoded: Encoded | None
    bytes_read: int
    cost: tuple[int, float] = (0, 0.0)


def read_file(
    item: Found,
    tick: Tick,
    *,
    encode: bool = True,
    known: Content | None = None,
    held: Callable[[str], bool] | None = None,
) -> Read:
    """Read a file once. With ``known``, what its content is known to be, it is not hashed, only encoded. With ``held``
    it is hashed first, and read a second time unless ``held(digest)`` says that this content is known.

    Raises OSError where the bytes cannot be had, or when somebody writes them meanwhile; nothing that bytes can cause.
    """
    count, waited = 0, 0.0
    if held is not None:
        one = _through(item, tick, None)
        count, waited = one.at, one.waited
        if held(one.digest):
            return Read(one.digest, None, None, None, count, (count, waited))
    reading = _Reading(encode, known)
    one = _through(item, tick, reading)
    count, waited = count + one.at, waited + one.waited
    content, metadata, encoded = reading.result(one.digest, one.size)
    return Read(content.hash, content, metadata, encoded, count if known is None else 0, (count, waited))


def words_of(item: Found, read: Read, known: Content | None) -> Reading | None:
    """A file's words, where they are not those of a content that is known or was not opened."""
    if known is not None or read.content is None:
        return None
    return read_words(item.path, read.metadata or {}, item.sidecars)


def _through(item: Found, tick: Tick, reading: _Reading | None) -> Pass:
    """Every byte of a file, once; the pass at its end."""
    one = open_pass(item.path, tick, hashing=reading is None or reading.known is None)
    with one.stream:
        if reading is not None:
            reading.run(one)
        after = one.rest()
        if not item.steady(one.before, after) or Stamp.of(os.stat(openable(item.path))) != Stamp.of(after):
            raise OSError(BEING_WRITTEN)
    return one


class _Reading:
    """What comes of one pass. Trouble with a disk is raised, trouble with the bytes becomes the content's problem."""

    def __init__(self, encode: bool, known: Content | None):
        self.encode, self.known = encode, known
        self._lora: LoraFile | None = None
        self._weights: _Weights | None = None
        self._trouble: Exception | None = None

    def run(self, one: Pass) -> None:
        try:
            one.begin()  # a drive may take its time, and nothing is to stay switched off meanwhile
            with uncollected():
                self._lora = one.head()
            if self._lora.kind != "not_a_lora":
                self._weights = _Weights(self._lora, self.encode)
                self._weights.run(one)
        except OSError:
            raise
        except AutoLoRAError as error:
            self._trouble = error
        except Exception as error:  # a file may be broken in a way nobody thought of; the scan has others to read
            log.warning("reading %r failed: %s: %s", one.path, type(error).__name__, error, exc_info=True)
            self._trouble = error

    def result(self, digest: str, size: int) -> tuple[Content, Mapping[str, str] | None, Encoded | None]:
        """Content, metadata, and what was encoded."""
        if self._trouble is not None:
            return self.known or damaged(self._trouble, digest, size), None, None
        with uncollected():
            content = self.known or describe(self._lora, digest, size)
        if self._weights is None:
            return content, None, None
        wanted = self._weights.whole is not None and content.kind in ENCODABLE_KINDS
        return content, self._lora.metadata, self._weights.encoded() if wanted else None


class _Weights:
    """The tensors of one LoRA, as they come: values checked, modules handed to :class:`WholeFile`."""

    def __init__(self, lora: LoraFile, encode: bool):
        self.lora, self.family = lora, lora.family.name
        self.whole: WholeFile | None = None
        if encode and lora.kind in ENCODABLE_KINDS and self.family != "unknown":
            self.whole = WholeFile(self.family, _widths(lora))
        self._unread = self._not_needed()
        self._values: dict[str, tuple[list[str], bool]] = {}
        self._alphas: dict[str, float | None] = {}
        self._unscaled: list[str] = []
        self._failure: Exception | None = None

    def _not_needed(self) -> set[str]:
        """Modules of which it is enough to know their alpha, and that their values are numbers."""
        if self.whole is None:
            return set()
        infos = self.lora.header.tensors
        return {name for name, entry in self.lora.entries.items()
                if name not in self.whole.needed and _is_plain(entry, infos, SUMMED)}  # fmt: skip

    def run(self, one: Pass) -> None:
        header, entries = self.lora.header, self.lora.entries
        gathering = Gathering(self.lora, [name for name in entries if name not in self._unread])
        alphas = {entries[name].keys["alpha"] for name in self._unread if "alpha" in entries[name].keys}
        glanced = {key: name for name in self._unread for role, key in entries[name].keys.items() if role != "alpha"}

        def take(found: dict[str, Tensor]) -> None:
            self._alphas |= {key: scalar(found.pop(key)) for key in alphas.intersection(found)}
            self._take(gathering.complete(found))

        odd = one.tensors(header, gathering.wanted | alphas, take, glanced.keys())
        for name, tensors in gathering.late(lambda key: one.again(header, key)):
            self._take({name: tensors})
        self._look_again(one, {glanced[key] for key in odd})
        self.lora.take_values({**dict.fromkeys(entries, ([], False)), **self._values})
        self.lora.take_alphas(self._alphas)

    def _look_again(self, one: Pass, odd: set[str]) -> None:
        """Read the values of modules that were only glanced at: of those that are odd; and, while all before are zero,
        of one after the other, since a file of zeros is no LoRA."""
        zero = all(zero for _, zero in self._values.values())
        for name in sorted(self._unread):
            if name in odd or zero:
                keys = self.lora.entries[name].keys
                tensors = {role: one.again(self.lora.header, key) for role, key in keys.items()}
                self._values[name] = values_of(self.lora.entries[name], tensors)
                zero &= self._values[name][1]

    def _take(self, ready: Mapping[str, Mapping[str, Tensor]]) -> None:
        entries, plain = self.lora.entries, []
        for name, tensors in ready.items():
            entry = entries[name]
            alpha = scalar(tensors["alpha"]) if "alpha" in tensors else None
            if "alpha" in tensors:
                self._alphas[entry.keys["alpha"]] = alpha
            needed = self.whole is not None and name in self.whole.needed
            infos = self.lora.header.tensors
            if needed and _is_plain(entry, infos, FLOATS) and math.isfinite(alpha or 0.0):
                plain.append(Factors(name, tensors["up"], tensors["down"]))
            else:
                self._values[name] = values_of(entry, tensors)
                self._encode(partial(self._add, entry, tensors))
        odd = set(self._encode(lambda: self.whole.add(plain)) or ()) if plain else set()
        for factors in plain:
            look = factors.module in odd or self._failure is not None
            values = values_of(entries[factors.module], ready[factors.module]) if look else ([], False)
            self._values[factors.module] = values
        self._unscaled += [factors.module for factors in plain]

    def _add(self, entry: ModuleEntry, tensors: Mapping[str, Tensor]) -> None:
        if entry.name not in self.whole.needed:
            return
        if entry.kind == "lora":  # its scale may stand in a file beside it: put in at the end
            self._unscaled.append(entry.name)
            scale = 1.0
        else:
            scale = stock_scale(entry, scalar(tensors["alpha"]) if "alpha" in tensors else None)
        self.whole.add_update(entry.name, self.lora.build(entry.name, tensors, scale))

    def _encode(self, work: Callable):
        """Do it unless something failed already: one odd module, and the file is not encoded."""
        if self.whole is None or self._failure is not None:
            return None
        try:
            return work()
        except OSError:
            raise
        except Exception as error:
            if not isinstance(error, AutoLoRAError):
                log.warning("encoding %r failed: %s: %s", self.lora.path, type(error).__name__, error, exc_info=True)
            self._failure = error
            return None

    def encoded(self) -> Encoded:
        """What is kept of the weights, now that the scales are known."""
        scales = {name: self.lora.modules[name].scale for name in self._unscaled}
        features = self._encode(lambda: self.whole.features(scales))
        if features is not None and not features.modules and self._unread:
            features = self._encode(lambda: file_features(self.lora))
        made = Encoded(features, None if features else _reason(self._failure))
        if features is not None and not features.modules:
            made.features_problem = "no module of this file can be encoded"
        if has_response(self.family):
            made.response = self._encode(lambda: self._response(scales))
            made.response_problem = _reason(self._failure) if self._failure else None
        return made

    def _response(self, scales: Mapping[str, float]) -> ResponseFactors | None:
        try:
            return self.whole.response(scales)
        except Incomplete:
            reached = [name for name in self.lora.modules if space_of(self.family, name.partition("[")[0]) is not None]
            return response_factors((self.lora.update(name) for name in reached), self.family)


def _widths(lora: LoraFile) -> dict[str, int | None]:
    return {name: math.prod(entry.shape[1:]) if len(entry.shape) > 1 else None
            for name, entry in lora.entries.items()}  # fmt: skip


def _reason(failure: Exception | None) -> str | None:
    if failure is None or isinstance(failure, AutoLoRAError):
        return failure.message if failure else None
    return f"encoding failed ({type(failure).__name__}: {failure})"


def _is_plain(entry: ModuleEntry, infos: Mapping[str, TensorInfo], dtypes: Collection[str]) -> bool:
    """Whether a module is a product of two factors of these types and nothing else."""
    if entry.kind != "lora" or entry.dora or entry.swap_halves or not _PLAIN_ROLES.issuperset(entry.keys):
        return False
    if "up" not in entry.keys or "down" not in entry.keys:
        return False
    up, down = infos[entry.keys["up"]], infos[entry.keys["down"]]
    if len(up.shape) < 2 or len(down.shape) < 2 or math.prod(up.shape[1:]) != down.shape[0]:
        return False
    return up.dtype in dtypes and down.dtype in dtypes
