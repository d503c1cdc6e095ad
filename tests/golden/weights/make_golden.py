#!/usr/bin/env python3
"""Writes tiny checkpoints in the single-file (LDM) layout, and what diffusers' names for their tensors must lead to.

Made with diffusers 0.42.1, transformers 5.23.0, torch 2. Every model has the standard blocks at the smallest widths.
The renaming is written down here once more, from the published tables, and checked against diffusers' own converter in
the other direction.
usage: make_golden.py   (writes beside itself)
"""
import hashlib
import json
import pathlib

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as single
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = pathlib.Path(__file__).parent

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
TOP = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
       "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
       "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}


def ldm_unet_name(name, attention_in_up):
    """diffusers to LDM for 2 layers a block; `attention_in_up[i]` says whether up block i has attention."""
    for ours, theirs in TOP.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours):]
    p = name.split(".")
    if p[0] == "mid_block":
        at = "1" if p[1] == "attentions" else str(2 * int(p[2]))
        block, kind, rest = ["middle_block", at], p[1], p[3:]
    else:
        up, i, kind, j, rest = p[0] == "up_blocks", int(p[1]), p[2], int(p[3]), p[4:]
        if kind == "downsamplers":
            return ".".join(["input_blocks", str(3 * i + 3), "0.op", *rest[1:]])
        if kind == "upsamplers":
            return ".".join(["output_blocks", str(3 * i + 2), "2" if attention_in_up[i] else "1", *rest])
        n = 3 * i + j + (0 if up else 1)
        block = ["output_blocks" if up else "input_blocks", str(n), "0" if kind == "resnets" else "1"]
    if kind == "resnets":
        rest = [RESNET[rest[0]], *rest[1:]]
    return ".".join(block + rest)


def ldm_vae_name(name):
    p = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut").split(".")
    if len(p) < 3 or p[1] in ("conv_in", "conv_out", "norm_out"):
        return ".".join(p)
    if p[1] == "mid_block" and p[2] == "resnets":
        return ".".join([p[0], "mid", f"block_{int(p[3]) + 1}", *p[4:]])
    if p[1] == "mid_block":
        leaf = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[p[4]]
        return ".".join([p[0], "mid", "attn_1", leaf, p[-1]])
    down = p[1] == "down_blocks"
    level = int(p[2]) if down else 3 - int(p[2])
    if p[3] == "resnets":
        return ".".join([p[0], "down" if down else "up", str(level), "block", *p[4:]])
    return ".".join([p[0], "down" if down else "up", str(level), "downsample" if down else "upsample", *p[5:]])


