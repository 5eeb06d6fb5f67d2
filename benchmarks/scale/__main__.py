"""``python -m benchmarks.scale``: measure every part and write ``benchmarks/results/scale.json``."""

import sys

from benchmarks import parts

PARTS: dict[str, str] = {}

if __name__ == "__main__":
    parts.run("scale", PARTS, sys.argv[1:])
