"""What a fit of the weight encoders did, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class FamilyFit:
    """``found_top5`` is the share of ``asks`` captioned files whose own words rank their vector (of a fit without
    them, where the encoder was fitted on them) in the first 5; a file that the encoder repeats what it was taught of is
    not asked for. ``learnt``: the encoder was fitted on this library's files.
    """

    family: str
    encoder_id: str
    files: int
    captioned: int
    usable: bool
    refitted: bool
    found_top5: float
    learnt: bool = True
    asks: int = 0


@dataclass
class FitReport:
    """What a fit did, family by family. ``tower`` is the text tower's id."""

    tower: str = ""
    families: list[FamilyFit] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """One line a family, for people."""
        lines = []
        for fit in self.families:
            if not fit.encoder_id:
                lines.append(f"for {fit.family}: none, no file has words to learn from; words and names still count")
            elif not fit.usable:
                lines.append(f"for {fit.family}: not used, too few files with words to trust it ({fit.captioned})")
            else:
                chance = min(1.0, 5 / max(fit.captioned, 1))
                if not fit.learnt:
                    lines.append(f"for {fit.family}: {fit.encoder_id}, as it came{_seen(fit, chance)}")
                    continue
                lines.append(
                    f"for {fit.family}: learnt from {fit.captioned} of {fit.files} files; a file it was not shown is "
                    f"among the first five for its own words {fit.found_top5:.0%} of the time (chance {chance:.0%})"
                )
        return lines


def _seen(fit: FamilyFit, chance: float) -> str:
    """How an encoder that came ready does on the files that say what they are."""
    if not fit.asks:
        return ""
    return (
        f"; of {fit.asks} files with words that it was not taught {fit.found_top5:.0%} are among the first five for"
        f" their own words (chance {chance:.0%})"
    )
