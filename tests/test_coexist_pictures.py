"""Our Apply in the graphs people draw with, on a real server: batches, guidance, img2img, inpaint, tiles, two models
on one library, two prompts in the queue. Stock loaders in the same graph are the measure."""

from __future__ import annotations

import uuid

import pytest
from coexist_world import ALIKE, CHANGED, SD15_STACK, STACK, Scene, SmallSD15, gap, seen, stage_fixtures, write_sd15
from e2e_world import finished

pytestmark = pytest.mark.slow
stage, base_stays = stage_fixtures(write_sd15)
LEVEL = 1 / 255


def both(stage, draw):
    """``draw(scene, model)`` → settings of the sampler, with ours and with stock; their latents, and ours without the
    last LoRA."""
    scene = Scene()
    for model in (
        scene.ours(scene.model, *STACK),
        scene.stock(scene.model, *STACK),
        scene.ours(scene.model, *STACK[:2]),
    ):
        scene.sample(model, **draw(scene))
    ours, stock, less = stage.run(scene)
    assert gap(ours, stock) < ALIKE and gap(ours, less) > CHANGED
    return ours


@pytest.mark.parametrize("many", [1, 2, 3, 4])
def test_batches(stage, many):
    """Every picture of a batch is drawn by itself, gated too: no statistics across the batch."""

    def latents(scene):
        return scene.add("EmptySD3LatentImage", width=128, height=128, batch_size=many)

    assert len(both(stage, lambda scene: {"latent_image": latents(scene)})) == many
    scene = Scene()
    gated = scene.ours(scene.model, *STACK, mode="gate", gate="emoji_gate.safetensors")
    whole = latents(scene)
    scene.sample(gated, latent_image=whole)
    last = scene.add("LatentFromBatch", samples=whole, batch_index=many - 1, length=1)
    scene.sample(gated, latent_image=last)
    batch, single = stage.run(scene)
    assert gap(batch[-1:], single) < ALIKE


@pytest.mark.parametrize("cfg", [1.0, 1.5, 7.0])
def test_guidance(stage, cfg):
    both(stage, lambda scene: {"cfg": cfg})


def picture(scene):
    """Something to start from, 128×128, and the VAE it goes through."""
    vae = scene.add("VAELoader", vae_name="emoji_vae.safetensors")
    samples = scene.add("KSampler", model=scene.model, seed=3, steps=1, cfg=1.0, sampler_name="euler",
                        scheduler="simple", denoise=1.0, positive=scene.positive, negative=scene.negative,
                        latent_image=scene.empty)  # fmt: skip
    return scene.add("VAEDecode", samples=samples, vae=vae), vae


def half_mask(scene):
    left = scene.add("SolidMask", value=1.0, width=64, height=128)
    whole = scene.add("SolidMask", value=0.0, width=128, height=128)
    return scene.add("MaskComposite", destination=whole, source=left, x=0, y=0, operation="add")


def img2img(scene):
    pixels, vae = picture(scene)
    return {"latent_image": scene.add("VAEEncode", pixels=pixels, vae=vae), "denoise": 0.6, "steps": 4}


def masked(scene):
    given = img2img(scene)
    given["latent_image"] = scene.add("SetLatentNoiseMask", samples=given["latent_image"], mask=half_mask(scene))
    return given


def inpaint(scene):
    pixels, vae = picture(scene)
    encoded = scene.add("VAEEncodeForInpaint", pixels=pixels, vae=vae, mask=half_mask(scene), grow_mask_by=6)
    return {"latent_image": encoded}


def tiled(scene):
    pixels, vae = picture(scene)
    sizes = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
    encoded = scene.add("VAEEncodeTiled", pixels=pixels, vae=vae, **sizes)
    return {"latent_image": encoded, "denoise": 0.6, "steps": 4}


STARTS = {"img2img": img2img, "noise mask": masked, "inpaint": inpaint, "tiled encode": tiled}


@pytest.mark.parametrize("start", STARTS)
def test_pictures_to_start_from(stage, start):
    both(stage, STARTS[start])


def test_what_is_outside_an_inpaint_mask_stays(stage):
    scene = Scene()
    given = masked(scene)
    scene.see(given["latent_image"])
    scene.sample(scene.ours(scene.model, *STACK), **given)
    start, drawn = stage.run(scene)
    assert gap(drawn[..., 9:], start[..., 9:]) < 1e-5 and gap(drawn[..., :7], start[..., :7]) > CHANGED


