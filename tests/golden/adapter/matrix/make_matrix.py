"""Makes the matrix of adapter files: every writer's own code on tiny models in the shape of SD1, SD2 and SDXL, and what
the trained layers then do, told by running them.

    pip install torch diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 lycoris-lora==4.1.3 einops
    git clone https://github.com/kohya-ss/sd-scripts && git -C sd-scripts checkout 48d368f
    python tests/golden/adapter/matrix/make_matrix.py --sd-scripts sd-scripts

Base weights and projections are not stored: both come from `numbers`, which the test repeats. Of each merged weight W'
(o, i·k) the test gets W' P with a P of two columns of ±1.
"""

import argparse
import copy
import functools
import gc
import hashlib
import json
import logging
import random
import re
import shutil
import sys
import types
from pathlib import Path

import numpy
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = Path(__file__).parent
CROSS = {"sd1": 12, "sd2": 20, "sdxl": 36, "sdxl-refiner": 28}
WIDTHS = {"text_encoder": 12, "text_encoder_2": 16}
ENCODERS = {"sd1": ["text_encoder"], "sd2": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"],
            "sdxl-refiner": ["text_encoder_2"]}
COLUMNS = 2
# The numbers are chosen among those the dtype has, so that files in it lose nothing.
DTYPE = {"sd1": torch.float32, "sd2": torch.bfloat16, "sdxl": torch.float16, "sdxl-refiner": torch.float16}

# ---- the base ------------------------------------------------------------------------------------------------------


def numbers(name, count):
    """The same in the test: FNV-1a of the name, an integer hash of each index, uniform in ±0.3."""
    seed = 2166136261
    for byte in name.encode():
        seed = ((seed ^ byte) * 16777619) % 2**32
    x = (numpy.arange(count, dtype=numpy.uint64) * 2654435761 + seed) % 2**32
    x = ((x ^ (x >> 16)) * 73244475) % 2**32
    x = ((x ^ (x >> 16)) * 73244475) % 2**32
    x = x ^ (x >> 16)
    return ((x / 2**32 - 0.5) * 0.6).astype(numpy.float32)


def unet_config(family):
    added = dict(use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=2)
    common = dict(sample_size=8, norm_num_groups=4, layers_per_block=2, cross_attention_dim=CROSS[family])
    if family == "sdxl":
        return dict(
            **common,
            block_out_channels=[4, 8, 8],
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=2,
            projection_class_embeddings_input_dim=20,
            **added,
        )
    if family == "sdxl-refiner":
        return dict(
            **common,
            block_out_channels=[4, 8, 8, 8],
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=4,
            attention_head_dim=2,
            projection_class_embeddings_input_dim=18,
            **added,
        )
    return dict(
        **common,
        block_out_channels=[4, 8, 8, 8],
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        attention_head_dim=2,
        use_linear_projection=family == "sd2",
    )


def text_config(width):
    return dict(vocab_size=50, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=8, projection_dim=width)


def configs_of(family):
    return {"unet": unet_config(family), **{name: text_config(WIDTHS[name]) for name in ENCODERS[family]}}


@functools.cache
def pristine(family):
    found = {"unet": UNet2DConditionModel(**unet_config(family))}
    for name in ENCODERS[family]:
        text = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
        found[name] = text(CLIPTextConfig(**text_config(WIDTHS[name])))
    for component, model in found.items():
        model.double().requires_grad_(False)
        for name, parameter in model.named_parameters():
            values = torch.from_numpy(numbers(ours(component, name), parameter.numel())).double()
            if "norm" in name.split(".")[-2] and name.endswith("weight"):
                values += 1
            parameter.copy_(values.reshape(parameter.shape))
    return found


def parts(family, dtype=torch.float64):
    """The components, fresh, with the base weights of `numbers`."""
    return {component: copy.deepcopy(model).to(dtype) for component, model in pristine(family).items()}


def ours(component, name):
    """transformers left the outer module's name away in one of the two text models."""
    text = component != "unet" and not name.startswith("text_")
    return f"{component}.{'text_model.' if text else ''}{name}"


