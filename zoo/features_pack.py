"""The zoo in a form small enough for git: about 7 KB a LoRA, from which encoders are trained and compared.

    python -m zoo.features_pack            the large zoo, as far as it is trained
    python -m zoo.features_pack --small    the shipped LoRAs: a first look

writes ``benchmarks/data/retrieval.safetensors`` and ``.json`` (``--small``: into the cache). Every feature of
:mod:`zoo.features_raw` is projected on its principal directions over the LoRAs of the *training part* alone and kept as
one byte a number. The rows ``σ_k v_kᵀ`` of the text-fed layers are projected on the principal directions of the base's
own text states. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file

from autolora_core.encode.factor_table import quantised
from autolora_core.encode.features import size_for
from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.retrieve.words import content_stems
from zoo.base_probe import SPACES, BaseProbe
from zoo.cache import REPO, write_atomic, write_json, write_npy, zoo_dir
from zoo.features_raw import WIDEST, Layout, raw_features
from zoo.train_loras import base_tag, load_base

log = logging.getLogger("zoo.features")
DATA = REPO / "benchmarks" / "data"
FORMAT, VERSION, SAY_EVERY, CLIP = "autolora-zoo-features/1", 3, 32, 6.0
# Numbers kept of each feature; those of ``tokens`` and ``functional`` are kept of each module.
KEEP = {
    "tokens": 40, "functional": 32, "draw": 256, "u1": 128, "diagonals": 128, "product": 192, "flat": 192,
}  # fmt: skip
ROW_DIMS = 72
PER_MODULE = ("tokens", "functional")


@dataclass
class Pack:
    """What was kept. ``rows``: one dict a LoRA (see :func:`row_of`). Arrays have the LoRAs first, float32.

    ``present`` (n, M) bool, ``log_norm`` (n, M), ``sigma`` (n, M, 8), ``text_rows`` (n, spaces, 4, ROW_DIMS),
    ``tokens`` (n, S, 40), ``functional`` (n, M, 32), ``draw``, ``u1``, ``diagonals``, ``product``, ``flat`` (n, k).
    ``bases`` and ``means`` say what was projected: feature = mean + basisᵀ · kept.
    """

    rows: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    bases: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    info: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> np.ndarray:
        """One field of every row, as an object array."""
        return np.array([row[name] for row in self.rows], object)


def row_of(spec: Any, **more: Any) -> dict[str, Any]:
    """The table's row of a planned LoRA (``ScaleSpec`` or the smaller ``LoraSpec``)."""
    creator = spec.creator
    return {
        "id": spec.id, "subject": spec.subject, "style": spec.style, "label": spec.label,
        "kind": "both" if spec.subject and spec.style else "subject" if spec.subject else "style",
        "caption_kind": getattr(spec, "caption_kind", "rich"), "part": getattr(spec, "part", "train"),
        "creator": creator.name, "rank": creator.rank, "alpha": creator.alpha, "keys": creator.keys,
        "dtype": creator.dtype, "rule": creator.rule, "metadata": spec.metadata,
    } | more  # fmt: skip


class RawStore:
    """Raw features on disk, a float16 file a LoRA; what is there is not computed again."""

    def __init__(self, folder: Path, layout: Layout):
        self.folder, self.layout = folder / f"v{VERSION}-{layout.id}", layout
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ends = np.cumsum([int(np.prod(shape)) for shape in layout.widths.values()])

    def fill(self, items: Sequence[tuple[dict, Any]], probe: BaseProbe) -> list[Path]:
        """Compute what is missing of ``items``: (row, function that gives the factors)."""
        paths = [self.folder / f"{row['id']}.npy" for row, _ in items]
        missing = [(path, factors) for path, (_, factors) in zip(paths, items, strict=True) if not path.exists()]
        began = time.time()
        for done, (path, factors) in enumerate(missing, 1):
            found = raw_features(factors(), self.layout, probe)
            write_npy(path, np.concatenate([found[k].ravel() for k in self.layout.widths]).astype(np.float16))
            if done % SAY_EVERY == 0 or done == len(missing):
                left = (time.time() - began) / done * (len(missing) - done)
                log.info("features of %d of %d LoRAs, %.0f s left", done, len(missing), left)
        return paths

    def read(self, paths: Sequence[Path], name: str) -> np.ndarray:
        """(n, …) float16 of one feature."""
        at = list(self.layout.widths).index(name)
        start, stop = (0 if at == 0 else self.ends[at - 1]), self.ends[at]
        return np.stack([np.load(path, mmap_mode="r")[start:stop] for path in paths]).reshape(
            -1, *self.layout.widths[name]
        )


