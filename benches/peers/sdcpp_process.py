"""Text to image through stable-diffusion.cpp: a model in one file, a prompt, a PNG."""

import argparse

from stable_diffusion_cpp import StableDiffusion

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--size", type=int, required=True)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--out", required=True)
args = parser.parse_args()

model = StableDiffusion(model_path=args.model, n_threads=args.threads, vae_decode_only=True, verbose=False)
pictures = model.generate_image(prompt="a lighthouse", width=args.size, height=args.size, sample_steps=args.steps,
                                cfg_scale=7.0, sample_method="dpm++2m", seed=1)
pictures[0].save(args.out)
