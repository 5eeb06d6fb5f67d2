"""Our Apply beside other ways to apply LoRAs, on a real server: stock loaders, a second and third Apply, hooks."""

from __future__ import annotations

import itertools

import pytest
from coexist_world import ALIKE, CHANGED, STACK, Scene, gap, need_node, stage_fixtures

pytestmark = pytest.mark.slow
stage, base_stays = stage_fixtures()
A, B, C = STACK


@pytest.fixture(scope="module")
def chain(stage):
    """Number of LoRAs → what that many stock loaders in a row draw."""
    scene = Scene()
    scene.sample(scene.model)
    for many in (1, 2, 3):
        scene.sample(scene.stock(scene.model, *STACK[:many]))
    return stage.run(scene)


@pytest.mark.parametrize("mode", ["sum", "gate"])
def test_stock_loader_before_and_after(stage, chain, mode):
    scene = Scene()
    scene.sample(scene.ours(scene.stock(scene.model, B), A, mode=mode, gate=gate(mode)))
    scene.sample(scene.stock(scene.ours(scene.model, A, mode=mode, gate=gate(mode)), B))
    before, after = stage.run(scene)
    assert before.tobytes() == after.tobytes()
    assert gap(before, chain[0]) > CHANGED
    assert mode != "sum" or gap(before, chain[2]) < ALIKE < CHANGED < gap(before, chain[1])


def gate(mode):
    return "emoji_gate.safetensors" if mode == "gate" else "auto"


def test_stock_loader_of_both_halves_before_and_after(stage, chain):
    scene = Scene()
    clip = scene.add("AutoLoRAMiniLMCLIPLoader")
    loader = {"clip": clip, "lora_name": B[0], "strength_model": B[1], "strength_clip": 1.0}
    scene.sample(scene.ours(scene.add("LoraLoader", model=scene.model, **loader), A))
    scene.sample(scene.add("LoraLoader", model=scene.ours(scene.model, A), **loader))
    before, after = stage.run(scene)
    assert before.tobytes() == after.tobytes() and gap(before, chain[2]) < ALIKE


@pytest.mark.parametrize("kind", ["LoraLoaderBypassModelOnly", "LoraLoaderBypass"])
def test_bypass_loader_before_and_after(stage, chain, kind):
    need_node(stage, kind)
    scene = Scene()
    loader = {"lora_name": B[0], "strength_model": B[1]}
    if kind == "LoraLoaderBypass":
        loader |= {"clip": scene.add("AutoLoRAMiniLMCLIPLoader"), "strength_clip": 1.0}
    bypassed = scene.add(kind, model=scene.model, **loader)
    models = [scene.ours(bypassed, A), scene.add(kind, model=scene.ours(scene.model, A), **loader), bypassed]
    for model in [*models, *models[:2]]:
        scene.sample(model)
    latents = stage.run(scene)
    only_theirs = latents.pop(2)
    assert all(gap(latent, chain[2]) < ALIKE for latent in latents)
    assert gap(only_theirs, chain[2]) > CHANGED


@pytest.mark.parametrize("many", [2, 3])
def test_several_of_ours_in_any_order(stage, chain, many):
    scene = Scene()
    for order in itertools.permutations(STACK[:many]):
        model = scene.model
        for lora in order:
            model = scene.ours(model, lora)
        scene.sample(model)
    latents = stage.run(scene)
    assert len(latents) == {2: 2, 3: 6}[many]
    assert all(gap(latent, chain[many]) < ALIKE for latent in latents)
    assert gap(chain[many], chain[many - 1]) > CHANGED


def test_a_gated_node_behind_a_gated_node(stage, chain):
    """Each gate sees the layer with the LoRAs of the other in it; both must do something, the same every time."""
    scene = Scene()
    how = {"mode": "gate", "gate": "emoji_gate.safetensors"}
    one = scene.ours(scene.model, A, B, **how)
    scene.sample(one)
    scene.sample(scene.ours(one, C, **how))
    scene.sample(scene.ours(one, C, **how))
    first, second, again = stage.run(scene)
    assert second.tobytes() == again.tobytes()
    assert gap(first, second) > CHANGED and gap(first, chain[0]) > CHANGED


def test_a_branch_that_is_built_and_never_sampled(stage, chain):
    """Clones come and go: a model that was made from ours and shown to nobody, then thrown away with its graph."""

    def fused(scene):
        return scene.ours(scene.model, A, B)

    scene = Scene()
    scene.sample(fused(scene))
    before = stage.one(scene)
    scene = Scene()
    idle = scene.ours(scene.stock(fused(scene), C), C)
    scene.add("PreviewAny", source=idle)
    stage.run(scene)
    scene = Scene()
    scene.sample(fused(scene), latent_image=scene.add("FreshLatent", samples=scene.empty, nonce="clone"))
    assert stage.one(scene).tobytes() == before.tobytes()
    assert gap(before, chain[2]) < ALIKE