def principal(values: np.ndarray, train: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and ``count`` principal directions (count, d) of the training rows; zero rows where there are fewer."""
    rows = values[train].astype(np.float32)
    mean = rows.mean(axis=0) if len(rows) else np.zeros(values.shape[1], np.float32)
    rows = rows - mean
    basis = np.zeros((count, values.shape[1]), np.float32)
    if len(rows) > 1:
        small = rows.shape[0] <= rows.shape[1]
        gram = (rows @ rows.T if small else rows.T @ rows).astype(np.float64)
        power, vectors = np.linalg.eigh(gram)
        order = np.argsort(-power)[: min(count, len(rows) - 1, rows.shape[1])]
        order = order[power[order] > 1e-7 * max(power[order[0]], 1e-30)] if len(order) else order
        kept = vectors[:, order].T.astype(np.float32)
        kept = kept @ rows / np.sqrt(power[order])[:, None].astype(np.float32) if small else kept
        # A direction and its opposite are the same: the largest entry is positive.
        kept *= np.sign(kept[np.arange(len(kept)), np.abs(kept).argmax(axis=1)])[:, None]
        basis[: len(kept)] = kept
    return mean.astype(np.float32), basis


def as_bytes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 and one scale a column (all axes but the first); beyond :data:`CLIP` deviations it is cut off."""
    scale = np.minimum(np.abs(values).max(axis=0), CLIP * values.std(axis=0)) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.clip(np.rint(values / scale), -127, 127).astype(np.int8), scale


def build(items: Sequence[tuple[dict, Any]], bank: Sequence[str], probe: BaseProbe, folder: Path) -> tuple[dict, dict]:
    """Tensors and table of a pack. ``items``: (row, function giving the factors)."""
    layout = Layout.of(probe, list(GENERIC_PROMPTS[::4]))
    store = RawStore(folder, layout)
    paths = store.fill(items, probe)
    rows = [row for row, _ in items]
    train = np.array([row["part"] == "train" for row in rows])
    tensors: dict[str, np.ndarray] = {
        "present": store.read(paths, "present") > 0,
        "log_norm": store.read(paths, "log_norm"),
        "sigma": np.rint(store.read(paths, "sigma").astype(np.float32) * 255).astype(np.uint8),
    }
    for name, count in KEEP.items():
        values = store.read(paths, name)
        if name in PER_MODULE:
            projected = [_project(values[:, i], train, count, name) for i in range(values.shape[1])]
            kept = np.stack([part[0] for part in projected], axis=1)
            basis, mean = (np.stack([part[i] for part in projected]) for i in (1, 2))
        else:
            kept, basis, mean = _project(values, train, count, name)
        tensors[name], tensors[f"{name}.scale"] = as_bytes(kept)
        if name in ("tokens", "functional", "draw"):
            tensors[f"{name}.mean"] = mean.astype(np.float16)
            if name == "draw":  # four megabytes as float16
                tensors["draw.basis"], tensors["draw.basis_scale"] = quantised(basis)
            else:
                tensors[f"{name}.basis"] = basis.astype(np.float16)
        log.info("%s: %d numbers a LoRA", name, int(np.prod(kept.shape[1:])))
    _add_text_rows(tensors, store.read(paths, "rows"), probe.states(bank))
    table = {
        "format": FORMAT, "base": base_tag(), "modules": list(layout.modules), "split": list(layout.split),
        "bank": list(bank), "keywords": keywords_of(rows), "rows": rows,
    }  # fmt: skip
    return tensors, table


def _project(values: np.ndarray, train: np.ndarray, count: int, name: str):
    """(kept (n, count), basis (count, d), mean (d,)); rows that are all zero (absent) stay zero and teach nothing."""
    there = np.any(values != 0, axis=1)
    scale = _block_scale(values[train & there]) if name == "tokens" else np.float32(1)
    values = values.astype(np.float32) * scale
    mean, basis = principal(values, train & there, count)
    kept = np.where(there[:, None], (values - mean) @ basis.T, 0)
    return kept, basis * scale, mean / np.where(scale > 0, scale, 1)


def _block_scale(values: np.ndarray) -> np.ndarray:
    """Brings every kind of number of a sketch to the same total variance (d,)."""
    size = size_for("emoji")
    scale = np.zeros(size.width, np.float32)
    if len(values):
        spread = values.astype(np.float32).var(axis=0)
        for part in size.slices:
            scale[part] = 1 / max(float(spread[part].sum()), 1e-12) ** 0.5
    return scale


def _add_text_rows(tensors: dict[str, np.ndarray], rows: np.ndarray, states: Any) -> None:
    kept = np.zeros((len(rows), len(SPACES), rows.shape[2], ROW_DIMS), np.float32)
    bases, means = [], []
    for s, name in enumerate(SPACES):
        tokens = states.tokens[name].astype(np.float32)
        mean, basis = principal(tokens, np.ones(len(tokens), bool), ROW_DIMS)
        width = tokens.shape[1]
        kept[:, s] = rows[:, s, :, :width].astype(np.float32) @ basis.T
        bases.append(np.pad(basis, ((0, 0), (0, WIDEST - width))))
        means.append(np.pad(mean, (0, WIDEST - width)))
    tensors["text_rows"], tensors["text_rows.scale"] = quantised(kept)
    tensors["text_rows.basis"] = np.stack(bases).astype(np.float16)
    tensors["text_rows.mean"] = np.stack(means)


def folder_of(name: str) -> Path:
    """The pack of the large zoo belongs to the repository; that of the shipped LoRAs is made again when needed."""
    return DATA if name == "retrieval" else zoo_dir("features")


def write(name: str, tensors: dict[str, np.ndarray], table: dict[str, Any]) -> Path:
    path = folder_of(name) / f"{name}.safetensors"
    meta = {"format": FORMAT, "base": table["base"]}
    write_atomic(path, lambda tmp: save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, str(tmp), meta))
    path.chmod(0o644)
    write_json(path.with_suffix(".json"), table)
    log.info("%s: %d LoRAs, %.1f MB", path, len(table["rows"]), path.stat().st_size / 2**20)
    return path


