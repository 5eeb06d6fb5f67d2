"""``docs/speed.md`` and its plot, from ``benchmarks/results/apply_speed.json``.

python -m benchmarks.apply.page
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.fusion_page_forms import digits, table
from benchmarks.results_file import REPO, read_results, written

from . import bounds
from .layers import OWN_SIZE, SWEEP

PAGE = REPO / "docs" / "speed.md"
NAMES = {"sd15": "SD1.5", "sdxl": "SDXL", "flux": "FLUX.1"}
SIZES = {"sd15": "512²", "sdxl": "1024²", "flux": "512²"}
PICTURES = {
    "stock_k3": "three LoRAs, ComfyUI's own loader (weights changed)",
    "sum_k3": "three, Apply in mode sum",
    "shipped_k3": "three, the shipped gate",
    "gate_k1": "one, a gate that listens to everything",
    "gate_k3": "three, the same gate",
    "gate_k8": "eight, the same gate",
    "torch_k3": "three, the same gate, without Numba",
    "written_k3": "three, the same gate as it is written down",
}
AIM = 1.08  # of the whole set of FLUX's linear layers on a GPU, three LoRAs of rank 16, over no LoRA
DTYPE_WORDS = {"bfloat16 less float32, both eager": "bfloat16 instead of float32, both as written"}
Rows = Sequence[Mapping[str, Any]]
times = digits(2)


def page(results: Mapping[str, Any]) -> str:
    """The whole page; what was not measured is left out, and the page says so."""
    figures, rows = results["figures"], results["rows"]
    parts = [HEAD.format(date=results["date"][:10], machine=results["machine"]), WHEN, METHOD]
    timed = any("base_ms" in row for row in rows)
    parts += [_layers(rows), _sweeps(rows), _pictures(figures, rows)] if timed else [UNMEASURED]
    parts += [_card(figures, rows), bounds.section(figures, rows), _memory(rows), _quality(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


HEAD = """# Speed: what applying LoRAs costs

Made by `python -m benchmarks.apply.page` from `benchmarks/results/apply_speed.json` (`python -m benchmarks.apply`, {date}; {machine}).

A LoRA that is merged into the weights costs nothing while pictures are drawn. One beside a layer costs a little. A gate has to look at every LoRA's output before it lets it through, and as it is
written down it does so in dozens of passes over tensors as large as the layer's output. Ours ([how](how_it_works.md)) makes none of those tensors."""  # noqa: E501

WHEN = """## When the fast way is taken

Linear layers whose LoRAs are all low rank, gated or summed, go it: on a processor a few tokens at a time, in place; on NVIDIA and AMD cards by one Triton kernel a gated span, plain sums by in-place
products on any device. Where [Numba](https://numba.pydata.org) is installed (`pip install numba`, never needed) a processor does a gated layer in one compiled pass, in float32 and bfloat16; the first
picture of a session waits some three seconds for the compiler. Under `torch.compile` the same arithmetic is traced without a loop. The gate is written out, from slices of the same factors, while *record* is on, when gradients pass, in other
dtypes, and on a GPU without its kernel, with one warning that says why. Convolutions (1×1 too), LoKr, dense updates and the modes energy, klora, switch and composite keep separate branches; DoRA stays
a weight patch of ComfyUI. The kernel was measured on a card by itself; the node around it has run on processors only."""  # noqa: E501

METHOD = """## How it is measured

A *layer set* is one linear layer of every kind in a model's blocks, each counted as often as a forward runs it. The same layer, input and LoRAs, applied in turns in one process; the median of the turns:

* **base**: no LoRA. **Merged**: LoRAs in the weight, which is the same work.
* **Plain branches**: y0 + s·up(down(x)) for each LoRA, without any gate: what a loader does that keeps LoRAs beside the layers.
* **Gate as written**: the released gate's formula in PyTorch.
* **Ours**: the layer that the Apply node puts beside the model's, inside ComfyUI, where Numba is installed. **Without Numba**: the same in PyTorch's own calls.

All numbers are times over those of the base (1.00 is free)."""  # noqa: E501

UNMEASURED = "The processor's numbers are not here yet: `python -m benchmarks.apply` measures them, on a machine that does nothing else."  # noqa: E501


def total(rows: Rows, way: str) -> float:
    return sum(row["count"] * row[f"{way}_ms"] for row in rows)


def chosen(rows: Rows, **wanted: Any) -> Rows:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def _layers(rows: Rows) -> str:
    ways = ("merged", "bypass", "eager", "node", "torch")
    lines = []
    for model, dtype in ((m, d) for m in NAMES for d in ("float32", "bfloat16")):
        mine = chosen(rows, model=model, dtype=dtype, k=3, rank=16, share=OWN_SIZE[model])
        if mine:
            ratios = [times(total(mine, way) / total(mine, "base")) for way in ways]
            lines.append([f"{NAMES[model]}, {SIZES[model]}", dtype, *ratios])
    threads = next(row["threads"] for row in rows if "base_ms" in row)
    head = ("", "", "merged", "plain branches", "gate as written", "**ours**", "without Numba")
    return f"## Linear layers on a processor, three LoRAs of rank 16 ({threads} threads)\n\n{table(head, lines)}"


