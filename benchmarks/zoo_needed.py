"""What benchmarks of trained LoRAs say where there are none, in a fresh clone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from autolora_core.errors import AutoLoRAError
from zoo.cache import zoo_dir


@contextmanager
def zoo_needed(how: str = "`python -m zoo build`, then `python -m zoo.train_scale`") -> Iterator[None]:
    """A file of the zoo that is not there ends the program in a sentence that says ``how`` to make it; whatever else
    goes wrong is left as it is."""
    try:
        yield
    except (FileNotFoundError, AutoLoRAError) as error:
        if str(zoo_dir()) not in str(error):
            raise
        raise SystemExit(f"This is measured on the zoo's trained LoRAs, and not all is there: {error}\n"
                         f"Make it with {how}, which takes hours.") from error  # fmt: skip
