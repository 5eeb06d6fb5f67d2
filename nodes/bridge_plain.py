"""A model's layers as its checkpoint has them, while they are looked up by name.

Other nodes put their own modules in the place of layers or whole blocks (object patches; compile nodes do it block by
block). They stay there as long as that clone is loaded, so what is found under a name would depend on who sampled last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.utils


@contextmanager
def plain_layers(model: Any) -> Iterator[None]:
    """Within it the network under ``model`` (MODEL) has its own modules; nothing may be loaded or sampled meanwhile."""
    backup = dict(getattr(model, "object_patches_backup", {}))  # patchers of other packs may keep none
    replaced = {name: comfy.utils.set_attr(model.model, name, own) for name, own in backup.items()}
    try:
        yield
    finally:
        for name, other in reversed(replaced.items()):
            comfy.utils.set_attr(model.model, name, other)
