"""Our Apply beside nodes that patch the model itself, on a real server: ControlNet, attention patches as IP-Adapter's,
replaced layers, wrappers, and ComfyUI's own model patches.

The same patch with stock loaders instead of ours is the measure, and our node may stand before or behind it.
"""

from __future__ import annotations

import pytest
import torch
from coexist_world import ALIKE, CHANGED, SD15_STACK, STACK, Scene, SmallSD15, gap, stage_fixtures, write_sd15
from safetensors.torch import save_file

from zoo.mmdit import MMDiT

pytestmark = pytest.mark.slow
LAYER = "joint_blocks.0.x_block.mlp.fc2"


def write_models(models, request):
    write_sd15(models, request)
    write_sd3_controlnet(models.root / "control_sd3.safetensors")
    write_sd15_controlnet(models.root / "control_sd15.safetensors")


def drawn(shapes, seed, scale=0.03):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}


def write_sd3_controlnet(path):
    """One block of the demo base under diffusers' names, the only ones ComfyUI reads for SD3 ControlNets."""
    import comfy.utils

    native = {name: tuple(value.shape) for name, value in MMDiT().state_dict().items()}
    shapes = {}
    for name, target in comfy.utils.mmdit_to_diffusers({"depth": 4, "num_blocks": 1}).items():
        key, offset = (target, None) if isinstance(target, str) else target[:2]
        if key in native and not key.startswith("final_layer"):
            shapes[name] = native[key] if offset is None else (offset[2], *native[key][1:])
    shapes |= {f"controlnet_blocks.0.{part}": shape for part, shape in (("weight", (256, 256)), ("bias", (256,)))}
    shapes |= {"pos_embed_input.proj.weight": (256, 16, 2, 2), "pos_embed_input.proj.bias": (256,)}
    save_file(drawn(shapes, 31), path)


