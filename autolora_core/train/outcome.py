"""What is asked of a training, and what came of it. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from .captions import Row
from .figures import Figures, Verdict

FORMAT = "autolora-training/1"
EPOCHS, MINUTES = 40, 20.0
SHIPPED = "shipped"  # among the figures: the encoder that would be used otherwise


@dataclass(frozen=True)
class Options:
    """``rows`` of a table of captions; ``epochs`` at most, in about ``minutes``; ``name`` of the file, default: family
    and library."""

    rows: tuple[Row, ...] = ()
    epochs: int = EPOCHS
    minutes: float = MINUTES
    name: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of one family.

    ``refused``: why nothing was learnt. ``kind`` of the encoder, ``path`` where it lies ("": not saved). ``figures`` by
    method; ``chance`` (recall at 1, at 5, mean reciprocal rank). ``epochs`` of the set transformer, ``validated``: asks
    that chose between it and ridge. ``behind_shipped``: the encoder used so far does better, so nothing was saved.
    ``again``: nothing had changed since it was trained. ``stays``: nothing was saved, and this file, trained earlier
    for the library, is used; both are of this call and not kept.
    """

    family: str
    inputs: str = ""
    refused: str = ""
    files: int = 0
    captioned: int = 0
    distinct: int = 0
    held_out_folds: int = 0
    kind: str = ""
    encoder_id: str = ""
    path: str = ""
    epochs: int = 0
    validated: int = 0
    figures: Mapping[str, Figures] = field(default_factory=dict)
    chance: tuple[float, float, float] = (0.0, 0.0, 0.0)
    verdict: Verdict | None = None
    behind_shipped: bool = False
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    again: bool = False
    stays: str = ""

    def to_json(self) -> dict:
        return {"format": FORMAT, **{k: v for k, v in asdict(self).items() if k not in ("again", "stays")}}

    @classmethod
    def from_json(cls, said: Mapping) -> Outcome:
        """Inverse of :meth:`to_json`, other keys passed over; KeyError, TypeError or ValueError when it is none."""
        if said["format"] != FORMAT:
            raise ValueError(f"not {FORMAT}")
        data = {name.name: said[name.name] for name in fields(cls) if name.name in said}
        data["figures"] = {k: Figures(**_tuples(v)) for k, v in data["figures"].items()}
        data["verdict"] = Verdict(**_tuples(data["verdict"])) if data["verdict"] else None
        return cls(**{**data, "chance": tuple(data["chance"]), "notes": tuple(data["notes"])})


def _tuples(said: Mapping) -> dict:
    """JSON has no tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
