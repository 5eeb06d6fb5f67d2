"""Proves that numbers which are written into the pages by hand are those of the results files, to the digits shown,
and that the README's and the limits' sections of figures hold no other numbers. Pages that commands make have tests of
their own (test_result_pages, test_retrieval_page, test_fusion_page, test_apply_benchmark, test_conformance)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results_file import read_results

ROOT = Path(__file__).resolve().parents[1]


class Figures:
    """Figures of a results file as attributes; dots of their names are underscores."""

    def __init__(self, name: str):
        document = read_results(name)
        assert document is not None, f"benchmarks/results/{name}.json is not there"
        self.rows: list[dict[str, Any]] = document["rows"]
        vars(self).update({key.replace(".", "_"): value for key, value in document["figures"].items()})

    def all(self, start: str, end: str = "") -> list[float]:
        """Every figure whose name begins and ends so."""
        return [v for k, v in vars(self).items() if k != "rows" and k.startswith(start) and k.endswith(end)]


results = cache(Figures)


def span(values: Iterable[float], form: str = ".0f", between: str = " to ") -> str:
    found = list(values)
    return f"{min(found):{form}}{between}{max(found):{form}}"


def extra(ratios: Iterable[float]) -> str:
    """What costs so many times something, as percent more: 1.12 → 12."""
    return span([100 * (ratio - 1) for ratio in ratios])


def demo_world() -> list[str]:
    w = results("world")
    return [
        f"names {w.world_judge_subject_real:.0%} of held-out real pictures",
        f"({w.world_judge_subject_real_top5:.0%} among its first five)",
        f"and {w.world_judge_style_real:.0%} of their styles",
        f"{w.world_base_subject_acc:.0%} of what the base draws of subjects it knows",
        f"({w.world_base_subject_acc_top5:.0%} among five), and {w.world_base_style_acc:.0%} of the styles asked for",
        f"for {w.world_base_train_hours:.1f} hours ({w.world_base_train_steps:,} steps)",
        f"fell from {w.world_base_loss_first:.2f} to {w.world_base_loss_last:.3f}",
    ]


def shelf() -> list[str]:
    f = results("library")
    return [
        f"on the {f.files:.0f} shipped LoRAs",
        f"triggers; {f.described_files:.0f} files) is picked in {f.response_described_picked:.0%} of cases",
        f"a meaningless name ({f.bare_files:.0f} files)",
        f"Picked in {f.response_bare_picked:.0%} of cases, {f.response_bare_top5:.0%} among the nearest five",
        f"a prompt: {f.response_wrong_picks_a_prompt:.2f} with the model, {f.wrong_picks_a_prompt:.2f} without",
        f"{f.response_none_false_pick_share:.0%} get one with the model, {f.none_false_pick_share:.0%} without",
        f"AUROC {f.response_none_auroc:.2f} and {f.none_auroc:.2f}",
        f"A question takes {f.response_query_ms_median:.0f} ms with the model, {f.query_ms_median:.0f} ms without",
        f"on a new base {f.response_first_prompt_seconds:.0f} seconds",
    ]


def at_scale() -> list[str]:
    r, own = results("retrieval"), results("train_own")
    node = next(row for row in r.rows if row.get("method") == "response, as Retrieve asks")
    return [
        f"{r.pool:,.0f} LoRAs to choose from",
        f"first for {node['zs_recall_at_1']:.0%} of sentences and among five for {node['zs_recall_at_5']:.0%}",
        f"as well as we know, {r.zs_recall_at_1:.0%} and {r.zs_recall_at_5:.0%}",
        f"Names and metadata find {r.best_baseline_zs_recall_at_5:.0%}",
        f"both among three picks for {r.set_recall_at_3:.0%}",
        f"told with an AUROC of {r.none_auroc:.2f}",
        f"meaningless trigger {r.zs_recall_at_5_trigger_only:.0%} are among five",
        f"a library of {own.files:,.0f} with 30% captions",
        f"finds {own.chosen_recall_at_5:.0%} of hidden ones in five (guessing {own.chance_recall_at_5:.1%};",
    ]


def fusing() -> list[str]:
    f = results("fusion")
    pair = {k: (f"{getattr(f, f'ours_joint_k{k}'):.1%}", f"{getattr(f, f'best_baseline_joint_k{k}'):.1%}")
            for k in (2, 3, 5, 8)}  # fmt: skip
    return [
        f"{pair[3][0]} of pictures with three LoRAs (best baseline {pair[3][1]})",
        f"{pair[5][0]} with five ({pair[5][1]})",
        f"{pair[8][0]} with eight ({pair[8][1]})",
        f"with two {pair[2][0]} against {pair[2][1]}, no difference",
        f"it would be {f.single_ceiling:.1%}",
    ]


def speed() -> list[str]:
    s = results("apply_speed")
    sdxl, flux = "cpu_sdxl_k3_r16", "cpu_flux_k3_r16"

    def at(name: str) -> str:
        return f"{getattr(s, name):.1f}"

    return [
        f"take {at(f'{sdxl}_over_bypass')} times what plain LoRA branches take on SDXL's layers",
        f"and {at(f'{flux}_over_bypass')} times on FLUX's",
        f"({at(f'{sdxl}_over_base')} and {at(f'{flux}_over_base')} times no LoRA;",
        f"in bfloat16 {at(f'{sdxl}_bfloat16_over_base')} and {at(f'{flux}_bfloat16_over_base')};",
        f"without Numba {at(f'{sdxl}_in_torch_over_base')} and {at(f'{flux}_in_torch_over_base')}, "
        f"{at(f'{sdxl}_bfloat16_in_torch_over_base')} and {at(f'{flux}_bfloat16_in_torch_over_base')})",
        f"as it is written down {at(f'{sdxl}_eager_over_ours')} and {at(f'{flux}_eager_over_ours')} times as long",
        f"on an H100 {at('gpu_flux_k3_r16_over_base')} times no LoRA",
    ]


def libraries() -> list[str]:
    s = results("scale")
    return [
        f"a whole answer takes {s.query_p95_ms_100k:.0f} ms (95th percentile)",
        f"searched in {s.query_p95_ms_1m:.0f} ms at a recall of {s.recall_at_10_1m:.3f}",
        f"Encoding takes {span(s.all('encode_over_read_'))} times as long as copying",
        f"from a disk of {s.disk_mb_a_second / 1000:.1f} GB a second up to {s.encode_over_disk_read:.1f} times as long",
    ]


def watching() -> list[str]:
    s, c = results("seeing"), results("conflict_report")
    usual = [v for v in c.all("demo_", "_over_evaluation") if v != c.demo_ties_over_evaluation]
    return [
        f"heat map costs {extra(s.all('record_'))}%",
        f"a mask {extra(s.all('mask_'))}%",
        f"a schedule {extra(s.all('schedule_'))}%",
        f"as long as {span(usual)} evaluations of the demo model, for `ties` {c.demo_ties_over_evaluation:.0f}",
    ]


def every_base() -> list[str]:
    c = results("conformance")
    return [
        f"of {c.cells_total:,} files beside ComfyUI's own merge {c.cells_exact + c.cells_stock:,} are equal to it",
        f"{c.cells_refused} are refused by name, {c.cells_wrong or 'none'} is silently wrong",
        f"{c.cells_the_stock_loader_does_not_read:,} of the equal ones",
        f"{c.coexistence_cases} cases, {c.coexistence_failures or 'no'} failure",
    ]


def limits() -> list[str]:
    r = results("retrieval")
    node = next(row for row in r.rows if row.get("method") == "response, as Retrieve asks")
    return [
        f"among {r.pool:,.0f}, the right one is first for {node['zs_recall_at_1']:.0%} of sentences",
        f"both among three picks for {r.set_recall_at_3:.0%} of prompts",
    ]


def scale() -> list[str]:
    s = results("scale")
    encoded = [row for row in s.rows if row["part"] == "encode" and "encode_s" in row]
    asked = [row for row in s.rows if row["part"] == "query_1m" and row.get("what", "").startswith("retrieve")]
    assert asked and all(row["same_picks"] == row["same_none"] == row["count"] for row in asked), "the page says so"
    return [
        f"takes {s.query_p50_ms_100k:.0f} ms at the median and {s.query_p95_ms_100k:.0f} ms at the 95th percentile",
        f"with phrases new to MiniLM {s.query_new_words_p95_ms_100k:.0f} ms",
        f"the first question of a process {s.first_query_s_100k:.1f} s ({s.first_query_unready_s_100k:.0f} s without",
        f"in {s.make_ready_s_100k:.0f} s, once",
        f"takes {s.query_p95_ms_1m:.1f} ms at the 95th percentile with a recall of {s.recall_at_10_1m:.3f}, "
        f"{s.search_memory_mb_1m:.0f} MB of memory and {s.search_build_s_1m:.0f} s to make and try out; "
        f"exact search took {s.query_exact_p95_ms_1m:.0f} ms",
        f"In all {sum(row['count'] for row in asked)} questions asked both ways",
        f"{s.search_bytes_a_vector:.0f} bytes a vector, 48 MB a million",
        f"it is {span(s.all('encode_over_read_'))} times",
        f"{span([row['bytes'] / row['encode_s'] / 1e7 for row in encoded], '.0f', '0 to ')}0 MB a second",
        f"come from a disk of {s.disk_mb_a_second / 1000:.1f} GB a second, encoding takes up to "
        f"{s.encode_over_disk_read:.1f} times as long as reading them",
        f"all three takes {s.drives_over_slowest:.2f} times as long (`drives_over_slowest`), with their files in one "
        f"queue {s.drives_one_queue_over_slowest:.2f} times",
        f"gives four threads {100 * s.hard_disk_share:.0f} % of what it gives one reader",
        f"side by side {100 * s.hard_disk_share_side_by_side:.0f} %",
        f"takes up to {s.hash_over_read:.1f} times as long as the copying",
        f"two read SDXL files of rank 16 in the page cache {s.two_threads_over_one_sdxl_16:.1f} times as fast and FLUX "
        f"files of rank 32 {s.two_threads_over_one_flux_32:.1f} times, two *processes* "
        f"{s.two_processes_over_one_sdxl_16:.1f} and {s.two_processes_over_one_flux_32:.1f} times",
        f"each holds up to {s.readers_memory_mb / 10:.0f}0 MB, a part of it shared, and takes "
        f"{s.readers_start_s:.0f} s to start",
        f"{s.ray_files} SDXL LoRAs of {s.ray_megabytes / 1000:.1f} GB",
    ]


def panel() -> list[str]:
    s = results("scale")
    words, fits = s.panel_search_p95_ms_100k / 1000, s.panel_meaning_p95_ms_100k / 1000
    return [
        f"frames take {s.panel_frame_p95_ms_100k:.0f} ms or less, on the map {s.panel_map_frame_p95_ms_100k:.0f}",
        f"answers to a search by words {words:.2f} s, *Fits* {fits:.2f} s or less",
    ]


def reliability() -> list[str]:
    r = results("reliability")

    def slope(name: str) -> str:
        low, high = (getattr(r, f"{name}_{end}") for end in ("low", "high"))
        return f"{getattr(r, name):.2f} MB ({low:.2f} to {high:.2f})"

    counted = next(row["objects"] for row in r.rows if "objects" in row)
    assert r.faults_with_loss == r.fuzz_failures == r.soak_layers_left_fused == 0
    assert r.soak_first_last_equal == r.soak_base_equal == 1
    return [
        f"({r.fuzz_cases:,.0f} cases,",
        f"gets {r.soak_prompts} prompts through",
        f"{r.soak_pick_sets} different sets of LoRAs",
        f"({r.soak_stock_prompts} of them) | {slope('soak_stock_rss_mb_per_100')} |",
        slope("soak_rss_mb_per_100"),
        f"{r.soak_objects_growth:.0f} of {counted['pack']:,}",
        f"{r.soak_tensors_growth:.0f}, together {r.soak_tensor_mb_growth:.1f} MB",
    ]


def own_encoder() -> list[str]:
    o = results("train_own")
    return [
        f"{o.files:,.0f} LoRAs of the demo base",
        f"({o.captioned} files, {o.distinct} different)",
        f"Training took {o.train_seconds:.0f} s beside another program, and {o.peak_memory_gb:.1f} GB",
        f"promised {100 * o.chosen_recall_at_5:.1f} % of hidden LoRAs",
        f"guessing {100 * o.chance_recall_at_5:.1f} %, control {100 * o.control_recall_at_5:.1f} %",
        f"of the {o.uncaptioned_asks:,} LoRAs without a caption",
        f"with weights alone, {100 * o.uncaptioned_recall_at_5:.1f} % were",
    ]


def few_steps() -> list[str]:
    f = results("few_step")
    taken = f.others_taken_for_few_step or "none"
    found = f"finds {f.few_step_found} of {f.few_step_with_both_streams}"
    return [f"{found} and takes {taken} of {f.others_with_both_streams} others for one"]


def text_halves() -> list[str]:
    rows = [row for row in results("conformance").rows if row["base"].endswith(", text encoders")]
    found = [cell[0] for row in rows for cell in row["cells"].values()]
    counts = [found.count(outcome) for outcome in ("exact", "stock", "refused", "wrong")]
    return [f"| 0.3.75 | {len(found)} | {' | '.join(map(str, counts))} |"]


def hostile() -> list[str]:
    r = results("reliability")
    return [f"{r.fuzz_cases // 1000},000 hostile inputs to {NUMBERS[r.fuzz_targets]} readers"]


NUMBERS = {15: "fifteen", 16: "sixteen", 17: "seventeen", 18: "eighteen", 19: "nineteen", 20: "twenty"}
README = (demo_world, shelf, at_scale, fusing, speed, libraries, watching, every_base)
PAGES = {
    "README.md": README,
    "SECURITY.md": (hostile,),
    "docs/limits.md": (limits,),
    "docs/scale.md": (scale,),
    "docs/panel.md": (panel,),
    "docs/reliability.md": (reliability,),
    "docs/train_encoder.md": (own_encoder,),
    "docs/modes.md": (few_steps,),
    "docs/versions.md": (text_halves,),
}


def text_of(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@pytest.mark.parametrize(("page", "facts"), [(p, f) for p, many in PAGES.items() for f in many],
                         ids=lambda x: x if isinstance(x, str) else x.__name__)  # fmt: skip
def test_figures_are_those_of_the_results(page, facts):
    text = text_of(page)
    missing = [fact for fact in facts() if fact not in text]
    assert not missing, f"{page} does not say:\n" + "\n".join(missing)


# Numbers of those sections that no results file can hold: versions, sizes of the setting, what is meant by a word.
SETTING = (
    r"0\.3\.75", r"\b0\.33", r"\b9 M parameters", r"\b128 px", r"\b113 LoRAs", r"1,479 subjects", r"two CPU cores",
    r"rank 16", r"float\d+", r"200 held-out pairs", r"100,000 LoRAs", r"After 15 minutes", r"\(we aimed at 2\)",
    r"H100", r"95th", r"From 250,000 LoRAs on", r"a library of 100,000", r"\bSD3-class", r"SD1\.5|SD3",
)  # fmt: skip


def unchecked(text: str, facts: Iterable[str]) -> list[str]:
    """Words with digits in ``text`` that none of ``facts`` accounts for."""
    for fact in sorted(facts, key=len, reverse=True):
        text = text.replace(fact, "…")
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "…", text)
    for pattern in SETTING:
        text = re.sub(pattern, "…", text)
    return re.findall(r"\S*\d\S*", text)


@pytest.mark.parametrize(("page", "heading", "following", "facts"), [
    ("README.md", "## The demo world", "## Measured", (demo_world,)),
    ("README.md", "## Measured, and not", "## Develop", README[1:]),
    ("docs/limits.md", "## Finding", "", (limits,)),
])  # fmt: skip
def test_sections_of_figures_hold_no_other_numbers(page, heading, following, facts):
    text = text_of(page)
    section = text[text.index(heading) : text.index(following) if following else None]
    found = unchecked(section, [fact for each in facts for fact in each()])
    assert not found, f"say in this test where they come from: {found}"
    assert unchecked(f"{section} 12.3%", [fact for each in facts for fact in each()]) == ["12.3%"]
