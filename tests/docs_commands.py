"""Every command of the pages, and what runs it in the tests: a short form, or a test that is there already.

``SHORT`` holds short forms (:class:`Run`) under names, ``COMMANDS`` what stands on the pages, without the interpreter,
to the name of a short form, or to ``test_file.py::test_name`` of what runs that program's main path (several: in a
tuple). All short forms run as in a fresh clone: on the shipped demo world, with an empty cache, the results in a folder
of the test's.
"""

from __future__ import annotations

from dataclasses import dataclass

RESULTS = "benchmarks/results/"


@dataclass(frozen=True)
class Run:
    """``words``: what is run, ``{out}`` a folder that is thrown away. ``says``: a pattern in what it prints;
    ``wrote``: files that must be there then, from the folder that stands for the repository; ``code``: how it ends;
    ``stop``: by Ctrl-C, once it has said that."""

    words: str
    says: str = ""
    wrote: tuple[str, ...] = ()
    code: int = 0
    stop: bool = False


def refused(words: str, make: str) -> Run:
    """A program for LoRAs that only the trained zoo has: it says what to make."""
    return Run(words, says=rf"(?s)not all is there.*`python -m {make}`|not there.*`python -m {make}`", code=1)


SHORT: dict[str, Run] = {
    # the longest first
    "retrieval": Run("-m benchmarks.retrieval --every 60 --epochs 1", says="zs_recall_at_5"),
    "demo": Run('scripts/demo.py --prompt "a sunflower" --out {out}/demo --base {out}/base', "Contact sheet: "),
    "train_gate": Run("scripts/train_gate.py --steps 1 --most-loras 2 --sampling-steps 1 --width 64 --height 64"
                      " --out {out}/gate", says="emoji-trained-gate.safetensors"),
    "scale": Run("-m benchmarks.scale --quick --part query_1m", says='"recall_at_10_1m"'),
    "query": Run("-m benchmarks.scale --quick --part query --part panel",
                 says='(?s)"query_p95_ms_100k".*"panel_frame_p95_ms_100k"'),
    "files": Run("-m benchmarks.scale --quick --part encode --part drives --part rescan --part headers",
                 says='(?s)"encode_over_read".*"rescan_over_walk".*"headers_found": 1.0'),
    "start": Run("-m benchmarks.scale --quick --part start", says='"import_ms"'),
    "apply": Run("-m benchmarks.apply --quick --part machine --part layers --part memory --part pictures "
                 "--part errors --part gpu",
                 says='(?s)"cpu_gb_per_s".*"cpu_sdxl.*"peak_extra_over_one_branch".*"demo_image_.*"cpu_max_error_.*"gpu_flux_k3_r16_over'),
    "conformance": Run("-m benchmarks.conformance --parts Z-Image --kind LoRA", says="Z-Image.*wrong 0"),
    "world": Run("-m benchmarks.world --subjects 1 --seeds 1", "world.base_subject_acc", (f"{RESULTS}world.json",)),
    "seeing": Run("-m benchmarks.seeing --rounds 1 --mode gate", says='"record_over_plain_gate"'),
    "library": Run("-m benchmarks.library --no-response", wrote=(f"{RESULTS}library.json",)),
    "conformance_text": Run("-m benchmarks.conformance_text {out}/rows.json --only SD1.5", says=", 0 wrong"),
    "serve": Run("scripts/demo.py --serve --comfyui {comfyui} --base {out}/base", "Open http://127.0.0.1:", code=130,
                 stop=True),
    "workflows": Run("scripts/workflows.py --check", says="workflows, 0 differ"),
    "train_own": Run("-m benchmarks.train_own", wrote=(f"{RESULTS}train_own.json",)),
    "encode": Run("-m autolora_core.encode --library {out}/library --loras models/loras --names '*-juniper*'",
                  says="LoRA files: .* new"),
    "fuzz": Run("-m benchmarks.reliability.fuzz --target header --cases 200 --seed 3", says='"failures": 0'),
    "fusion_page": Run("-m benchmarks.fusion_page", wrote=("docs/fusion.md", "docs/images/fusion_joint.png")),
    "speed_page": Run("-m benchmarks.apply.page", wrote=("docs/speed.md", "docs/images/speed_roofline.png")),
    "previews_page": Run("-m benchmarks.previews_page", wrote=("docs/previews.md",)),
    "retrieval_page": Run("-m benchmarks.retrieval_page", wrote=("docs/retrieval.md",)),
    "requirements": Run("-m pip install --dry-run --no-index --disable-pip-version-check -r requirements.txt",
                        says="already satisfied"),
    "numba": Run("-m pip install --dry-run --no-index --disable-pip-version-check numba", says="already satisfied"),
    # what only the trained zoo has: hours of training, so its parts have tests and the program is asked for its refusal
    "previews": refused("-m benchmarks.previews", "zoo.train_scale"),
    "fusion": refused("-m benchmarks.fusion --pairs 1", "zoo.train_scale"),
    "fusion_second": refused("-m benchmarks.fusion_second --pairs 1", "zoo.train_second"),
    "quality": refused("-m benchmarks.apply --quick --part quality", "zoo.train_scale"),
    "features_pack": refused("-m zoo.features_pack", "zoo.pictures"),
    "responses_pack": refused("-m zoo.responses_pack", "zoo.pictures"),
}  # fmt: skip

