"""The figures of ``docs/previews.md``, from ``benchmarks/results/previews.json``; the words around them stay.

python -m benchmarks.previews_page
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from benchmarks.fusion_page_forms import table
from benchmarks.previews import FILE, JUDGED, LATENT, NAMED, SHUFFLED, WEIGHTS
from benchmarks.previews_render import Rendering
from benchmarks.results_file import REPO, read_results, written

PAGE = REPO / "docs" / "previews.md"
BEGIN, END = "<!-- made by `python -m benchmarks.previews_page`: -->", "<!-- end of what is made -->"
CELLS = {"zs": "named", "zs_trigger_only": "never named", "zs_style": "styles"}
METHODS = {
    WEIGHTS: "weights: what the layers answer, and the file alone",
    LATENT: "pictures, latents, learned: **what the node does without a CLIP**",
    JUDGED: "pictures, judge, learned",
    NAMED: "pictures, judge's own words: in the place of a whole CLIP",
    f"{WEIGHTS} + {LATENT}": "weights and latents, learned",
    f"{WEIGHTS} + {NAMED}": "weights and judge's own words",
    SHUFFLED: "control: pictures of other LoRAs, learned",
    "control recipe": "control: recipe",
}
Row = Mapping[str, Any]


def gain(row: Row, cell: str) -> str:
    """How many points of the first five a method adds, and whether that is more than chance."""
    middle, low, high = (100 * x for x in row[f"{cell}_gain_at_5"])
    sure = "certainly more" if low > 0 else "certainly less" if high < 0 else "not certainly a difference"
    return f"{middle:+.1f} points ({low:+.1f} to {high:+.1f}: {sure})".replace("-", "−")


def made(results: Mapping[str, Any]) -> str:
    """What stands between the marks."""
    figures, rows = results["figures"], {row["method"]: row for row in results["rows"]}
    lines = [
        [label, *(f"{rows[m][f'{c}_recall_at_5']:.0%} ({rows[m][f'{c}_recall_at_1']:.0%})" for c in CELLS)]
        for m, label in METHODS.items()
    ]
    latents, alone = rows[f"{WEIGHTS} + {LATENT}"], rows[f"{FILE} + {LATENT}"]
    words = rows[f"{WEIGHTS} + {NAMED}"]
    count = {name: f"{value:.0f}" for name, value in figures.items() if value == int(value)}
    return f"""The figures are those of `{results["command"]}` ({results["date"][:10]}): {count["test_loras"]} LoRAs of the test part, {count["validation_loras"]} of the validation
part and {count["train_loras"]} of the training part, each rendered on {count["neutral_prompts"]} neutral prompts, one seed, {Rendering().steps} steps. The {count["pool"]} of the test and training parts are candidates.

Asked for are subjects that some caption named ({count["zs_prompts"]} prompts), subjects whose LoRAs know nothing but a meaningless trigger word ({count["zs_trigger_only_prompts"]}), and styles
({count["zs_style_prompts"]}). The right LoRA among the first five; in brackets, first:

{table(("", *CELLS.values()), lines)}

What pictures add to the first five, in points, with 95 % intervals that draw subjects with replacement:

* `learned`, without a CLIP, to weights that the model is asked about (MODEL and CLIP connected to Retrieve): {gain(latents, "zs_all")} over both kinds of subjects.
* `learned` to the file's weights alone, which is all there is without MODEL and CLIP: {gain(alone, "zs_all")}, from {rows[FILE]["zs_all_recall_at_5"]:.0%} to {alone["zs_all_recall_at_5"]:.0%}.
* A tower with words of its own, to weights that the model is asked about: where no caption ever named what a LoRA shows {gain(words, "zs_trigger_only")}, where one did
  {gain(words, "zs")}, on styles {gain(words, "zs_style")}, over both kinds of subjects {gain(words, "zs_all")}.
* What a LoRA of a style does to pictures has a strength of {figures["style_strength"]:.2f} in the latents and a consistency over the prompts of {figures["style_consistency"]:.2f}; what one of a subject does,
  {figures["subject_strength"]:.2f} and {figures["subject_consistency"]:.2f}."""  # noqa: E501


def with_figures(text: str, results: Mapping[str, Any]) -> str:
    """The page with what stands between its marks made anew."""
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the line {BEGIN} or {END}: put both back around its figures")
    return f"{before}{BEGIN}\n\n{made(results)}\n\n{END}{after}"


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    results = read_results("previews")
    if results is None:
        raise SystemExit("benchmarks/results/previews.json is not there: run python -m benchmarks.previews first")
    path = written(PAGE)
    path.write_text(with_figures(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8", newline="\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