def _sweeps(rows: Rows) -> str:
    """Ours over base and over plain branches, by number and rank; and by picture size."""
    lines = []
    for model, dtype in ((m, d) for m in NAMES for d in ("float32", "bfloat16")):
        for k in (1, 3, 8):
            cells = []
            for rank in (4, 16, 64):
                mine = chosen(rows, model=model, dtype=dtype, k=k, rank=rank, share=SWEEP)
                over = (total(mine, "node") / total(mine, way) for way in ("base", "bypass"))
                cells.append(" / ".join(map(times, over)) if mine else "–")
            lines.append([NAMES[model], dtype, str(k), *cells])
    text = table(("", "", "LoRAs", "rank 4", "rank 16", "rank 64"), lines)
    small = []
    for model in NAMES:
        for share in sorted({row["share"] for row in chosen(rows, model=model, k=3, rank=16)}):
            mine = chosen(rows, model=model, k=3, rank=16, share=share, dtype="float32")
            most = max(row["tokens"] for row in mine)
            ratio = (total(mine, "node") / total(mine, way) for way in ("base", "bypass"))
            small.append([NAMES[model], str(most), *map(times, ratio)])
    head = ("", "tokens of the longest layer", "ours over base", "over plain branches")
    return f"""### More LoRAs, other ranks

Ours over base / over plain branches, at a sixteenth of the image tokens:

{text}

### Smaller pictures

Three LoRAs of rank 16, float32. Small layers cost what calling PyTorch costs:

{table(head, small)}"""


def _pictures(figures: Mapping[str, float], rows: Rows) -> str:
    found = {row["way"]: row for row in chosen(rows, what="picture")}
    if not found:
        return ""
    base = found["base"]
    lines = [[text, times(found[way]["ms"] / base["ms"])] for way, text in PICTURES.items() if way in found]
    return f"""## Whole pictures on a processor

The demo model in ComfyUI, {base["side"]}² pixels, {base["steps"]} steps, sampling alone, over the bare model:

{table(("", "times"), lines)}

Its layers are 256 channels wide: calls count here as much as arithmetic. The shipped gate is what the demo's user waits for.
After its steps no number of the latent is farther from the gate as written than {figures.get("demo_image_latent_apart_compiled", 0):.1e} of their standard deviation, without Numba {figures.get("demo_image_latent_apart_torch", 0):.1e}."""  # noqa: E501


def _card(figures: Mapping[str, float], rows: Rows) -> str:
    card = next((row for row in chosen(rows, what="card")), None)
    if card is None:
        return ""
    lines = []
    for model, k, rank in [("sd15", 3, 16), ("sdxl", 3, 16), *(("flux", k, r) for k in (1, 3, 8) for r in (4, 16, 64))]:
        name = f"gpu_{model}_k{k}_r{rank}"
        if f"{name}_over_base" in figures:
            own = [figures.get(f"{name}{end}") for end in ("_over_base", "_over_bypass", "_eager_over_ours")]
            lines.append([NAMES[model], str(k), str(rank), *("–" if x is None else times(x) for x in own)])
    blocks = {way: figures[f"gpu_flux_blocks_k3_r16_{way}_over_base"] for way in ("bypass", "ours", "eager")}
    held = figures["gpu_flux_k3_r16_over_base"]
    verdict = "met" if held <= AIM else "**missed**"
    return f"""## On a GPU

{card["card"]}, {card["date"][:10]}, bfloat16, all at 1024² (SD1.5 at 512²); a Triton kernel does the pass. Layers are timed on the card (CUDA graphs), so small ones show their kernels and not the calls.

{table(("", "LoRAs", "rank", "ours over base", "over plain branches", "gate as written over ours"), lines)}

Whole blocks of FLUX.1, with attention and norms, three LoRAs of rank 16: ours {times(blocks["ours"])}, plain branches {times(blocks["bypass"])}, the gate as written {times(blocks["eager"])} times the base.
The aim was {AIM} times the base over FLUX's linear layers, with three LoRAs of rank 16. Found: {times(held)}. It is {verdict}.
Root mean square error against float64, in units of what the LoRAs add: {_errors(figures)}. Another strength, or a LoRA more, compiled {figures["gpu_compiled_again"]:.0f} kernels anew; a call costs the host {figures["gpu_call_us"]:.0f} µs."""  # noqa: E501