def hooks(scene, *keyframes, lora=B):
    """Create Hook LoRA for the model, with keyframes (from this share of the sampling, × this)."""
    made = scene.add("CreateHookLoraModelOnly", lora_name=lora[0], strength_model=lora[1])
    previous = {}
    for start, factor in keyframes:
        keyframe = scene.add("CreateHookKeyframe", strength_mult=factor, start_percent=start, **previous)
        previous = {"prev_hook_kf": keyframe}
    return scene.add("SetHookKeyframes", hooks=made, hook_kf=previous["prev_hook_kf"]) if previous else made


def set_props(scene, made, **more):
    """Both conditionings with hooks, by Cond Pair Set Props."""
    settings = {"strength": 1.0, "set_cond_area": "default", "hooks": made, **more}
    pair = scene.add(
        "PairConditioningSetProperties", positive_NEW=scene.positive, negative_NEW=scene.negative, **settings
    )
    return {"positive": pair, "negative": [pair[0], 1]}


def half_mask(scene):
    """White on the left half."""
    left = scene.add("SolidMask", value=1.0, width=64, height=128)
    whole = scene.add("SolidMask", value=0.0, width=128, height=128)
    return scene.add("MaskComposite", destination=whole, source=left, x=0, y=0, operation="add")


def test_hooks_on_the_whole_picture_are_the_stock_chain(stage, chain):
    scene = Scene()
    scene.sample(scene.ours(scene.model, A), **set_props(scene, hooks(scene)))
    assert gap(stage.one(scene), chain[2]) < ALIKE


HOOKED = {
    "keyframes": lambda scene: set_props(scene, hooks(scene, (0.0, 1.0), (0.5, 0.0))),
    "a range": lambda scene: set_props(
        scene,
        hooks(scene),
        timesteps=scene.add("ConditioningTimestepsRange", start_percent=0.0, end_percent=1.0),
    ),
    "a mask": lambda scene: set_props(scene, hooks(scene), mask=half_mask(scene)),
    "mask bounds": lambda scene: set_props(scene, hooks(scene), mask=half_mask(scene), set_cond_area="mask bounds"),
    "a stock mask": lambda scene: {
        "positive": scene.add(
            "ConditioningSetMask",
            conditioning=set_props(scene, hooks(scene))["positive"],
            mask=half_mask(scene),
            strength=1.0,
            set_cond_area="default",
        )
    },
    "two prompts": lambda scene: {
        "positive": scene.add(
            "ConditioningCombine",
            conditioning_1=set_props(scene, hooks(scene))["positive"],
            conditioning_2=set_props(scene, hooks(scene, lora=C))["positive"],
        )
    },
}


@pytest.mark.parametrize("case", HOOKED)
def test_hooks_beside_ours_are_hooks_beside_stock(stage, case):
    """The hook swaps weights in the middle of sampling; whose LoRA lies on the layer must not matter."""
    scene = Scene()
    four = {"steps": 4}
    scene.sample(scene.ours(scene.model, A), **HOOKED[case](scene), **four)
    scene.sample(scene.stock(scene.model, A), **HOOKED[case](scene), **four)
    scene.sample(scene.ours(scene.model, A), **four)
    ours, stock, without = stage.run(scene)
    assert gap(ours, stock) < ALIKE < CHANGED < gap(ours, without)


def test_clip_hooks_beside_ours(stage):
    """Set CLIP Hooks: the prompt's own encoder brings the hooks into its conditionings."""
    scene = Scene()
    clip = scene.add("AutoLoRAMiniLMCLIPLoader")
    made = scene.add("CreateHookLora", lora_name=B[0], strength_model=B[1], strength_clip=1.0)
    hooked = scene.add("SetClipHooks", clip=clip, hooks=made, apply_to_conds=True, schedule_clip=True)
    for encoder in (hooked, clip):
        positive = scene.add("CLIPTextEncode", clip=encoder, text="an otter")
        conds = {"positive": positive, "negative": scene.add("CLIPTextEncode", clip=encoder, text="")}
        stack = (A,) if encoder is hooked else (A, B)
        scene.sample(scene.ours(scene.model, A), **conds)
        scene.sample(scene.stock(scene.model, *stack), **conds)
    ours, hooked_stock, without, stock = stage.run(scene)
    assert gap(ours, stock) < ALIKE and gap(hooked_stock, stock) < ALIKE
    assert gap(ours, without) > CHANGED