def read(name: str) -> Pack:
    """Read a pack back into float32."""
    folder = folder_of(name)
    table = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    with safe_open(str(folder / f"{name}.safetensors"), "numpy") as handle:
        stored = {key: handle.get_tensor(key) for key in handle.keys()}
    arrays = {k: stored[k].astype(np.float32) * stored[f"{k}.scale"] for k in KEEP}
    arrays |= {"present": stored["present"], "log_norm": stored["log_norm"].astype(np.float32)}
    arrays["sigma"] = stored["sigma"].astype(np.float32) / 255
    arrays["text_rows"] = stored["text_rows"].astype(np.float32) * stored["text_rows.scale"][..., None]
    bases = {k[:-6]: v.astype(np.float32) for k, v in stored.items() if k.endswith(".basis")}
    bases["draw"] *= stored["draw.basis_scale"][:, None]
    means = {k[:-5]: v.astype(np.float32) for k, v in stored.items() if k.endswith(".mean")}
    return Pack(table.pop("rows"), arrays, bases, means, table | {"name": name})


def keywords_of(rows: Sequence[dict]) -> dict[str, list[str]]:
    """Subject -> words that people search it by, none of them a word of its name."""
    from zoo.captions import _keywords, subject_name

    found = {}
    for subject in sorted({row["subject"] for row in rows if row["subject"]}):
        name = set(content_stems(subject_name(subject)))
        words = (w for w in _keywords().get(subject, ()) if len(w) > 2 and " s " not in w)
        found[subject] = [w for w in words if not name & set(content_stems(w))]
    return found


def small_items() -> Iterable[tuple[dict, Any]]:
    """The shipped LoRAs, cut into parts by their subject's or style's encoder part."""
    from zoo.lora_plan import plan
    from zoo.splits import Splits

    def factors(spec: Any, path: Path) -> dict[str, tuple[Any, Any]]:
        flat = load_file(str(path))
        downs = {k[:-5]: v for k, v in flat.items() if k.endswith("|down")}
        return {n: (d, flat[f"{n}|up"].float() * spec.creator.alpha) for n, d in downs.items()}

    for spec in plan():
        for path in sorted(zoo_dir("loras", base_tag()).glob(f"{spec.id}-*.safetensors"))[:1]:
            part = Splits.load().encoder_part(spec.subject or spec.style)
            yield row_of(spec, part=part), lambda spec=spec, path=path: factors(spec, path)


def scale_items() -> Iterable[tuple[dict, Any]]:
    """The large zoo, as far as it is trained."""
    from zoo import scale_data

    for row in scale_data.rows():
        # Hundreds of captions a LoRA would be larger than the features; its texts follow from the label.
        row = {name: value for name, value in row.items() if name != "captions"}
        yield row, lambda row=row: scale_data.factors(row["id"])


def bank_texts(rows: Sequence[dict]) -> list[str]:
    """Texts whose states span what the rows are projected on: generic ones and what the training part shows."""
    labels = {row["label"] if row["subject"] else f"{row['label']} style" for row in rows if row["part"] == "train"}
    return [*GENERIC_PROMPTS, *sorted(labels)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    items = list(small_items() if args.small else scale_items())
    name = "retrieval_small" if args.small else "retrieval"
    probe, folder = BaseProbe(load_base()), zoo_dir("features", base_tag())
    write(name, *build(items, bank_texts([row for row, _ in items]), probe, folder))


if __name__ == "__main__":
    main()
