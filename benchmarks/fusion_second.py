"""Does the universal gate hold on an architecture that it never saw?

    python -m benchmarks.fusion_second [--pairs 92] [--seeds 2] [--k 2,3,5] [--methods sum,scalar,…]

The gate: five numbers a kind of layer (recipe ``scalar`` of ``zoo.train_fusion``), trained on the demo base, an
SD3-class network. The second architecture: a small Flux-class network with LoRAs of its own (``zoo.train_second``), on
the same pictures. Everything else is as in ``benchmarks.fusion``: pairs whose true picture exists, LoRAs that nobody
asked for beside them, the same judge; verdicts are kept, so it can be stopped and started at will.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autolora_core.encode.towers import file_sha256
from autolora_core.fusion.branches import Branch
from autolora_core.fusion.gate import GateVectors
from autolora_core.fusion.layer_kinds import kind_of
from autolora_core.fusion.training.parameters import spans_of
from benchmarks.fusion import numbers
from benchmarks.fusion_cases import DISTRACTORS, Case
from benchmarks.fusion_entries import Entry
from benchmarks.fusion_methods import gated, mode, summed
from benchmarks.fusion_run import Runner, Scope
from benchmarks.fusion_shelf import TEST, Lora
from benchmarks.fusion_store import Verdicts
from benchmarks.fusion_table import Table, report
from benchmarks.results_file import write_results
from benchmarks.zoo_needed import zoo_needed
from zoo.budget import positive_int
from zoo.cache import read_json, zoo_dir
from zoo.captions import subject_name, with_article
from zoo.fused_layers import Gate
from zoo.lora_data import true_picture
from zoo.lora_plan import LoraSpec
from zoo.multi_lora import target_layers
from zoo.pictures import Pictures
from zoo.raw_factors import read_raw
from zoo.scale_plan import style_family, style_label
from zoo.splits import Splits, unit
from zoo.train_fusion import RECIPES, gate_of
from zoo.train_fusion import folder as gates_folder
from zoo.train_loras import load_base
from zoo.train_second import folder, load_second, lora_path, specs

log = logging.getLogger("benchmarks.fusion_second")
STEPS = 12
BASELINES = ("sum", "energy", "magnitude", "np", "ssr")


class SecondShelf:
    """The LoRAs of the second architecture; all say in words what they are of."""

    name = "second"

    @cached_property
    def _specs(self) -> dict[str, LoraSpec]:
        return {spec.id: spec for spec in specs()}

    @cached_property
    def loras(self) -> list[Lora]:
        return [_lora(spec) for spec in self._specs.values()]

    def ready(self, name: str) -> bool:
        return lora_path(self._specs[name]).exists()

    def content(self, name: str) -> str:
        return file_sha256(lora_path(self._specs[name]))

    def branches(self, name: str, index: int) -> list[Branch]:
        found = read_raw(lora_path(self._specs[name]))
        return [Branch(module, index, down=down, up=up) for module, (down, up) in found.items()]

    def part(self, subject: str, style: str) -> str | None:
        """No gate was trained on any of them."""
        return TEST


def _lora(spec: LoraSpec) -> Lora:
    if spec.subject:
        label = subject_name(spec.subject)
        return Lora(spec.id, spec.subject, None, None, label, with_article(label))
    label = style_label(spec.style)
    return Lora(spec.id, None, spec.style, style_family(spec.style), label, f"{label} style")


def cases(shelf: SecondShelf, limit: int | None = None) -> list[Case]:
    """All pairs whose picture exists, in an order drawn by hash, with strangers drawn by lot."""
    pictures, known = Pictures.load(), sorted(Splits.load().base_subjects)
    subjects = [lora for lora in shelf.loras if lora.subject]
    styles = [lora for lora in shelf.loras if lora.style]
    out = []
    for a in subjects:
        for b in styles:
            if true_picture(pictures, a.subject, b.style) is None:
                continue
            name = f"{a.subject}|{b.style}"
            pool = [lora for lora in shelf.loras if lora.id not in (a.id, b.id) and not lora.shows(a.subject, b.style)]
            pool.sort(key=lambda lora, name=name: unit("second-distractor", f"{name}|{lora.id}"))
            strangers = tuple(lora.id for lora in pool[:DISTRACTORS])
            bystander = known[int(unit("fusion-bystander", name) * len(known))]
            out.append(Case(a.subject, b.style, TEST, (a.id, b.id), strangers, False, bystander))
    return sorted(out, key=lambda case: unit("second-case", case.name))[:limit]


def universal_vectors(gate: Gate, layers: Mapping[str, nn.Linear]) -> dict[str, GateVectors]:
    """The few numbers of a universal gate spread over another network's layers, by what part of a block each is.

    FLUX's ``linear1`` is query, key, value and the MLP's first layer in one, so its channels get both kinds' numbers;
    ``linear2``, which takes attention and MLP back together, counts as the MLP's last layer.
    """
    found = {}
    for name, layer in layers.items():
        kinds = _kinds(name, layer.out_features)
        if any(kind not in gate.numbers for kind, _ in kinds):
            continue  # a kind that the gate never met stays a plain sum
        rows, tables, powers = [], [], []
        for kind, width in kinds:
            parts = gate.numbers[kind].shape[1]
            rows += [gate.numbers[kind][:, part].expand(5, width // parts) for part in range(parts)]
            tables += [(gate.table(kind)[part], width / parts) for part in range(parts)]
            powers.append((gate.powers[kind], width))
        found |= _entries(name, torch.cat(rows, 1).detach(), tables, powers)
    return found


def _kinds(name: str, channels: int) -> list[tuple[str, int]]:
    """(kind, output channels) of the parts of a layer."""
    if name.endswith(".linear1"):
        return [("attention_in", channels * 3 // 7), ("feedforward_in", channels * 4 // 7)]
    if name.endswith(".linear2"):
        return [("feedforward_out", channels)]
    return [(kind_of(name), channels)]


def _entries(
    name: str, rows: Tensor, tables: Sequence[tuple[Tensor, float]], powers: Sequence[tuple[Tensor, float]]
) -> dict[str, GateVectors]:
    """Vectors of a layer as a gate file has them, in three for a ``qkv``; roles and powers are one a span."""
    out, channels = {}, rows.shape[1]
    spans = spans_of(name, channels)
    power = float(_mean(powers))
    for number, (entry, start, stop) in enumerate(spans):
        width = stop - start
        unit_norms = torch.stack([torch.ones(width), torch.zeros(width)] * 2)
        vectors = GateVectors.from_stack(torch.cat([rows[:, start:stop], unit_norms]).clone())
        table = tables[number][0] if len(spans) == len(tables) else _mean(tables)
        tilted = {"roles": table.detach().clone()} if table.any() else {}
        out[entry] = replace(vectors, **tilted, power=power)
    return out


def _mean(values: Sequence[tuple[Tensor, float]]) -> Tensor:
    return sum(value.detach() * weight for value, weight in values) / sum(weight for _, weight in values)


def entries(network_layers: Mapping[str, nn.Linear]) -> dict[str, Entry]:
    """The baselines, and the universal gate with and without knowing whom the prompt asks for."""
    out = {name: Entry(mode(name), name) for name in BASELINES}
    out["sum-asked"] = Entry(summed, "sum-asked", ours=True)
    path = gates_folder() / "scalar.safetensors"
    made = gate_of(RECIPES["scalar"], _first_layers())
    made.load_state_dict(load_file(str(path)))
    vectors, key = universal_vectors(made, network_layers), file_sha256(path)[:8]
    out["scalar"] = Entry(lambda b, ids: gated(b, ids, vectors), f"scalar@{key}", ours=True)
    out["scalar-unasked"] = Entry(
        lambda b, ids: gated(b, ids, vectors, asked=False), f"scalar-unasked@{key}", ours=True
    )
    return out


def _first_layers() -> dict[str, nn.Linear]:
    model = load_base()
    return {name: model.get_submodule(name) for name in target_layers(model)}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=positive_int, default=92)
    parser.add_argument("--seeds", type=positive_int, default=2)
    parser.add_argument("--k", type=numbers, default=[2, 3, 5])
    parser.add_argument("--methods", help="names, as sum,scalar")
    parser.add_argument("--minutes", type=float, help="begin no new pair after this long")
    parser.add_argument("--table", action="store_true", help="draw nothing, write the results")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(zoo_dir("inductor")))
    torch.set_num_threads(1)
    shelf, model = SecondShelf(), load_second()
    known = entries({name: model.get_submodule(name) for name in target_layers(model)})
    every, step = cases(shelf, args.pairs), read_json(folder() / "state.json")["step"]
    verdicts = Verdicts.open(f"second-{step}")
    if not args.table:
        wanted = {name: known[name] for name in (args.methods or ",".join(known)).split(",")}
        until = time.time() + 60 * args.minutes if args.minutes else float("inf")
        runner = Runner(shelf, verdicts, STEPS, not args.no_compile, model)
        runner.run(list(enumerate(every)), Scope(wanted, args.k, args.seeds, until))
    keys, ours = {n: e.key for n, e in known.items()}, [n for n, e in known.items() if e.ours]
    made = report(Table(verdicts, every, args.seeds), keys, ours, args.k)
    about = {"base_steps": step, "loras": len(shelf.loras), "pairs_planned": len(every), "sampler_steps": STEPS}
    ks = ",".join(map(str, args.k))
    command = f"python -m benchmarks.fusion_second --pairs {args.pairs} --seeds {args.seeds} --k {ks}"
    log.info("wrote %s", write_results("fusion_second", command, 0, made.figures, [about, *made.rows]))


if __name__ == "__main__":
    with zoo_needed("`python -m zoo build`, then `python -m zoo.train_second`"):
        main()
