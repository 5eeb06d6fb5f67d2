"""Sorts the tensors of a file into modules: from keys and shapes to named entries, with every key accounted for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .families import Family, Layers, recognise
from .header import Header
from .keys import KeyForm, ignored_reason, parse_key
from .names import find_module, table
from .names_text import clip_by_width, find_text_module
from .names_unet import cloneofsimo_order, cloneofsimo_text_order, unet_kernel
from .shapes import AdapterShape, ShapeError, describe
from .stated_base import stated_family

_DOTTED_FORMS = (
    "native",
    "diffusers",
    "peft",
    "bare",
)  # spellings that keep the dots, so an unknown name still says all


KEPT_TENSORS = 30_000  # of tables of tensors that were sorted: a dozen of SDXL
_tables: OrderedDict[tuple, Sorted] = OrderedDict()
_lock = threading.Lock()


@dataclass
class KeyReport:
    """Where every key of a file went. The three together are exactly the file's keys."""

    used: set[str] = field(default_factory=set)
    ignored: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class ModuleEntry:
    """One module of a file: the base's own name (with ``[start:stop]`` for rows of a fused weight) and its tensors.

    ``path`` is the file's own module name with dots, ``stem`` the part its keys share, ``form`` the spelling.
    ``kind`` of adapter: lora, loha, lokr, diff, bias, norm, set, oft, boft, glora, ia3, vera, adalora or embedding;
    ``dora`` when a magnitude is stored too. ``keys``: role -> tensor name. ``shape`` (out, in, *k) of the layer part,
    () when unknown. ``alpha`` is the stored one (None: none); ``scale`` multiplies the product; ``stock_scale`` is the
    factor of ComfyUI's stock loader.
    """

    name: str
    half: str
    path: str
    stem: str
    form: str
    kind: str
    keys: dict[str, str]
    shape: tuple[int, ...]
    rank: int | None
    rows: tuple[int, int] | None = None
    swap_halves: bool = False
    dora: bool = False
    alpha: float | None = None
    scale: float = 1.0
    stock_scale: float = 1.0

    @property
    def base_module(self) -> str:
        return self.name.partition("[")[0]


@dataclass
class _Group:
    """Tensors with one stem, before the family is known."""

    stem: str
    form: KeyForm
    path: str
    keys: dict[str, str] = field(default_factory=dict)
    found: AdapterShape | None = None


@dataclass(frozen=True)
class Sorted:
    """What sorting a header gives. ``forms`` counts modules by spelling, the most common first."""

    family: Family
    entries: dict[str, ModuleEntry]
    report: KeyReport
    problems: list[str]
    forms: list[str]


def sort_modules(header: Header) -> Sorted:
    """Groups keys, recognises the family, and names every module after the base.

    Files of one trainer and one set of options have one table of tensors: what it says is worked out once.
    """
    table = (tuple(header.shapes.items()), stated_family(header.metadata))
    with _lock:
        found = _tables.get(table)
    if found is None:
        found = _sorted(header)
        with _lock:
            _tables[table] = found
            while sum(len(shapes) for shapes, _ in _tables) > KEPT_TENSORS:
                _tables.popitem(last=False)
    report = KeyReport(set(found.report.used), dict(found.report.ignored), set(found.report.unknown))
    family = replace(found.family, evidence=list(found.family.evidence))
    return Sorted(family, dict(found.entries), report, list(found.problems), list(found.forms))


def _sorted(header: Header) -> Sorted:
    report, problems = KeyReport(), []
    groups = _group(header, report)
    shapes = header.shapes
    for group in groups:
        _describe(group, shapes, report, problems)
    groups = [group for group in groups if group.found is not None]
    _number_to_names(groups, problems)
    model = Layers((g.path, g.found.shape) for g in groups if g.form.half == "model")
    text = Layers((g.path, g.found.shape) for g in groups if g.form.half == "text")
    family = recognise(model, text, header.metadata)
    family = _decide_text_only(family, groups)
    entries: dict[str, ModuleEntry] = {}
    homes = _homes(groups)
    for group in groups:
        _enter(group, family.name, homes.get(_prefix(group)), entries, report, problems)
    _set_aside_duplicates(report, entries)
    return Sorted(family, entries, report, problems, _forms(groups))


