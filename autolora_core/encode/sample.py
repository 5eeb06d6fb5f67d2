"""Which layers of a file are sketched: a few dozen of hundreds, the same ones in every file.

Sketching costs hundreds of operations a number, reading one; and an SDXL LoRA's 722 layers say much the same of it. A
layer is taken when a hash of its name lies below a bound of its family's: coordinated sampling (Brewer, Early and
Joyce 1972; Cohen and Kaplan 2007), under which two files' common layers are taken in both or in neither, so that
cosines of samples estimate cosines of files. A file that trains few layers would be left with too few: it keeps at
least :data:`FEWEST`, those of the smallest hashes. Parts of a fused layer and its row slices go by the layer's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

FEWEST = 24
# Of 256 layers, how many are taken: about 70 of a file that trains every layer of its base. Stored sketches are of
# these layers: whoever changes a number here raises `features.SKETCH_VERSION`.
SHARE = 48
SHARES = {"sdxl": 24, "qwen_image": 24, "emoji": 256}


def sampled(family: str, modules: Iterable[str]) -> frozenset[str]:
    """Of the layers that ``modules`` (or rows of them, ``layer[start:stop]``) name, those to sketch."""
    return _sampled(SHARES.get(family, SHARE), tuple(modules))


def layer_of(module: str) -> str:
    """The layer that ``module`` is, or is some rows of."""
    return module.partition("[")[0]


@lru_cache(64)
def _sampled(share: int, modules: tuple[str, ...]) -> frozenset[str]:
    ranked = sorted((hashlib.sha256(layer.encode()).digest(), layer) for layer in {layer_of(name) for name in modules})
    below = sum(digest[0] < share for digest, _ in ranked)
    return frozenset(layer for _, layer in ranked[: max(below, FEWEST)])