BLOCK = "down_blocks.1.attentions.0"
UNET = [f"{BLOCK}.proj_in", f"{BLOCK}.transformer_blocks.0.attn1.to_q", f"{BLOCK}.transformer_blocks.0.attn1.to_out.0",
        f"{BLOCK}.transformer_blocks.0.attn2.to_k", f"{BLOCK}.transformer_blocks.0.ff.net.0.proj",
        f"{BLOCK}.transformer_blocks.0.ff.net.2", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_v"]
RESNET = "down_blocks.1.resnets.0"
CONV = [f"{RESNET}.conv1", f"{RESNET}.time_emb_proj", f"{RESNET}.conv_shortcut", "down_blocks.1.downsamplers.0.conv",
        "up_blocks.1.upsamplers.0.conv"]
ENDS = ["conv_in", "time_embedding.linear_1"]
NORMS = [f"{RESNET}.norm1", f"{BLOCK}.transformer_blocks.0.norm2"]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj", "encoder.layers.0.mlp.fc1",
        "encoder.layers.1.mlp.fc2"]
TEXT_NORMS = ["encoder.layers.1.layer_norm1"]


def module_of(model, name):
    for candidate in (name, f"text_model.{name}"):
        try:
            return candidate, model.get_submodule(candidate)
        except AttributeError:
            pass
    raise KeyError(name)


# ---- what a layer does ---------------------------------------------------------------------------------------------


@torch.no_grad()
def effect(module, base):
    """The weight and bias that a layer acts with, found by calling it. `base` is the layer before training."""
    dtype = base.weight.dtype
    if isinstance(base, nn.Linear):
        bias = module(torch.zeros(1, base.in_features, dtype=dtype))[0]
        return (module(torch.eye(base.in_features, dtype=dtype)) - bias).T, bias
    if isinstance(base, nn.Conv2d):
        i, (kh, kw), at = base.in_channels, base.kernel_size, 3
        x = torch.zeros(i * kh * kw, i, 14, 14, dtype=dtype)
        for n in range(len(x)):
            c, y, z = n // (kh * kw), n // kw % kh, n % kw
            x[n, c, at * base.stride[0] + y - base.padding[0], at * base.stride[1] + z - base.padding[1]] = 1
        bias = module(torch.zeros(1, i, 14, 14, dtype=dtype))[0, :, at, at]
        return (module(x)[:, :, at, at] - bias).T.reshape(-1, i, kh, kw), bias
    # A normalisation is affine in what it normalises to.
    groups = isinstance(base, nn.GroupNorm)
    width = base.num_channels if groups else base.normalized_shape[0]
    generator = torch.Generator().manual_seed(1)
    xs = [torch.randn((1, width, 4, 4) if groups else (1, width), generator=generator).to(dtype) for _ in range(2)]
    normal = lambda x: (nn.functional.group_norm(x, base.num_groups, eps=base.eps) if groups
                        else nn.functional.layer_norm(x, (width,), eps=base.eps))
    pick = lambda t: t[0, :, 0, 0] if groups else t[0]
    (n0, n1), (y0, y1) = [pick(normal(x)) for x in xs], [pick(module(x)) for x in xs]
    weight = (y1 - y0) / (n1 - n0)
    return weight, y0 - weight * n0


class Expected:
    def __init__(self):
        self.tensors, self.fixtures = {}, {}

    def add(self, name, facts, found):
        """`found`: our path → (weight, bias), of the layers the file changes."""
        layers, rows = [], []
        for path in sorted(found):
            weight, bias = found[path]
            flat = weight.reshape(weight.shape[0], -1)
            signs = torch.from_numpy(numpy.sign(numbers(path + ".projection", flat.shape[1] * COLUMNS)))
            rows.append((flat.double() @ signs.double().reshape(-1, COLUMNS)).flatten())
            if bias is not None:
                rows.append(bias.double())
            layers.append([path, int(weight.shape[0]), bias is not None])
        self.tensors[name] = torch.cat(rows).float()
        self.fixtures[name] = {**facts, "layers": layers}

    def write(self, configs, names):
        """Most files change the same layers, so that those are listed once."""
        listings, lines = [], []
        for name, facts in self.fixtures.items():
            if facts["layers"] not in listings:
                listings.append(facts["layers"])
            lines.append(f" {json.dumps(name)}: {json.dumps({**facts, 'layers': listings.index(facts['layers'])})}")
        layers = ",\n".join(f" {json.dumps(listing)}" for listing in listings)
        fixtures = ",\n".join(lines)
        (HERE / "fixtures.json").write_text(f'{{"configs": {json.dumps(configs)},\n"kohya_names": {json.dumps(names)},\n"layers": [\n{layers}\n],\n"fixtures": {{\n{fixtures}\n}}}}\n')
        save_file(self.tensors, HERE / "expected.safetensors")