def _group(header: Header, report: KeyReport) -> list[_Group]:
    groups: dict[tuple[str, str], _Group] = {}
    for key in header.tensors:
        reason = ignored_reason(key)
        parsed = None if reason else parse_key(key)
        if reason:
            report.ignored[key] = reason
        elif parsed is None:
            report.unknown.add(key)
        else:
            group = groups.setdefault((parsed.form.name, parsed.stem), _Group(parsed.stem, parsed.form, parsed.path))
            if parsed.role in group.keys:
                report.ignored[key] = f"a second {parsed.role} for the same module; {group.keys[parsed.role]!r} is used"
            else:
                group.keys[parsed.role] = key
    return list(groups.values())


def _describe(group: _Group, shapes: Mapping[str, tuple[int, ...]], report: KeyReport, problems: list[str]) -> None:
    try:
        group.found = describe({role: shapes[key] for role, key in group.keys.items()})
    except ShapeError as error:
        problems.append(f"{group.stem}: {error}")
        for key in group.keys.values():
            report.ignored[key] = f"its module is damaged: {error}"


def _number_to_names(groups: list[_Group], problems: list[str]) -> None:
    """cloneofsimo files number their layers; gives them the names these numbers stand for in SD1.x."""
    names = {"unet": cloneofsimo_order(), "text_encoder": cloneofsimo_text_order()}
    for half, order in names.items():
        mine = [g for g in groups if g.form.name == "cloneofsimo" and g.path.startswith(half + ":")]
        if mine and len(mine) != len(order):
            problems.append(f"{half}: {len(mine)} numbered layers, not the {len(order)} of SD1.x; they cannot be named")
        elif mine and _fits_sd1(mine, order):
            for group in mine:
                group.path = order[int(group.path.partition(":")[2])]
        elif mine:
            problems.append(f"{half}: the shapes of the numbered layers are not those of SD1.x; they cannot be named")


def _fits_sd1(groups: list[_Group], order: list[str]) -> bool:
    for group in groups:
        number = int(group.path.partition(":")[2])
        if number >= len(order) or len(group.found.shape) < 2:
            return False
        out, wide = group.found.shape[:2]
        reads_text = order[number].endswith(("attn2.to_k", "attn2.to_v"))
        if (out == 8 * wide) != order[number].endswith("ff.net.0.proj") or (wide == 768) != (
            reads_text or order[number].startswith("text_model")
        ):
            return False
    return True


def _decide_text_only(family: Family, groups: list[_Group]) -> Family:
    """kohya's ``lora_te_`` (without a number) on a CLIP model is written for SD1.x and SD2.x only."""
    if family.name != "unknown" or any(group.form.half == "model" for group in groups):
        return family
    for group in groups if all(group.form.slot == 0 for group in groups) else ():
        if group.form.name == "kohya" and "text_model" in group.path:
            found = find_text_module(group.path, 0, group.found.shape)
            name = "sd2" if found and found[0] == "clip_h" else "sd15"
            why = f"kohya writes {group.stem!r}, without a number after te, for SD1.x and SD2.x only."
            return Family(name, None, [*family.evidence, why])
    return family


def _prefix(group: _Group) -> str:
    """What the trainer put before the module's name: layers of one encoder share it."""
    return group.stem.removesuffix(group.path)


def _homes(groups: list[_Group]) -> dict[str, str]:
    """Prefix → CLIP model, by the first layer that shows a width: some adapters' tensors do not."""
    homes: dict[str, str] = {}
    for group in groups:
        found = find_text_module(group.path, 0, group.found.shape) if group.form.half == "text" else None
        width = clip_by_width(found[1], group.found.shape) if found and found[0].startswith("clip_") else None
        if width is not None:
            homes.setdefault(_prefix(group), width)
    return homes


