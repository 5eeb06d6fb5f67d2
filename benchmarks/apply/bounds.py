"""What bounds each way of applying LoRAs: operations and bytes against what the machine can do, as plot and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.fusion_page_forms import digits, table
from benchmarks.results_file import REPO, written

from .gpu_kept import OF_PEAK, PEAK

IMAGE = REPO / "docs" / "images" / "speed_roofline.png"
WAYS = {"base": "base", "bypass": "plain branches", "eager": "gate as written", "ours": "ours"}
MARKS = {"base": ("o", "#888"), "bypass": ("s", "#c84"), "eager": ("^", "#c44"), "ours": ("D", "#269")}
Rows = Sequence[Mapping[str, Any]]
times = digits(2)


def placed(rows: Rows, on: str, dtype: str) -> list[dict[str, Any]]:
    """Operations, bytes and milliseconds of each way; on a processor at the layer whose times the layer sets have."""
    found = [dict(row) for row in rows if row.get("what") == "work" and (row["on"], row["dtype"]) == (on, dtype)]
    if on == "cpu":
        timed = [
            row for row in rows
            if "base_ms" in row and found and row["shape"] == found[0]["shape"] and row["dtype"] == dtype
            and (row["model"], row["k"], row["rank"], row["share"]) == ("sdxl", 3, 16, 1.0)
        ]  # fmt: skip
        for row in found:
            row["ms"] = timed[0]["node_ms" if row["way"] == "ours" else f"{row['way']}_ms"] if timed else None
    return [row for row in found if row["ms"]]


def roofs(figures: Mapping[str, float], on: str, dtype: str) -> tuple[float, float] | None:
    """(bytes, operations) a second: of the GPU by its data sheet, and by the base's own product."""
    if on == "gpu":
        return (PEAK, 1e12 * figures["gpu_widest_base_tflops"]) if "gpu_widest_base_tflops" in figures else None
    name = f"cpu_gflops_{dtype}"
    return (1e9 * figures["cpu_gb_per_s"], 1e9 * figures[name]) if name in figures else None


def panels(figures: Mapping[str, float], rows: Rows) -> list[tuple[str, str, list, tuple[float, float]]]:
    """(title, words, placed ways, roofs) of each machine and dtype that was measured."""
    out = []
    for on, dtype, title, words in (
        ("gpu", "bfloat16", "H100, bfloat16", "FLUX's widest layer on the GPU, bfloat16"),
        ("cpu", "float32", "processor, float32", "SDXL's widest layer on the processor, float32"),
        ("cpu", "bfloat16", "processor, bfloat16", "SDXL's widest layer on the processor, bfloat16"),
    ):
        ways, top = placed(rows, on, dtype), roofs(figures, on, dtype)
        if ways and top:
            out.append((title, words, ways, top))
    return out


def draw(figures: Mapping[str, float], rows: Rows) -> None:
    """The roofline plot, a panel a machine and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    shown = panels(figures, rows)
    if not shown:
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 3.4), dpi=100, squeeze=False)
    for axis, (title, _, ways, (speed, top)) in zip(axes[0], shown, strict=True):
        at = [ways[-1]["flops"] / ways[-1]["bytes"]] + [row["flops"] / row["bytes"] for row in ways]
        line = [min(at) / 3, top / speed, 3 * max([*at, top / speed])]
        axis.loglog(line, [min(top, speed * x) for x in line], color="#444", linewidth=1)
        for row in ways:
            mark, colour = MARKS[row["way"]]
            axis.loglog(
                row["flops"] / row["bytes"], row["flops"] / row["ms"] * 1e3, mark, color=colour, label=WAYS[row["way"]]
            )
        axis.set_title(title, fontsize=10)
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("operations a byte")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("operations a second")
    axes[0][-1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(written(IMAGE), metadata={"Software": None})
    plt.close(figure)


def section(figures: Mapping[str, float], rows: Rows) -> str:
    """Plot, table, and what is left in words."""
    shown, lines, told = panels(figures, rows), [], []
    for _, words, ways, (speed, top) in shown:
        bare = next(row for row in ways if row["way"] == "base")
        for row in ways:
            lines.append([
                words if row is bare else "", WAYS[row["way"]],
                f"{row['flops'] / 1e9:.0f}", f"{row['bytes'] / 1e6:.0f}",
                f"{1e3 * row['flops'] / top:.2f}", f"{1e3 * row['bytes'] / speed:.2f}", f"{row['ms']:.2f}",
            ])  # fmt: skip
        told.append(_left(words, bare, next(row for row in ways if row["way"] == "ours"), speed, top))
    if not shown:
        return ""
    head = ("", "way", "billion operations", "MB moved", "ms for operations", "ms for bytes", "ms measured")
    text = f"""## What bounds what is left

![Rooflines](images/speed_roofline.png)

