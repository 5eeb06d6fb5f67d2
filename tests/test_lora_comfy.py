"""Proves that our reading of LoRA names and values is ComfyUI's own, for everything ComfyUI can read.

A second process (``lora_comfy_side.py``) asks the real ComfyUI for its whole LoRA key map of each architecture and for
the weights it merges from real files and from small ones made here. This process reads the same names and files with
our code and compares.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfy_local import NO_COMFY, comfy_path
from conftest import real_loras
from safetensors.torch import load_file, save_file

from autolora_core.lora import comfy_keys
from autolora_core.lora.adapters import Update
from autolora_core.lora.file import LoraFile
from autolora_core.lora.header import Header, TensorInfo
from autolora_core.lora.modules import sort_modules

pytestmark = pytest.mark.slow
SIDE = Path(__file__).with_name("lora_comfy_side.py")
FAMILIES = {
    "SD15": "sd15", "SD20": "sd2", "SDXL": "sdxl", "SD3": "sd3", "Emoji": "emoji", "Flux": "flux", "Flux2": "flux2",
    "Chroma": "chroma", "QwenImage": "qwen_image", "ZImage": "z_image", "Lumina2": "lumina2", "WAN21_T2V": "wan",
    "HunyuanVideo": "hunyuan_video", "LTXV": "ltxv", "PixArtSigma": "pixart", "AuraFlow": "aura_flow",
    "CosmosT2IPredict2": "anima",
}  # fmt: skip
DEMO = ("lora_unet_", "transformer.", "base_model.model.", "lora_transformer_", "lycoris_")  # of the demo base's LoRAs
SPELLINGS = ("lora_unet_", "lora_transformer_", "lycoris_", "transformer.", "base_model.model.",
             "unet.base_model.model.", "unet.", "diffusion_model.", "")  # fmt: skip


def layouts(key_map: dict[str, list]) -> dict[str, dict[str, list]]:
    """ComfyUI's map split into files as trainers write them: one spelling each, and each base weight named once."""
    result: dict[str, dict[str, list]] = {}
    taken: dict[tuple, int] = {}
    for stem, entry in key_map.items():
        spelling = next(prefix for prefix in SPELLINGS if stem.startswith(prefix))
        place = (spelling, entry[0], tuple(entry[1] or ()))
        number = taken[place] = taken.get(place, -1) + 1
        result.setdefault(f"{spelling}#{number}", {})[stem] = entry
    return result


# Newer ComfyUI maps FLUX.2's names on the layers of FLUX.1 too, where no file has them: they are how we tell the two.
_FLUX2_NAMES = re.compile(r"to_qkv_mlp_proj$|single_transformer_blocks[._]\d+[._]attn[._]to_out$|[._]linear_(in|out)$")


def without_flux2(name: str, key_map: dict[str, list]) -> dict[str, list]:
    """ComfyUI's map less the names that its base shares with no file of its own."""
    if name not in ("Flux", "Chroma"):
        return key_map
    return {stem: entry for stem, entry in key_map.items() if not _FLUX2_NAMES.search(stem)}


