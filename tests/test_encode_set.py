"""The set encoder: exact invariances, masks, files, and the protocol that the library relies on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import emoji_factors, write_lora

from autolora_core.encode.encoder import RidgeEncoder, WeightEncoder
from autolora_core.encode.encoder_files import load_encoder_file
from autolora_core.encode.features import module_features, size_for
from autolora_core.encode.set_encoder import MODULES, SetEncoder, rounded, token_schema
from autolora_core.encode.set_network import SetConfig, SetNetwork
from autolora_core.encode.sketch import SketchSize
from autolora_core.encode.tokens import TokenMap, assemble
from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import FileFormatError
from autolora_core.library.encoders import find_encoders
from autolora_core.library.index import Library
from autolora_core.lora.adapters import Update
from autolora_core.lora.file import LoraFile
from autolora_core.retrieve.retrieve import retrieve

SIZE = SketchSize(product=6, gram=4, diag=8)
NAMES = ("a.attn.proj", "b.attn.proj", "c.mlp.fc1")
KEPT, DIM = 5, 16


def an_encoder(seed: int = 0) -> SetEncoder:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    schema = token_schema("emoji", SIZE, NAMES)
    shape = (len(NAMES), KEPT, SIZE.width)
    tokens = TokenMap(
        schema,
        rng.standard_normal(shape).astype(np.float32),
        rng.standard_normal((len(NAMES), SIZE.width)).astype(np.float32) * 0.1,
        rng.uniform(1, 2, (len(NAMES), KEPT)).astype(np.float32),
        np.zeros(len(NAMES), np.float32),
    )
    network = SetNetwork(SetConfig({MODULES: (len(NAMES), KEPT + 2), "draw": (1, 4)}, DIM, width=16, heads=2))
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    centre = rng.standard_normal(DIM).astype(np.float32) * 0.1
    text_map = rng.standard_normal((DIM, DIM)).astype(np.float32)
    return rounded(SetEncoder(tokens, "tower-1", network, centre, text_map, {"held_out_recall_at_1": 0.25}))


def updates(rng: np.random.Generator, names=NAMES) -> dict[str, Update]:
    return {
        n: Update(n, "lowrank", down=torch.from_numpy(rng.standard_normal((3, 20))),
                  up=torch.from_numpy(rng.standard_normal((24, 3))))
        for n in names
    }  # fmt: skip


def encoded(encoder: SetEncoder, parts) -> np.ndarray:
    return encoder.encode(encoder.schema.assemble(module_features(parts.values(), SIZE)))


def test_protocol_and_unit_length():
    encoder = an_encoder()
    assert isinstance(encoder, WeightEncoder)
    vector = encoded(encoder, updates(np.random.default_rng(1)))
    assert vector.dtype == np.float32 and vector.shape == (DIM,)
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-6


def test_another_factorisation_gives_the_same_vector():
    rng = np.random.default_rng(2)
    encoder, parts = an_encoder(), updates(rng)
    for _ in range(5):
        other = {}
        for name, part in parts.items():
            matrix = torch.from_numpy(rng.standard_normal((3, 3)) + 3 * np.eye(3))
            other[name] = Update(name, "lowrank", down=matrix @ part.down, up=part.up @ torch.linalg.inv(matrix))
        assert np.abs(encoded(encoder, parts) - encoded(encoder, other)).max() < 1e-6


def test_a_different_update_gives_a_different_vector():
    encoder, rng = an_encoder(), np.random.default_rng(3)
    assert np.abs(encoded(encoder, updates(rng)) - encoded(encoder, updates(rng))).max() > 1e-2


def test_absent_modules_are_masked_whatever_stands_there():
    network = an_encoder().network
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.standard_normal((2, 3, KEPT + 2)).astype(np.float32))
    mask = torch.tensor([[True, False, True], [True, True, False]])
    noisy = torch.where(mask[..., None], x, torch.full_like(x, 99.0))
    with torch.no_grad():
        assert torch.equal(network({MODULES: (x, mask)}), network({MODULES: (noisy, mask)}))
        nothing = torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.bool)
        given = network({MODULES: (x, mask), "draw": nothing})
        assert torch.allclose(network({MODULES: (x, mask)}), given, atol=1e-6)


def test_rows_of_a_batch_do_not_depend_on_each_other():
    encoder, rng = an_encoder(), np.random.default_rng(5)
    features = [encoder.schema.assemble(module_features(updates(rng).values(), SIZE)) for _ in range(3)]
    features.append(encoder.schema.assemble(module_features(updates(rng, NAMES[:1]).values(), SIZE)))
    stacked = (np.stack([getattr(f, k) for f in features]) for k in ("vector", "mask", "log_norms"))
    together = encoder.encode_many(*stacked)
    for row, one in zip(together, features, strict=True):
        assert np.array_equal(row, encoder.encode(one))


def test_a_file_without_known_modules_is_the_zero_vector():
    encoder = an_encoder()
    assert not encoded(encoder, updates(np.random.default_rng(6), ("unknown.layer",))).any()


def test_an_untrained_head_leaves_a_linear_model():
    torch.manual_seed(0)
    network = SetNetwork(SetConfig({MODULES: (3, 4)}, 8, width=16, heads=2)).eval()
    network.linear[MODULES].data = torch.randn(3, 4, 8)
    x, mask = torch.randn(5, 3, 4), torch.ones(5, 3, dtype=torch.bool)
    wanted = x.double().flatten(1) @ network.linear[MODULES].detach().double().flatten(0, 1)
    wanted = wanted / wanted.norm(dim=1, keepdim=True)
    with torch.no_grad():
        assert torch.allclose(network({MODULES: (x, mask)}).double(), wanted, atol=1e-6)


def test_tokens_undo_the_layout_of_the_schema():
    """A library's vector leads to the same token as the projection of the sketch itself."""
    encoder, rng = an_encoder(), np.random.default_rng(7)
    found = module_features(updates(rng, NAMES[:2]).values(), SIZE)
    got, mask = encoder.tokens.tokens(encoder.schema.assemble(found))
    own = encoder.tokens
    assert mask.tolist() == [True, True, False]
    level = found.log_norms.astype(np.float64).mean()
    for i in range(2):
        kept = own.basis[i].astype(np.float64) @ (found.rows[i] - own.mean[i]) / own.scale[i]
        assert np.allclose(got[i, :KEPT], np.clip(kept, -8, 8), atol=1e-4)
        assert np.allclose(got[i, KEPT:], [(found.log_norms[i] - level) / 1.5, level / 1.5], atol=1e-5)
    assert not got[2].any()


