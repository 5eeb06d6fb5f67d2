"""Small valid LoRA files of many spellings and kinds, and the names that readers of LoRAs know."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save

from . import document

METADATA = {
    "ss_tag_frequency": json.dumps({"10_otter": {"otter": 40, "watercolour": 30, "sitting": 3}}),
    "ss_dataset_dirs": json.dumps({"10_otter": {"n_repeats": 10, "img_count": 40}}),
    "ss_output_name": "watercolour_otter",
    "ss_base_model_version": "sd3",
    "ss_sd_model_name": "C:\\models\\sd3.safetensors",
    "modelspec.title": "Watercolour Otter",
    "modelspec.architecture": "stable-diffusion-3/lora",
    "modelspec.trigger_phrase": "ottr, wet paper",
    "modelspec.tags": "animal, paint",
    "modelspec.description": "An otter.",
    "ss_training_comment": "trigger words: ottr",
    "sshs_model_hash": "ab" * 32,
    "modelspec.hash_sha256": "0x" + "cd" * 32,
    "lora_adapter_metadata": json.dumps(
        {
            "transformer.lora_alpha": 8,
            "transformer.r": 4,
            "transformer.use_rslora": True,
            "transformer.alpha_pattern": {"attn": 4},
            "text_encoder.lora_alpha": 2,
        }
    ),
    "format": "pt",
}
MODULES = (
    "lora_unet_joint_blocks_0_x_block_attn_qkv",
    "diffusion_model.joint_blocks.0.x_block.mlp.fc1",
    "transformer.transformer_blocks.0.attn.to_q",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    "lora_unet_double_blocks_0_img_attn_qkv",
    "lora_unet_single_blocks_3_linear1",
    "diffusion_model.single_blocks.0.linear2",
    "unet:0",
    "text_encoder:3",
    "base_model.model.text_model.encoder.layers.0.mlp.fc2",
    "diffusion_model.blocks.0.self_attn.q",
    "lycoris_mid_block_resnets_0",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.1.mlp.fc1",
    "double_blocks.0.processor.qkv_lora1",
    "diffusion_model.layers.0.attention.qkv",
    "lora_unet_input_blocks_1_1_proj_in",
    "lora_unet_mid_block_attentions_0_proj_out",
)
ENDINGS = (
    ".lora_up.weight",
    ".lora_down.weight",
    ".lora_mid.weight",
    ".alpha",
    ".dora_scale",
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_A.default.weight",
    ".lora_B.bias",
    ".lora_magnitude_vector",
    ".hada_w1_a",
    ".hada_w1_b",
    ".hada_w2_a",
    ".hada_w2_b",
    ".hada_t1",
    ".hada_t2",
    ".lokr_w1",
    ".lokr_w2",
    ".lokr_w1_a",
    ".lokr_w1_b",
    ".lokr_w2_a",
    ".lokr_w2_b",
    ".lokr_t2",
    ".oft_blocks",
    ".oft_diag",
    ".oft_r",
    ".boft_R",
    ".rescale",
    ".a1.weight",
    ".a2.weight",
    ".b1.weight",
    ".b2.weight",
    ".diff",
    ".diff_b",
    ".set_weight",
    ".w_norm",
    ".b_norm",
    ".reshape_weight",
    ".scalar",
    ".bias",
    ":up",
    ":down",
    ".ia3_l",
    ".on_input",
    ".down.weight",
    ".query_norm.scale",
    ".lora_embedding_A",
    ".lora_E",
    ".ranknum",
    ".vera_lambda_b",
    ".num_batches_tracked",
    "lora_controlnet",
)
KEYS = tuple(module + ending for module in MODULES for ending in ENDINGS)


def files() -> list[bytes]:
    """One file a kind of adapter and spelling; the smallest that are LoRAs."""
    drawn = torch.Generator().manual_seed(3)

    def t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return (torch.randn(*shape, generator=drawn) * 0.1).to(dtype)

    kohya, peft, native = MODULES[0], MODULES[2], MODULES[1]
    alpha = torch.tensor(2.0)
    lora = {f"{kohya}.lora_down.weight": t(2, 64), f"{kohya}.lora_up.weight": t(192, 2), f"{kohya}.alpha": alpha}
    text = {
        f"{MODULES[5]}.lora_down.weight": t(2, 768, dtype=torch.float16),
        f"{MODULES[5]}.alpha": alpha,
        f"{MODULES[5]}.lora_up.weight": t(12, 2, dtype=torch.float16),
    }
    made = [
        (lora, METADATA),
        (
            {
                f"{peft}.lora_A.weight": t(2, 64, dtype=torch.bfloat16),
                f"{peft}.lora_B.weight": t(64, 2, dtype=torch.bfloat16),
                f"{peft}.lora_magnitude_vector": t(64),
            },
            METADATA,
        ),
        (
            {
                f"{native}.lora_A.weight": t(2, 64),
                f"{native}.lora_B.weight": t(256, 2),
                f"{native}.lora_B.bias": t(256),
            },
            None,
        ),
        (
            {
                f"{kohya}.hada_w1_a": t(12, 2),
                f"{kohya}.hada_w1_b": t(2, 4),
                f"{kohya}.hada_w2_a": t(12, 2),
                f"{kohya}.hada_w2_b": t(2, 4),
                f"{kohya}.alpha": alpha,
            },
            None,
        ),
        (
            {
                f"{kohya}.lokr_w1": t(4, 2),
                f"{kohya}.lokr_w2_a": t(6, 2),
                f"{kohya}.lokr_w2_b": t(2, 8),
                f"{kohya}.alpha": alpha,
            },
            None,
        ),
        (
            {
                f"{MODULES[4]}.lora_down.weight": t(2, 8, 1, 1),
                f"{MODULES[4]}.lora_up.weight": t(8, 2, 1, 1),
                f"{MODULES[4]}.lora_mid.weight": t(2, 2, 3, 3),
                f"{MODULES[4]}.dora_scale": t(8, 1),
            },
            None,
        ),
        (
            {
                f"{kohya}.oft_blocks": t(4, 8, 8),
                f"{kohya}.alpha": alpha,
                f"{MODULES[7]}.diff": t(6, 4),
                f"{MODULES[7]}.diff_b": t(6),
            },
            None,
        ),
        ({**lora, **text}, METADATA),
        (
            {
                f"{MODULES[8]}.a1.weight": t(2, 4),
                f"{MODULES[8]}.a2.weight": t(4, 2),
                f"{MODULES[8]}.b1.weight": t(6, 2),
                f"{MODULES[8]}.b2.weight": t(2, 4),
            },
            None,
        ),
    ]
    return [save({key: one.clone() for key, one in tensors.items()}, metadata) for tensors, metadata in made]


def seeds(folder: Path) -> list[bytes]:
    """For a target that reads whole files."""
    return files()


def make(rng: random.Random, parent: bytes) -> bytes:
    """A hostile one from ``parent``."""
    return document.lie(rng, parent, KEYS, tuple(METADATA))
