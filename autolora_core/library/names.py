"""File name → words, unless the name means nothing; and the name filter users type."""

from __future__ import annotations

import fnmatch
import re

# Words that say how a file was made, not what it draws.
_TECHNICAL = frozenset(
    """lora loras locon loha lokr lycoris dora dreambooth db adapter adapters models pytorch diffusers
    safetensors checkpoint ckpt steps epoch epochs epoc ep rank alpha fp16 bf16 fp32 fp8 training trained output
    untitled version ver v sd sd1 sd14 sd15 sd2 sd21 sd3 sd35 sdxl xl flux flux1 schnell illustrious qwen wan hunyuan
    unet te clip kohya peft comfyui default noname unnamed tmp temp""".split()
)
# Words that name nothing when they stand alone ("last-000010"), yet belong to a name that has others ("test tube").
_WEAK = frozenset(
    """a the my new old best last latest final test model file step copy network train image weight weights dim
    bin dev pony""".split()
)
_HEX = re.compile(r"^[0-9a-f]{4,}$")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_VERSION = re.compile(r"^(?:v|ver|r|e|s|b|ep|dim|rank)?\d[\d.]*(?:k|e|b|s|steps?|epochs?)?$")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SPLIT = re.compile(r"[\s_\-.+,;()\[\]{}~!@#$%^&=]+")


def _looks_random(word: str) -> bool:
    """True for hash-like words: hexadecimal with digits, or letters and digits mixed several times, or no vowel."""
    if _HEX.match(word) and any(c.isdigit() for c in word):
        return True
    switches = sum(a.isdigit() != b.isdigit() for a, b in zip(word, word[1:], strict=False))
    return switches >= 4 or (word.isascii() and word.isalpha() and len(word) >= 5 and not re.search("[aeiouy]", word))


def words_of(stem: str) -> list[str]:
    """Lower-case words of a file name, technical words and numbers left out, order kept."""
    stem = _UUID.sub(" ", stem.encode("utf-8", "replace").decode("utf-8"))
    raw = (piece for part in _SPLIT.split(stem) for piece in _CAMEL.split(part))
    words: list[str] = []
    for word in (piece.lower() for piece in raw):
        is_noise = word in _TECHNICAL or _VERSION.match(word) or _looks_random(word)
        if word and not is_noise:
            words.append(word)
    return words


def meaningful_name(stem: str) -> str | None:
    """The words of a file name, or None when it says nothing about what the LoRA draws.

    ``"Watercolour_Otter-v2"`` → ``"watercolour otter"``; ``"lora_000123"``, ``"pytorch_lora_weights"``,
    ``"last-000010"``, ``"a3f09bc2"`` → None. ``stem`` is the name without folder and extension.
    """
    words = words_of(stem)
    # A Chinese or Japanese character says as much as two letters.
    weight = sum(2 if char >= "\u2e80" else 1 for word in words if word not in _WEAK for char in word)
    return " ".join(words) if weight >= 3 else None


def compile_filter(pattern: str):
    """``pattern`` → predicate over names, as typed in the node's name filter.

    Comma-separated parts; a part with ``*``, ``?`` or ``[`` is a glob over the whole name, any other is a piece of the
    name; ``-part`` leaves matching names out. Case and the kind of slash do not matter. Empty lets everything pass.
    """
    parts = [part.strip().replace("\\", "/").lower() for part in pattern.split(",")]
    wanted = [part for part in parts if part and not part.startswith("-")]
    unwanted = [part[1:].strip() for part in parts if part.startswith("-") and part[1:].strip()]

    def matches(name: str, part: str) -> bool:
        return fnmatch.fnmatchcase(name, part) if re.search(r"[*?\[]", part) else part in name

    def passes(name: str) -> bool:
        name = name.replace("\\", "/").lower()
        return (not wanted or any(matches(name, part) for part in wanted)) and not any(
            matches(name, part) for part in unwanted
        )

    return passes