def _enter(
    group: _Group, family: str, home: str | None, entries: dict[str, ModuleEntry], report: KeyReport,
    problems: list[str],
) -> None:  # fmt: skip
    entry = _text_entry(group, home) if group.form.half == "text" else _model_entry(group, family)
    if entry is None:
        report.unknown.update(group.keys.values())
        return
    if entry.name in entries:
        for key in group.keys.values():
            report.ignored[key] = f"a second update of {entry.name}; the first one in the file is used"
        problems.append(f"{entry.name} is updated twice; {group.stem} is left out")
        return
    entries[entry.name] = entry
    report.used.update(group.keys.values())


def _set_aside_duplicates(report: KeyReport, entries: dict[str, ModuleEntry]) -> None:
    """Roles that a module's adapter does not read are not "used"."""
    for entry in entries.values():
        if entry.kind == "lora" and "scalar" in entry.keys:
            key = entry.keys["scalar"]
            report.used.discard(key)
            report.ignored[key] = "LyCORIS folds this factor into the weights when it saves"


def _entry(
    group: _Group, name: str, half: str, shape: tuple[int, ...], spelled: str | None = None, **more: object
) -> ModuleEntry:
    dora = "dora_scale" in group.keys or "magnitude" in group.keys
    kind = group.found.kind
    head = (name, half, spelled or group.path, group.stem, group.form.name)
    return ModuleEntry(*head, kind, dict(group.keys), shape, group.found.rank, dora=dora, **more)


def _text_entry(group: _Group, home: str | None) -> ModuleEntry | None:
    found = find_text_module(group.path, group.form.slot, group.found.shape, home)
    if found is None:
        return None
    half, module = found
    return _entry(group, f"{half}.{module}", half, group.found.shape)


def _model_entry(group: _Group, family: str) -> ModuleEntry | None:
    shape = group.found.shape
    target = find_module(family, group.path, shape)
    if target is None:
        # a dotted name needs no table; but where there is one, only ComfyUI's own spelling may go beyond it
        known_base = table(family) is not None and group.form.name != "native"
        dotted = group.form.name in _DOTTED_FORMS and "." in group.path and not known_base
        return _entry(group, group.path, "model", shape) if dotted else None
    blocks = group.found.kind in ("oft", "boft") and len(shape) == 1
    if target.piece is not None and len(shape) < 2 and not blocks:
        return None  # a bias alone does not tell which rows of the fused layer it belongs to
    shape = _unflatten(target.module, shape, family)
    if target.piece is None:
        return _entry(group, target.module, "model", shape, target.spelled, swap_halves=target.swap_halves)
    # OFT tells its outputs alone. q, k and v are as tall as their input is wide; for other rows (an MLP's) the start is
    # a mere name, as ComfyUI's own map places what is not additive.
    start, stop = target.piece(shape * 2 if blocks else shape)
    return _entry(group, f"{target.module}[{start}:{stop}]", "model", shape, target.spelled, rows=(start, stop))


def _unflatten(module: str, shape: tuple[int, ...], family: str) -> tuple[int, ...]:
    """UNet convolutions whose factors were stored as matrices: (out, in·k·k) -> (out, in, k, k)."""
    size = unet_kernel(family, module) if family in ("sd15", "sd2", "sdxl") and len(shape) == 2 else None
    if size is None or shape[1] % (size * size):
        return shape
    return (shape[0], shape[1] // (size * size), size, size)


def _forms(groups: list[_Group]) -> list[str]:
    counts: dict[str, int] = {}
    for group in groups:
        counts[group.form.name] = counts.get(group.form.name, 0) + 1
    return sorted(counts, key=lambda name: -counts[name])