def test_differential_diffusion(stage):
    """ComfyUI's node for soft masks, a function the sampler calls for its mask; before and behind ours."""
    scene = Scene()
    given = masked(scene)
    scene.sample(scene.ours(scene.add("DifferentialDiffusion", model=scene.model), *STACK), **given)
    scene.sample(scene.add("DifferentialDiffusion", model=scene.ours(scene.model, *STACK)), **given)
    scene.sample(scene.add("DifferentialDiffusion", model=scene.stock(scene.model, *STACK)), **given)
    behind, before, stock = stage.run(scene)
    assert behind.tobytes() == before.tobytes() and gap(before, stock) < ALIKE


@pytest.mark.parametrize("how", ["VAEDecode", "VAEDecodeTiled"])
def test_decoded(stage, how):
    scene = Scene()
    vae = scene.add("VAELoader", vae_name="emoji_vae.safetensors")
    sizes = {"tile_size": 64, "overlap": 32, "temporal_size": 64, "temporal_overlap": 8}
    for model in (scene.ours(scene.model, *STACK), scene.stock(scene.model, *STACK), scene.model):
        samples = scene.sample(model)
        scene.see_image(scene.add(how, samples=samples, vae=vae, **(sizes if how == "VAEDecodeTiled" else {})))
    _, ours, _, stock, _, base = stage.run(scene)
    assert ours.shape == (1, 128, 128, 3)
    assert abs(ours - stock).max() <= LEVEL < 10 * LEVEL < abs(ours - base).max()


def test_two_bases_and_one_library(stage):
    """One Encode LoRA Library; each base gets its own LoRAs from it, in one graph, and neither touches the other."""
    scene, small = Scene(), SmallSD15()
    stage.know(scene)
    stage.know(small)
    index = scene.add("AutoLoRAEncodeLibrary", folder="loras", name_filter="", library="shared", force=False)
    mine, theirs = STACK[0][0], SD15_STACK[0][0]

    def retrieved(model, name):
        retrieve = scene.add(
            "AutoLoRARetrieve", index=index, model=model, prompt="anything", family="auto", top_k=1, threshold=1.0,
            strength=0.8, pinned=name, banned="", use_weights=False, use_text=True,
        )  # fmt: skip
        return scene.add("AutoLoRAGatedApply", model=model, selection=retrieve, mode="sum", gate="auto", strength=1.0)

    unet = scene.add(**SmallSD15.loader)
    conds = {
        name: scene.add("RandomConditioning", seed=seed, **SmallSD15.sizes)
        for name, seed in (("positive", 11), ("negative", 12))
    }
    conds["latent_image"] = scene.add(**SmallSD15.latent)
    scene.sample(retrieved(scene.model, mine))
    scene.sample(retrieved(unet, theirs), **conds)
    scene.sample(scene.stock(scene.model, (mine, 0.8)))
    scene.sample(scene.stock(unet, (theirs, 0.8)), **conds)
    scene.sample(scene.model)
    scene.sample(unet, **conds)
    first, second, first_stock, second_stock, first_base, second_base = stage.run(scene)
    assert gap(first, first_stock) < ALIKE and gap(second, second_stock) < ALIKE
    assert gap(first, first_base) > CHANGED and gap(second, second_base) > CHANGED


def test_two_prompts_queued_at_once(stage):
    """Each gets its own LoRAs; a third with the first one's, queued behind both, is the first again."""
    scenes = [Scene() for _ in range(3)]
    for number, scene in enumerate(scenes):
        model = scene.ours(scene.model, STACK[0] if number % 2 == 0 else STACK[1])
        fresh = scene.add("FreshLatent", samples=scene.empty, nonce=f"queued {number}")
        scene.sample(model, latent_image=fresh)
    stage.know(scenes[0])
    client = uuid.uuid4().hex
    queued = [stage.server.client.queue(scene.graph, client) for scene in scenes]
    records = [finished(stage.server, prompt) for prompt in queued]
    assert [record["status"]["status_str"] for record in records] == ["success"] * 3
    one, other, again = (seen(s.graph, r["outputs"])[0] for s, r in zip(scenes, records, strict=True))
    scene = Scene()
    scene.sample(scene.stock(scene.model, STACK[0]))
    scene.sample(scene.stock(scene.model, STACK[1]))
    first, second = stage.run(scene)
    assert again.tobytes() == one.tobytes() and gap(one, first) < ALIKE and gap(other, second) < ALIKE
    assert gap(one, other) > CHANGED