def open_clip_tensors(state, layers, extra_layer):
    """Hugging Face's text encoder as OpenCLIP stores it; `extra_layer` adds the block diffusers drops from SD2."""
    out = {"token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
           "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
           "ln_final.weight": state["text_model.final_layer_norm.weight"],
           "ln_final.bias": state["text_model.final_layer_norm.bias"]}
    if "text_projection.weight" in state:
        out["text_projection"] = state["text_projection.weight"].t().contiguous()
    leaves = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
              "self_attn.out_proj": "attn.out_proj"}
    for n in range(layers + extra_layer):
        ours = f"text_model.encoder.layers.{min(n, layers - 1)}."
        theirs = f"transformer.resblocks.{n}."
        for kind in ("weight", "bias"):
            for a, b in leaves.items():
                out[f"{theirs}{b}.{kind}"] = state[f"{ours}{a}.{kind}"]
            qkv = [state[f"{ours}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            out[f"{theirs}attn.in_proj_{kind}"] = torch.cat(qkv)
    return out


def hugging_face_tensors(model):
    """The encoder's tensors with the `text_model.` level that newer versions leave out."""
    out = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("position_ids"):
            plain = name.startswith(("text_model.", "text_projection."))
            out[name if plain else "text_model." + name] = tensor
    return out


def text_encoder(width, layers, projected):
    config = CLIPTextConfig(vocab_size=16, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                            num_attention_heads=2, max_position_embeddings=7, projection_dim=width)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def unet_of(family):
    cross, plain = "CrossAttn", ""
    common = dict(sample_size=8, norm_num_groups=2, layers_per_block=2, addition_time_embed_dim=2)
    down, up = (lambda a: f"{a}DownBlock2D"), (lambda a: f"{a}UpBlock2D")
    if family in ("sd1", "sd2"):
        return UNet2DConditionModel(
            **common, block_out_channels=(4, 4, 8, 8), cross_attention_dim=6 if family == "sd1" else 10,
            attention_head_dim=2, use_linear_projection=family == "sd2",
            down_block_types=[down(x) for x in (cross, cross, cross, plain)],
            up_block_types=[up(x) for x in (plain, cross, cross, cross)])
    if family == "sdxl":
        return UNet2DConditionModel(
            **common, block_out_channels=(4, 4, 8), cross_attention_dim=14, attention_head_dim=2,
            use_linear_projection=True, transformer_layers_per_block=[1, 2, 3],
            down_block_types=[down(x) for x in (plain, cross, cross)],
            up_block_types=[up(x) for x in (cross, cross, plain)],
            addition_embed_type="text_time", projection_class_embeddings_input_dim=20)
    return UNet2DConditionModel(
        **common, block_out_channels=(4, 4, 8, 8), cross_attention_dim=12, attention_head_dim=2,
        use_linear_projection=True, transformer_layers_per_block=[2, 2, 2, 2],
        down_block_types=[down(x) for x in (plain, cross, cross, plain)],
        up_block_types=[up(x) for x in (plain, cross, cross, plain)],
        addition_embed_type="text_time", projection_class_embeddings_input_dim=18)


def check_same(ours, theirs, what, dropped=()):
    theirs = {k: v for k, v in theirs.items() if "position_ids" not in k and not k.startswith(dropped)}
    missing, extra = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    assert not missing, f"{what}: diffusers does not find {missing[:3]}"
    assert not extra, f"{what}: diffusers finds {extra[:3]} too"
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].reshape(tensor.shape)), f"{what}: {name}"


