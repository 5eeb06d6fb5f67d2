"""Figures of the embedded world: how far the judge can be trusted, and what the base model can draw.

    python -m benchmarks.world [--subjects 200] [--seeds 2] [--from-cache]

writes `benchmarks/results/world.json`, `docs/images/base_loss.png` and `docs/images/base_samples.png`. It uses the
weights of `models/`. Real pictures come from the cache (`python -m zoo.pictures` makes them); without them the judge's
figures are those in its file. The loss curve comes from the cache of the training run, else from an earlier results
file.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import REPO, read_results, write_results, written
from zoo.cache import write_atomic, zoo_dir
from zoo.captions import STYLE_NAMES, subject_name
from zoo.evaluate import (
    Case,
    Share,
    autoencoder_psnr,
    base_cases,
    draw_pictures,
    evaluate_base,
    judge_on_real,
    load_autoencoder,
    load_base,
)
from zoo.judge import Judge
from zoo.pictures import Pictures
from zoo.splits import DEFAULT_STYLE

log = logging.getLogger("benchmarks.world")
IMAGES = REPO / "docs" / "images"
SHEET_SUBJECTS, SHEET_STYLES = 12, ("twemoji", "fluent-emoji", "emojione")
LOSS_ROWS = 240
REAL_FIGURES = {"top1": "judge_subject_real", "top5": "judge_subject_real_top5", "stem": "judge_subject_real_stem"}
REAL_FIGURES |= {"style": "judge_style_real"}
BASE_FIGURES = {"top1": "base_subject_acc", "top5": "base_subject_acc_top5", "stem": "base_subject_acc_stem"}
BASE_FIGURES |= {
    "style": "base_style_acc",
    "styled_top1": "base_styled_subject_acc",
    "default_style": "base_default_style_acc",
}
Figures = dict[str, float]
Rows = list[dict[str, Any]]


def collect(shares: dict[str, Any], names: dict[str, str]) -> tuple[Figures, Rows]:
    """Shares under their figure names: numbers, and rows with n and intervals."""
    chosen: dict[str, Share] = {f"world.{figure}": shares[key] for key, figure in names.items()}
    return {k: s.value for k, s in chosen.items()}, [s.row(k) for k, s in chosen.items()]


def find_pictures() -> Pictures | None:
    """The real pictures, or None (said in the log) when the cache has none."""
    try:
        return Pictures.load()
    except FileNotFoundError as error:
        log.warning("%s; the judge's figures on real pictures are taken from its file", error)
        return None


def real_part(judge: Judge, pictures: Pictures | None) -> tuple[Figures, Rows]:
    """The judge on held-out real pictures, and the autoencoder on subjects it never saw."""
    if pictures is None:
        saved = {k: Share(**v) for k, v in judge.measured.items()}
        return collect(saved, {k: v for k, v in REAL_FIGURES.items() if k in saved})
    real = judge_on_real(judge, pictures)
    figures, rows = collect(real, REAL_FIGURES)
    rows += [{"kind": "judge on a real style", "style": s, **v} for s, v in real["per_style"].items()]
    psnr = autoencoder_psnr(pictures)
    return figures | {"world.autoencoder_psnr": psnr.value}, [*rows, psnr.row("world.autoencoder_psnr")]


def loss_rows() -> Rows:
    """The loss curve [{kind, step, seconds, loss}], thinned by averaging; from the cache or the committed file."""
    path = zoo_dir("base") / "loss.csv"
    if not path.exists():
        return [r for r in (read_results("world") or {"rows": []})["rows"] if r.get("kind") == "base loss"]
    with path.open(newline="", encoding="utf-8") as handle:
        table = np.array([[float(r[k]) for k in ("step", "seconds", "loss")] for r in csv.DictReader(handle)])
    if not len(table):
        return []
    groups = [table[:1], *np.array_split(table[1:], min(LOSS_ROWS, max(1, len(table) - 1)))]
    ends = [(g[-1, 0], g[-1, 1], g[:, 2].mean()) for g in groups if len(g)]
    return [{"kind": "base loss", "step": int(a), "seconds": round(b), "loss": round(float(c), 5)} for a, b, c in ends]


def training_part(source: dict[str, str]) -> tuple[Figures, Rows]:
    """Hours and steps of the evaluated base; first and last loss (the last: mean of the last 2 % of the curve)."""
    steps, hours = int(source["steps"]), round(float(source["seconds"]) / 3600, 3)
    figures: Figures = {"world.base_train_steps": steps, "world.base_train_hours": hours}
    rows = [r for r in loss_rows() if r["step"] <= steps or not steps]
    if rows:
        tail = [r["loss"] for r in rows[-max(1, len(rows) // 50) :]]
        figures |= {"world.base_loss_first": rows[0]["loss"], "world.base_loss_last": round(sum(tail) / len(tail), 5)}
    return figures, rows


def loss_figure(rows: Rows, path: Path) -> Path:
    """Loss against training time, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), dpi=110)
    axes.plot([r["seconds"] / 60 for r in rows], [r["loss"] for r in rows], color="#2458a6", lw=1.4)
    axes.set(
        xlabel="training time, minutes",
        ylabel="flow-matching loss",
        yscale="log",
        title="Demo base, loss while training",
    )
    axes.grid(True, which="both", alpha=0.25)
    top = axes.secondary_xaxis("top", functions=_steps_axis(rows))
    top.set_xlabel("steps")
    figure.tight_layout()
    write_atomic(path, lambda tmp: figure.savefig(tmp, format="png"))
    pyplot.close(figure)
    return path