def test_tokens_ignore_overall_loudness_but_in_the_last_number():
    rng = np.random.default_rng(8)
    kept, mask = rng.standard_normal((1, 3, 4)), np.ones((1, 3), bool)
    norms, scale, usual = rng.standard_normal((1, 3)), np.ones((3, 4)), np.zeros(3)
    quiet, loud = (assemble(kept, mask, norms + shift, scale, usual) for shift in (0.0, 2.0))
    assert np.allclose(quiet[..., :-1], loud[..., :-1], atol=1e-6)
    assert np.allclose(loud[..., -1] - quiet[..., -1], 2.0 / 1.5, atol=1e-6)


def test_saving_changes_nothing(tmp_path):
    encoder = an_encoder()
    loaded = load_encoder_file(encoder.save(tmp_path / "x-encoder.safetensors"))
    assert isinstance(loaded, SetEncoder) and loaded.id == encoder.id and loaded.id.startswith("set-")
    assert loaded.figures == {"held_out_recall_at_1": 0.25} and loaded.family == "emoji"
    parts = updates(np.random.default_rng(9))
    assert np.array_equal(encoded(loaded, parts), encoded(encoder, parts))
    texts = np.random.default_rng(10).standard_normal((4, DIM))
    assert np.array_equal(loaded.query(texts), encoder.query(texts))


def test_the_id_follows_the_weights():
    assert an_encoder(0).id != an_encoder(1).id


