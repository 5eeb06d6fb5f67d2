"""Is the memory of Train Fusion Gate bounded?

    python -m benchmarks.train_gate_memory [--side 256]      writes benchmarks/results/train_gate_memory.json

The node in real ComfyUI on the CPU, on the demo model, two steps of learning at ``side`` pixels: the most memory the
process held beyond what it held before, each case in a process of its own. With few and many LoRAs to learn from, few
and many together, twice as many steps; and with blocks' activations kept instead of made anew, which is what the bound
rests on. Ratios to the first case.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from typing import Any

import torch

from autolora_core.lora.file import LoraFile
from benchmarks import in_comfy
from benchmarks.fusion_run import Peak
from benchmarks.results_file import REPO, write_results

# name → (LoRAs, at most together, steps, whether blocks are evaluated anew)
CASES = {
    "few_loras": (3, 2, 2, True),
    "many_loras": (12, 2, 2, True),
    "many_together": (12, 8, 2, True),
    "more_steps": (3, 2, 4, True),
    "activations_kept": (3, 2, 2, False),
}


def told_loras() -> list[str]:
    """Shipped LoRAs whose files say what they show: the node asks for each by its own words."""
    paths = sorted((REPO / "models" / "loras").glob("*.safetensors"))
    return [path.name for path in paths if "ss_tag_frequency" in LoraFile.open(path).metadata]


def peak_mb(case: str, side: int) -> float:
    """Of one case, in this process."""
    loras, together, steps, anew = CASES[case]
    torch.set_num_threads(1)
    model = in_comfy.demo_model()
    (clip,) = in_comfy.node("minilm_clip.AutoLoRAMiniLMCLIPLoader").load()
    import comfy.sd
    import comfy.utils
    import folder_paths

    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(REPO / "models" / "emoji_vae.safetensors")))
    names = told_loras()[:loras]
    if not anew:
        torch.utils.checkpoint.checkpoint = lambda forward, *args, use_reentrant=False, **kwargs: forward(
            *args, **kwargs
        )
    node = in_comfy.node("train_gate.AutoLoRATrainFusionGate")
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_user_directory(folder)
        folder_paths.models_dir = folder
        with torch.inference_mode(), Peak(True) as peak:
            node.train(
                model, clip, vae, steps=steps, most_together=together, width=side, height=side, sampling_steps=2,
                lora_stack=[(name, 1.0, 1.0) for name in names],
            )  # fmt: skip
    if peak.mb is None:
        raise SystemExit("this system does not tell a process's peak of memory; Linux does")
    return peak.mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, help="the demo model draws 256 at most")
    parser.add_argument("--case", choices=CASES, help="print one case's peak in MB, write nothing")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(peak_mb(args.case, args.side)))
        return
    peaks: dict[str, Any] = {}
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.train_gate_memory", "--case", case, "--side", str(args.side)]
        done = subprocess.run(command, cwd=REPO, capture_output=True, encoding="utf-8", check=True)
        peaks[case] = json.loads(done.stdout.splitlines()[-1])
    first = peaks["few_loras"]
    figures = {f"{case}_over_few_loras": round(mb / first, 3) for case, mb in peaks.items() if case != "few_loras"}
    rows = [
        {"case": case, "loras": loras, "together": together, "steps": steps, "anew": anew, "mb": round(peaks[case], 1)}
        for case, (loras, together, steps, anew) in CASES.items()
    ]
    write_results("train_gate_memory", f"python -m benchmarks.train_gate_memory --side {args.side}", 0, figures, rows)


if __name__ == "__main__":
    main()
