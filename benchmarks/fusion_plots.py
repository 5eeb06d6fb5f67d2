"""What the fusion benchmark found, by measure, K and method, and its plots into ``docs/images``.

One colour and mark a method in all plots, ours in blue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results_file import REPO, written

IMAGES = REPO / "docs" / "images"
OURS, WHOLE = "ours", 0.9
OURS_COLOUR, KIN_COLOUR = "#269", "#8bd"
MARKS, KIN_MARKS = "ovsD^<>pPX", "osD^vpPX<>"
BASELINES = {
    "sum": "the plain sum, as the stock loader has it",
    "energy": "the sum, for each token no longer than its longest part",
    "ties": "TIES, arXiv 2306.01708",
    "dare": "DARE, arXiv 2311.03099",
    "magnitude": "the largest numbers of each update, summed",
    "klora": "K-LoRA, arXiv 2502.18461",
    "np": "NP-LoRA, arXiv 2511.11051",
    "ssr": "SSR-Merge, arXiv 2606.10617",
    "switch": "LoRA Switch, arXiv 2402.16843",
    "composite": "LoRA Composite, arXiv 2402.16843",
    "paper": "AutoLoRA's gate, arXiv 2508.02107, trained here by its published recipe, without Global-LoRA",
    "paper-global": "the same with Global-LoRA",
}
OWN = {
    OURS: "our gate: loudness by role and layer, LoRAs as loud as the prompt asks for them",
    "sum-asked": "the plain sum, LoRAs as loud as the prompt asks for them: ours without its gains",
    "scalar": "a gate of five numbers for each kind of layer, trained on flow and published contrastive loss",
    "naming": "a gate of vectors per channel with roles, time and K, trained on our naming loss",
    "naming-routed": "naming, on SSR's routed branches",
    "naming-unroled": "naming, subjects and styles alike",
    "naming-untimed": "naming, the same at every step",
    "naming-uncounted": "naming, not scaled by K",
    "flow": "the gate of naming, trained on true composites with the flow loss alone",
    "flow-contrast": "flow, and the published contrastive loss",
    "flow-contrast-routed": "the same on SSR's routed branches",
    "ours-unasked": "our gate, not told which LoRAs the prompt asks for",
    "ours-unroled": "our gate, not told what is a style: subjects' and styles' gains are their mean",
}


# Compared on fewer pairs, if need be, in a table of their own: the published gate, and ours with something changed.
PIECES = (
    "paper", "paper-global", "naming", "naming-unroled", "naming-untimed", "naming-uncounted", "naming-routed", "flow",
    "flow-contrast", "flow-contrast-routed", "scalar", "ours-unasked", "ours-unroled",
)  # fmt: skip
PIECES_AGAINST = "sum-asked"


@dataclass(frozen=True)
class Found:
    """The results by measure, K and method. ``about``: what was drawn."""

    figures: dict[str, float]
    rows: dict[str, dict[str, Any]]
    differences: dict[tuple[str, int, str, str], dict[str, Any]]
    about: dict[str, Any]

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> Found:
        about, *rows = results["rows"]
        named = {row["figure"]: row for row in rows if "figure" in row}
        differ = {(r["difference"], r["k"], r["method"], r["against"]): r for r in rows if "difference" in r}
        return cls(results["figures"], named, differ, about)

    def _joint(self) -> list[tuple[int, str]]:
        """K and name of every method that was measured."""
        return [(int(m[1]), m[2]) for name in self.figures if (m := re.fullmatch(r"joint_k(\d+)_(.+)", name))]

    @property
    def ks(self) -> list[int]:
        return sorted({k for k, _ in self._joint()})

    @property
    def names(self) -> list[str]:
        """All methods at any K, in the order of the lists above; names unknown to them come last."""
        there = {name for _, name in self._joint()}
        known = [name for name in (*BASELINES, *OWN) if name in there]
        return known + sorted(there - set(known))

    @property
    def own(self) -> list[str]:
        return [name for name in self.names if name in OWN or name.startswith("ours-")]

    def row(self, measure: str, k: int, method: str) -> dict[str, Any] | None:
        return self.rows.get(f"{measure}_k{k}_{method}")

    def value(self, measure: str, k: int, method: str) -> float | None:
        return self.figures.get(f"{measure}_k{k}_{method}")

    def measured(self, k: int) -> list[str]:
        """Best joint first."""
        there = [name for name in self.names if self.value("joint", k, name) is not None]
        return sorted(there, key=lambda name: [-(self.value(what, k, name) or 0) for what in ("joint", "hmean")])

    def methods(self, k: int) -> list[str]:
        """Those that stand beside each other; pieces drawn for few pairs have a table of their own."""
        return [name for name in self.measured(k) if name not in PIECES or name not in self.few(k)]

    def pieces(self, k: int) -> list[str]:
        """Of :data:`PIECES` those that can be compared with the plain sum of what is asked for, pair by pair."""
        return [name for name in PIECES if ("joint", k, name, PIECES_AGAINST) in self.differences]

    def pairs(self, k: int, method: str) -> int:
        return self.rows[f"joint_k{k}_{method}"]["pairs"]

    def few(self, k: int) -> list[str]:
        """Methods drawn for too few of the pairs, by the rule by which the results choose the best baseline."""
        most = max(self.pairs(k, name) for name in self.measured(k))
        return [name for name in self.measured(k) if self.pairs(k, name) < WHOLE * most]

    def rivals(self, k: int) -> list[str]:
        """Baselines that ours can be compared with."""
        return [name for name in self.methods(k) if name not in self.own and name not in self.few(k)]

    def best(self, k: int) -> str | None:
        """The baseline that ours is measured against."""
        return self.rows.get(f"best_baseline_joint_k{k}", {}).get("method")

    def against(self, k: int) -> list[str]:
        """Whom ours is compared with: the best baseline, the sum, and itself without its gains."""
        beside = dict.fromkeys((self.best(k), "sum", "sum-asked"))
        return [name for name in beside if ("joint", k, OURS, name) in self.differences]


def draw_all(found: Found, retention_aims: Mapping[int, float], folder: Path = IMAGES) -> list[Path]:
    """Every plot of the page."""
    return [
        plot_joint(found, folder),
        plot_subject_style(found, folder),
        plot_retention(found, retention_aims, folder),
    ]


def _panels(columns: int, rows: int, width: float, height: float, **shared: Any):
    """A figure with its axes in one flat list."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height), dpi=120, squeeze=False, **shared)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    path = written(path)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None}, bbox_inches="tight")
    plt.close(figure)
    return path