FAULTS, SOAK, FUZZ = (
    "test_faults.py::test_a_few_of_every_fault",
    "test_soak.py::test_a_short_soak_leaves_nothing_behind",
    "test_fuzz.py::test_nothing_goes_wrong",
)
CLUSTER, TABLE = "test_ray.py::test_the_index_is_that_of_one_machine", "test_batch_command.py::"
SCRIPT = "test_scripts_commands.py::test_the_test_command_hands_pytest_everything_and_returns_its_exit_code"
TRAIN = "test_train_own.py::test_command_line"

COMMANDS: dict[str, str | tuple[str, ...]] = {
    "-m autolora_core.encode": "encode",
    "-m autolora_core.encode --library INDEX_FOLDER --loras FOLDER": "encode",
    "-m autolora_core.encode --library ComfyUI/user/autolora/default --loras ComfyUI/models/loras": "encode",
    "-m autolora_core.encode --ray": CLUSTER,
    "-m autolora_core.encode --library ComfyUI/user/autolora/default --loras /mnt/loras --ray HEAD:6379": CLUSTER,
    "-m autolora_core.encode --library LIBRARY --loras /mnt/loras --ray HEAD:6379": CLUSTER,
    "-m autolora_core.train INDEX_FOLDER": TRAIN,
    "-m autolora_core.train INDEX_FOLDER --family sdxl --captions captions.csv --minutes 10": TRAIN,
    "-m autolora_core.train INDEX_FOLDER --epochs 0 --out ComfyUI/models/autolora": TRAIN,
    "-m benchmarks.apply": "apply",
    "-m benchmarks.apply --part quality": "quality",
    "-m benchmarks.apply.page": "speed_page",
    "-m benchmarks.coexistence": "test_coexistence_benchmark.py::test_every_case_is_told_once",
    "-m benchmarks.conformance": "conformance",
    "-m benchmarks.conformance_text": "conformance_text",
    "-m benchmarks.conformance_text rows.json": "conformance_text",
    "-m benchmarks.fusion": "fusion",
    "-m benchmarks.fusion --part test --pairs 200 --seeds 4 --k 2,3,5,8": "fusion",
    "-m benchmarks.fusion_page": "fusion_page",
    "-m benchmarks.fusion_second": "fusion_second",
    "-m benchmarks.library": "library",
    "-m benchmarks.previews": "previews",
    "-m benchmarks.previews_page": "previews_page",
    "-m benchmarks.reliability": (FAULTS, FUZZ, SOAK),
    "-m benchmarks.reliability --keep": (FAULTS, FUZZ, SOAK),
    "-m benchmarks.reliability --part faults": FAULTS,
    "-m benchmarks.reliability --part fuzz": FUZZ,
    "-m benchmarks.reliability --part soak": SOAK,
    "-m benchmarks.reliability.fuzz --target header --cases 50000 --seed 3": "fuzz",
    "-m benchmarks.retrieval": "retrieval",
    "-m benchmarks.retrieval --epochs 16 --curves": "retrieval",
    "-m benchmarks.retrieval_page": "retrieval_page",
    "-m benchmarks.scale --keep": ("start", "query", "scale", "files"),
    "-m benchmarks.scale --part encode --part drives --part rescan --part headers": "files",
    "-m benchmarks.scale --part panel": "query",
    "-m benchmarks.scale --part query_1m": "scale",
    "-m benchmarks.scale --part start --part query --part query_1m": ("start", "query", "scale"),
    "-m benchmarks.seeing": "seeing",
    "-m benchmarks.train_own": "train_own",
    "-m benchmarks.world": "world",
    "-m pip install -r autolora/requirements.txt": "requirements",
    "-m pip install numba": "numba",
    "-m zoo build": "test_zoo_build.py::test_what_is_done_is_not_done_again",
    "-m zoo build --folder": "test_zoo_build.py::test_a_quick_build_keeps_to_its_own_folders",
    "-m zoo.features_pack": "features_pack",
    "-m zoo.responses_pack": "responses_pack",
    "-m zoo.train_scale": "test_scale_training.py::test_only_the_creators_layers_are_trained",
    "autolora/install.py": "test_scripts_commands.py::test_the_manager_s_install_script_says_what_happened",
    "scripts/batch.py prompts.csv": f"{TABLE}test_the_page_s_second_command_makes_what_the_page_shows",
    "scripts/batch.py prompts.csv --dry-run": f"{TABLE}test_the_page_s_first_command_reads_the_page_s_own_table",
    "scripts/batch.py prompts.csv --server http://127.0.0.1:8188 --out pictures":
        f"{TABLE}test_the_page_s_second_command_makes_what_the_page_shows",
    "scripts/batch.py prompts.csv --server http://127.0.0.1:8188 --server http://otherbox:8188 --out pictures":
        f"{TABLE}test_the_page_s_second_command_makes_what_the_page_shows",
    "scripts/demo.py": "demo",
    "scripts/demo.py --serve --comfyui ../..": "serve",
    "scripts/demo.py --serve --comfyui PATH": "serve",
    "scripts/demo.py --prompt a rocket in watercolour style": "demo",
    "scripts/test.py": SCRIPT,
    "scripts/test.py --fast": SCRIPT,
    "scripts/train_gate.py": "train_gate",
    "scripts/train_gate.py --models ComfyUI/models --checkpoint sdxl.safetensors --gpu": "train_gate",
    "scripts/workflows.py": "workflows",
}  # fmt: skip
# Programs of others, as their own pages say: shells, git, Ray (tests/test_ray.py runs clusters), Ray's installation.
OTHERS = ("cd ", "git clone ", "export ", "ray ", "-m pip install torch numpy safetensors ray")
