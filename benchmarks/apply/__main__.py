"""``python -m benchmarks.apply``: measure every part and write ``benchmarks/results/apply_speed.json``."""

import sys

from benchmarks import parts

PARTS: dict[str, str] = {
    "machine": "benchmarks.apply.machine",
    "layers": "benchmarks.apply.layers",
    "memory": "benchmarks.apply.memory",
    "pictures": "benchmarks.apply.pictures",
    "errors": "benchmarks.apply.errors",
    "quality": "benchmarks.apply.quality",
    "gpu": "benchmarks.apply.gpu_kept",
}

if __name__ == "__main__":
    parts.run("apply", PARTS, sys.argv[1:], results="apply_speed")
