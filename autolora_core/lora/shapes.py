"""What kind of adapter a module's tensors make up, and the shape of the layer they change, from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

Shape = tuple[int, ...]

# roles that name the adapter, in the order in which they are looked for
_KIND_BY_ROLE: tuple[tuple[str, str], ...] = (
    ("oft_blocks", "oft"),
    ("oft_diag", "oft"),
    ("oft_r", "oft"),
    ("boft", "boft"),
    ("ia3", "ia3"),
    ("on_input", "ia3"),
    ("vera", "vera"),
    ("a1", "glora"),
    ("adalora_e", "adalora"),
    ("embedding_down", "embedding"),
    ("hada_w1_a", "loha"),
    ("lokr_w1", "lokr"),
    ("lokr_w1_a", "lokr"),
    ("lokr_w2", "lokr"),
    ("lokr_w2_a", "lokr"),
    ("up", "lora"),
    ("set_weight", "set"),
    ("set_norm", "set"),
    ("diff", "diff"),
    ("w_norm", "norm"),
    ("b_norm", "norm"),
    ("diff_b", "bias"),
    ("bias", "bias"),
)
_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {  # each tuple: one of these roles must be there
    "lora": (("down",), ("up",)),
    "loha": (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
    "lokr": (("lokr_w1", "lokr_w1_a"), ("lokr_w2", "lokr_w2_a")),
    "glora": (("a1",), ("a2",), ("b1",), ("b2",)),
}


class ShapeError(ValueError):
    """The tensors of one module do not fit together; the text says how."""


@dataclass(frozen=True)
class AdapterShape:
    """``kind`` of adapter, its ``rank`` (None when it has none) and ``out``, ``in`` and kernel of the layer."""

    kind: str
    rank: int | None
    shape: Shape  # (out, in, *kernel); () when the tensors do not tell


def describe(shapes: dict[str, Shape]) -> AdapterShape:
    """Reads kind, rank and layer shape off the tensors of one module (role -> shape). Raises ShapeError."""
    kind = next((kind for role, kind in _KIND_BY_ROLE if role in shapes), None)
    if len(shapes.get("oft_blocks", ())) == 4:
        kind = "boft"  # LyCORIS stores both under one name; BOFT has one more dimension
    if kind is None:
        raise ShapeError(f"only {', '.join(sorted(shapes))}: half of a module")
    for options in _NEEDED.get(kind, ()):
        if not any(role in shapes for role in options):
            raise ShapeError(f"{options[0]} is missing")
    for role, shape in shapes.items():
        _require(0 not in shape, f"{role} {list(shape)} has no values")
    reader = {"lora": _lora, "loha": _loha, "lokr": _lokr, "diff": _diff}.get(kind)
    if reader is None:
        return AdapterShape(kind, None, _loose_shape(kind, shapes))
    found = reader(shapes)
    outputs = math.prod(found.shape[:1])
    for role in ("diff_b", "bias"):
        bias = shapes.get(role, (outputs,))
        _require(math.prod(bias) == outputs, f"{role} {list(bias)} does not fit {outputs} outputs")
    return found


def _loose_shape(kind: str, shapes: dict[str, Shape]) -> Shape:
    if kind == "set":
        return shapes.get("set_weight") or shapes.get("set_norm") or ()
    if kind == "bias":
        return shapes.get("diff_b") or shapes.get("bias") or ()
    if kind == "norm":
        return shapes.get("w_norm") or shapes.get("b_norm") or ()
    if kind == "adalora" and "up" in shapes and "down" in shapes:
        return (shapes["up"][0], shapes["down"][1])
    if kind == "glora":
        return _glora(shapes["b1"], shapes["b2"])
    if kind in ("oft", "boft") and len(shapes.get("oft_blocks", ())) >= 3:
        return (shapes["oft_blocks"][-3] * shapes["oft_blocks"][-2],)  # blocks on the outputs; nothing tells the inputs
    return ()


def _glora(b1: Shape, b2: Shape) -> Shape:
    """LyCORIS wrote its additive part as b1·b2, before 2024 as b2·b1; where both fit, as on square layers, the one
    with the lower rank is meant."""
    if len(b1) < 2 or len(b2) < 2:
        return ()
    newer = b1[1] == b2[0] and (b1[0] != b2[1] or b1[1] <= b1[0])
    return (b1[0], b2[1]) if newer else (b2[0], b1[1])


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ShapeError(message)


def _lora(shapes: dict[str, Shape]) -> AdapterShape:
    down, up, mid = shapes["down"], shapes["up"], shapes.get("mid")
    _require(len(down) >= 2 and len(up) >= 2, f"down {list(down)} and up {list(up)} must have two dimensions or more")
    _require(math.prod(up[2:]) == 1, f"up {list(up)} has a kernel")
    if mid is None:
        _require(up[1] == down[0], f"the ranks differ: down {list(down)}, up {list(up)}")
        return AdapterShape("lora", down[0], (up[0], down[1], *down[2:]))
    _require(len(mid) >= 3 and math.prod(down[2:]) == 1, f"mid {list(mid)} does not fit down {list(down)}")
    _require(up[1] == mid[0] and mid[1] == down[0], f"mid {list(mid)} does not fit up {list(up)} and down {list(down)}")
    return AdapterShape("lora", down[0], (up[0], down[1], *mid[2:]))


def _loha(shapes: dict[str, Shape]) -> AdapterShape:
    halves = []
    for n in (1, 2):
        wa, wb, core = shapes[f"hada_w{n}_a"], shapes[f"hada_w{n}_b"], shapes.get(f"hada_t{n}")
        _require(len(wa) == 2 and len(wb) == 2, f"hada_w{n} factors must be matrices")
        if core is None:
            _require(wa[1] == wb[0], f"the ranks of hada_w{n} differ: {list(wa)}, {list(wb)}")
            halves.append((wa[0], wb[1]))
        else:
            _require(len(core) >= 3 and core[0] == wa[0] and core[1] == wb[0], f"hada_t{n} {list(core)} does not fit")
            halves.append((wa[1], wb[1], *core[2:]))
    _require(halves[0] == halves[1], f"the two products have shapes {list(halves[0])} and {list(halves[1])}")
    return AdapterShape("loha", shapes["hada_w1_b"][0], halves[0])


def _lokr(shapes: dict[str, Shape]) -> AdapterShape:
    left, rank_left = _lokr_part(shapes, "lokr_w1", None)
    right, rank_right = _lokr_part(shapes, "lokr_w2", shapes.get("lokr_t2"))
    _require(len(left) == 2, f"lokr_w1 {list(left)} is not a matrix")
    rank = rank_right if rank_right is not None else rank_left  # the order in which LyCORIS and ComfyUI choose
    return AdapterShape("lokr", rank, (left[0] * right[0], left[1] * right[1], *right[2:]))


def _lokr_part(shapes: dict[str, Shape], name: str, core: Shape | None) -> tuple[Shape, int | None]:
    if name in shapes:
        _require(len(shapes[name]) >= 2, f"{name} {list(shapes[name])} is not a matrix")
        return shapes[name], None
    wa, wb = shapes[f"{name}_a"], shapes.get(f"{name}_b")
    _require(wb is not None and len(wa) == 2 and len(wb) == 2, f"{name}_b is missing or not a matrix")
    if core is None:
        _require(wa[1] == wb[0], f"the ranks of {name} differ: {list(wa)}, {list(wb)}")
        return (wa[0], wb[1]), wb[0]
    _require(len(core) >= 3 and core[0] == wa[0] and core[1] == wb[0], f"lokr_t2 {list(core)} does not fit")
    return (wa[1], wb[1], *core[2:]), wb[0]


def _diff(shapes: dict[str, Shape]) -> AdapterShape:
    return AdapterShape("diff" if len(shapes["diff"]) >= 2 else "norm", None, shapes["diff"])
