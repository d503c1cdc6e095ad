"""Draws with diffusers, peft and LyCORIS what scumble hands on: every subcommand's files, in every dialect they have a
loader for, on the embedded model (and a tiny SDXL one where single files are written); DDIM, 20 steps, from a given
noise. Each expected picture is kept once; the files are not: `exports.json` has the command that makes each, the hash
of what diffusers was given, and how near its picture came to the kept one.

Files that singular values or matrix products go into have no hash: those differ in the last bit from processor to
processor.

    cargo build
    pip install torch diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 lycoris-lora==4.1.3 safetensors==0.8.0 einops
    python tests/golden/handed_on/make_handed_on.py
"""

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import diffusers
import numpy
import torch
import transformers
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MODEL = ROOT / "sample-data/mini"
TINY_XL = ROOT / "tests/golden/pipeline/sdxl"
REQUEST = json.loads((HERE.parent / "mini/request.json").read_text())
CONFIG_KEY = "lora_adapter_metadata"

BLUEPRINT, RISO = "{repo}/sample-data/adapters/blueprint.safetensors", "{repo}/sample-data/adapters/riso.safetensors"
WITH_TEXT = "{repo}/tests/golden/mini/adapter.safetensors"
TEXTS = {d: f".{d}" if d == "peft" else f".{d}.safetensors" for d in ["kohya", "diffusers", "peft", "comfy"]}


def cases():
    """(picture, command without `-o`, output, whether its bytes are the same everywhere, who loads it)"""
    by = {"kohya": "load_lora_weights", "diffusers": "load_lora_weights", "peft": "PeftModel", "comfy": None}
    for picture, source in [("style", BLUEPRINT), ("text", WITH_TEXT)]:
        for d, end in TEXTS.items():
            yield picture, ["convert", source, "--to", d], picture + end, True, by[d]
    for d, end in TEXTS.items():
        yield "merged", ["merge", BLUEPRINT + ":0.7", RISO + ":0.5", "--dialect", d], "merged" + end, True, by[d]
    yield None, ["bake", "--model", "mini", "-l", BLUEPRINT + ":0.9", "--dtype", "f32"], "tuned", False, None
    # diffusers drops alphas of attention layers that differ from the commonest in kohya's files, so LyCORIS reads that one.
    for d in ["diffusers", "kohya", "peft"]:
        end = TEXTS[d]
        cut = ["merge", BLUEPRINT + ":0.7", RISO + ":0.5", "--rank", "8", "--dialect", d]
        yield "cut", cut, "cut" + end, False, by[d]
        yield "resized", ["resize", BLUEPRINT, "--sv-fro", "0.9", "--dialect", d], "resized" + end, False, "LyCORIS" if d == "kohya" else by[d]
        extract = ["extract", "--from", "tuned", "--base", "mini", "--rank", "8", "--conv-rank", "4", "--dialect", d]
        yield "extracted", extract, "extracted" + end, False, by[d]
    for d, loader in [("diffusers", "load_lora_weights"), ("peft", "PeftModel"), ("kohya", "LyCORIS")]:
        yield "dora", ["convert", "{repo}/tests/golden/handed_on/dora.safetensors", "--to", d], "dora" + TEXTS[d], True, loader
    for algorithm in ["loha", "lokr"]:
        for d, loader in [("peft", "PeftModel"), ("kohya", "LyCORIS")]:
            source = f"{{repo}}/tests/golden/handed_on/{algorithm}.safetensors"
            yield algorithm, ["convert", source, "--to", d], algorithm + TEXTS[d], True, loader
    blend = ["-l", BLUEPRINT + ":0.7", "-l", RISO + ":0.5"]
    yield "merged", ["bake", "--model", "mini", *blend, "--dtype", "f32"], "baked", False, "from_pretrained"
    xl = ["bake", "--model", "{repo}/tests/golden/pipeline/sdxl", "--dtype", "f32",
          "-l", "{repo}/tests/golden/pipeline/sdxl/adapter.safetensors:0.8"]
    yield "baked-sdxl", xl, "baked-sdxl", False, "from_pretrained"
    yield "baked-sdxl", xl, "baked-sdxl.safetensors", False, "from_single_file"


# ---- the files that only other trainers make -------------------------------------------------------------------------


def lycoris_source(algorithm, options):
    """Random numbers on attention, feed-forward layers, convolutions and the text encoder, by LyCORIS' own writer."""
    import lycoris.kohya

    torch.manual_seed(11)
    pipe = mini()
    # A few blocks of the network are enough. Text encoders are another matter: diffusers drops their magnitudes, from its
    # own files too, and LyCORIS looks for names without `text_model`, as today's transformers have them.
    blocks = [r"(down_blocks\.1|mid_block|up_blocks\.1)\.attentions\.0.*(to_[qv]|ff\.net\.2)$", r"down_blocks\.1\.resnets\.0\.conv1$"]
    lycoris.config.PRESET["made"] = dict(
        enable_conv=True, unet_target_module=[], unet_target_name=blocks, text_encoder_target_module=[],
        text_encoder_target_name=[])
    network = lycoris.kohya.create_network(1.0, 2, 1.5, None, pipe.text_encoder, pipe.unet, preset="made", **options)
    network.apply_to(pipe.text_encoder, pipe.unet, False, True)
    generator = torch.Generator().manual_seed(5)
    for name, p in sorted(network.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        p.data = p.data * (1 + noise * 0.1) if "dora_scale" in name else noise * (0.25 if algorithm == "dora" else 0.5)
    tensors = {k: v.detach().to(torch.float16).contiguous() for k, v in network.state_dict().items()}
    save_file(tensors, HERE / f"{algorithm}.safetensors", {"ss_network_module": "lycoris.kohya", "ss_network_dim": "2"})


def sources():
    lycoris_source("dora", dict(algo="locon", dora_wd=True, wd_on_output=True))
    lycoris_source("loha", dict(algo="loha"))
    lycoris_source("lokr", dict(algo="lokr", factor=4))


# ---- loading and drawing ---------------------------------------------------------------------------------------------


def prepared(pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float32)


def mini(folder=MODEL):
    return prepared(StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None))


