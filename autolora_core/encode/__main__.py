"""``python -m autolora_core.encode``: see :mod:`..cluster.command`, which is imported only when this runs."""

import sys

if __name__ == "__main__":
    from ..cluster.command import main

    sys.exit(main())
