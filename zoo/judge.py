"""The judge: a small open_clip model that names the subject and the style of a picture.

It was trained on real pictures and their transforms only (`zoo.judge_train`), never on anything generated, and names
things as CLIP does: the text nearest to the picture among the names of all subjects, and among the names of all
styles. One file, `models/emoji_judge.safetensors`, carries weights, configuration and vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from autolora_core.errors import FileFormatError
from zoo.cache import models_dir, write_atomic
from zoo.captions import STYLE_NAMES, style_name, subject_name
from zoo.splits import Splits

FORMAT = "autolora-judge/1"
SIZE = 64  # the judge looks at 64 px: 128 px pictures are averaged 2 x 2
PAD, UNKNOWN = 0, 1
# where the views of `views=5` sit: as it is, and four moves of 2 px
VIEWS = ((0, 0), (2, 2), (-2, 2), (2, -2), (-2, -2))


def default_path() -> Path:
    """Where the shipped judge lies."""
    return models_dir() / "emoji_judge.safetensors"


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes of the open_clip model: a ResNet for pictures, one transformer layer for names."""

    embed_dim: int = 192
    width: int = 24
    blocks: tuple[int, int, int, int] = (1, 1, 1, 1)
    text_width: int = 64
    text_layers: int = 1
    context: int = 10
    vocabulary: tuple[str, ...] = field(default=(), repr=False)

    def build(self) -> nn.Module:
        """A fresh open_clip CLIP."""
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        vision = CLIPVisionCfg(layers=self.blocks, width=self.width, head_width=64, image_size=SIZE)  # type: ignore[arg-type]
        text = CLIPTextCfg(
            context_length=self.context,
            vocab_size=len(self.vocabulary) + 3,
            width=self.text_width,
            heads=self.text_width // 16,
            layers=self.text_layers,
        )
        return CLIP(self.embed_dim, vision, text).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Word numbers (n, context), int64: words, then the end mark (the highest number, which open_clip pools at),
        then zeros.
        """
        number = {w: i + 2 for i, w in enumerate(self.vocabulary)}
        out = torch.full((len(texts), self.context), PAD)
        for row, text in zip(out, texts, strict=True):
            ids = [number.get(w, UNKNOWN) for w in text.lower().split()][: self.context - 1]
            row[: len(ids) + 1] = torch.tensor([*ids, len(self.vocabulary) + 2])
        return out


def subject_text(subject: str) -> str:
    """What the judge calls a subject: 'hot air balloon'."""
    return subject_name(subject)


def style_text(style: str) -> str:
    """What the judge calls a style: 'flat vector style'."""
    return f"{style_name(style)} style"


def words_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The vocabulary of `texts`, sorted."""
    return tuple(sorted({w for t in texts for w in t.lower().split()}))


