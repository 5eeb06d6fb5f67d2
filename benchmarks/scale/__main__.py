"""``python -m benchmarks.scale``: measure every part and write ``benchmarks/results/scale.json``."""

import sys

from benchmarks import parts

PARTS: dict[str, str] = {
    "start": "benchmarks.scale.start",
    "query": "benchmarks.scale.query",
    "query_1m": "benchmarks.scale.query_1m",
    "encode": "benchmarks.scale.encode",
    "drives": "benchmarks.scale.drives",
    "rescan": "benchmarks.scale.rescan",
    "headers": "benchmarks.scale.headers",
    "ray": "benchmarks.scale.ray_cluster",
    "batch": "benchmarks.scale.batch",
    "panel": "benchmarks.scale.panel",
}

if __name__ == "__main__":
    parts.run("scale", PARTS, sys.argv[1:])