EXPECTED = Expected()


def stored(tensors, dtype):
    """As files have them: f64 was only for running. Scalars stay as exact as they are."""
    out = {}
    for key, value in tensors.items():
        value = value.detach().clone().contiguous()
        wide = value.dtype in (torch.float64, torch.float32)
        out[key] = (value.float() if value.dim() == 0 else value.to(dtype)) if wide else value
    return out


def write(name, tensors, metadata=None):
    path = HERE / f"{name}.safetensors"
    save_file(tensors, path, {k: str(v) for k, v in (metadata or {}).items()} or None)
    return path


def changed(models, bases, paths, with_bias=True):
    found = {}
    for component, name in paths:
        inner, module = module_of(models[component], name)
        base = bases[component].get_submodule(inner)
        weight, bias = effect(module, base)
        before = dict(base.named_parameters())
        moved = before.get("bias") is None and bias.abs().max() > 0 or (
            before.get("bias") is not None and (bias - before["bias"]).abs().max() > 1e-6)
        found[ours(component, inner)] = (weight, bias if moved else None)
    return found


def all_paths(models, unet, text=TEXT):
    return [("unet", n) for n in unet] + [(c, n) for c in models if c != "unet" for n in text]


# ---- LyCORIS -------------------------------------------------------------------------------------------------------

LYCORIS = {
    "lora": dict(algo="lora"),
    "locon": dict(algo="locon", conv_dim=2, conv_alpha=3.0),
    "locon-tucker": dict(algo="locon", conv_dim=2, conv_alpha=3.0, use_tucker=True),
    "lora-rs": dict(algo="lora", rs_lora=True),
    "dora-out": dict(algo="locon", dora_wd=True, wd_on_output=True),
    "dora-in": dict(algo="locon", dora_wd=True, wd_on_output=False),
    "loha": dict(algo="loha"),
    "loha-tucker": dict(algo="loha", use_tucker=True),
    "loha-dora": dict(algo="loha", dora_wd=True),
    "loha-rs": dict(algo="loha", rs_lora=True),
    "lokr": dict(algo="lokr", factor=4),
    "lokr-both": dict(algo="lokr", factor=4, decompose_both=True, dim=1),
    "lokr-tucker": dict(algo="lokr", factor=2, use_tucker=True, dim=1),
    "lokr-full": dict(algo="lokr", factor=4, full_matrix=True),
    "lokr-dora": dict(algo="lokr", factor=4, dora_wd=True, wd_on_output=False),
    "lokr-unbalanced": dict(algo="lokr", factor=2, unbalanced_factorization=True),
    "full": dict(algo="full"),
    "ia3": dict(algo="ia3"),
    "dylora": dict(algo="dylora", block_size=1),
    "glora": dict(algo="glora"),
    "diag-oft": dict(algo="diag-oft"),
    "diag-oft-limit": dict(algo="diag-oft", constraint=0.02, rescaled=True),
    "boft": dict(algo="boft"),
    "boft-rescaled": dict(algo="boft", rescaled=True),
    "norm": dict(algo="lora", train_norm=True),
}
# What the standalone wrapper is run with, too.
STANDALONE = ["lora", "locon-tucker", "dora-out", "loha", "lokr", "glora", "diag-oft", "boft", "norm"]


def lycoris_targets(name, family):
    unet, text = UNET + CONV + ENDS, TEXT
    if name == "norm":
        return UNET[:1] + NORMS, TEXT[:1] + TEXT_NORMS
    if name == "ia3":
        return [UNET[3], UNET[5], CONV[0]], [TEXT[0], TEXT[3]]
    if name.startswith("boft"):
        # Powers of two only.
        return unet, []
    if name.startswith("dylora"):
        return UNET, TEXT
    return unet, text


def precision(algorithm):
    """Rotations are computed in f32 whatever comes in."""
    return torch.float32 if "oft" in algorithm else torch.float64