def rank_two(stems: dict[str, list]) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a LoRA of rank 2 with these modules."""
    shapes = {}
    for stem, (_, _, _, (out, wide, *kernel)) in stems.items():
        shapes[f"{stem}.lora_down.weight"] = (2, wide, *kernel)
        shapes[f"{stem}.lora_up.weight"] = (out, 2, *[1] * len(kernel))
    return shapes


def header_of(stems: dict[str, list]) -> Header:
    tensors = {key: TensorInfo("F16", shape, 0, 0) for key, shape in rank_two(stems).items()}
    return Header("layout.safetensors", 0, tensors, {})


def named(entry: list) -> str:
    return entry[0] if entry[1] is None else f"{entry[0]}[{entry[1][0]}:{entry[1][1]}]"


def write_emoji(path: Path, spelling: str, key_map: dict[str, list]) -> Path:
    """A LoRA of the demo base in one spelling, every module, with random values and an odd alpha."""
    stems = layouts(key_map)[f"{spelling}#0"]
    tensors = {key: torch.randn(shape).half() for key, shape in rank_two(stems).items()}
    tensors |= {f"{stem}.alpha": torch.tensor(0.7) for stem in stems}
    save_file(tensors, path)
    return path


def write_adapters(path: Path) -> Path:
    """One SD1.5 file in kohya's spelling with every adapter kind that adds to a weight, on linear and conv layers.

    LoKr with a Tucker core is left out: ComfyUI 0.3.75 fails on it (``kron`` of a non-contiguous tensor) and goes on.
    """
    attn = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    shapes = {
        f"{attn}q": {"lora_down.weight": (4, 320), "lora_up.weight": (320, 4)},
        f"{attn}k": {"hada_w1_a": (320, 3), "hada_w1_b": (3, 320), "hada_w2_a": (320, 3), "hada_w2_b": (3, 320)},
        f"{attn}v": {"lokr_w1": (4, 4), "lokr_w2": (80, 80)},
        f"{attn}out_0": {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (80, 3), "lokr_w2_b": (3, 80)},
        conv: {"lora_down.weight": (4, 320, 1, 1), "lora_mid.weight": (4, 4, 3, 3), "lora_up.weight": (320, 4, 1, 1)},
        conv.replace("conv1", "conv2"): {"lora_down.weight": (4, 320, 3, 3), "lora_up.weight": (320, 4, 1, 1)},
        conv.replace("resnets_0", "resnets_1"): {
            "hada_t1": (2, 2, 3, 3), "hada_w1_a": (2, 320), "hada_w1_b": (2, 320),
            "hada_t2": (2, 2, 3, 3), "hada_w2_a": (2, 320), "hada_w2_b": (2, 320),
        },
        conv.replace("resnets_0_conv1", "downsamplers_0_conv"): {"lokr_w1": (4, 4), "lokr_w2": (80, 80, 3, 3)},
        "lora_unet_up_blocks_3_resnets_2_conv2": {
            "lokr_w1_a": (4, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (80, 3), "lokr_w2_b": (3, 80 * 9),
        },
        "lora_unet_up_blocks_3_resnets_1_time_emb_proj": {"diff": (320, 1280), "diff_b": (320,)},
    }  # fmt: skip
    tensors = {f"{stem}.{end}": torch.randn(shape) for stem, parts in shapes.items() for end, shape in parts.items()}
    tensors |= {f"{stem}.alpha": torch.tensor(1.5) for stem, parts in shapes.items() if "diff" not in parts}
    save_file(tensors, path)
    return path


def write_xlabs(path: Path) -> Path:
    """A small FLUX file as XLabs writes them, with an image, a text and a single block."""
    shapes = {}
    for name in ("proj_lora1", "proj_lora2", "qkv_lora1", "qkv_lora2"):
        out = 9216 if name.startswith("qkv") else 3072
        shapes |= {f"double_blocks.3.processor.{name}.down.weight": (4, 3072)}
        shapes |= {f"double_blocks.3.processor.{name}.up.weight": (out, 4)}
    for name, wide, out in (("qkv", 3072, 9216), ("proj", 15360, 3072)):
        shapes |= {f"single_blocks.5.processor.{name}_lora.down.weight": (4, wide)}
        shapes |= {f"single_blocks.5.processor.{name}_lora.up.weight": (out, 4)}
    save_file({key: torch.randn(shape) for key, shape in shapes.items()}, path)
    return path


def prepare_real(path: Path, folder: Path) -> Path:
    """A copy of a real file that ComfyUI can read: as it is, or under the keys we give it."""
    copy, renamed = folder / path.name, LoraFile.open(path).comfy_state_dict()
    if renamed is None:
        copy.write_bytes(path.read_bytes())
    else:
        save_file({key: tensor.contiguous() for key, tensor in renamed.items()}, copy)
    return copy


class Comfy:
    """What the other process said of every architecture, and of the files it was asked about."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.maps = self._run({name: [] for name in FAMILIES})
        self.files = {s: write_emoji(folder / f"{n}.safetensors", s, self.maps["Emoji"]) for n, s in enumerate(DEMO)}
        self.files |= {"adapters": write_adapters(folder / "adapters.safetensors")}
        self.files |= {path.stem: prepare_real(path, folder) for path in real_loras()}
        self.files |= {"xlabs": write_xlabs(folder / "xlabs.safetensors"), "renamed": folder / "renamed.safetensors"}
        save_file(LoraFile.open(self.files["xlabs"]).comfy_state_dict(), self.files["renamed"])
        jobs: dict[str, list[str]] = {"Emoji": [], "SD15": [], "Flux": []}
        for name, path in self.files.items():
            base = "Emoji" if name in DEMO else "Flux" if name in ("xlabs", "renamed") else "SD15"
            jobs[base].append(str(path))
        self._run(jobs)

    def _run(self, files: dict[str, list[str]]) -> dict[str, dict[str, list]]:
        job, out = self.folder / "job.json", self.folder / "maps.json"
        job.write_text(json.dumps(files))
        command = [sys.executable, str(SIDE), str(job), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(out.read_text())

    def merged(self, name: str) -> dict[str, torch.Tensor]:
        """Module -> rows of the ΔW that ComfyUI makes of a file."""
        return load_file(f"{self.files[name]}.merged")


@pytest.fixture(scope="module")
def comfy_side(tmp_path_factory: pytest.TempPathFactory) -> Comfy:
    assert (comfy_path() / "comfy" / "lora.py").is_file(), f"no ComfyUI in {comfy_path()}: {NO_COMFY}"
    torch.manual_seed(0)
    return Comfy(tmp_path_factory.mktemp("comfy_side"))


def some_rows(update: Update) -> torch.Tensor:
    delta = update.delta()
    return delta[:: max(1, delta.shape[0] // 48)]


def assert_same(ours: LoraFile, theirs: dict[str, torch.Tensor], only: int = 10**9) -> None:
    """Every module has the ΔW that ComfyUI merges, and ComfyUI has no further one (a bias aside)."""
    assert set(ours.modules) == {name for name in theirs if not name.endswith(".bias")}
    for number, update in enumerate(ours.updates()):
        if number % max(1, len(ours.modules) // only) == 0:
            want, got = theirs[update.module].double(), some_rows(update)
            assert got.shape == want.shape, update.module
            error = (got - want).norm() / want.norm().clamp_min(1e-12)
            assert error < 1e-5, (update.module, error)
        if update.bias is not None:
            assert torch.equal(update.bias, theirs[f"{update.base_module}.bias"].new_tensor(update.bias.tolist()))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_name_comfyui_maps_is_ours_too(comfy_side: Comfy, name: str) -> None:
    for label, stems in layouts(without_flux2(name, comfy_side.maps[name])).items():
        found = sort_modules(header_of(stems))
        entries = {entry.stem: entry for entry in found.entries.values()}
        got = {stem: (e.name, e.swap_halves, list(e.shape)) for stem, e in entries.items()}
        assert got == {stem: (named(entry), entry[2], entry[3]) for stem, entry in stems.items()}, label
        assert not found.report.unknown and not found.report.ignored
        if any(entry.half == "model" for entry in entries.values()):
            alike = {"chroma": ("chroma", "flux")}.get(FAMILIES[name], (FAMILIES[name],))
            assert found.family.name in alike, label


def respelled(key_map: dict[str, list], prefix: str) -> list[dict[str, list]]:
    """Every module name ComfyUI knows of a model, put behind another prefix: files it may or may not read."""
    files: list[dict[str, list]] = []
    taken: dict[tuple, list[str]] = {}
    for stem, entry in key_map.items():
        spelling = next(known for known in SPELLINGS if stem.startswith(known))
        if spelling.endswith("_") or stem.startswith(("lora_te", "text_enc")):
            continue
        path = stem[len(spelling) :].replace(".processor.", ".")
        place = (entry[0], tuple(entry[1] or ()))
        if path in taken.setdefault(place, []):
            continue
        taken[place].append(path)
        number = len(taken[place]) - 1
        files.extend({} for _ in range(number + 1 - len(files)))
        files[number][prefix + (path.replace(".", "_") if prefix.endswith("_") else path)] = entry
    return files


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_said_to_be_read_is_and_new_names_mean_the_same(comfy_side: Comfy, name: str) -> None:
    key_map, asked, renamed = comfy_side.maps[name], 0, 0
    for prefix in (*SPELLINGS, "model.diffusion_model."):
        for stems in respelled(key_map, prefix):
            found = sort_modules(header_of(stems))
            if found.family.name != FAMILIES[name]:
                continue  # a few layers alone may not tell the family
            for entry in found.entries.values():
                asked += 1
                if comfy_keys.is_read(entry, found.family.name):
                    assert entry.stem in key_map
                stem = comfy_keys.comfy_stem(entry, found.family.name)
                assert key_map[stem][:2] == stems[entry.stem][:2], (entry.stem, stem)
                renamed += stem != entry.stem
    assert asked > 100 and renamed > 50


@pytest.mark.parametrize("spelling", DEMO)
def test_a_demo_lora_in_every_spelling_merges_as_comfyui_merges_it(comfy_side: Comfy, spelling: str) -> None:
    ours = LoraFile.open(comfy_side.files[spelling])
    assert_same(ours, comfy_side.merged(spelling))
    assert ours.comfy_state_dict() is None  # ComfyUI reads it as it is


def test_every_additive_adapter_merges_as_comfyui_merges_it(comfy_side: Comfy) -> None:
    ours = LoraFile.open(comfy_side.files["adapters"])
    assert_same(ours, comfy_side.merged("adapters"))
    assert {entry.kind for entry in ours.modules.values()} == {"lora", "loha", "lokr", "diff"}


def test_renamed_xlabs_file_is_read_whole(comfy_side: Comfy) -> None:
    assert comfy_side.merged("xlabs") == {}, "ComfyUI does not read XLabs files of a few blocks"
    assert_same(LoraFile.open(comfy_side.files["xlabs"]), comfy_side.merged("renamed"))


@pytest.mark.parametrize("path", real_loras(), ids=lambda path: path.stem)
def test_real_sd15_files_merge_as_comfyui_merges_them(comfy_side: Comfy, path: Path) -> None:
    assert_same(LoraFile.open(path), comfy_side.merged(path.stem), only=40)
