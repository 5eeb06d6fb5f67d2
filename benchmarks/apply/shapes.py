"""The linear layers of real base models: name, tokens, channels in and out, how often a forward runs it.

SD1.5 at 512², SDXL at 1024² (one of cond and uncond), FLUX.1 at 1024² with 512 text tokens. Only layers that LoRA
trainers touch by default; modulation layers see one token and cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    name: str
    tokens: int
    n_in: int
    out: int
    count: int
    text: int = 0  # of the tokens: those stay with a smaller picture

    def at(self, share: float) -> Shape:
        """For a picture of this share of the tokens."""
        image = self.tokens - self.text
        return replace(self, tokens=self.text + (max(8, round(image * share)) if image else 0))


def _unet_block(name: str, tokens: int, width: int, context: int, text: int, count: int) -> list[Shape]:
    """A transformer block of a UNet: self-attention, cross-attention, GEGLU feed-forward."""
    return [
        Shape(f"{name}.attn", tokens, width, width, 6 * count),  # q k v out of attn1, q out of attn2
        Shape(f"{name}.context", text, context, width, 2 * count, text),
        Shape(f"{name}.ff.0", tokens, width, 8 * width, count),
        Shape(f"{name}.ff.2", tokens, 4 * width, width, count),
    ]


def _stream(name: str, tokens: int, width: int, count: int) -> list[Shape]:
    """One stream of a FLUX double block."""
    text = tokens if name == "txt" else 0
    return [
        Shape(f"{name}.qkv", tokens, width, 3 * width, count, text),
        Shape(f"{name}.proj", tokens, width, width, count, text),
        Shape(f"{name}.mlp.0", tokens, width, 4 * width, count, text),
        Shape(f"{name}.mlp.2", tokens, 4 * width, width, count, text),
    ]


WIDEST = "single.linear1"
MODELS: dict[str, list[Shape]] = {
    "sd15": [
        *_unet_block("64", 4096, 320, 768, 77, 5),
        *_unet_block("32", 1024, 640, 768, 77, 5),
        *_unet_block("16", 256, 1280, 768, 77, 5),
    ],
    "sdxl": [*_unet_block("64", 4096, 640, 2048, 77, 10), *_unet_block("32", 1024, 1280, 2048, 77, 60)],
    "flux": [
        *_stream("img", 4096, 3072, 19),
        *_stream("txt", 512, 3072, 19),
        Shape(WIDEST, 4608, 3072, 21504, 38, 512),
        Shape("single.linear2", 4608, 15360, 3072, 38, 512),
    ],
}
