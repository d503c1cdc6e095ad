"""Text to image through diffusers, as a small program would do it: a model on the disk, a prompt, a PNG.

The first denoising step's begin and the end of each are JSON lines.
"""

import argparse
import json
import os

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--size", type=int, required=True)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--precision", default="f32")
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--compile", action="store_true")
parser.add_argument("--out", required=True)
args = parser.parse_args()

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch  # noqa: E402
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline  # noqa: E402

torch.set_num_threads(args.threads)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[args.precision]
pipe = StableDiffusionPipeline.from_pretrained(args.model, torch_dtype=dtype).to(args.device)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
if args.compile:
    pipe.unet = torch.compile(pipe.unet)


def begins(unet, inputs):
    print(json.dumps({"begins": True}), flush=True)
    first.remove()


def step(pipe, index, timestep, tensors):
    print(json.dumps({"step": index + 1}), flush=True)
    return tensors


first = pipe.unet.register_forward_pre_hook(begins)
picture = pipe("a lighthouse", height=args.size, width=args.size, num_inference_steps=args.steps, guidance_scale=7.0,
               generator=torch.Generator("cpu").manual_seed(1), callback_on_step_end=step).images[0]
picture.save(args.out)