Operations and bytes of a layer with three LoRAs of rank 16, against the machine: the slope is its memory, the flat roof its products. Both are measured, but for the GPU's memory: {PEAK / 1e12:.2f} TB/s is NVIDIA's data
sheet. Bytes of the gate as written and of plain branches are what PyTorch's calls read and write, each once; those of ours are what `ncu` counted on the GPU, and on a processor the least there can be.

{table(head, lines)}

{chr(10).join(told)}"""  # noqa: E501
    text += "\n\n" + _compiled(rows) + PROCESSOR
    if "gpu_widest_least_over_base" in figures:
        text += "\n\n" + _missed(figures)
    return text


def _compiled(rows: Rows) -> str:
    """What the compiled pass takes, beside PyTorch's calls, at SDXL's widest layer."""
    told = []
    for dtype in ("float32", "bfloat16"):
        row = next((row for row in placed(rows, "cpu", dtype) if row["way"] == "ours"), None)
        mine = [
            one for one in rows if row and "base_ms" in one and (one["shape"], one["dtype"]) == (row["shape"], dtype)
            and (one["model"], one["k"], one["rank"], one["share"]) == ("sdxl", 3, 16, 1.0)
        ]  # fmt: skip
        for one in mine:
            ns = [1e6 * (one[f"{way}_ms"] - one["base_ms"]) / (one["tokens"] * one["out"]) for way in ("node", "torch")]
            told.append(f"{ns[0]:.1f} ns a number of the output in {dtype} (without Numba {ns[1]:.1f})")
    if not told:
        return ""
    return f"""**What is left on a processor.** With Numba all that a gate adds takes {" and ".join(told)} there, the down product included. Sixteen ranks of three LoRAs are 48 multiplications a number, three sigmoids some 45 more operations: near
what the vector units do. Where a base's product runs in bfloat16 at several times the speed of float32, the gate, which stays in float32 between, is what remains; nearer there are only products of the LoRAs in bfloat16
too, whose instructions Numba does not offer.

"""  # noqa: E501


# Shares: 64 tokens of 1280 channels in a cache, bfloat16, two threads, the calls of ``in_place`` one after another.
PROCESSOR = """**Without Numba** (these numbers from an Intel processor with bfloat16 tiles). A gated layer of three LoRAs of rank 16 takes some two dozen passes over pieces that stay in a core's cache, about 3 ns a number of the layer's output, in float32 as in bfloat16, for all
between is float32. Of these the LoRAs' products take 17%, the norms of their outputs 17%, logits 9%, sigmoids 24%, what is summed 12%, norm and coefficients of the base's output 11%, reading it and writing the sum 10%.
A pass lasts about 10 µs, of which some 3 are the call and one thread waiting for another: with one thread the same passes take less than one and a half times as long, not twice. The base's product in float32 takes 4 ns a number where a
layer reads 640 channels and 8 where it reads 1280, so 1.35 times the base would leave 1.4 and 2.8 ns for everything, and products and sigmoids alone take 1.2. In bfloat16 the base takes a fifth of that and the gate the same.
Nearer there is only one call that does it all, as on the GPU and with Numba; PyTorch has none for a processor without a compiler on the user's machine. What was tried and lost: bfloat16 in between (PyTorch's calls widen and
narrow each number), products in bfloat16 (slower than float32 at rank 16 and few tokens), all LoRAs in one call (more memory than a core's cache), norms out of the product itself, a Python thread a core."""  # noqa: E501


def _left(words: str, bare: Mapping, ours: Mapping, speed: float, top: float) -> str:
    added = ours["ms"] - bare["ms"]
    parts = [1e3 * (ours["bytes"] - bare["bytes"]) / speed, 1e3 * (ours["flops"] - bare["flops"]) / top]
    shares = [f"{part / added:.0%}" for part in parts] if added > 0 else ["–", "–"]
    return f"""* {words}: ours adds {added:.2f} ms. Moving its bytes takes {shares[0]} of that at the machine's best, its operations {shares[1]} at the pace of a large product. The rest is neither: norms, logits and sigmoids, number by number, and calls."""  # noqa: E501


def _missed(figures: Mapping[str, float]) -> str:
    least, copied = (figures[f"gpu_widest_least_over_base{end}"] for end in ("", "_as_copied"))
    return f"""**Why 1.08 is missed on the GPU.** The gate needs the mean and spread of the base's output over all channels before it can let the first number through, so it cannot be part of the base's own product,
and comes after it: a pass that reads the output and writes the sum. At FLUX's widest layer that alone, without any LoRA, is {times(least)} times the base at the data sheet's speed, and about
{times(copied)} at the speed of a plain copy ({OF_PEAK:.0%} of it). Ours is at {times(figures["gpu_widest_ours_over_base"])}: it reads the output twice, once for its statistics, moves {times(figures["gpu_bytes_over_limit"])} times the least bytes,
and at {times(figures["gpu_widest_tb_per_s"])} TB/s is held up by its products and sigmoids as well. Nearer to the aim there is only a product of the base that leaves the statistics behind, so that one reading is saved, and
one that does not write its output at all; both would replace the base's kernel, whatever format its weights have."""  # noqa: E501
