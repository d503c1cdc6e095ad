#!/usr/bin/env python3
"""Writes the golden files of tests/parity_models.rs: outputs, adapter gradients and AdamW steps of diffusers,
transformers and peft on tiny networks of every family.

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 safetensors
    python tests/golden/models/make_golden.py

Weights are not stored: both sides compute them from the tensor's name (`weight` below, `HashStore` in the test), so
the files stay small. Everything is computed in float64 and stored as float32: the numbers do not depend on the number
of threads or the machine.
"""

import hashlib
import json
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

warnings.filterwarnings("ignore")
HERE = Path(__file__).parent
RANK, ALPHA, STEPS, LR, WEIGHT_DECAY = 4, 8, 5, 1e-3, 1e-2

# ---------------------------------------------------------------------------------------------------- seeded numbers


def uniform(name, shape):
    """Numbers in [-1, 1) from the name: FNV-1a of it, then splitmix64 by position, 24 bits each."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    n = int(np.prod(shape, dtype=np.int64))
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).reshape(shape)


def weight(name, shape):
    """Unit gain for matrices and kernels, near 1 for scales of norms, small for shifts."""
    u = uniform(name, shape)
    if len(shape) > 1:
        u = u * math.sqrt(3.0 / np.prod(shape[1:]))
    elif name.endswith(".weight"):
        u = 1.0 + 0.1 * u
    else:
        u = 0.1 * u
    return torch.from_numpy(u.astype(np.float32).astype(np.float64))


def values(name, shape, scale=1.0):
    return torch.from_numpy((uniform(name, shape) * scale).astype(np.float32).astype(np.float64))


def fill(model):
    """Gives the model its weights and returns a digest of its tensor names and shapes, under `text_model.` for CLIP."""
    model.double().eval().requires_grad_(False)
    lines = []
    for key, tensor in model.state_dict().items():
        if isinstance(model, CLIPTextModel) and not key.startswith("text_model."):
            key = f"text_model.{key}"
        if key.endswith("position_ids"):
            continue
        tensor.copy_(weight(key, tuple(tensor.shape)))
        lines.append(f"{key} {'x'.join(map(str, tensor.shape))}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def last(x):
    """(b, c, h, w) to (b, h, w, c)."""
    return x.detach().permute(0, 2, 3, 1)


def save(name, tensors):
    tensors = {k: v.detach().to(torch.float32).contiguous() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(tensors, HERE / f"{name}.safetensors")


# ---------------------------------------------------------------------------------------------------- adapters


def attach(model, targets, prefix=""):
    """LoRA by peft with down and up both non-zero, from names as `weight`. Returns name -> parameter."""
    model = inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets), model)
    model.double()
    found = {}
    for key, parameter in model.named_parameters():
        if ".lora_" not in key:
            continue
        key = prefix + key.removesuffix(".default.weight")
        scale = 0.1 if key.endswith("lora_A") else 0.05
        parameter.data.copy_(values(key, tuple(parameter.shape), scale))
        parameter.requires_grad_(True)
        found[key] = parameter
    return found


def train(adapter, forward, target, out, keep_final=True):
    """Adapter gradients, then the losses of AdamW steps and the adapter after them."""
    optimizer = torch.optim.AdamW(adapter.values(), lr=LR, weight_decay=WEIGHT_DECAY)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = ((forward() - target) ** 2).mean()
        loss.backward()
        if step == 0:
            for key, parameter in adapter.items():
                assert parameter.grad.abs().max() > 0, key
                out[f"grad.{key}"] = parameter.grad.clone()
        optimizer.step()
        losses.append(loss.item())
    if keep_final:
        out |= {f"final.{key}": parameter.detach().clone() for key, parameter in adapter.items()}
    out["losses"] = torch.tensor(losses)


# ---------------------------------------------------------------------------------------------------- networks

CROSS, CROSS_UP, MID = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"
UNETS = {
    # 1x1-convolution projections, `attention_head_dim` is the head count, the same everywhere
    "sd1": dict(
        down_block_types=[CROSS, CROSS, "DownBlock2D"], up_block_types=["UpBlock2D", CROSS_UP, CROSS_UP],
        block_out_channels=[32, 32, 64], layers_per_block=1, attention_head_dim=8, cross_attention_dim=32,
        norm_num_groups=8,
    ),
    # linear projections, a list of heads, two resnets a block; drawn at a size that halving does not divide
    "sd2": dict(
        down_block_types=[CROSS, "DownBlock2D"], up_block_types=["UpBlock2D", CROSS_UP], block_out_channels=[32, 64],
        layers_per_block=2, attention_head_dim=[2, 4], cross_attention_dim=48, use_linear_projection=True,
        upcast_attention=True, norm_num_groups=16,
    ),
    # pooled text and time ids, several transformer blocks
    "sdxl": dict(
        down_block_types=["DownBlock2D", CROSS, CROSS], up_block_types=[CROSS_UP, CROSS_UP, "UpBlock2D"],
        block_out_channels=[32, 32, 64], layers_per_block=1, attention_head_dim=[2, 2, 4], cross_attention_dim=40,
        use_linear_projection=True, norm_num_groups=8, transformer_layers_per_block=[1, 2, 3],
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=32 + 6 * 8,
    ),
    # fewer layers, no middle, uneven depths with their own order on the way up, embedded guidance
    "distilled": dict(
        down_block_types=["DownBlock2D", CROSS], up_block_types=[CROSS_UP, "UpBlock2D"], block_out_channels=[32, 64],
        layers_per_block=[1, 2], attention_head_dim=[2, 4], cross_attention_dim=32, use_linear_projection=True,
        norm_num_groups=8, mid_block_type=None, transformer_layers_per_block=[1, [2, 1]],
        reverse_transformer_layers_per_block=[[1, 2, 1], 1], only_cross_attention=[False, True], time_cond_proj_dim=12,
        flip_sin_to_cos=False, freq_shift=1,
    ),
    # a middle without attention (SSD-1B)
    "resnet_mid": dict(
        down_block_types=["DownBlock2D", CROSS], up_block_types=[CROSS_UP, "UpBlock2D"], block_out_channels=[32, 32],
        layers_per_block=1, attention_head_dim=4, cross_attention_dim=32, norm_num_groups=8,
        mid_block_type="UNetMidBlock2D",
    ),
}
SIZES = {"sd2": (11, 6)}
TARGETS = [
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
    "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv",
]


def make_unet(name, config):
    full = {"in_channels": 4, "out_channels": 4, "sample_size": 16, "mid_block_type": MID, **config}
    model = UNet2DConditionModel(**full)
    digest = fill(model)
    h, w = SIZES.get(name, (8, 8))
    sample, target = values(f"{name}.sample", (2, 4, h, w), 1.7), values(f"{name}.target", (2, 4, h, w), 1.7)
    context = values(f"{name}.context", (2, 5, full["cross_attention_dim"]), 1.7).requires_grad_(True)
    timesteps = torch.tensor([7, 981])
    out = {"sample": last(sample), "target": last(target), "context": context, "timesteps": timesteps.float()}
    extra = {}
    if "addition_embed_type" in full:
        time_ids = torch.tensor([[1024, 768, 0, 16, 1024, 1024], [512, 640, 8, 0, 768, 1344]]).double()
        added = {"text_embeds": values(f"{name}.pooled", (2, 32), 1.7), "time_ids": time_ids}
        out |= {"pooled": added["text_embeds"], "time_ids": time_ids}
        extra["added_cond_kwargs"] = added
    if "time_cond_proj_dim" in full:
        extra["timestep_cond"] = out["guidance"] = values(f"{name}.guidance", (2, full["time_cond_proj_dim"]))

    def forward():
        return model(sample, timesteps, context, **extra).sample

    out["output"] = last(forward())
    if name != "resnet_mid":
        adapter = attach(model, TARGETS)
        out["adapted"] = last(forward())
        train(adapter, forward, target, out, keep_final=name == "sd1")
        context.grad = None
        for parameter, initial in [(p, values(k, tuple(p.shape), 0.1 if k.endswith("A") else 0.05)) for k, p in adapter.items()]:
            parameter.data.copy_(initial)
        ((forward() - target) ** 2).mean().backward()
        out["grad_context"] = context.grad
    save(name, out)
    return {"config": full, "digest": digest}


CLIPS = {
    # SD 1: quick_gelu, an old config with the wrong end token, keys without `text_model.` in this transformers version
    "clip_l": dict(hidden_act="quick_gelu", eos_token_id=2, hidden_size=32, num_attention_heads=4),
    # SDXL's second: gelu, projection, padded with 0
    "clip_g": dict(hidden_act="gelu", eos_token_id=98, hidden_size=48, num_attention_heads=4, projection_dim=32),
}


def make_clip(name, config):
    full = dict(vocab_size=99, intermediate_size=96, num_hidden_layers=3, max_position_embeddings=16, **config)
    projected = "projection_dim" in full
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    model = kind(CLIPTextConfig(**full, pad_token_id=0, bos_token_id=97, attn_implementation="eager"))
    digest = fill(model)
    pad = 0 if projected else 98
    ids = torch.full((3, 16), pad, dtype=torch.int64)
    for row, text in enumerate([[97, 5, 40, 7, 98], [97, 98], [97, *range(20, 34), 98]]):
        ids[row, : len(text)] = torch.tensor(text)

    def run():
        return model(ids, output_hidden_states=True)

    result = run()
    final_norm = (model.text_model if projected else model).final_layer_norm
    out = {"ids": ids.to(torch.int32)}
    out["last"] = result.last_hidden_state
    out["pooled"] = result.text_embeds if projected else result.pooler_output
    out["penultimate"] = result.hidden_states[-2]
    out["penultimate_normed"] = final_norm(result.hidden_states[-2])
    prefix = "" if projected else "text_model."
    adapter = attach(model, ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], prefix)
    target = values(f"{name}.target", tuple(result.last_hidden_state.shape))
    train(adapter, lambda: run().last_hidden_state, target, out)
    save(name, out)
    full["architectures"] = [kind.__name__]
    return {"config": full, "digest": digest}


VAES = {
    "vae": dict(),
    "vae_bare": dict(use_quant_conv=False, use_post_quant_conv=False),
}


def make_vae(name, config):
    full = dict(
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[16, 32, 32], layers_per_block=1, latent_channels=4, norm_num_groups=8, **config,
    )
    model = AutoencoderKL(**full)
    digest = fill(model)
    picture = values(f"{name}.picture", (2, 3, 20, 28))
    latents = values(f"{name}.latents", (1, 4, 13, 18), 1.7)
    out = {"picture": last(picture), "latents": last(latents)}
    with torch.no_grad():
        posterior = model.encode(picture).latent_dist
        out["mean"], out["logvar"] = last(posterior.mean), last(posterior.logvar)
        out["decoded"] = last(model.decode(latents).sample)
        model.tile_latent_min_size, model.tile_sample_min_size, model.tile_overlap_factor = 8, 32, 0.25
        out["tiled"] = last(model.tiled_decode(latents).sample)
        model.tile_latent_min_size, model.tile_sample_min_size = 4, 16
        out["tiled_mean"] = last(model._tiled_encode(picture).chunk(2, dim=1)[0])
    save(name, out)
    return {"config": full, "digest": digest}


def make_adamw():
    """AdamW alone: gradients in, parameters out, for the optimizer's own test."""
    parameters = {k: torch.nn.Parameter(values(f"adamw.{k}", s)) for k, s in {"a": (3, 5), "b": (7,)}.items()}
    out = {f"{k}.0": p.detach().clone() for k, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=LR, weight_decay=WEIGHT_DECAY)
    for step in range(1, STEPS + 1):
        for key, parameter in parameters.items():
            parameter.grad = out[f"{key}.grad.{step}"] = values(f"adamw.{key}.grad.{step}", tuple(parameter.shape), 0.3)
        optimizer.step()
        out |= {f"{k}.{step}": p.detach().clone() for k, p in parameters.items()}
    save("adamw", out)


def main():
    index = {"adapter": {"rank": RANK, "alpha": ALPHA}}
    index["adamw"] = {"lr": LR, "weight_decay": WEIGHT_DECAY, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "steps": STEPS}
    index["unet"] = {name: make_unet(name, config) for name, config in UNETS.items()}
    index["clip"] = {name: make_clip(name, config) for name, config in CLIPS.items()}
    index["vae"] = {name: make_vae(name, config) for name, config in VAES.items()}
    make_adamw()
    (HERE / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