def lycoris(family, name, options, half=False):
    import lycoris.config
    import lycoris.kohya

    dtype = precision(name)
    models, bases = parts(family, dtype), parts(family, dtype)
    unet_names, text_names = lycoris_targets(name, family)
    exact = lambda names: [rf"(text_model\.)?{re.escape(n)}$" for n in names]
    ia3 = {".*ff\\.net\\.2$": dict(algo="ia3", train_on_input=True), ".*fc2$": dict(algo="ia3", train_on_input=True)}
    lycoris.config.PRESET["matrix"] = dict(
        enable_conv=True, unet_target_module=[], unet_target_name=exact(unet_names),
        text_encoder_target_module=[], text_encoder_target_name=exact(text_names),
        name_algo_map=ia3 if name == "ia3" else {})
    lycoris.kohya.LycorisNetworkKohya.NAME_ALGO_MAP = ia3 if name == "ia3" else {}
    options = dict(options)
    dim = options.pop("dim", 2)
    texts = [m for c, m in models.items() if c != "unet"]
    network = lycoris.kohya.create_network(1.0, dim, 1.5, None, texts if family == "sdxl" else texts[0], models["unet"],
                                           preset="matrix", **options)
    network.apply_to(None, models["unet"], True, True)
    network.to(dtype)
    finish_lycoris(network, models, bases, f"lycoris-{name}{'-f16' if half else ''}", family, "kohya", name,
                   all_paths(models, unet_names, text_names), half, options)


def standalone(family, name, options):
    import lycoris

    dtype = precision(name)
    models, bases = parts(family, dtype), parts(family, dtype)
    unet_names, _ = lycoris_targets(name, family)
    lycoris.LycorisNetwork.apply_preset(dict(target_module=[], target_name=[f"{n}$".replace(".", "\\.") for n in unet_names],
                                             name_algo_map={}, module_algo_map={}))
    lycoris.config.PRESET["matrix"] = dict(target_module=[], target_name=[f"{n}$".replace(".", "\\.") for n in unet_names])
    options = dict(options)
    network = lycoris.create_lycoris(models["unet"], 1.0, options.pop("dim", 2), 1.5, preset="matrix", **options)
    network.apply_to()
    network.to(dtype)
    finish_lycoris(network, models, bases, f"standalone-{name}", family, "lycoris", name,
                   [("unet", n) for n in unet_names], False, options)


def finish_lycoris(network, models, bases, name, family, dialect, algorithm, paths, half, options):
    dtype = torch.float16 if half else DTYPE[family]
    generator = torch.Generator().manual_seed(5)
    for n, p in sorted(network.named_parameters()):
        noise = torch.randn(p.shape, generator=generator) * 0.3
        keep = any(word in n for word in ("dora_scale", "rescale"))
        value = (p.data * (1 + noise) if keep else noise).to(dtype).to(p.dtype)
        p.data = p.data + value if algorithm == "full" else value
    network.eval()
    facts = dict(family=family, dialect=dialect, algorithm=algorithm, half=half, writer="lycoris-lora 4.1.3")
    fixture = f"{family}_{name}"
    EXPECTED.add(fixture, facts, changed(models, bases, paths))
    tensors = stored(network.state_dict(), dtype)
    args = {k: str(v) for k, v in options.items()}
    write(fixture, tensors, {"ss_network_module": "lycoris.kohya", "ss_network_dim": 2, "ss_network_args": json.dumps(args)}
          if dialect == "kohya" else None)


# ---- kohya ---------------------------------------------------------------------------------------------------------

# What kohya's own SDXL network calls the layers (the original code's names).
SGM = [("down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op"), ("down_blocks.1.resnets.0", "input_blocks.4.0"),
       ("down_blocks.1.attentions.0", "input_blocks.4.1"), ("mid_block.attentions.0", "middle_block.1"),
       ("up_blocks.1.attentions.1", "output_blocks.4.1"), ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
       ("conv_in", "input_blocks.0.0"), ("time_embedding.linear_1", "time_embed.0")]
LEAVES = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection")]


def sgm(name):
    old, new = next((o, n) for o, n in SGM if name == o or name.startswith(o + "."))
    rest = name[len(old) + 1:]
    rest = dict(LEAVES).get(rest, rest) if "resnets" in old else rest
    return f"{new}.{rest}" if rest else new


def kohya_classes():
    made = {}
    for name in ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D", "CrossAttention"]:
        made[name] = type(name, (nn.Module,), {})
    return made


def import_kohya(folder):
    """Only the networks are run; their helper module wants OpenCV and torchvision for other things."""
    sys.path.insert(0, str(folder))
    helper = types.ModuleType("library.utils")
    helper.setup_logging = lambda *a, **k: None
    sys.modules["library.utils"] = helper