def _steps_axis(rows: Rows) -> tuple[Any, Any]:
    """Minutes to steps and back, by the curve's mean speed."""
    speed = rows[-1]["step"] / max(rows[-1]["seconds"] / 60, 1e-9)
    return (lambda minutes: minutes * speed), (lambda steps: steps / speed)


def sheet_cases(count: int = SHEET_SUBJECTS) -> list[list[Case]]:
    """Rows of the sample sheet: the default caption, then three styles, over the first evaluated subjects."""
    subjects = [c.subject for c in base_cases(count) if c.style is None]
    return [[Case(s, style) for s in subjects] for style in (None, *SHEET_STYLES)]


def sample_sheet(from_cache: bool, pictures: Pictures | None, path: Path, seed: int = 77) -> Path:
    """Unpicked samples, one seed; a first row of the real pictures where they are at hand."""
    from PIL import Image, ImageDraw

    grid = sheet_cases()
    prompts = [c.prompt for row in grid for c in row]
    images = list(draw_pictures(load_base(from_cache)[0], prompts, seed, load_autoencoder()[0]))
    labels = [[subject_name(c.subject) for c in grid[0]]]
    labels += [["" if c.style is None else STYLE_NAMES[c.style] for c in row] for row in grid]
    if pictures:
        images = [_real(pictures, c.subject) for c in grid[0]] + images
    else:
        labels = [labels[0], *labels[2:]]
    sheet = Image.new("RGB", (len(grid[0]) * 132, len(labels) * 146), "white")
    pen = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        r, c = divmod(i, len(grid[0]))
        sheet.paste(Image.fromarray(image), (c * 132 + 2, r * 146 + 2))
        pen.text((c * 132 + 4, r * 146 + 131), labels[r][c][:21], fill="black")
    return write_atomic(path, lambda tmp: sheet.quantize(256).save(tmp, format="PNG", optimize=True))


def _real(pictures: Pictures, subject: str) -> np.ndarray:
    """The real picture in the default style, or in any the subject has, uint8 (128, 128, 3)."""
    row = pictures.index.get((subject, DEFAULT_STYLE), pictures.rows_of(subject)[0])
    return pictures.images[row]


def run(subjects: int, seeds: int, from_cache: bool, command: str) -> Path:
    """Measure everything and write the results."""
    judge, pictures, started = Judge.load(), find_pictures(), time.time()
    figures, rows = real_part(judge, pictures)
    log.info("judge on real pictures: %s", figures)

    def progress(done: int, total: int) -> None:
        log.info("drew %d of %d  (%.0f s)", done, total, time.time() - started)

    base = evaluate_base(subjects, range(seeds), judge=judge, from_cache=from_cache, progress=progress)
    for part in (collect(base, BASE_FIGURES), training_part(base["source"])):
        figures, rows = figures | part[0], rows + part[1]
    rows.insert(
        0, {"kind": "base", **base["source"], "subjects": subjects, "seeds": seeds, "cfg": 4.0, "sampler_steps": 20}
    )
    path = write_results("world", command, 0, figures, rows)
    curve = [r for r in rows if r.get("kind") == "base loss"]
    if curve:
        loss_figure(curve, written(IMAGES / "base_loss.png"))
    sample_sheet(from_cache, pictures, written(IMAGES / "base_samples.png"))
    log.info("wrote %s: %s", path, figures)
    return path


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--subjects", type=int, default=200, help="known subjects drawn, each with and without a style")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--from-cache", action="store_true", help="the training state instead of the shipped base")
    args = parser.parse_args()
    command = f"python -m benchmarks.world --subjects {args.subjects} --seeds {args.seeds}"
    run(args.subjects, args.seeds, args.from_cache, command + (" --from-cache" if args.from_cache else ""))


if __name__ == "__main__":
    main()