def to_input(images: np.ndarray) -> Tensor:
    """uint8 (n, 128 or 64, same, 3) -> float32 (n, 3, 64, 64), zero-centred: (value / 255 - 0.5) * 4."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    if x.shape[-1] != SIZE:
        x = F.adaptive_avg_pool2d(x, SIZE)
    return centre(x).contiguous(memory_format=torch.channels_last)


def centre(x: Tensor) -> Tensor:
    """0..255 to about -2..2."""
    return (x / 255 - 0.5) * 4


@dataclass(frozen=True)
class Verdict:
    """What the judge says of n pictures: log-probabilities over all subjects (n, S) and over all styles (n, T)."""

    subjects: tuple[str, ...]
    styles: tuple[str, ...]
    subject_logp: np.ndarray
    style_logp: np.ndarray

    def subject_rank(self, truth: Sequence[str]) -> np.ndarray:
        """Rank of the true subject, 0 = named first; (n,) int."""
        return ranks(self.subject_logp, [self.subjects.index(s) for s in truth])

    def style_rank(self, truth: Sequence[str]) -> np.ndarray:
        """Rank of the true style, 0 = named first; (n,) int."""
        return ranks(self.style_logp, [self.styles.index(s) for s in truth])

    def top_subjects(self, k: int = 1) -> list[list[str]]:
        """The k likeliest subjects of each picture, best first."""
        return [[self.subjects[i] for i in row] for row in np.argsort(-self.subject_logp, 1, "stable")[:, :k]]


def ranks(scores: np.ndarray, truth: Sequence[int]) -> np.ndarray:
    """How many columns score at least as well as the true one, itself left out: ties count against; (n,) int."""
    true = scores[np.arange(len(scores)), list(truth)]
    return (scores >= true[:, None]).sum(1) - 1


class Judge:
    """A trained judge, float32 on the CPU; the names' embeddings are computed once.

    `measured` is what its file says of its accuracy on held-out real pictures: {"top1": {value, low, high, n}, ...}.
    """

    measured: dict[str, dict[str, float]]

    def __init__(self, model: nn.Module, config: JudgeConfig, subjects: Sequence[str], styles: Sequence[str]) -> None:
        self.model, self.config = model.eval().requires_grad_(False), config
        self.subjects, self.styles, self.measured = tuple(subjects), tuple(styles), {}
        self.subject_vectors = self.text_embeddings([subject_text(s) for s in self.subjects])
        self.style_vectors = self.text_embeddings([style_text(s) for s in self.styles])

    @torch.inference_mode()
    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (n, embed_dim)."""
        return self.model.encode_text(self.config.tokens(texts), normalize=True)

    @torch.inference_mode()
    def image_embeddings(self, images: np.ndarray, views: int = 1, batch: int = 64) -> Tensor:
        """uint8 (n, 128, 128, 3) -> unit rows (n, embed_dim); several views are pictures moved by 2 px, averaged."""
        parts = []
        for start in range(0, len(images), batch):
            x = to_input(images[start : start + batch])
            seen = [self.model.encode_image(torch.roll(x, move, (2, 3)), normalize=True) for move in VIEWS[:views]]
            parts.append(F.normalize(torch.stack(seen).mean(0), dim=-1))
        return torch.cat(parts) if parts else torch.zeros(0, self.config.embed_dim)

    def judge(self, images: np.ndarray, views: int = 1) -> Verdict:
        """Name pictures, uint8 (n, 128, 128, 3)."""
        vectors = self.image_embeddings(images, views)
        scale = self.model.logit_scale.exp()
        logp = [
            F.log_softmax(scale * vectors @ names.T, -1).numpy() for names in (self.subject_vectors, self.style_vectors)
        ]
        return Verdict(self.subjects, self.styles, *logp)

    @classmethod
    def load(cls, path: Path | None = None) -> Judge:
        """Read a saved judge (default: the shipped one)."""
        path = path or default_path()
        if not path.exists():
            raise FileFormatError(
                f"{path} is not there.", path=path, fix="run `python -m zoo.judge_train`, or restore models/ from git"
            )
        with safe_open(str(path), "pt") as handle:
            meta = handle.metadata() or {}
            if meta.get("format") != FORMAT:
                raise FileFormatError(
                    f"{path} is not a judge (format {meta.get('format')!r}, expected {FORMAT!r}).",
                    path=path,
                    fix="give a file that `python -m zoo.judge_train` wrote",
                )
            state = {k: handle.get_tensor(k).float() for k in handle.keys()}  # noqa: SIM118 - safe_open is no dict
        raw = json.loads(meta["config"])
        config = JudgeConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
        model = config.build()
        counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
        model.load_state_dict({**counters, **state})
        judge = cls(model, config, json.loads(meta["subjects"]), json.loads(meta["styles"]))
        judge.measured = json.loads(meta.get("measured", "{}"))
        return judge

    def save(self, path: Path | None = None, extra: dict[str, str] | None = None) -> Path:
        """Write weights in fp16 with everything needed to use them in the metadata."""
        state = self.model.state_dict().items()
        tensors = {k: v.half().contiguous() for k, v in state if not k.endswith("num_batches_tracked")}
        meta: dict[str, Any] = {
            "format": FORMAT,
            "config": json.dumps(asdict(self.config), ensure_ascii=False),
            "subjects": json.dumps(self.subjects),
            "styles": json.dumps(self.styles),
            "measured": json.dumps(self.measured),
            **(extra or {}),
        }
        return write_atomic(path or default_path(), lambda tmp: save_file(tensors, str(tmp), meta))


def known_names() -> tuple[list[str], list[str]]:
    """All subjects and all styles of the world, as the committed splits list them."""
    splits = Splits.load()
    return splits.subjects(), [s for s in splits.styles() if s in STYLE_NAMES]