def write_sd15_controlnet(path):
    """The encoder half of the small UNet with ComfyUI's ControlNet around it."""
    import comfy.cldm.cldm
    import comfy.ops

    network = comfy.cldm.cldm.ControlNet(
        image_size=32, in_channels=4, model_channels=320, hint_channels=3, num_res_blocks=[1], channel_mult=[1],
        transformer_depth=[1], transformer_depth_output=[1, 1], transformer_depth_middle=1, num_heads=8,
        use_spatial_transformer=True, context_dim=768, use_linear_in_transformer=False, legacy=False, device="meta",
        dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    save_file(drawn({name: value.shape for name, value in network.state_dict().items()}, 32, 0.06), path)


stage, base_stays = stage_fixtures(write_models)


def compared(stage, scene, patch, stack, **conds):
    """Ours before and behind a patch, the stock chain with it, ours without: the first two must draw the third."""
    scene.sample(patch(scene.ours(scene.model, *stack)), **conds)
    scene.sample(scene.ours(patch(scene.model), *stack), **conds)
    scene.sample(patch(scene.stock(scene.model, *stack)), **conds)
    scene.sample(scene.ours(scene.model, *stack))
    scene.sample(patch(scene.model), **conds)
    before, behind, stock, without, alone = stage.run(scene)
    assert gap(before, stock) < ALIKE and gap(behind, stock) < ALIKE
    assert min(gap(before, without), gap(before, alone)) > CHANGED


@pytest.mark.parametrize("base", [Scene, SmallSD15], ids=["SD3", "SD1.5"])
def test_controlnet(stage, base):
    scene = base()
    name, vae = (
        ("control_sd3.safetensors", "emoji_vae.safetensors") if base is Scene else ("control_sd15.safetensors", "")
    )
    hint = scene.add("EmptyImage", width=128, height=128, batch_size=1, color=0x4080C0)
    control = scene.add("ControlNetLoader", control_net_name=name)
    more = {"vae": scene.add("VAELoader", vae_name=vae)} if vae else {}
    pair = scene.add(
        "ControlNetApplyAdvanced", positive=scene.positive, negative=scene.negative, control_net=control, image=hint,
        strength=1.0, start_percent=0.0, end_percent=1.0, **more,
    )  # fmt: skip
    stack = STACK if base is Scene else SD15_STACK
    compared(stage, scene, lambda model: model, stack, positive=pair, negative=[pair[0], 1])


@pytest.mark.parametrize("way", ["attn2 replaced", "attn2 extended", "attn1 changed", "attn2 output"])
def test_attention_patches(stage, way):
    scene = SmallSD15()
    compared(stage, scene, lambda model: scene.add("ImageAttention", model=model, way=way, weight=0.8), SD15_STACK)


@pytest.mark.parametrize("way", ["forward", "module"])
def test_a_layer_replaced_by_an_object_patch(stage, way):
    """Another pack puts its own function or module in the place of a layer that our LoRAs change."""
    scene = Scene()
    for order in (0, 1):
        model = scene.ours(scene.model, *STACK) if order == 0 else scene.model
        model = scene.add("LayerReplaced", model=model, layer=LAYER, way=way)
        scene.sample(model if order == 0 else scene.ours(model, *STACK))
    scene.sample(scene.add("LayerReplaced", model=scene.model, layer=LAYER, way=way))
    scene.sample(scene.ours(scene.model, *STACK))
    before, behind, alone, without = stage.run(scene)
    assert before.tobytes() == behind.tobytes()
    assert min(gap(before, without), gap(before, alone)) > CHANGED


@pytest.mark.parametrize("way", ["unet function", "apply_model", "diffusion_model", "cfg function", "post cfg"])
def test_wrapped_calls(stage, way):
    scene = SmallSD15() if way == "diffusion_model" else Scene()  # the demo base's network does not call such wrappers
    stack = SD15_STACK if way == "diffusion_model" else STACK
    compared(stage, scene, lambda model: scene.add("Wrapped", model=model, way=way), stack)


PATCHES = {
    "ModelSamplingSD3": (Scene, {"shift": 5.0}),
    "RescaleCFG": (Scene, {"multiplier": 0.7}),
    "SkipLayerGuidanceSD3": (
        Scene,
        {"layers": "1", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0},
    ),
    "PerturbedAttentionGuidance": (SmallSD15, {"scale": 3.0}),
    "SelfAttentionGuidance": (SmallSD15, {"scale": 0.5, "blur_sigma": 2.0}),
    "HyperTile": (SmallSD15, {"tile_size": 256, "swap_size": 2, "max_depth": 0, "scale_depth": False}),
    "TomePatchModel": (SmallSD15, {"ratio": 0.5}),
}
UNMOVED = {"HyperTile"}  # so small a picture is one tile


@pytest.mark.parametrize("name", PATCHES)
def test_model_patches_of_comfyui(stage, name):
    base, inputs = PATCHES[name]
    scene = base()
    stack = STACK if base is Scene else SD15_STACK

    def patch(model):
        return scene.add(name, model=model, **inputs)

    if name not in UNMOVED:
        compared(stage, scene, patch, stack)
        return
    scene.sample(patch(scene.ours(scene.model, *stack)))
    scene.sample(patch(scene.stock(scene.model, *stack)))
    ours, stock = stage.run(scene)
    assert gap(ours, stock) < ALIKE


def test_convolutions_beside_the_stock_loader(stage):
    """The UNet's LoRAs change every convolution and every linear layer."""
    scene, (a, b) = SmallSD15(), SD15_STACK
    scene.sample(scene.ours(scene.stock(scene.model, b), a))
    scene.sample(scene.stock(scene.ours(scene.model, a), b))
    scene.sample(scene.ours(scene.ours(scene.model, b), a))
    scene.sample(scene.stock(scene.model, a, b))
    scene.sample(scene.stock(scene.model, a))
    before, behind, two, stock, one = stage.run(scene)
    assert before.tobytes() == behind.tobytes()
    assert gap(before, stock) < ALIKE and gap(two, stock) < ALIKE < CHANGED < gap(stock, one)
