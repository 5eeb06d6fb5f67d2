"""Plots of the retrieval benchmark into ``docs/images``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.results_file import REPO, written

IMAGES = REPO / "docs" / "images"


def _axes(width: float, height: float):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), dpi=120)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, name: str) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(written(IMAGES / name), metadata={"Software": None})
    plt.close(figure)


def plot_methods(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Recall at 5 of every method, best first."""
    shown = sorted((r for r in rows if "zs_recall_at_5" in r), key=lambda r: r["zs_recall_at_5"])
    figure, axes = _axes(7, 0.27 * len(shown) + 1)
    names = [r["method"] for r in shown]
    colours = ["#c44" if n.startswith("control") else "#269" if n == "ours" else "#8ab" for n in names]
    axes.barh(names, [r["zs_recall_at_5"] for r in shown], color=colours)
    axes.set_xlim(0, 1)
    axes.set_xlabel("recall at 5: subjects and creators never seen")
    axes.tick_params(axis="y", labelsize=8)
    _save(figure, f"{name}_methods.png")


def plot_curves(rows: Sequence[dict[str, Any]], name: str) -> None:
    """One picture a curve, a line a method."""
    labels = {"pool": "LoRAs to choose from", "training": "LoRAs that the encoder was trained on"}
    for curve, label in labels.items():
        mine = [r for r in rows if r["curve"] == curve]
        if not mine:
            continue
        figure, axes = _axes(6, 4)
        for method in dict.fromkeys(r["method"] for r in mine):
            line = [r for r in mine if r["method"] == method]
            axes.plot([r["size"] for r in line], [r["recall_at_5"] for r in line], marker="o", label=method)
        axes.set_xscale("log")
        axes.set_ylim(0, 1)
        axes.set_xlabel(label)
        axes.set_ylabel("recall at 5")
        axes.legend(frameon=False, fontsize=8)
        _save(figure, f"{name}_{curve}.png")
