"""Words: what counts as one, which say nothing, which speak of manner instead of matter."""

from __future__ import annotations

import re
from functools import lru_cache

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

# Words that join, not words that mean: they end a phrase.
FUNCTION = frozenset(
    """a an the this that these those some any each every my your his her its our their no and or but nor so yet of
    in on at by for with without from to into onto over under above below behind beside between near next around
    through across against along inside outside during before after while as than like is are was were be been
    being has have had having do does did it he she they we you i me him them us who which what where when there
    here very really just also too not only both two three several many few one up down out off about upon
    within among""".split()
)

# Words of picture-making in general, and of praise: they never say which LoRA is wanted.
FILLER = frozenset(
    """picture pictures image images photo photos photograph shot view scene depiction rendition version showing
    shows shown depicting featuring wearing holding masterpiece best quality high highly detailed detail details
    ultra hd uhd 4k 8k hdr resolution res beautiful stunning amazing gorgeous great good nice perfect
    professional award winning trending artstation intricate sharp focus lora style styled styles aesthetic
    theme themed look looking render rendered drawn painted made done using by background white plain simple
    emoji icon""".split()
)

# "X of Y", "as X", "made of X", "in X": what makes X a manner. Phrases of one to three words, by stems.
_MANNERS = """
    pixel art|pixel|blueprint|neon|neon outline|pencil|pencil sketch|pencil drawing|sketch|drawing|line drawing|
    line art|ink|ink drawing|ink wash|halftone|halftone dot|sepia|sepia photo|mosaic|stained glass|
    stained glass mosaic|pastel|soft pastel|risograph|risograph print|painting|oil painting|oil|acrylic|
    watercolour|watercolor|watercolour painting|watercolor painting|gouache|crayon|chalk|chalkboard|charcoal|
    charcoal drawing|woodcut|engraving|etching|linocut|embroidery|knitted|crochet|felt|origami|paper cut|
    papercut|paper craft|papercraft|claymation|clay|lego|voxel|low poly|3d|3d render|isometric|cartoon|comic|
    comic book|manga|anime|cel shaded|flat|flat design|vector|minimalist|minimal|silhouette|monochrome|
    black and white|pop art|cubist|cubism|impressionist|impressionism|expressionist|surrealist|art deco|
    art nouveau|baroque|renaissance|ukiyo e|vaporwave|synthwave|cyberpunk|steampunk|retro|vintage|glitch|
    graffiti|street art|stencil|tattoo|sticker|poster|logo|doodle|illustration|storybook|children book|
    concept art|film grain|film noir|noir|polaroid|analog film|analog|cinematic|long exposure|double exposure|
    infrared|thermal camera|thermal|x ray|night vision|photo negative|negative|duotone|emboss|bas relief|statue|
    sculpture|marble|bronze|glossy|glossy 3d|hologram|holographic|pointillism|tilt shift|collage|
    technical drawing|diagram|map|stick figure|coloring page|colouring page|line|monoline|one line|flat colour|
    flat color|gradient|high contrast
"""

_PLURALS = (
    (re.compile(r"([^aeiou])ies$"), r"\1y"),
    (re.compile(r"(ss|sh|ch|x|zz)es$"), r"\1"),
    (re.compile(r"([^s])s$"), r"\1"),
)


def words_of(text: str) -> list[str]:
    """Lower-case words, in order."""
    return [match.group().lower().replace("’", "'") for match in WORD.finditer(text)]


@lru_cache(1 << 16)
def stem(word: str) -> str:
    """A word without its plural: ``axolotls`` → ``axolotl``, ``berries`` → ``berry``, ``boxes`` → ``box``."""
    word = word.removesuffix("'s")
    if len(word) > 3:
        for pattern, replacement in _PLURALS:
            shorter = pattern.sub(replacement, word)
            if shorter != word:
                return shorter
    return word


MANNERS = frozenset(" ".join(stem(word) for word in phrase.split()) for phrase in _MANNERS.split("|"))


def content_stems(text: str) -> tuple[str, ...]:
    """Stems of the words that mean something, in order; all words when none does (a LoRA may be called "The Best")."""
    words = words_of(text)
    meaning = [stem(word) for word in words if word not in FUNCTION and word not in FILLER]
    return tuple(meaning or [stem(word) for word in words])
