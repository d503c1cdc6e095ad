"""Makes the adapter goldens: tiny models in the shape of SD1, SD2 and SDXL, one adapter each in the spellings of
several tools, and the change of every weight as diffusers + peft apply it.

    pip install torch diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
    python tests/golden/adapter/make_golden.py
"""

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = Path(__file__).parent
CROSS = {"sd1": 12, "sd2": 20, "sdxl": 36}


def unet(family):
    common = dict(sample_size=8, norm_num_groups=4, layers_per_block=2, cross_attention_dim=CROSS[family])
    if family == "sdxl":
        return UNet2DConditionModel(
            **common,
            block_out_channels=(4, 8, 8),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=2,
            projection_class_embeddings_input_dim=20,
        )
    return UNet2DConditionModel(
        **common,
        block_out_channels=(4, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        use_linear_projection=family == "sd2",
    )


def text_encoder(cls=CLIPTextModel, width=12):
    return cls(CLIPTextConfig(vocab_size=50, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
                              num_attention_heads=2, max_position_embeddings=8, projection_dim=width))


def pipeline(family):
    torch.manual_seed(7)
    parts = dict(vae=None, tokenizer=None, scheduler=None, unet=unet(family), text_encoder=text_encoder())
    if family == "sdxl":
        te2 = text_encoder(CLIPTextModelWithProjection, 16)
        return StableDiffusionXLPipeline(**parts, text_encoder_2=te2, tokenizer_2=None)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def layers(pipe):
    """(component, our path) -> module, for every Linear and Conv2d."""
    found = {}
    for component in ["unet", "text_encoder", "text_encoder_2"]:
        model = getattr(pipe, component, None)
        for name, module in model.named_modules() if model is not None else []:
            if isinstance(module, BaseTunerLayer):
                module = module.get_base_layer()
            elif ".base_layer" in name or ".lora_" in name or name.startswith("lora_"):
                continue
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                text = component != "unet" and not name.startswith("text_")
                found[component, ("text_model." if text else "") + name] = module
    return found


def trained(component, name, family):
    if component != "unet":
        return "self_attn" in name or "mlp" in name
    return "attentions" in name or "resnets" in name or "samplers" in name


def factors(pipe, family, dtype):
    """Random factors: rank 4 (2 on 3x3 convolutions), alpha 2 (3 there), so that scale is never 1 by accident."""
    made = {}
    for (component, name), module in layers(pipe).items():
        if not trained(component, name, family):
            continue
        shape = module.weight.shape
        conv = module.weight.dim() == 4
        rank, alpha = (2, 3.0) if conv and shape[2] == 3 else (4, 2.0)
        down = torch.randn(rank, *shape[1:]) * 0.3
        up = torch.randn(shape[0], rank, *([1, 1] if conv else [])) * 0.3
        made[component, name] = (down.to(dtype), up.to(dtype), alpha)
    return made


# ---- spellings ------------------------------------------------------------------------------------------------------

SGM = [("down_blocks.0.resnets.0", "input_blocks.1.0"), ("down_blocks.0.resnets.1", "input_blocks.2.0"),
       ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
       ("down_blocks.1.resnets.0", "input_blocks.4.0"), ("down_blocks.1.attentions.0", "input_blocks.4.1"),
       ("down_blocks.1.resnets.1", "input_blocks.5.0"), ("down_blocks.1.attentions.1", "input_blocks.5.1"),
       ("down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op"),
       ("down_blocks.2.resnets.0", "input_blocks.7.0"), ("down_blocks.2.attentions.0", "input_blocks.7.1"),
       ("down_blocks.2.resnets.1", "input_blocks.8.0"), ("down_blocks.2.attentions.1", "input_blocks.8.1"),
       ("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"),
       ("mid_block.resnets.1", "middle_block.2"),
       ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
       ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv")]
SGM += [(f"up_blocks.{i}.{kind}.{j}", f"output_blocks.{3 * i + j}.{k}")
        for i in range(3) for j in range(3) for k, kind in enumerate(["resnets", "attentions"])]
RESNET = [("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("conv2", "out_layers.3"),
          ("conv_shortcut", "skip_connection")]


def sgm(name):
    old, new = next((o, n) for o, n in SGM if name == o or name.startswith(o + "."))
    rest = name[len(old):]
    if "resnets" in old:
        leaf = rest[1:]
        rest = "." + dict(RESNET)[leaf]
    return new + rest


def kohya(made, family):
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if family == "sdxl" else "lora_te_",
              "text_encoder_2": "lora_te2_"}
    out = {}
    for i, ((component, name), (down, up, alpha)) in enumerate(made.items()):
        if family == "sdxl" and component == "unet":
            name = sgm(name)
        module = prefix[component] + name.replace(".", "_")
        out[module + ".lora_down.weight"], out[module + ".lora_up.weight"] = down, up
        # SDXL's alphas are whole numbers in I64, as diffusers' own converter to kohya writes them.
        out[module + ".alpha"] = torch.tensor(int(alpha)) if family == "sdxl" else torch.tensor(alpha).to(down.dtype)
    return out


def mid_era(made):
    out = {}
    for (component, name), (down, up, _) in made.items():
        infix = ".lora." if component == "unet" else ".lora_linear_layer."
        out[f"{component}.{name}{infix}down.weight"], out[f"{component}.{name}{infix}up.weight"] = down, up
    return out


def processors(made):
    """The first spelling: attention only."""
    out, text = {}, {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    for (component, name), (down, up, _) in made.items():
        if component == "unet" and ".attn" in name:
            block, leaf = name.replace("to_out.0", "to_out").rsplit(".", 1)
            module = f"unet.{block}.processor.{leaf}_lora"
        elif component != "unet" and "self_attn" in name:
            block, leaf = name.rsplit(".", 1)
            module = f"{component}.{block}.{text[leaf]}_lora"
        else:
            continue
        out[module + ".down.weight"], out[module + ".up.weight"] = down, up
    return out


# ---- what diffusers makes of them ----------------------------------------------------------------------------------


def change(family, file):
    """Loads the file with diffusers, merges with peft, and returns W' - W per layer."""
    pipe = pipeline(family)
    before = {key: module.weight.detach().double().clone() for key, module in layers(pipe).items()}
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    found = {}
    for component in ["unet", "text_encoder", "text_encoder_2"]:
        model = getattr(pipe, component, None)
        for name, module in model.named_modules() if model is not None else []:
            if isinstance(module, BaseTunerLayer):
                delta = module.get_delta_weight(module.active_adapters[0]).detach().float()
                text = component != "unet" and not name.startswith("text_")
                found[f"{component}.{'text_model.' if text else ''}{name}"] = delta.contiguous().clone()
    assert found, file
    for key, module in layers(pipe).items():
        assert torch.equal(before[key], module.weight.detach().double()), key
    return found


def write(family, dialect, tensors, metadata=None):
    file = HERE / f"{family}_{dialect}.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata)
    return file


def check(expected, found, made, names):
    assert set(found) == {f"{c}.{n}" for c, n in names}, set(found) ^ {f"{c}.{n}" for c, n in names}
    for name, delta in found.items():
        assert torch.allclose(expected[name], delta, rtol=1e-4, atol=1e-6), name


def formula(made):
    return {f"{c}.{n}": ((u.flatten(1).double() @ d.flatten(1).double()) * a / d.shape[0]).reshape(
        (u.shape[0], *d.shape[1:])).float() for (c, n), (d, u, a) in made.items()}


def family_files(family):
    dtype = torch.float16 if family == "sd2" else torch.float32
    pipe = pipeline(family)
    shapes = {f"{c}.{n}": list(m.weight.shape) for (c, n), m in layers(pipe).items()}
    (HERE / f"{family}_shapes.json").write_text(json.dumps(shapes) + "\n")
    made = factors(pipe, family, dtype)
    file = write(family, "kohya", kohya(made, family), {"ss_network_module": "networks.lora", "ss_v2": str(family == "sd2")})
    expected = change(family, file)
    check(formula(made), expected, made, made)
    save_file(expected, HERE / f"{family}_expected.safetensors")

    # diffusers' own writer, from what it just loaded, its metadata included
    pipe.load_lora_weights(str(HERE), weight_name=file.name)
    from peft.utils import get_peft_model_state_dict
    parts = {c: getattr(pipe, c) for c in ["unet", "text_encoder", "text_encoder_2"] if getattr(pipe, c, None) is not None}
    state = {f"{c}_lora_layers": get_peft_model_state_dict(m, adapter_name="default_0") for c, m in parts.items()}
    configs = {f"{c}_lora_adapter_metadata": m.peft_config["default_0"].to_dict() for c, m in parts.items()}
    for config in configs.values():
        for key, value in config.items():
            if isinstance(value, set):
                config[key] = sorted(value)
    name = f"{family}_diffusers.safetensors"
    pipe.save_lora_weights(str(HERE), **state, **configs, weight_name=name, safe_serialization=True)
    check(expected, change(family, HERE / name), made, made)

    # older spellings carry no alpha: scale 1
    if family == "sd1":
        plain = {key: (d, u, float(d.shape[0])) for key, (d, u, _) in made.items()}
        attention = {k: v for k, v in plain.items() if ".attn" in k[1] or "self_attn" in k[1]}
        for dialect, tensors, names in [("mid", mid_era(attention), attention), ("processors", processors(attention), attention)]:
            found = change(family, write(family, dialect, tensors))
            check(formula(plain), found, plain, names)


if __name__ == "__main__":
    for family in CROSS:
        family_files(family)
    size = sum(f.stat().st_size for f in HERE.glob("*.*") if f.suffix != ".py")
    print(f"{size / 1e6:.2f} MB")