def _errors(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{figures[f'gpu_rms_error_{d}']:.1e} in {d}" for d in ("float32", "float16", "bfloat16"))


def _memory(rows: Rows) -> str:
    lines = [
        [str(row["k"]), row["dtype"], WAYS[row["way"]], times(row["peak_extra_over_one_branch"])]
        for row in chosen(rows, what="layer") if row["way"] in WAYS and "branch_bytes" in row
    ]  # fmt: skip
    trained = chosen(rows, what="training")
    if not lines or not trained:
        return ""
    saved = {(row["k"], row["way"]): times(row["saved_over_output"]) for row in trained}
    kept = [[str(k), saved[k, "eager"], saved[k, "ours"]] for k in sorted({row["k"] for row in trained})]
    shape = next(row for row in rows if "branch_bytes" in row)
    return f"""## Memory

The most that is allocated at once beyond the base's output, in sizes of one LoRA's output at the layer; counted by PyTorch's allocator ({shape["tokens"]} tokens, {shape["out"]} channels, rank {shape["rank"]}). Ours writes the result where the base's output lay. The compiled pass holds some 100 kB a thread besides, which that allocator does not see.

{table(("LoRAs", "", "way", "sizes"), lines)}

**Training a gate.** What autograd keeps of one gated layer for the way back, in sizes of the layer's output, also counted:

{table(("LoRAs", "gate as written", "ours"), kept)}"""  # noqa: E501


WAYS = {"bypass": "plain branches", "eager": "gate as written", "node": "ours", "torch": "ours without Numba"}


def _quality(rows: Rows) -> str:
    joint, apart = chosen(rows, what="joint"), chosen(rows, what="apart")
    if not joint:
        return ""
    share: Callable[[Mapping], str] = lambda r: f"{r['value']:.1%} [{r['low']:.1%}, {r['high']:.1%}]"  # noqa: E731
    lines = []
    for gate in dict.fromkeys(row["gate"] for row in joint):
        mine = {row["path"]: row for row in joint if row["gate"] == gate}
        lines.append([gate.replace("_", " "), *(share(mine[path]) for path in ("eager", "node", "node less eager"))])
    far = [
        [
            r["gate"].replace("_", " "),
            DTYPE_WORDS.get(r["dtype"], r["dtype"]),
            f"{r['max_latent']:.1e}",
            f"{r['max_pixel']}",
            f"{r['mean_pixel']:.2g}",
        ]
        for r in apart
    ]
    first, errors = joint[0], []
    for dtype in dict.fromkeys(row["dtype"] for row in chosen(rows, what="error")):
        mine = [chosen(rows, what="error", dtype=dtype, way=way) for way in ("eager", "node", "torch")]
        errors.append([dtype, *(f"{max(r[of] for r in own):.1e}" for own in mine for of in ("max", "rms"))])
    return f"""## Do pictures move?

{_in_short(joint, apart, errors)}{"" if all(row.get("compiled") for row in joint) else BEFORE}

`python -m benchmarks.apply --part quality`: {first["pairs"]} pairs of the [fusion benchmark](fusion.md), {first["seeds"]} pictures each, {first["k"]} LoRAs, the same noise, drawn once by the gate as written and once by the Apply node's layers. Share of pictures with subject and style both right, 95 % intervals over pairs:

{table(("gate", "as written", "ours", "ours less as written"), lines)}

The largest difference between the two, of latents (in units of their root mean square) and of pixels (of 255), after all steps; and what bfloat16 alone does to the same pictures:

{table(("gate", "dtype", "latent", "pixel", "mean pixel"), far)}

At one layer, against float64, in units of the root mean square of what the LoRAs add (the worse of ranks 4, 16, 40 and 256, 7):

{table(("", "as written: largest", "root mean square", "ours: largest", "root mean square", "without Numba: largest", "root mean square"), errors)}"""  # noqa: E501


BEFORE = """

Pictures and their judge were last drawn without Numba. How far its compiled pass is from the gate as written is told above for the demo's picture, and below for one layer: no farther than PyTorch's calls."""  # noqa: E501


def _in_short(joint: Rows, apart: Rows, errors: Sequence[Sequence[str]]) -> str:
    """What the section's tables say, in a few sentences."""
    less = [row for row in joint if row["path"] == "node less eager"]
    same = all(row["low"] <= 0 <= row["high"] for row in less)
    found = " and ".join(f"{100 * row['value']:+.1f} points ({row['gate'].replace('_', ' ')})" for row in less)
    moved = {d: max(r["max_pixel"] for r in apart if r["dtype"] == d) for d in dict.fromkeys(r["dtype"] for r in apart)}
    told = ", ".join(f"{pixel} ({DTYPE_WORDS.get(dtype, dtype)})" for dtype, pixel in moved.items())
    return f"""The judge {"finds no difference" if same else "finds a difference"}: ours less the gate as written is {found}. The most that a pixel moves, of 255: {told}. The largest error at one layer, in units
of what the LoRAs add there: {", ".join(f"{row[3]} in {row[0]}" for row in errors)}. In detail:"""  # noqa: E501


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    results = read_results("apply_speed")
    if results is None:
        raise SystemExit("benchmarks/results/apply_speed.json is not there: run python -m benchmarks.apply first")
    bounds.draw(results["figures"], results["rows"])
    path = written(PAGE)
    path.write_text(page(results), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