def kohya(family, kind):
    import networks.dylora
    import networks.lora
    import networks.oft

    dtype = precision(kind)
    models, bases = parts(family, dtype), parts(family, dtype)
    classes, targets = kohya_classes(), UNET + CONV
    parent = lambda n: classes["Transformer2DModel" if "attentions" in n else "ResnetBlock2D" if "resnets" in n
                               else "Downsample2D" if "down" in n else "Upsample2D"]
    wanted = [n for n in targets if kind != "oft" or "attn" in n]
    name_of = sgm if family == "sdxl" else lambda n: n
    root = nn.Module()
    for n in wanted:
        *path, leaf = name_of(n).split(".")
        at, full = root, name_of(n).split(".")
        block = len(full) - 1
        for i in range(1, len(full)):
            head = ".".join(full[:i])
            known = [new if family == "sdxl" else old for old, new in SGM if "conv" not in old and "linear" not in old]
            if head in known:
                block = i
                break
        for depth, word in enumerate(path, 1):
            if word not in dict(at.named_children()):
                cls = parent(n) if depth == block else nn.Module
                if kind == "oft" and word in ("attn1", "attn2"):
                    cls = classes["CrossAttention"]
                at.add_module(word, cls())
            at = dict(at.named_children())[word]
        at.add_module(leaf, models["unet"].get_submodule(n))
    texts = [m for c, m in models.items() if c != "unet"]
    texts = texts if family == "sdxl" else texts[0]
    # kohya's DyLoRA gives both text encoders one prefix: it is for one.
    text_names = [] if kind == "oft" or (kind == "dylora" and family == "sdxl") else TEXT
    if not text_names:
        texts = []
    if kind == "oft":
        network = networks.oft.create_network(1.0, 4, 0.05, None, texts, root)
        for oft in network.unet_ofts:
            oft.apply_to()
            network.add_module(oft.oft_name, oft)
    else:
        module = {"lora": networks.lora, "locon": networks.lora, "dylora": networks.dylora}[kind]
        options = {} if kind == "lora" else dict(conv_dim=2, conv_alpha=1.0 if kind == "locon" else 1.5)
        network = module.create_network(1.0, 2, 1.5, None, texts, root, **options)
        ends = tuple(n.replace(".", "_") for n in TEXT)
        network.text_encoder_loras = [l for l in network.text_encoder_loras if l.lora_name.endswith(ends)]
        network.apply_to(texts, root, True, True)
    generator = torch.Generator().manual_seed(6)
    network.to(dtype)
    for n, p in sorted(network.named_parameters()):
        p.data = (torch.randn(p.shape, generator=generator) * 0.3).to(DTYPE[family]).to(dtype)
    tensors = stored(network.state_dict(), DTYPE[family])
    names = {k.split(".")[0] for k in tensors}
    flat = lambda n: ("oft_unet_" if kind == "oft" else "lora_unet_") + name_of(n).replace(".", "_")
    trained = [n for n in wanted if flat(n) in names]
    facts = dict(family=family, dialect="kohya", algorithm=f"kohya {kind}", half=False, writer="sd-scripts 48d368f")
    fixture = f"{family}_kohya-{kind}"
    EXPECTED.add(fixture, facts, changed(models, bases, all_paths(models, trained, text_names)))
    write(fixture, tensors, {"ss_network_module": f"networks.{kind.replace('locon', 'lora')}", "ss_network_dim": 2})


