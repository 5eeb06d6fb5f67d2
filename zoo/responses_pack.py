"""What every LoRA of the zoo answers to every text of the benchmark: the response score over all layers, exact.

    python -m zoo.responses_pack

writes ``benchmarks/data/responses.safetensors``. The response of an image-side layer lives in directions in which its
inputs vary little, and is lost when rows and inputs are projected on those in which they vary most; whole rows of 2,200
LoRAs are too large for git, what they answer to some thousand texts is not. One noise, whole, at the time at which
:mod:`zoo.base_probe` records states; about three minutes on two cores with bfloat16.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.errors import AutoLoRAError
from zoo.base_probe import IMAGE_SPACES, SPACES, BaseProbe
from zoo.cache import write_atomic, zoo_dir
from zoo.features_pack import DATA, Pack, RawStore, read, scale_items
from zoo.features_raw import HEARD, ROWS, Layout
from zoo.text_side import spread_z
from zoo.train_loras import base_tag, load_base

log = logging.getLogger("zoo.responses")
BATCH, FINEST, TINY = 32, 25.0, 1e-9
Rows = dict[str, tuple[Tensor, Tensor]]  # space -> (which LoRAs (k,), rows (k · ROWS, d))


def whole_rows(store: RawStore, paths: Sequence, widths: dict[str, int]) -> Rows:
    """``σ_k v_kᵀ`` of every layer, bfloat16, with the LoRAs that have it."""
    rows, out = store.read(paths, "rows"), {}
    for s, name in enumerate(HEARD):
        own = torch.from_numpy(rows[:, s, :, : widths[name]].astype(np.float32))
        have = torch.nonzero(own.abs().amax(dim=(1, 2)) > 0)[:, 0]
        out[name] = have, own[have].flatten(0, 1).bfloat16()
    return out


class Listener:
    """Inputs of all layers for texts, about the generic prompts' mean; image tokens position by position."""

    def __init__(self, probe: BaseProbe):
        self.probe, self.mean = probe, {}
        seen = [probe.inputs(GENERIC_PROMPTS[i : i + BATCH], HEARD) for i in range(0, len(GENERIC_PROMPTS), BATCH)]
        for name in HEARD:
            if name in IMAGE_SPACES:
                self.mean[name] = torch.cat([x[name] for x, _ in seen]).mean(dim=0)
            else:
                self.mean[name] = torch.cat([x[name][real] for x, real in seen]).mean(dim=0)

    def centred(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Space → (b, tokens, d) about the mean; text tokens that are not there are zero."""
        seen, real = self.probe.inputs(texts, HEARD)
        return {n: (x - self.mean[n]) * (real[..., None] if n in SPACES else 1) for n, x in seen.items()}


def answers(rows: Rows, x: dict[str, Tensor], count: int) -> np.ndarray:
    """(count, b): mean over a LoRA's layers of log(Σ_t‖R x̃_t‖² / Σ_t‖x̃_t‖²)."""
    texts = len(next(iter(x.values())))
    total, layers = torch.zeros(count, texts), torch.zeros(count, 1)
    for name, (have, own) in rows.items():
        loud = x[name].square().sum(dim=(1, 2)).clamp_min(TINY)
        heard = (x[name].bfloat16().flatten(0, 1) @ own.T).view(texts, -1, len(have), ROWS)
        energy = heard.square_().sum(dim=(1, 3), dtype=torch.float32)
        total[have] += (energy / loud[:, None]).clamp_min(TINY).log().T
        layers[have] += 1
    return (total / layers.clamp_min(1)).numpy()


def build(pack: Pack, texts: Sequence[str], probe: BaseProbe) -> np.ndarray:
    """(texts, n) float32 z-scores over the generic prompts, which come first in ``texts``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the features were made: what was kept is found by the very bits of the inputs
    store = RawStore(zoo_dir("features", base_tag()), Layout.of(probe, list(GENERIC_PROMPTS[::4])))
    torch.set_num_threads(threads)
    paths = store.fill([(row, factors) for row, factors in scale_items()], probe)
    listener = Listener(probe)
    rows = whole_rows(store, paths, {name: mean.shape[-1] for name, mean in listener.mean.items()})
    out, began = np.zeros((len(pack), len(texts)), np.float32), time.time()
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        out[:, start : start + len(part)] = answers(rows, listener.centred(part), len(pack))
        done = start + len(part)
        log.info("%d of %d texts, %.0f s left", done, len(texts), (time.time() - began) / done * (len(texts) - done))
    return spread_z(out.T, out.T[: len(GENERIC_PROMPTS)])


def write(pack: Pack, texts: Sequence[str], z: np.ndarray) -> None:
    """Roots of z-scores, a byte each: finer near zero, where LoRAs crowd."""
    packed = np.clip(np.rint(np.sign(z) * np.sqrt(np.abs(z)) * FINEST), -127, 127).astype(np.int8)
    about = {"base": pack.info["base"], "texts": json.dumps(list(texts)), "ids": json.dumps(list(pack.column("id")))}
    path = DATA / "responses.safetensors"
    write_atomic(path, lambda tmp: save_file({"roots": np.ascontiguousarray(packed)}, str(tmp), about))
    log.info("%s: %d texts, %.1f MB", path, len(texts), path.stat().st_size / 2**20)


def read_responses(pack: Pack, texts: Sequence[str]) -> np.ndarray:
    """(texts, n) float32, NaN for texts that were not asked."""
    with safe_open(str(DATA / "responses.safetensors"), "numpy") as handle:
        about, roots = handle.metadata(), handle.get_tensor("roots").astype(np.float32) / FINEST
    if about["base"] != pack.info["base"] or json.loads(about["ids"]) != list(pack.column("id")):
        raise AutoLoRAError(
            "benchmarks/data/responses.safetensors is of another zoo than benchmarks/data/retrieval.safetensors",
            fix="make it again with `python -m zoo.responses_pack`",
        )
    at = {text: i for i, text in enumerate(json.loads(about["texts"]))}
    found = np.full((len(texts), len(pack)), np.nan, np.float32)
    for row, text in zip(found, texts, strict=True):
        if text in at:
            row[:] = np.sign(roots[at[text]]) * roots[at[text]] ** 2
    return found


def main() -> None:
    from benchmarks.retrieval_study import asked_phrases

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pack = read("retrieval")
    texts = list(dict.fromkeys([*GENERIC_PROMPTS, *asked_phrases(pack)]))
    write(pack, texts, build(pack, texts, BaseProbe(load_base())))


if __name__ == "__main__":
    main()
