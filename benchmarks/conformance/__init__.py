"""Every base × key format × adapter kind: what our sum mode makes of it, against ComfyUI's own weight merge.

``python -m benchmarks.conformance`` fills the matrix; ``docs/conformance.md`` is written from what it finds.
"""
