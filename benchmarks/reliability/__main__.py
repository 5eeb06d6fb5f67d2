"""``python -m benchmarks.reliability``: measure every part and write ``benchmarks/results/reliability.json``."""

import sys

from benchmarks import parts

PARTS: dict[str, str] = {
    "faults": "benchmarks.reliability.faults",
    "fuzz": "benchmarks.reliability.fuzz",
    "soak": "benchmarks.reliability.soak",
}

if __name__ == "__main__":
    parts.run("reliability", PARTS, sys.argv[1:])
