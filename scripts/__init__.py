"""Command-line entry points: ``demo.py``, ``test.py`` and what they share in ``_lib``."""
