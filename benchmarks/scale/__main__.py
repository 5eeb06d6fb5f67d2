"""``python -m benchmarks.scale``: measure every part and write ``benchmarks/results/scale.json``."""

import sys

from benchmarks import parts

PARTS: dict[str, str] = {
    "ray": "benchmarks.scale.ray_cluster",
}

if __name__ == "__main__":
    parts.run("scale", PARTS, sys.argv[1:])
