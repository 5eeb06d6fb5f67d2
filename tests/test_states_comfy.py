"""Proves that recorded inputs are what layers of a live ComfyUI model really read, whoever shares the batch, and that
recording leaves no trace in the model, also when it is interrupted."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from comfy_local import pack_module, sizes_for
from word_clip import END, LENGTH, WordClip, layer_reads

from autolora_core.encode.input_states import TextStates

UNET = "input_blocks.1.1.transformer_blocks.0"
PICTURE = "joint_blocks.0.x_block.attn.proj"
QKV, FC1 = (f"joint_blocks.0.context_block.{part}" for part in ("attn.qkv", "mlp.fc1"))
LATE = "joint_blocks.1.context_block.attn.qkv"


class WideClip(WordClip):
    """As T5 has it: 4096 wide, with a mask and a pooled vector for those that ask."""

    def __init__(self):
        super().__init__(width=4096)

    def encode_from_tokens_scheduled(self, tokens: dict, show_pbar: bool = True) -> list:
        ((states, _),) = super().encode_from_tokens_scheduled(tokens)
        mask = torch.ones(states.shape[:2], dtype=torch.long)
        return [[states, {"pooled_output": torch.zeros(1, 768), "attention_mask": mask}]]


@pytest.fixture(scope="module")
def states(comfy):
    return pack_module("nodes.bridge_states")


@pytest.fixture
def sd3(comfy):
    import comfy.model_management

    yield tiny_models.load(tiny_models.sd3_state(128))
    comfy.model_management.unload_all_models()


def recorded(source, texts: list[str], spaces: list[str], progress=None) -> TextStates:
    """All groups together."""
    return TextStates.join(list(source.record(texts, spaces, progress)))


TEXTS = ["red fox", "otter", "a very long text about a fox", "fox"]


def test_states_are_what_the_layers_read(states, sd3):
    clip = WordClip()
    source = states.ModelStates(sd3, clip)
    source.family = "sd3"
    found = recorded(source, TEXTS, [QKV, FC1, PICTURE, LATE])
    assert found.counts.tolist() == [3, 2, 8, 2], "the words and the end token"
    sigma = float(sd3.get_model_object("model_sampling").percent_to_sigma(pack_module("nodes.bridge_once").PERCENT))
    for name in (QKV, FC1, LATE):
        wanted = []
        for text, count in zip(TEXTS, found.counts, strict=True):
            wanted.append(layer_reads(sd3, clip, text, name, sigma, 16)[0][1 : 1 + count])
        assert np.abs(found.tokens[name] - torch.cat(wanted).numpy()).max() < 1e-3, name
    seen = torch.cat([layer_reads(sd3, clip, text, PICTURE, sigma, 16)[0] for text in TEXTS])
    assert found.tokens[f"{PICTURE}@image"].shape == (4 * 64, 128), "the whole picture, whatever the text's length"
    assert np.abs(found.tokens[f"{PICTURE}@image"] - seen.numpy()).max() < 1e-3


@pytest.mark.parametrize("length", [LENGTH, None])
def test_company_in_a_batch_does_not_matter(states, sd3, length):
    source = states.ModelStates(sd3, WordClip(length=length))
    source.family = "sd3"
    texts = [f"word{n} " * (1 + n % 3) for n in range(19)]
    together = recorded(source, texts, [QKV, LATE, PICTURE])
    for number in (0, 4, 18):
        alone = recorded(source, [texts[number]], [QKV, LATE, PICTURE])
        for name in (QKV, LATE, f"{PICTURE}@image"):
            assert np.allclose(alone.tokens[name], together.part([number]).tokens[name], atol=5e-3)


def test_recording_stops_after_the_last_layer_and_leaves_no_trace(states, sd3):
    before, seen = tiny_models.sample(sd3), []
    network = sd3.model.diffusion_model
    options = str(sd3.model_options)
    handle = network.joint_blocks[1].register_forward_pre_hook(lambda *_: seen.append(1))
    source = states.ModelStates(sd3, WordClip())
    source.family = "sd3"
    recorded(source, ["fox"], [QKV, FC1])
    assert not seen, "the second block is not needed"
    handle.remove()
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert str(sd3.model_options) == options
    assert tiny_models.sample(sd3).equal(before)


def test_an_interrupt_ends_it_and_leaves_no_trace(states, sd3):
    import comfy.model_management

    before = tiny_models.sample(sd3)
    source = states.ModelStates(sd3, WordClip())
    source.family = "sd3"

    def cancel(done: int, total: int, text: str) -> None:
        if text == "two":
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        recorded(source, ["one", "two", "three"], [QKV], cancel)
    assert not any(module._forward_pre_hooks for module in sd3.model.diffusion_model.modules())
    assert tiny_models.sample(sd3).equal(before)


@pytest.mark.slow
def test_a_compiled_model_is_heard(states, sd3):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    plain = states.ModelStates(sd3, WordClip())
    compiled = sd3.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    tiny_models.sample(compiled, steps=1)
    source = states.ModelStates(compiled, WordClip())
    plain.family = source.family = "sd3"
    found = recorded(source, ["fox"], [QKV])
    assert np.allclose(found.tokens[QKV], recorded(plain, ["fox"], [QKV]).tokens[QKV])
    assert "torch.compile" in compiled.wrappers["apply_model"], "the user's model keeps its wrapper"


def test_the_context_itself_needs_no_run(states, comfy, monkeypatch):
    model = tiny_models.load(tiny_models.sd15_state())
    clip = WordClip(width=768)
    source = states.ModelStates(model, clip)
    assert source.family == "sd15"
    monkeypatch.setattr(states.ModelStates, "_run", lambda *_: pytest.fail("the network was run"))
    found = recorded(source, ["red fox", "otter"], ["context"])
    wanted = [
        clip.net(torch.tensor([[clip.words[word] for word in text.split()] + [END]]))[0]
        for text in ("red fox", "otter")
    ]
    assert np.allclose(found.tokens["context"], torch.cat(wanted).detach().numpy(), atol=2e-3)


def wan(**how):
    from comfy.ldm.wan.model import WanModel

    return WanModel(dim=128, ffn_dim=64, num_heads=1, num_layers=2, text_dim=4096, **how)


def ltxv(**how):
    from comfy.ldm.lightricks.model import LTXVModel

    sizes = {"cross_attention_dim": 128, "attention_head_dim": 4, "num_attention_heads": 32, "num_layers": 2}
    return LTXVModel(caption_channels=4096, **sizes, **how)


def hunyuan_video(**how):
    from comfy.ldm.hunyuan_video.model import HunyuanVideo, HunyuanVideoParams

    sizes = {"vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1}
    sizes |= {"depth": 2, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 256, "patch_size": [1, 2, 2]}
    sizes |= {"in_channels": 16, "out_channels": 16, "qkv_bias": True, "guidance_embed": True, "byt5": False}
    sizes |= {"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow": False}
    return HunyuanVideo(**sizes_for(HunyuanVideoParams, sizes), **how)


def pixart(**how):
    from comfy.ldm.pixart.pixartms import PixArtMS

    return PixArtMS(depth=1, caption_channels=4096, model_max_length=300, pe_interpolation=1, **how)


def sd15(**how):
    return None  # tiny_models knows one


HUNYUAN = ("txt_attn.qkv", "txt_mlp.0", "img_attn.proj", "img_mlp.0")
ARCHITECTURES = {
    wan: ["context", "blocks.0.cross_attn.o", "blocks.1.self_attn.q", "blocks.1.ffn.0"],
    ltxv: ["context", "transformer_blocks.0.attn2.to_out.0", "transformer_blocks.1.attn1.to_q"],
    hunyuan_video: [f"double_blocks.{n}.{part}" for n in (0, 1) for part in HUNYUAN],
    pixart: ["context", "blocks.0.cross_attn.proj", "blocks.0.mlp.fc1"],
    sd15: ["context", f"{UNET}.attn2.to_out.0", f"{UNET}.ff.net.0.proj"],
}


@pytest.mark.parametrize("build", ARCHITECTURES, ids=lambda build: build.__name__)
def test_other_architectures_are_heard(states, comfy, build):
    import comfy.ops

    network = build(device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    state = tiny_models.random_state(network, scale=0.02) if network else tiny_models.sd15_state()
    source = states.ModelStates(tiny_models.load(state), WideClip() if network else WordClip(width=768))
    assert source.family == build.__name__
    spaces = ARCHITECTURES[build]
    found = recorded(source, ["red fox", "otter"], spaces)
    text = [name for name in spaces if name == "context" or ".txt_" in name]
    assert set(found.tokens) == {name if name in text else f"{name}@image" for name in spaces}
    alone = recorded(source, ["otter"], spaces)
    for name, tokens in found.tokens.items():
        cut = 3 if name in text else len(tokens) // 2
        assert len(tokens) == 5 or 2 * 16 <= len(tokens) <= 2 * 64, "the words, or at most 64 places of the picture"
        assert np.allclose(alone.tokens[name], tokens[cut:], atol=5e-3 * np.abs(tokens).max())
        far = np.abs(tokens[0] - tokens[cut]).max() / np.abs(tokens[0]).max()
        assert far > (0.05 if name in text else 1e-5), "two words, two states"


def test_layers_that_the_model_lacks_are_left_out(states, sd3):
    source = states.ModelStates(sd3, WordClip())
    source.family = "sd3"
    found = recorded(source, ["fox"], [QKV, "joint_blocks.7.context_block.attn.qkv", "context"])
    assert list(found.tokens) == [QKV]


def test_models_are_known_by_their_contents(states, sd3):
    import comfy.model_management

    clip = WordClip()
    one = states.ModelStates(sd3, clip)
    again = states.ModelStates(tiny_models.load(tiny_models.sd3_state(128)), WordClip())
    other = states.ModelStates(tiny_models.load(tiny_models.sd3_state(128, seed=9)), clip)
    assert one.lasting and one.id == again.id != other.id
    name = "diffusion_model.context_embedder.weight"
    patched = sd3.clone()
    patched.add_patches({name: ("diff", (torch.ones_like(sd3.model.state_dict()[name]),))})
    mine = states.ModelStates(patched, clip)
    assert not mine.lasting and mine.id != one.id
    comfy.model_management.load_models_gpu([patched])
    assert states.ModelStates(sd3, clip).id == one.id, "a sibling's patches in the weights are not this model's"
    skipping = WordClip()
    skipping.layer_idx = -2
    assert states.ModelStates(sd3, skipping).id != one.id


def test_progress_counts_encoding_and_running(states, sd3):
    source, told = states.ModelStates(sd3, WordClip()), []
    source.family = "sd3"
    recorded(source, [f"word{n}" for n in range(20)], [QKV], lambda done, total, text: told.append((done, total)))
    assert told == [(n, 40) for n in (*range(1, 21), 36, 40)]


def test_a_network_that_takes_one_text_at_a_time(states, sd3, monkeypatch):
    source = states.ModelStates(sd3, WordClip())
    source.family = "sd3"
    wanted = recorded(source, TEXTS, [QKV])
    real = sd3.model.diffusion_model.forward

    def alone(x, *args, **named):
        if len(x) > 1:
            raise RuntimeError("one at a time")
        return real(x, *args, **named)

    monkeypatch.setattr(sd3.model.diffusion_model, "forward", alone)
    found = recorded(source, TEXTS, [QKV])
    assert source.group == 1 and np.allclose(found.tokens[QKV], wanted.tokens[QKV], atol=5e-3)


def test_a_clip_of_another_model_is_named(states, sd3):
    source = states.ModelStates(sd3, WordClip(width=7))
    source.family = "sd3"
    with pytest.raises(Exception, match="could not be run.*connect the CLIP that belongs to the model"):
        recorded(source, ["fox"], [QKV])
    assert not any(module._forward_pre_hooks for module in sd3.model.diffusion_model.modules())


def pairs(*ids: int) -> list[tuple[int, float]]:
    return [(token, 1.0) for token in ids]


# (tokens, tokens of an empty prompt, positions of the conditioning, those that hold the text)
CLIP_L, CLIP_L_EMPTY = [pairs(9, 5, 6, 8, 8, 8)], [pairs(9, 8, 8, 8, 8, 8)]
CLIP_G, CLIP_G_EMPTY = [pairs(9, 5, 6, 8, 0, 0)], [pairs(9, 8, 0, 0, 0, 0)]
T5, T5_EMPTY = [pairs(4, 5, 6, 1, 0, 0, 0)], [pairs(1, 0, 0, 0, 0, 0, 0)]
CHAT, CHAT_EMPTY = [pairs(70, 71, 72, 5, 6, 73, 74)], [pairs(70, 71, 72, 73, 74)]
CASES = {
    "CLIP-L": ({"l": CLIP_L}, {"l": CLIP_L_EMPTY}, 6, [1, 2, 3]),
    "CLIP-L beside CLIP-G": ({"l": CLIP_L, "g": CLIP_G}, {"l": CLIP_L_EMPTY, "g": CLIP_G_EMPTY}, 6, [1, 2, 3]),
    "T5": ({"t5xxl": T5}, {"t5xxl": T5_EMPTY}, 7, [0, 1, 2, 3]),
    "FLUX: CLIP-L only pooled": ({"l": CLIP_L, "t5xxl": T5}, {"l": CLIP_L_EMPTY, "t5xxl": T5_EMPTY}, 7, [0, 1, 2, 3]),
    "SD3: T5 after CLIP": (
        {"l": CLIP_L, "g": CLIP_G, "t5xxl": T5},
        {"l": CLIP_L_EMPTY, "g": CLIP_G_EMPTY, "t5xxl": T5_EMPTY}, 13, [1, 2, 3, 6, 7, 8, 9],
    ),
    "chat template kept": ({"qwen": CHAT}, {"qwen": CHAT_EMPTY}, 7, [3, 4, 5, 6]),
    "chat template dropped": ({"qwen": CHAT}, {"qwen": CHAT_EMPTY}, 4, [0, 1, 2, 3]),
    "two chunks": ({"l": [*CLIP_L, *CLIP_L]}, {"l": CLIP_L_EMPTY}, 12, [1, *range(2, 12)]),
    "an embedding": ({"l": [[(9, 1.0), (torch.zeros(4), 1.0), (8, 1.0)]]}, {"l": [pairs(9, 8, 8)]}, 3, [1, 2]),
    "an empty prompt": ({"l": CLIP_L_EMPTY}, {"l": CLIP_L_EMPTY}, 6, range(6)),
    "more positions than tokens": ({"l": CLIP_L}, {"l": CLIP_L_EMPTY}, 40, range(40)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_positions_of_the_text(comfy, case):
    tokens, empty, length, wanted = case
    mark = pack_module("nodes.text_marks").real_tokens(tokens, empty, length)
    assert len(mark) == length and np.flatnonzero(mark).tolist() == list(wanted)