def layers_in(path):
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    names = [(f.parent.name, key) for f in files for key in safe_open(f, "pt").keys()]
    ends = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_linear_layer.down.weight", ".hada_w1_a",
            ".lokr_w1", ".lokr_w1_a")
    return sum(key.endswith(ends) for _, key in names)


def adapted(path, loader):
    """The embedded model with the file in it; all of it, or an error."""
    pipe = mini()
    if loader == "LyCORIS":
        import lycoris.kohya

        network, tensors = lycoris.kohya.create_network_from_weights(1.0, str(path), None, pipe.text_encoder, pipe.unet)
        network.apply_to(pipe.text_encoder, pipe.unet, bool(network.text_encoder_loras), True)
        network.load_state_dict(tensors, strict=False)
        pipe.keep = network.eval()
        count = len(network.unet_loras) + len(network.text_encoder_loras)
    else:
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        if loader == "PeftModel":
            for component in sorted(p.name for p in path.iterdir()):
                PeftModel.from_pretrained(getattr(pipe, component), path / component).eval()
        else:
            pipe.load_lora_weights(path.parent, weight_name=path.name)
        models = [pipe.unet, pipe.text_encoder]
        count = sum(isinstance(module, BaseTunerLayer) for model in models for module in model.modules())
    assert count == layers_in(path), f"{path.name}: {count} of {layers_in(path)} layers"
    return pipe


def opened(path, picture, loader):
    if loader == "from_single_file":
        return prepared(StableDiffusionXLPipeline.from_single_file(path, config=str(TINY_XL), local_files_only=True))
    if loader == "from_pretrained" and picture == "baked-sdxl":
        return prepared(StableDiffusionXLPipeline.from_pretrained(path, torch_dtype=torch.float32))
    return mini(path) if loader == "from_pretrained" else adapted(path, loader)


@torch.no_grad()
def drawn(pipe, picture):
    name = TINY_XL / "expected.safetensors" if picture == "baked-sdxl" else HERE.parent / "mini/noise.safetensors"
    noise = load_file(name)["noise"]
    side = noise.shape[-1] * pipe.vae_scale_factor
    more = dict(original_size=(side, side), target_size=(side, side)) if hasattr(pipe, "text_encoder_2") else {}
    return pipe(REQUEST["prompt"], negative_prompt=REQUEST["negative"], num_inference_steps=REQUEST["steps"], height=side,
                guidance_scale=REQUEST["cfg_scale"], width=side, latents=noise.clone(), **more).images[0]


def psnr(a, b):
    a, b = (numpy.asarray(x, dtype=float) for x in (a, b))
    mean = ((a - b) ** 2).mean()
    return 99.0 if mean == 0 else float(20 * numpy.log10(255) - 10 * numpy.log10(mean))


def content_hash(path):
    """Of names, shapes, numbers and PEFT's configs; not of the metadata that only tell."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file()):
        if file.suffix != ".safetensors":
            total.update(file.read_bytes())
            continue
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        total.update((header.pop("__metadata__", None) or {}).get(CONFIG_KEY, "").encode())
        for name, entry in sorted(header.items()):
            shape = ",".join(map(str, entry["shape"]))
            total.update(f"{name} {entry['dtype']} {shape}\n".encode())
            begin, end = entry["data_offsets"]
            total.update(data[start + begin:start + end])
    return total.hexdigest()


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--scumble", type=Path, default=ROOT / "target/debug/scumble")
    options.add_argument("--keep-sources", action="store_true", help="leave dora, loha and lokr as they are")
    options = options.parse_args()
    logging.disable(logging.WARNING)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    if not options.keep_sources:
        sources()
    plain = Image.open(HERE.parent / "mini/base.png")
    kept, exports, failed = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        for picture, command, out, exact, loader in cases():
            args = [str(options.scumble), *(a.replace("{repo}", str(ROOT)) for a in command), "-o", out]
            done = subprocess.run(args, cwd=folder, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
            if done.returncode:
                failed.append(f"{out}: {done.stderr.strip()}")
                continue
            path = Path(folder) / out
            entry = {"picture": picture, "command": command, "out": out, "loaded_by": loader,
                     "sha256": content_hash(path) if exact else None}
            exports.append(entry)
            if not loader:
                continue
            try:
                image = drawn(opened(path, picture, loader), picture)
            except Exception as error:  # noqa: BLE001
                failed.append(f"{out} by {loader}: {type(error).__name__}: {str(error)[:600]}")
                continue
            first = kept.setdefault(picture, image)
            entry["psnr"] = round(psnr(image, first), 1)
            print(f"{out:32} {loader:18} {entry['psnr']:6.1f} dB to the kept picture, "
                  + (f"{psnr(image, plain):5.1f} dB to the plain one" if image.size == plain.size else ""), flush=True)
    for picture, image in kept.items():
        image.save(HERE / f"{picture}.png", optimize=True)
    lines = ",\n".join(f" {json.dumps(entry)}" for entry in exports)
    (HERE / "exports.json").write_text(f'{{"weights": {json.dumps(REQUEST["weights"])},\n"exports": [\n{lines}\n]}}\n')
    print("\n".join(failed))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
