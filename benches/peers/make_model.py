"""Writes a model of Stable Diffusion 1.5's shape with random weights, the same files for every side.

    make_model.py FOLDER DTYPE          as diffusers stores it: unet, vae, text_encoder, tokenizer, scheduler
    make_model.py FILE.safetensors DTYPE    in one file, under the names of the original code
"""

import json
import pathlib
import re
import sys

import torch
from diffusers import PNDMScheduler
from safetensors.torch import save_file

import networks

MERGES = pathlib.Path(__file__).parents[2] / "src" / "prompt" / "clip_merges.txt"
COMPONENTS = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
              "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
              "scheduler": ["diffusers", "PNDMScheduler"], "safety_checker": [None, None],
              "feature_extractor": [None, None], "image_encoder": [None, None]}


def folder(path, dtype):
    for name in ("unet", "vae", "text"):
        made = getattr(networks, name)("sd1", dtype)
        made.save_pretrained(path / ("text_encoder" if name == "text" else name))
    PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
                  steps_offset=1, set_alpha_to_one=False).save_pretrained(path / "scheduler")
    tokenizer(path / "tokenizer")
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **COMPONENTS}
    # Last: a folder without it was not finished.
    (path / "model_index.json").write_text(json.dumps(index, indent=2))


def tokenizer(path):
    """CLIP's vocabulary follows from its merges: the bytes, the bytes that end a word, every merge, two marks."""
    path.mkdir(parents=True, exist_ok=True)
    merges = MERGES.read_text(encoding="utf-8").strip("\n").split("\n")
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (path / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True,
              "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
              "unk_token": "<|endoftext|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


UNET_LEAVES = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
               "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
VAE_LEAVES = {"conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
              "to_out.0": "proj_out"}


def unet_names():
    """diffusers' prefix to the original's."""
    yield from {"time_embedding.linear_": "time_embed.", "conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.",
                "conv_out.": "out.2.", "mid_block.resnets.0.": "middle_block.0.",
                "mid_block.attentions.0.": "middle_block.1.", "mid_block.resnets.1.": "middle_block.2."}.items()
    for i in range(4):
        for j in range(2):
            yield f"down_blocks.{i}.resnets.{j}.", f"input_blocks.{3 * i + j + 1}.0."
            yield f"down_blocks.{i}.attentions.{j}.", f"input_blocks.{3 * i + j + 1}.1."
        yield f"down_blocks.{i}.downsamplers.0.conv.", f"input_blocks.{3 * i + 3}.0.op."
        for j in range(3):
            yield f"up_blocks.{i}.resnets.{j}.", f"output_blocks.{3 * i + j}.0."
            yield f"up_blocks.{i}.attentions.{j}.", f"output_blocks.{3 * i + j}.1."
        yield f"up_blocks.{i}.upsamplers.0.", f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}."


def vae_names():
    for part in ("encoder", "decoder"):
        yield f"{part}.conv_norm_out.", f"{part}.norm_out."
        yield f"{part}.mid_block.attentions.0.", f"{part}.mid.attn_1."
        for j in range(2):
            yield f"{part}.mid_block.resnets.{j}.", f"{part}.mid.block_{j + 1}."
    for i in range(4):
        yield f"encoder.down_blocks.{i}.downsamplers.0.", f"encoder.down.{i}.downsample."
        yield f"decoder.up_blocks.{i}.upsamplers.0.", f"decoder.up.{3 - i}.upsample."
        for j in range(3):
            yield f"encoder.down_blocks.{i}.resnets.{j}.", f"encoder.down.{i}.block.{j}."
            yield f"decoder.up_blocks.{i}.resnets.{j}.", f"decoder.up.{3 - i}.block.{j}."


def renamed(state, names, leaves):
    names = dict(names)
    for key, value in state.items():
        prefix = next((p for p in names if key.startswith(p)), None)
        rest = key if prefix is None else key[len(prefix):]
        block = prefix is not None and re.search("resnets|mid_block.attentions", prefix)
        if block and "transformer_blocks" not in rest:
            leaf = next((leaf for leaf in leaves if rest.startswith(leaf + ".")), None)
            rest = rest if leaf is None else leaves[leaf] + rest[len(leaf):]
        if prefix == "time_embedding.linear_":
            rest = rest.replace("1.", "0.", 1)
        yield (names[prefix] if prefix else "") + rest, value


def single_file(path, dtype):
    tensors = {}
    for key, value in renamed(networks.unet("sd1", dtype).state_dict(), unet_names(), UNET_LEAVES):
        tensors["model.diffusion_model." + key] = value
    for key, value in renamed(networks.vae("sd1", dtype).state_dict(), vae_names(), VAE_LEAVES):
        matrix = ".attn_1." in key and value.ndim == 2
        tensors["first_stage_model." + key] = value[:, :, None, None] if matrix else value
    for key, value in networks.text("sd1", dtype).state_dict().items():
        key = key if key.startswith("text_model.") else "text_model." + key
        tensors["cond_stage_model.transformer." + key] = value
    part = path.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in tensors.items()}, part)
    part.rename(path)


if __name__ == "__main__":
    torch.manual_seed(0)
    path, dtype = pathlib.Path(sys.argv[1]), networks.DTYPES[sys.argv[2]]
    path.parent.mkdir(parents=True, exist_ok=True)
    (single_file if path.suffix == ".safetensors" else folder)(path, dtype)
