"""Encoding a library outside ComfyUI (``python -m autolora_core.encode``), also on several machines with ``--ray``.

Only ``rays.py`` imports Ray, and only when it is asked for."""
