"""Where in a conditioning the words of a prompt stand, whatever the text encoder puts around them."""

from __future__ import annotations

import numpy as np


def real_tokens(tokens: dict[str, list], empty: dict[str, list], length: int) -> np.ndarray:
    """Which of the ``length`` positions of a conditioning hold the text: (length,) bool.

    Those where the tokens differ from an empty prompt's, and the end token after them. Start tokens, templates and
    padding say the same for every text. Encoders whose states lie side by side (CLIP-L and CLIP-G) are laid over each
    other, those that follow one another (SD3's CLIP and T5) are joined. Every position where this cannot be told.
    """
    marks = {key: _differs(_ids(rows), _ids(empty.get(key, []))) for key, rows in tokens.items()}
    whole = [mark for mark in marks.values() if len(mark) == length]
    if whole:
        found = np.logical_or.reduce(whole)
    else:
        clip = [mark for key, mark in marks.items() if key in ("l", "g")]
        other = [mark for key, mark in marks.items() if key not in ("l", "g")]
        wide = max(map(len, clip), default=0)
        beside = (
            np.logical_or.reduce([np.pad(mark, (0, wide - len(mark))) for mark in clip]) if clip else np.zeros(0, bool)
        )
        joined = np.concatenate([beside, *other]) if other else beside
        # Encoders that drop their template from the front leave the end.
        longest = joined if len(joined) == length or not other else max(other, key=len)
        found = longest[len(longest) - length :] if len(longest) >= length else np.ones(length, bool)
    return found if found.any() else np.ones(length, bool)


def _ids(rows: list) -> list[int]:
    """Token numbers of all chunks; an embedding in place of a token counts as −1."""
    return [pair[0] if isinstance(pair[0], int) else -1 for row in rows for pair in row]


def _differs(ids: list[int], empty: list[int]) -> np.ndarray:
    """(len(ids),) bool: from the first to the last position that an empty prompt fills otherwise, and the end token."""
    padded = empty + [None] * (len(ids) - len(empty))
    unlike = [number for number, (mine, other) in enumerate(zip(ids, padded, strict=False)) if mine != other]
    mark = np.zeros(len(ids), bool)
    if unlike:
        first, last = unlike[0], unlike[-1]
        mark[first : last + 1] = True
        if last + 1 < len(ids) and first < len(empty) and ids[last + 1] == empty[first]:
            mark[last + 1] = True
    return mark
