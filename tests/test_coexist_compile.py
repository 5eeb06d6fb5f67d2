"""Our Apply beside ComfyUI's torch.compile, on a real server: before and behind it, with both backends, and what a
changed strength costs.

The base is the smallest SD3 there is: one block, which inductor compiles in less than a minute.
"""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_models
from coexist_world import CHANGED, Scene, gap, seen, stage_fixtures
from safetensors.torch import save_file

pytestmark = pytest.mark.slow
ALIKE = 1e-3  # compiled kernels sum in an order of their own
A, B = ("tiny_a.safetensors", 1.0), ("tiny_b.safetensors", 0.7)


def write_tiny(models, request):
    request.getfixturevalue("comfy")
    state = tiny_models.sd3_state(64)
    save_file(state, models.root / "tiny_sd3.safetensors")
    for number, (name, _) in enumerate((A, B)):
        tiny_models.save_lora(models.loras / name, tiny_models.linear_layers(state, "joint_blocks"), seed=number)


class TinySD3(Scene):
    loader = {"class_type": "UNETLoader", "unet_name": "tiny_sd3.safetensors", "weight_dtype": "default"}
    latent = {"class_type": "EmptySD3LatentImage", "width": 32, "height": 32, "batch_size": 1}
    sizes = {"tokens": 6, "width": tiny_models.SD3_CONTEXT, "pooled": tiny_models.SD3_POOLED}

    def compiled(self, model, backend):
        if backend == "eager":
            return self.add("CompileEager", model=model)
        return self.add("TorchCompileModel", model=model, backend=backend)


# without it ComfyUI's attention on a CPU asks the system for free memory in every call, which no graph can hold
stage, base_stays = stage_fixtures(write_tiny, args=["--use-pytorch-cross-attention"])


@pytest.fixture
def backend(request):
    if request.param == "inductor" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        pytest.skip("inductor needs a C++ compiler, and there is none")
    return request.param


def drawn(stage, models, forget=False):
    """``models(scene)`` → a link; its latent and how many graphs torch had compiled by then."""
    scene = TinySD3()
    samples = scene.sample(models(scene))
    (count, _) = scene.add("SeeCompiles", after=samples, forget=forget)
    stage.know(scene)
    result = stage.server.run(scene.graph)
    return seen(scene.graph, result.outputs)[0], json.loads(result.text(count))["graphs"]


@pytest.fixture
def anew(stage):
    """Nothing is compiled yet."""
    drawn(stage, lambda scene: scene.add("LittleMemory", model=scene.model), forget=True)


@pytest.mark.parametrize("backend", ["eager", "inductor"], indirect=True)
def test_before_and_behind(stage, anew, backend):
    stock, _ = drawn(stage, lambda s: s.stock(s.model, A, B))
    base, _ = drawn(stage, lambda s: s.model)
    compiled, _ = drawn(stage, lambda s: s.compiled(s.model, backend))
    for _ in range(2):
        before, _ = drawn(stage, lambda s: s.compiled(s.ours(s.model, A, B), backend))
        behind, _ = drawn(stage, lambda s: s.ours(s.compiled(s.model, backend), A, B))
        assert gap(before, stock) < ALIKE and gap(behind, stock) < ALIKE < CHANGED < gap(stock, base)
        again, _ = drawn(stage, lambda s: s.compiled(s.model, backend))
        assert gap(again, base) < ALIKE and gap(compiled, base) < ALIKE


CASES = [
    ("eager", "sum", "before"),
    ("eager", "sum", "behind"),
    ("eager", "energy", "behind"),
    ("eager", "switch", "before"),
    ("inductor", "sum", "before"),
    ("inductor", "sum", "behind"),
]


@pytest.mark.parametrize(("backend", "mode", "order"), CASES, indirect=["backend"])
def test_a_changed_strength_does_not_compile_again(stage, anew, backend, mode, order):
    def models(strength):
        def build(s):
            how = {"mode": mode, "strength": strength}
            if order == "before":
                return s.compiled(s.ours(s.model, A, B, **how), backend)
            return s.ours(s.compiled(s.model, backend), A, B, **how)

        return build

    _, none = drawn(stage, lambda s: s.model)
    first, graphs = drawn(stage, models(1.0))
    assert graphs > none
    for strength in (0.5, 0.2, -0.5):
        other, now = drawn(stage, models(strength))
        assert gap(other, first) > 10 * ALIKE
        assert now == graphs, f"{now - graphs} graphs more at strength {strength}"