def looks(names: Sequence[str], own: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Method → how it is drawn. ``own``: ours and its kin, in blues; all others have a colour of their own."""
    import matplotlib

    palette = [matplotlib.colormaps["tab20b"](i) for i in (4, 8, 12, 16, 6, 10, 14, 18)] + ["#333", "#888", "#5a3"]
    rivals, kin = [n for n in names if n not in own], [n for n in names if n in own and n != OURS]
    out = {n: {"color": palette[i % len(palette)], "marker": MARKS[i % len(MARKS)]} for i, n in enumerate(rivals)}
    out |= {n: {"color": KIN_COLOUR, "marker": KIN_MARKS[i % len(KIN_MARKS)]} for i, n in enumerate(kin)}
    return out | {OURS: {"color": OURS_COLOUR, "marker": "*", "markersize": 11, "zorder": 5}}


def _hollow(found: Found, k: int, name: str) -> dict[str, str]:
    """Too few pairs to be compared: an empty mark."""
    return {"markerfacecolor": "white"} if name in found.few(k) else {}


def plot_joint(found: Found, folder: Path = IMAGES) -> Path:
    """A panel a K: the share of pictures with both right, with its interval; methods by their mean over the Ks."""
    names, style = _by_mean(found), looks(found.names, found.own)
    figure, axes = _panels(len(found.ks), 1, 2 + 2.1 * len(found.ks), 0.24 * len(names) + 1, sharey=True, sharex=True)
    ceiling = found.figures.get("single_ceiling")
    for one, k in zip(axes, found.ks, strict=True):
        for place, name in enumerate(names):
            if (row := found.row("joint", k, name)) is not None:
                reach = [[max(0, row["value"] - row["low"])], [max(0, row["high"] - row["value"])]]
                one.errorbar(
                    row["value"], place, xerr=reach, capsize=2, clip_on=False, **style[name], **_hollow(found, k, name)
                )
        if ceiling is not None:
            one.axvline(ceiling, color="#999", linestyle=":", zorder=0)
        one.set_title(f"K = {k}", fontsize=9)
        one.grid(axis="y", color="#eee")
    axes[0].set_xlim(left=0)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    figure.supxlabel("both right (dotted: each LoRA alone does its own part)", fontsize=9, y=0.04)
    return _save(figure, folder / "fusion_joint.png")


def _by_mean(found: Found) -> list[str]:
    """Names, worst first, by mean joint over the numbers of LoRAs that a method has."""

    def mean(name: str) -> float:
        values = [v for k in found.ks if (v := found.value("joint", k, name)) is not None]
        return sum(values) / len(values)

    return sorted(found.names, key=mean)


def plot_subject_style(found: Found, folder: Path = IMAGES) -> Path:
    """A panel a K: right subjects against right styles. The cross is what each wanted LoRA does alone."""
    style = looks(found.names, found.own)
    figure, axes = _panels(2, (len(found.ks) + 1) // 2, 8, 3.2 * ((len(found.ks) + 1) // 2), sharex=True, sharey=True)
    alone = [found.figures.get(f"{what}_alone_{what}") for what in ("subject", "style")]
    for one, k in zip(axes, found.ks, strict=False):
        if None not in alone:
            one.plot(*alone, "x", color="black", markersize=9, markeredgewidth=2, label="one LoRA alone")
        for name in found.methods(k):
            x, y = (found.value(what, k, name) for what in ("subject", "style"))
            one.plot(x, y, linestyle="", label=name, **style[name], **_hollow(found, k, name))
        one.set_title(f"K = {k}", fontsize=9)
        one.set_xlabel("subject right")
        one.set_ylabel("style right")
    for empty in axes[len(found.ks) :]:
        empty.set_visible(False)
    _legend(figure, axes)
    return _save(figure, folder / "fusion_subject_style.png")


def plot_retention(found: Found, aims: Mapping[int, float], folder: Path = IMAGES) -> Path:
    """Worst retention over K, a line a method; bars mark the aims."""
    style = looks(found.names, found.own)
    figure, axes = _panels(1, 1, 7, 4.5)
    for name in found.names:
        line = [(i, v) for i, k in enumerate(found.ks) if (v := found.value("worst_retention", k, name)) is not None]
        axes[0].plot(*zip(*line, strict=True), label=name, linewidth=1.2, **style[name])
    for k, aim in aims.items():
        if k in found.ks:
            at = found.ks.index(k)
            axes[0].plot([at - 0.15, at + 0.15], [aim, aim], color="#c44", linewidth=3, label="aim for ours")
    axes[0].set_xticks(range(len(found.ks)), [str(k) for k in found.ks])
    axes[0].set_xlabel("K, LoRAs fused")
    axes[0].set_ylabel("worst retention")
    axes[0].set_ylim(bottom=0)
    _legend(figure, axes)
    return _save(figure, folder / "fusion_retention.png")


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """One for all panels, beside them; each name once."""
    marks: dict[str, Any] = {}
    for one in axes:
        handles, labels = one.get_legend_handles_labels()
        for label, handle in zip(labels, handles, strict=True):
            marks.setdefault(label, handle)
    figure.legend(marks.values(), marks, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