def kohya_names():
    """Every name kohya's LoCon gives the layers of the real SD1 (diffusers' network) and SDXL (kohya's own)."""
    from library.sdxl_original_unet import SdxlUNet2DConditionModel
    import networks.lora

    with torch.device("meta"):
        sd1 = dict(down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
                   up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
        real = {"sd1": UNet2DConditionModel(cross_attention_dim=768, **sd1), "sdxl": SdxlUNet2DConditionModel()}
        networks_of = {f: networks.lora.create_network(1.0, 1, 1, None, [], m, conv_dim=1) for f, m in real.items()}
    names = {f: sorted(l.lora_name for l in n.unet_loras) for f, n in networks_of.items()}
    return {f: [len(n), hashlib.sha256("\n".join(n).encode()).hexdigest()] for f, n in names.items()}


# ---- PEFT and diffusers --------------------------------------------------------------------------------------------


def peft_configs():
    from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig

    patterns = dict(rank_pattern={"attn2.to_k": 3, "fc1": 1}, alpha_pattern={"attn2.to_k": 5, "ff.net.2": 1})
    return {
        "lora": lambda t: LoraConfig(r=2, lora_alpha=3, target_modules=t, **patterns),
        "rslora": lambda t: LoraConfig(r=2, lora_alpha=3, target_modules=t, use_rslora=True),
        "dora": lambda t: LoraConfig(r=2, lora_alpha=3, target_modules=t, use_dora=True),
        "lora-bias": lambda t: LoraConfig(r=2, lora_alpha=3, target_modules=t, lora_bias=True),
        "loha": lambda t: LoHaConfig(r=2, alpha=3, target_modules=t, rank_pattern={"attn2.to_k": 3}),
        "loha-tucker": lambda t: LoHaConfig(r=2, alpha=3, target_modules=t, use_effective_conv2d=True),
        "lokr": lambda t: LoKrConfig(r=2, alpha=3, target_modules=t, decompose_factor=4),
        "lokr-full": lambda t: LoKrConfig(r=16, alpha=3, target_modules=t, decompose_factor=4),
        "oft": lambda t: OFTConfig(oft_block_size=4, r=0, target_modules=t),
        "oft-exact": lambda t: OFTConfig(oft_block_size=4, r=0, target_modules=t, use_cayley_neumann=False),
        "oft-shared": lambda t: OFTConfig(oft_block_size=4, r=0, target_modules=t, block_share=True),
        "ia3": lambda t: IA3Config(target_modules=t, feedforward_modules=[n for n in t if n.endswith(("ff.net.2", "fc2"))]),
    }


def peft_targets(algorithm):
    unet, text = UNET + CONV[:4], TEXT
    if algorithm == "ia3":
        return [UNET[3], UNET[5]], [TEXT[0], TEXT[3]]
    if algorithm.startswith("oft"):
        # PEFT runs larger convolutions on overlapping patches that it adds up, which is no convolution by any weight
        # (R = I already multiplies the input by the number of patches), and merges them by another rule.
        return [n for n in unet if not n.endswith(("conv1", ".conv"))], text
    if algorithm == "lora-bias":
        # Layers that have a bias.
        return [n for n in unet if "to_" not in n or "to_out" in n], text
    return unet, text


def peft_models(family, algorithm):
    from peft import get_peft_model

    models, bases = parts(family), parts(family)
    unet_names, text_names = peft_targets(algorithm)
    wrapped = {}
    for component, model in models.items():
        names = [module_of(model, n)[0] for n in (unet_names if component == "unet" else text_names)]
        wrapped[component] = get_peft_model(model, peft_configs()[algorithm](names))
        wrapped[component].double()
        generator = torch.Generator().manual_seed(7)
        for name, p in sorted(wrapped[component].named_parameters()):
            if not p.requires_grad:
                continue
            noise = torch.randn(p.shape, generator=generator) * (0.1 if "oft" in algorithm else 0.3)
            keep = "magnitude" in name or algorithm == "ia3"
            p.data = (p.data.float() * (1 + noise) if keep else noise).to(DTYPE[family]).double()
        wrapped[component].eval()
    inner = {c: m.base_model.model for c, m in wrapped.items()}
    return wrapped, inner, changed(inner, bases, all_paths(models, unet_names, text_names))


def peft_folder(family, algorithm):
    wrapped, _, found = peft_models(family, algorithm)
    fixture = f"{family}_peft-{algorithm}"
    folder = HERE / fixture
    shutil.rmtree(folder, ignore_errors=True)
    for component, model in wrapped.items():
        model.to(DTYPE[family]).save_pretrained(folder / component)
        (folder / component / "README.md").unlink(missing_ok=True)
        config = folder / component / "adapter_config.json"
        fields = {k: v for k, v in sorted(json.loads(config.read_text()).items()) if v not in (None, False, [], {}, "")
                  or k == "use_cayley_neumann"}
        fields["target_modules"] = sorted(fields["target_modules"])
        config.write_text(json.dumps(fields) + "\n")
    facts = dict(family=family, dialect="peft", algorithm=algorithm, half=False, writer="peft 0.21.2")
    EXPECTED.add(fixture, facts, found)


def peft_raw(family):
    """A training loop's own `state_dict` of the adapter's parameters: the adapter's name stands in the keys."""
    wrapped, inner, found = peft_models(family, "lora-raw")
    fixture = f"{family}_raw-lora"
    tensors = {}
    for component, model in inner.items():
        for key, value in model.state_dict().items():
            if "lora_" in key:
                tensors[f"{component}.{key}"] = value
    write(fixture, stored(tensors, DTYPE[family]))
    EXPECTED.add(fixture, dict(family=family, dialect="raw", algorithm="lora", half=False, writer="peft 0.21.2"), found)


def plain_peft():
    """Scale 1, as spellings without alpha have it."""
    from peft import LoraConfig

    return {"lora-raw": lambda t: LoraConfig(r=2, lora_alpha=2, target_modules=t),
            "dora-raw": lambda t: LoraConfig(r=2, lora_alpha=2, target_modules=t, use_dora=True)}


def diffusers_files(family, algorithm, half=False):
    """diffusers' writer, with its metadata; and for scale 1 its converter to kohya's names."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
    from peft.utils import get_peft_model_state_dict

    wrapped, inner, found = peft_models(family, algorithm)
    pipe = StableDiffusionXLPipeline if family.startswith("sdxl") else StableDiffusionPipeline
    states = {c: get_peft_model_state_dict(m) for c, m in wrapped.items()}
    states = {c: {k.removeprefix("base_model.model."): v for k, v in s.items()} for c, s in states.items()}
    states = {c: stored(convert_state_dict_to_diffusers(s) if c != "unet" else s, DTYPE[family]) for c, s in states.items()}
    configs = {}
    for component, model in wrapped.items():
        config = model.peft_config["default"].to_dict()
        configs[component] = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    metadata = {f"{c}_lora_adapter_metadata": v for c, v in configs.items()}
    raw = algorithm.endswith("-raw")
    fixture = f"{family}_diffusers-{algorithm.removesuffix('-raw')}{'-plain' if raw else ''}"
    layers = {f"{c}_lora_layers": s for c, s in states.items()}
    pipe.save_lora_weights(str(HERE), **layers, **({} if raw else metadata), weight_name=f"{fixture}.safetensors")
    facts = dict(family=family, dialect="diffusers", algorithm=algorithm.removesuffix("-raw"), half=False, writer="diffusers 0.42.1")
    EXPECTED.add(fixture, facts, found)
    if raw:
        joined = {f"{c}.{k}": v for c, s in states.items() for k, v in s.items()}
        fixture = f"{family}_converted-{algorithm.removesuffix('-raw')}"
        # The converter knows PEFT's words only.
        words = [("lora_linear_layer.down", "lora_A"), ("lora_linear_layer.up", "lora_B"), ("lora.down", "lora_A"), ("lora.up", "lora_B")]
        for old, new in words:
            joined = {k.replace(f".{old}.", f".{new}."): v for k, v in joined.items()}
        write(fixture, {k: v.contiguous() for k, v in convert_state_dict_to_kohya(joined).items()})
        facts = dict(family=family, dialect="converted", algorithm=algorithm.removesuffix("-raw"), half=False,
                     writer="diffusers 0.42.1, convert_state_dict_to_kohya")
        EXPECTED.add(fixture, facts, found)


# ---- spellings that no current tool writes, and OneTrainer's: by their rules ------------------------------------------


def renamed(family):
    source = f"{family}_diffusers-lora-plain"
    tensors = load_file(HERE / f"{source}.safetensors")
    facts = EXPECTED.fixtures[source]

    def write_as(dialect, writer, key_of, keep=lambda path: True, alpha=False):
        out, kept = {}, set()
        for key, value in tensors.items():
            component, _, rest = key.partition(".")
            for end, role in [(".lora_A.weight", "down"), (".lora_B.weight", "up"), (".lora.down.weight", "down"),
                              (".lora.up.weight", "up"), (".lora_linear_layer.down.weight", "down"),
                              (".lora_linear_layer.up.weight", "up")]:
                if rest.endswith(end):
                    path = rest.removesuffix(end)
                    break
            if not keep((component, path)):
                continue
            kept.add(ours(component, path))
            out[key_of(component, path, role)] = value
            if alpha and role == "down":
                module = key_of(component, path, role).rsplit(".lora_down", 1)[0]
                out[f"{module}.alpha"] = torch.tensor(float(len(value)), dtype=torch.bfloat16)
        fixture = f"{family}_{dialect}-lora"
        write(fixture, out)
        layers = [l for l in facts["layers"] if l[0] in kept]
        at, rows = 0, []
        for path, count, bias in facts["layers"]:
            size = count * COLUMNS + (count if bias else 0)
            if path in kept:
                rows.append(EXPECTED.tensors[source][at:at + size])
            at += size
        EXPECTED.tensors[fixture] = torch.cat(rows)
        EXPECTED.fixtures[fixture] = {**facts, "dialect": dialect, "writer": writer, "layers": layers}

    mid = lambda c, p, role: f"{c}.{p}.{'lora' if c == 'unet' else 'lora_linear_layer'}.{role}.weight"
    attention = lambda k: ".attn" in k[1] or "self_attn" in k[1]
    write_as("mid", "diffusers 0.18, by its rule", mid, attention)

    def processor(c, p, role):
        block, leaf = p.replace("to_out.0", "to_out").rsplit(".", 1)
        if c == "unet":
            return f"{block}.processor.{leaf}_lora.{role}.weight"
        leaf = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}[leaf]
        return f"{c}.{block}.{leaf}_lora.{role}.weight"

    write_as("processors", "diffusers 0.14, by its rule", processor, attention)
    clip = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    clip["text_encoder"] = "clip_h" if family == "sd2" else "clip_l"
    whole = lambda p: p if p.startswith("text_") else f"text_model.{p}"
    comfy = lambda c, p, role: (f"diffusion_model.{sgm(p)}" if c == "unet" else f"text_encoders.{clip[c]}.transformer.{whole(p)}")
    write_as("comfy", "OneTrainer's COMFY, by its rule", lambda c, p, r: f"{comfy(c, p, r)}.lora_{r}.weight", alpha=True)
    write_as("original", "OneTrainer's ORIGINAL, by its rule", lambda c, p, r: f"{sgm(p)}.lora_{r}.weight",
             lambda k: k[0] == "unet", alpha=True)
    write_as("checkpoint", "a checkpoint's names",
             lambda c, p, r: f"model.diffusion_model.{sgm(p)}.lora_{r}.weight", lambda k: k[0] == "unet", alpha=True)
    compiled = lambda c, p, r: f"module.{c}._orig_mod.{p.replace('.resnets', '.checkpoint.resnets')}.lora_{'A' if r == 'down' else 'B'}.weight"
    write_as("wrapped", "diffusers on a compiled, wrapped model", compiled)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--sd-scripts", type=Path)
    options.add_argument("--family", choices=CROSS)
    options = options.parse_args()
    # DyLoRA trains a random rank each step; the file is for all of it.
    random.randint = lambda a, b: b
    logging.disable(logging.WARNING)
    torch.manual_seed(3)
    if options.sd_scripts:
        import_kohya(options.sd_scripts)
    families = [options.family] if options.family else ["sd1", "sd2", "sdxl"]
    for old in HERE.iterdir():
        if old.suffix == ".safetensors":
            old.unlink()
        elif old.is_dir() and old.name != "__pycache__":
            shutil.rmtree(old)
    plain = plain_peft()
    real = peft_configs
    globals()["peft_configs"] = lambda: {**real(), **plain}
    failed = []

    def attempt(what, *args):
        try:
            what(*args)
        except Exception as error:  # noqa: BLE001
            failed.append(f"{what.__name__}{args[:2]}: {type(error).__name__}: {error}")
            if "-v" in sys.argv:
                raise
        gc.collect()

    for family in families:
        for name, o in LYCORIS.items():
            attempt(lycoris, family, name, o)
        if family == "sd1":
            attempt(lycoris, family, "loha", LYCORIS["loha"], True)
            attempt(lycoris, family, "locon", LYCORIS["locon"], True)
        for name in STANDALONE:
            attempt(standalone, family, name, LYCORIS[name])
        if options.sd_scripts:
            for kind in ["lora", "locon", "dylora", "oft"]:
                attempt(kohya, family, kind)
        for algorithm in real():
            attempt(peft_folder, family, algorithm)
        for algorithm in ["lora", "rslora", "dora", "lora-raw", "dora-raw"]:
            attempt(diffusers_files, family, algorithm)
        attempt(peft_raw, family)
        attempt(renamed, family)
    configs = {f: configs_of(f) for f in families}
    EXPECTED.write(configs, kohya_names() if options.sd_scripts else {})
    size = sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file() and f.suffix != ".py")
    print(f"{len(EXPECTED.fixtures)} fixtures, {size / 1e6:.2f} MB")
    print("\n".join(failed))


if __name__ == "__main__":
    main()
