"""Draws with diffusers what scumble must draw on the embedded model: DDIM, 20 steps, from a given noise; without and
with `adapter.safetensors`, which scumble trained. Run again whenever the embedded model changes.

    scumble train sample-data/riso --model sample-data/mini --out tests/golden/mini/adapter.safetensors --steps 12 \\
        --rank 4 --alpha 2 --learning-rate 0.01 --lr-schedule constant --warmup-steps 0 --resolution 64 --seed 1 \\
        --layers attention,feed_forward,projection,convolution --train-text-encoder --text-encoder-lr 0.003

    pip install torch diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
    python tests/golden/mini/make_golden.py
"""

import hashlib
import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

HERE = Path(__file__).parent
MODEL = HERE.parents[2] / "sample-data/mini"
REQUEST = {"prompt": "a red house, flat icon, blue background", "negative": "blurry", "steps": 20, "cfg_scale": 5.0}


def draw(pipe, noise):
    return pipe(REQUEST["prompt"], negative_prompt=REQUEST["negative"], num_inference_steps=REQUEST["steps"],
                guidance_scale=REQUEST["cfg_scale"], latents=noise.clone()).images[0]


if __name__ == "__main__":
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size
    noise = torch.randn(1, pipe.unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(7))
    save_file({"noise": noise}, HERE / "noise.safetensors")
    with torch.no_grad():
        draw(pipe, noise).save(HERE / "base.png")
        if (HERE / "adapter.safetensors").exists():
            pipe.load_lora_weights(HERE, weight_name="adapter.safetensors")
            draw(pipe, noise).save(HERE / "adapted.png")
    weights = {f.parent.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(MODEL.glob("*/*.safetensors"))}
    (HERE / "request.json").write_text(json.dumps(REQUEST | {"weights": weights}, indent=1) + "\n")