def make(family):
    torch.manual_seed(7)
    unet = unet_of(family)
    vae = AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
                        block_out_channels=(2, 2, 4, 4), layers_per_block=2, norm_num_groups=2, sample_size=8)
    half = lambda state: {k: v.detach().half() for k, v in state.items()}
    components = {"unet": half(unet.state_dict()), "vae": half(vae.state_dict())}

    attention = ["CrossAttn" in t for t in unet.config.up_block_types]
    file = {f"model.diffusion_model.{ldm_unet_name(k, attention)}": v for k, v in components["unet"].items()}
    check_same(components["unet"], single.convert_ldm_unet_checkpoint(dict(file), dict(unet.config)), f"{family} unet")

    for k, v in components["vae"].items():
        name = ldm_vae_name(k)
        conv = ".attn_1." in name and v.ndim == 2
        file[f"first_stage_model.{name}"] = v[:, :, None, None] if conv else v
    theirs = single.convert_ldm_vae_checkpoint(
        {k: v for k, v in file.items() if k.startswith("first_stage_model.")}, dict(vae.config))
    check_same(components["vae"], theirs, f"{family} vae")

    def open_clip(component, prefix, model, layers, extra):
        components[component] = half(hugging_face_tensors(model))
        stored = open_clip_tensors(components[component], layers, extra)
        if extra:
            # SD2's file holds a projection that diffusers drops with the last block.
            stored["text_projection"] = torch.zeros(6, 6, dtype=torch.float16)
        stored["logit_scale"] = torch.zeros((), dtype=torch.float16)
        file.update({prefix + k: v for k, v in stored.items()})
        converted = single.convert_open_clip_checkpoint(model, {prefix + k: v for k, v in stored.items()}, prefix)
        # diffusers knows the block it drops by its number in the full-size model, 23.
        dropped = (f"text_model.encoder.layers.{layers}.", "text_projection") if extra else ()
        check_same(components[component], hugging_face_like(converted), f"{family} {component}", dropped)

    def hugging_face_like(state):
        return {k if k.startswith(("text_model.", "text_projection.")) else f"text_model.{k}": v for k, v in state.items()}

    def clip(prefix):
        components["text_encoder"] = half(hugging_face_tensors(text_encoder(6, 2, False)))
        file.update({prefix + k: v for k, v in components["text_encoder"].items()})
        file[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(7)[None]

    if family == "sd1":
        clip("cond_stage_model.transformer.")
    elif family == "sd2":
        open_clip("text_encoder", "cond_stage_model.model.", text_encoder(6, 2, False), 2, 1)
    elif family == "sdxl":
        clip("conditioner.embedders.0.transformer.")
        open_clip("text_encoder_2", "conditioner.embedders.1.model.", text_encoder(8, 3, True), 3, 0)
    else:
        open_clip("text_encoder_2", "conditioner.embedders.0.model.", text_encoder(8, 3, True), 3, 0)

    # What real files carry besides.
    file["alphas_cumprod"] = torch.linspace(1, 0, 4)
    file["model_ema.decay"] = torch.zeros(())
    file["model_ema.diffusion_modelinput_blocks00weight"] = torch.ones(2)
    save_file({k: v.contiguous().clone() for k, v in file.items()}, HERE / f"{family}.safetensors")

    expected = {c: {k: [list(v.shape), hashlib.sha256(v.contiguous().numpy().tobytes()).hexdigest()[:16]]
                    for k, v in sorted(t.items())} for c, t in components.items()}
    lines = json.dumps(expected, separators=(",", ":")).replace('],"', '],\n"')
    (HERE / f"{family}.json").write_text(lines + "\n")


def full_size_unet(family):
    """The published models' networks, without memory for their weights."""
    cross, plain = "CrossAttn", ""
    down, up = (lambda a: f"{a}DownBlock2D"), (lambda a: f"{a}UpBlock2D")
    four = dict(down_block_types=[down(x) for x in (cross, cross, cross, plain)],
                up_block_types=[up(x) for x in (plain, cross, cross, cross)])
    added = dict(addition_embed_type="text_time", addition_time_embed_dim=256, use_linear_projection=True)
    config = {
        "sd1": dict(four, cross_attention_dim=768, attention_head_dim=8),
        "sd2": dict(four, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
        "sdxl": dict(added, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
                     attention_head_dim=[5, 10, 20], transformer_layers_per_block=[1, 2, 10],
                     down_block_types=[down(x) for x in (plain, cross, cross)],
                     up_block_types=[up(x) for x in (cross, cross, plain)],
                     projection_class_embeddings_input_dim=2816),
        "sdxl-refiner": dict(added, block_out_channels=(384, 768, 1536, 1536), cross_attention_dim=1280,
                             attention_head_dim=[6, 12, 24, 24], transformer_layers_per_block=4,
                             down_block_types=[down(x) for x in (plain, cross, cross, plain)],
                             up_block_types=[up(x) for x in (plain, cross, cross, plain)],
                             projection_class_embeddings_input_dim=2560),
    }[family]
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def full_size():
    """How many tensors the published models have, and the hash of their sorted names in both spellings."""
    digest = lambda names: hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    entry = lambda names, ldm: [len(set(names)), digest(names), digest(map(ldm, names))]
    out = {}
    for family in FAMILIES:
        unet = full_size_unet(family)
        attention = ["CrossAttn" in t for t in unet.config.up_block_types]
        out[family] = entry(list(unet.state_dict()), lambda name: ldm_unet_name(name, attention))
    with torch.device("meta"):
        vae = AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
                            block_out_channels=(128, 256, 512, 512), layers_per_block=2)
    out["vae"] = entry(list(vae.state_dict()), ldm_vae_name)
    (HERE / "full-size.json").write_text(json.dumps(out, indent=1) + "\n")


FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner")

if __name__ == "__main__":
    full_size()
    for family in FAMILIES:
        make(family)
