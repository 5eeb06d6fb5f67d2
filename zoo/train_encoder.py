"""Train the learned encoder on a pack of the zoo.

    python -m zoo.train_encoder [--small] [--epochs 40]

writes ``<cache>/zoo/encoder/<pack>-encoder.safetensors``; ``python -m benchmarks.retrieval --ship`` puts it, with its
held-out figures, into ``models/``.

It starts as the ridge regression that the linear path can be, and goes on from there with a contrastive loss: a LoRA
must find its text among all training texts, a text its LoRA in the batch. Half of a batch is of one creator, so that
the recipe cannot help. The epoch that is best on the validation part is kept, the test part is not looked at.
Resumable.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.set_encoder import MODULES, SetEncoder, rounded
from autolora_core.encode.set_network import SetConfig, SetNetwork
from autolora_core.train.trainer import TextMap, TextSide
from zoo.cache import zoo_dir
from zoo.encoder_data import GROUPS, EncoderData, encoder_data, profile_groups, texts_of
from zoo.encoder_sim import made_up_rows, things
from zoo.encoder_trainer import Trainer
from zoo.features_pack import Pack, read
from zoo.text_bank import tower
from zoo.text_side import TextReader, Texts, factor_table, response_scores, unit_rows, z_scores

log = logging.getLogger("zoo.encoder")


def ranks_of(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(q, n) scores and which are right → rank of the best right one for each query, 0 is first."""
    scores = np.nan_to_num(scores, nan=-1e9)  # a LoRA without a score comes last
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores > best) & ~right).sum(axis=1)


class Judge:
    """Validation: every validation thing is asked for by its name; candidates are train and validation LoRAs."""

    def __init__(self, data: EncoderData, texts: Texts):
        pool = np.flatnonzero(data.train | data.validation)
        asked = {int(data.thing[i]): data.texts[i][min(1, len(data.texts[i]) - 1)]
                 for i in np.flatnonzero(data.validation)}  # fmt: skip
        self.right = data.thing[pool][None] == np.array(list(asked))[:, None]
        generic = texts.vectors[texts.rows(GENERIC_PROMPTS)]
        self.centre = generic.mean(axis=0)
        self.queries = centred(texts.vectors[texts.rows(list(asked.values()))], self.centre)
        self.generic = centred(generic, self.centre)
        self.groups = {k: (torch.from_numpy(x[pool]), torch.from_numpy(m[pool])) for k, (x, m) in data.groups.items()}

    @torch.no_grad()
    def __call__(self, network: SetNetwork, text_map: TextMap) -> float:
        """Mean of recall at 1, recall at 5 and reciprocal rank, over the views \"all\" and \"file only\"."""
        asked, generic = (text_map(torch.from_numpy(q)).numpy() for q in (self.queries, self.generic))
        values = []
        for names in (tuple(self.groups), (MODULES,)):
            vectors = network({k: self.groups[k] for k in names}).numpy().T
            ranks = ranks_of(z_scores(asked @ vectors, generic @ vectors), self.right)
            values += [(ranks < 1).mean(), (ranks < 5).mean(), (1 / (1 + ranks)).mean()]
        return float(np.mean(values))


def centred(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return unit_rows(vectors - centre).astype(np.float32)


def profile_of(rows: np.ndarray, bank: Sequence[str], texts: Texts) -> np.ndarray:
    """(n, B): response of every LoRA's text rows to every text of the bank, as z-scores over the generic prompts."""
    scores = response_scores(factor_table(rows), texts)
    return z_scores(scores[texts.rows(bank)], scores[texts.rows(GENERIC_PROMPTS)]).T


def with_made_up(data: EncoderData, pack: Pack, texts: Texts) -> EncoderData:
    """``data`` and, after its rows, LoRAs that nobody trained: all that is known of them is their profile."""
    captions = things(pack)
    profile = profile_groups(profile_of(made_up_rows(texts, captions), pack.info["bank"], texts))
    count, groups = len(captions), {}
    for name, (x, mask) in data.groups.items():
        more = profile if name == "profile" else (np.zeros((count, *x.shape[1:]), np.float32),
                                                  np.zeros((count, mask.shape[1]), bool))  # fmt: skip
        groups[name] = tuple(np.concatenate(pair) for pair in zip((x, mask), more, strict=True))

    def longer(array: np.ndarray, values: object) -> np.ndarray:
        return np.concatenate([array, np.broadcast_to(values, count)])

    return EncoderData(
        groups, [*data.texts, *captions], longer(data.train, True), longer(data.validation, False),
        longer(data.test, False), longer(data.thing, data.thing.max() + 1 + np.arange(count)),
        longer(data.recipe, data.recipe.max() + 1), data.tokens,
    )  # fmt: skip


def texts_needed(pack: Pack) -> list[str]:
    """Every text that training reads: the bank, and what each LoRA may be asked for by."""
    words = pack.info["keywords"]
    own = [text for row in pack.rows for text in texts_of(row, words.get(row["subject"], ()))]
    return [*pack.info["bank"], *own, *(text for captions in things(pack) for text in captions)]


def train(pack: Pack, texts: Texts, epochs: int, checkpoint: Path | None = None, only: np.ndarray | None = None,
          groups: Sequence[str] = GROUPS, made_up: bool = True) -> tuple[SetEncoder, EncoderData]:  # fmt: skip
    """Train on ``pack`` (or on the rows ``only``, for learning curves), with or without made-up LoRAs beside it.

    Returns the encoder as its file keeps it, and the data of the pack as it reads them.
    """
    data = encoder_data(pack, profile_of(pack.arrays["text_rows"], pack.info["bank"], texts), only)
    data.groups = {name: data.groups[name] for name in groups}
    taught = with_made_up(data, pack, texts) if made_up and "profile" in groups else data
    centre = texts.vectors[texts.rows(GENERIC_PROMPTS)].mean(axis=0)
    side = TextSide.of(taught, lambda own: centred(texts.vectors[texts.rows(own)], centre))
    shapes = {name: (x.shape[1], x.shape[2]) for name, (x, _) in data.groups.items()}
    trainer = Trainer(taught, side, SetConfig(shapes, texts.vectors.shape[1]), Judge(data, texts))
    trainer.run(epochs, checkpoint)
    figures = {"validation": trainer.best[0], "best_epoch": float(trainer.best[1]), "loras": float(data.train.sum())}
    text_side = centre.astype(np.float32), trainer.map.matrix()
    return rounded(SetEncoder(data.tokens, tower().id, trainer.network, *text_side, figures)), data


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the shipped LoRAs only")
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    name = "retrieval_small" if args.small else "retrieval"
    pack = read(name)
    texts = TextReader(pack).read(texts_needed(pack))
    folder = zoo_dir("encoder")
    encoder, _ = train(pack, texts, args.epochs, folder / f"{name}-{pack.info['base']}-{len(pack)}.safetensors")
    path = encoder.save(folder / f"{name}-encoder.safetensors")
    log.info("%s: %s, %.1f MB, %s", path, encoder.id, path.stat().st_size / 2**20, encoder.figures)


if __name__ == "__main__":
    main()