def test_a_damaged_file_is_refused(tmp_path):
    path = an_encoder().save(tmp_path / "x-encoder.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x55
    path.write_bytes(bytes(data))
    with pytest.raises(FileFormatError, match="do not match its id"):
        load_encoder_file(path)
    path.write_bytes(b"nothing")
    with pytest.raises(FileFormatError):
        load_encoder_file(path)


def test_the_loader_still_reads_a_ridge(tmp_path):
    class Tower:
        id, dim = "tower-1", 8

        def encode(self, texts):
            rng = [np.random.default_rng(len(t)).standard_normal(8) for t in texts]
            return np.stack(rng).astype(np.float32)

    schema = token_schema("emoji", SIZE, NAMES)
    rows = np.random.default_rng(11).standard_normal((9, schema.width)).astype(np.float32)
    ridge = RidgeEncoder.fit(schema, rows, [f"text {'x' * i}" for i in range(9)], Tower())
    loaded = load_encoder_file(ridge.save(tmp_path / "r-encoder.safetensors"))
    assert isinstance(loaded, RidgeEncoder) and loaded.id == ridge.id


def for_library(tower, modules: tuple[str, ...]) -> SetEncoder:
    rng = np.random.default_rng(12)
    torch.manual_seed(12)
    size = size_for("emoji")
    tokens = TokenMap(
        token_schema("emoji", size, modules),
        rng.standard_normal((len(modules), KEPT, size.width)).astype(np.float32) * 0.1,
        np.zeros((len(modules), size.width), np.float32),
        np.ones((len(modules), KEPT), np.float32),
        np.zeros(len(modules), np.float32),
    )
    network = SetNetwork(SetConfig({MODULES: (len(modules), KEPT + 2)}, tower.dim, width=16, heads=2))
    network.linear[MODULES].data = torch.randn_like(network.linear[MODULES])
    text = np.zeros(tower.dim, np.float32), np.eye(tower.dim, dtype=np.float32)
    return rounded(SetEncoder(tokens, tower.id, network, *text, {"held_out_recall_at_1": 0.5}))


@pytest.fixture
def library(tmp_path):
    for seed, word in enumerate(("otter", "fox", "castle", "lora_000012")):
        write_lora(tmp_path / "loras" / f"{word}.safetensors", emoji_factors(seed, blocks=1))
    with Library.open(tmp_path / "library") as opened:
        opened.scan([tmp_path / "loras"])
        yield opened


def test_a_library_takes_a_set_encoder_as_it_is(library, tmp_path):
    tower = LexicalTower()
    one = next((tmp_path / "loras").glob("*.safetensors"))
    names = module_features(LoraFile.open(one).updates(), size_for("emoji")).modules
    encoder = for_library(tower, names)
    encoder.save(tmp_path / "emoji_encoder.safetensors")
    shipped = find_encoders([tmp_path])
    report = library.fit(tower, shipped=shipped)
    [family] = report.families
    assert family.encoder_id == encoder.id and not family.learnt and family.captioned == 3
    assert "as it came" in report.lines()[0]
    vectors = library.vectors("emoji", encoder.id)
    assert len(vectors.hashes) == 4
    entry = next(e for e in library.entries("emoji") if e.hash == vectors.hashes[0])
    features = encoder.schema.assemble(module_features(LoraFile.open(entry.path).updates(), size_for("emoji")))
    # The library keeps sketches as float16.
    assert np.allclose(vectors.matrix[0], encoder.encode(features), atol=5e-3)
    assert not library.fit(tower, shipped=shipped).families[0].refitted
    assert retrieve(library, "an otter", tower=tower).encoder == encoder.id


def test_a_set_encoder_for_another_tower_is_not_used(library, tmp_path):
    tower = LexicalTower()
    one = next((tmp_path / "loras").glob("*.safetensors"))
    encoder = for_library(tower, module_features(LoraFile.open(one).updates(), size_for("emoji")).modules)
    object.__setattr__(encoder, "tower", "another")
    [family] = library.fit(tower, shipped={"emoji": encoder}).families
    assert family.learnt and family.encoder_id.startswith("ridge-")
