"""Proves that a gate is trained inside real ComfyUI, on a transformer and on a UNet, as its node is run: in inference
mode; that the model comes out as it went in; and that the Apply node uses what was learnt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_models
import torch
from apply_world import World, difference, untouched
from comfy_local import pack_module
from methods_world import LoraClip

LAYERS = {"sd3": "x_block", "sd15": "attn"}


class Halves:
    """A VAE for latents of 8 by 8: a picture is its first three channels."""

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(latent[:, :3], scale_factor=8).movedim(1, -1).sigmoid()

    def encode(self, picture: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), 8)
        return small.repeat(1, 6, 1, 1)[:, : self.channels]

    channels = 16


@pytest.fixture(params=["sd3", "sd15"])
def world(request, comfy, tmp_path, monkeypatch):
    import comfy.model_management

    kind = request.param
    with torch.inference_mode():  # as ComfyUI runs nodes: weights become inference tensors
        state = tiny_models.sd3_state(64) if kind == "sd3" else tiny_models.sd15_state()
        made = World(tmp_path, state, tiny_models.load(state), monkeypatch)
    made.kind, made.clip, made.vae, made.side = kind, clip_for(kind), Halves(), 32 if kind == "sd3" else 64
    made.vae.channels = made.model.model.latent_format.latent_channels
    paths = pack_module("nodes.bridge_paths")
    monkeypatch.setattr(paths, "user_directory", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(paths, "model_folders", lambda: [str(made.gates)])
    for seed, name in enumerate(("wet_otter", "rough_paper", "old_castle")):
        made.lora(f"{name}.safetensors", LAYERS[kind], seed=seed, scale=0.4)
    yield made
    comfy.model_management.unload_all_models()


def clip_for(kind: str) -> LoraClip:
    return LoraClip() if kind == "sd3" else LoraClip(width=768)


NAMES = ("wet_otter.safetensors", "rough_paper.safetensors", "old_castle.safetensors")


def train(world: World, steps: int, names=NAMES, **more):
    node = pack_module("nodes.train_gate").AutoLoRATrainFusionGate()
    stack = [(name, 1.0, 1.0) for name in names]
    small = {
        "width": world.side,
        "height": world.side,
        "sampling_steps": 2,
        "cfg": 1.0,
        "lora_stack": stack,
        "gate_name": "mine",
    }
    with torch.inference_mode():
        found = node.train(world.model, world.clip, world.vae, steps=steps, **(small | more))
    return found["result"]


def test_loras_of_another_base_are_left_out_and_named(world):
    """An index holds Wan of 1.3B and of 14B under one family: neither stops a training on the other."""
    wide = {f"diffusion_model.joint_blocks.0.{part}.attn.qkv": (7296, 2432) for part in ("x_block", "context_block")}
    tiny_models.save_lora(world.loras / "large.safetensors", wide, 2)
    module, requests = pack_module("nodes.bridge_train_gate"), pack_module("autolora_core.fusion.requests")
    base = pack_module("nodes.bridge_paths").model_family(world.model)
    wanted = [requests.Request(name, 1.0, 1.0) for name in (*NAMES, "large.safetensors")]
    job = SimpleNamespace(requests=wanted, base=base, notes=[])
    assert [lora.name for lora in module.Job._loras(job)] == list(NAMES)
    assert len(job.notes) == 1 and "large.safetensors is left out: large.safetensors does not fit" in job.notes[0]


def test_a_gate_is_learnt_saved_and_used(world):
    # In the small UNet, LoRAs change the loss so little that after 24 steps it is rounding that says which is better.
    steps = {"sd3": 24, "sd15": 72}[world.kind]
    before = tiny_models.sample(world.model)
    previews, report = train(world, steps)
    assert tiny_models.sample(world.model).equal(before) and untouched(world.model)
    assert not any(p.requires_grad for p in world.model.model.parameters())
    assert previews.shape == (4, world.side, world.side, 3) and torch.isfinite(previews).all()
    assert f"{steps} steps on 3 LoRAs and 3 pictures" in report and "saved as mine.safetensors" in report, report
    read = pack_module("autolora_core.fusion.files").read_gate(world.gates / "mine.safetensors")
    assert (
        read.k_range == (2, 3)
        and read.base_fingerprint
        and read.metadata["base_id"]
        and f"{steps} steps" in read.metadata["recipe"]
    )
    assert read.family == world.kind
    model, _, report = world.apply(*((name, 1.0) for name in NAMES[:2]), mode="auto")
    assert "mode: gate (mine.safetensors)" in report
    summed = world.fused(*((name, 1.0) for name in NAMES[:2]), mode="sum")
    assert difference(tiny_models.sample(model), tiny_models.sample(summed)) > 1e-4


def test_an_interrupted_run_goes_on(world, monkeypatch):
    studio = pack_module("nodes.bridge_studio").ModelStudio
    plain, calls = studio.error, []

    def stopping(self, *args):
        calls.append(1)
        if len(calls) == 40:
            import comfy.model_management

            comfy.model_management.interrupt_current_processing()
        return plain(self, *args)

    monkeypatch.setattr(studio, "error", stopping)
    import comfy.model_management

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(world, 24)
    assert untouched(world.model)
    _, report = train(world, 24)
    assert "gone on from step" in report and "24 steps on" in report


def test_own_pictures_and_their_captions(world):
    pictures = torch.rand(2, world.side, world.side, 3)
    _, report = train(world, 4, pictures=pictures, captions="a wet otter on rough paper\nnothing of that")
    assert "asks for wet_otter.safetensors, rough_paper.safetensors" in report
    assert "'nothing of that' asks for none of the LoRAs" in report and "5 pictures" in report
    errors = pack_module("autolora_core.errors")
    with pytest.raises(errors.AutoLoRAError, match="2 pictures and 1 captions"):
        train(world, 4, pictures=pictures, captions="one")
    with pytest.raises(errors.AutoLoRAError, match="not of the size"):
        train(world, 4, pictures=torch.rand(1, 16, 16, 3), captions="a wet otter")


def test_what_cannot_be_trained_says_so(world):
    errors = pack_module("autolora_core.errors")
    with pytest.raises(errors.SelectionError, match="two LoRAs or more, here is one"):
        train(world, 4, names=NAMES[:1])
    world.lora("lcm_sd15.safetensors", LAYERS[world.kind], seed=9)
    with pytest.raises(errors.SelectionError, match="two LoRAs or more"):
        train(world, 4, names=(NAMES[0], "lcm_sd15.safetensors"))


def test_a_few_step_lora_by_its_norms_is_not_learnt_from(world, monkeypatch):
    kinds = pack_module("autolora_core.fusion.kinds")
    heard = []

    def told(name, family, branches, channels):
        heard.append((name, family, bool(branches), set(channels) == {branch.module for branch in branches}))
        return ("its norms", None) if name == NAMES[2] else kinds.norms_reason(name, family, branches, channels)

    monkeypatch.setattr(pack_module("nodes.bridge_train_gate"), "norms_reason", told)
    report = train(world, 2)[1]
    assert f"{NAMES[2]} is left out: its norms" in report and "2 steps on 2 LoRAs" in report
    assert heard == [(name, world.kind, True, True) for name in NAMES]


@pytest.mark.parametrize("convolution", [False, True])
def test_hooks_take_the_fused_way_and_get_the_gate_s_gradients(comfy, convolution):
    """What a layer puts out in training, and every gradient, is what the branches' outputs through the gate give."""
    studio, branches = pack_module("nodes.bridge_studio"), pack_module("autolora_core.fusion.branches")
    parameters = pack_module("autolora_core.fusion.training.parameters")
    dice, more = torch.Generator().manual_seed(0), (3, 3) if convolution else ()

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=dice)

    layer = torch.nn.Conv2d(6, 10, 3, padding=1) if convolution else torch.nn.Linear(6, 10)
    loras = {
        lora: [branches.Branch("a", lora, down=random(rank, 6, *more), up=random(10, rank), scale=0.5 + lora)]
        for lora, rank in ((0, 4), (2, 3))
    }
    x = random(2, 6, 5, 5) if convolution else random(2, 7, 6)
    gate = parameters.GateParameters({"a": 10})
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=dice))
    material = studio.Material(torch.zeros(1), {}, {}, {0: "style"}, {"a": 10})
    hook = studio._Beside(studio._Now((0, 2, 5), gate, 0.3), material, "a", layer, loras)
    assert hook.fused is not None
    found = []
    for fused in (hook.fused, None):
        hook.fused = fused
        asked = [x.clone().requires_grad_(), *gate.parameters()]
        out = hook(layer, (asked[0],), layer(asked[0]))
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), asked)])
    for one, other in zip(*found, strict=True):
        assert other.abs().max() > 0 and (one - other).abs().max() < 1e-4 * max(1.0, other.abs().max())
