"""Train the UNet on stored latents and stored caption embeddings.

The run is measured in minutes of its own clock, kept in the checkpoint, so that a
stopped run goes on where it was (--resume); more --minutes prolong it.
"""
import argparse
import json
import math
import os
import random
import time

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from common import COLOURS, PALETTE, STYLES, SUBJECTS, load_pictures, on_colour, save_atomic, save_grid, to_tensor
from linear_start import linear_start_unet
from train_text import caption, load_tokenizer

SCHEDULE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon")


def new_unet():
    """SD1's plan, small: attention on the two upper levels, four heads."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, cross_attention_dim=128,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64, 128), attention_head_dim=4, norm_num_groups=8)


def held_out(count=32):
    """The combinations that are never trained on, always the same."""
    every = [(n, s, c) for n in SUBJECTS for s in STYLES for c in COLOURS]
    return sorted(random.Random(7).sample(every, count))


@torch.no_grad()
def store_latents(args, vae):
    """Latents of every combination that is trained on, with random scales and shifts after the first variant."""
    path = f"{args.out}/latents.pt"
    if os.path.exists(path):
        return torch.load(path)
    icons, keys, _ = load_pictures(args.data)
    rng, skip, rows, latents = np.random.default_rng(args.seed), set(held_out()), [], []
    for variant in range(args.variants):
        for subject, name in SUBJECTS.items():
            for style in STYLES:
                icon = icons[keys.index((name, style))]
                pad, mirror = ((0, 0), False) if variant == 0 else (rng.integers(-8, 9, 2), rng.random() < 0.5)
                icon = np.roll(icon, pad, (0, 1))[:, ::-1] if mirror else np.roll(icon, pad, (0, 1))
                todo = [c for c in COLOURS if (subject, style, c) not in skip]
                x = to_tensor([on_colour(icon, PALETTE[c]) for c in todo]).to(args.device)
                latents.append(vae.encode(x).latent_dist.mean.cpu() * vae.config.scaling_factor)
                rows += [(subject, style, c) for c in todo]
    save_atomic((torch.cat(latents), rows), path)
    return torch.cat(latents), rows


@torch.no_grad()
def store_captions(args):
    """Embeddings of every caption: a dictionary from caption to row, and the rows."""
    tokenizer = load_tokenizer(f"{args.out}/tokenizer")
    encoder = CLIPTextModel.from_pretrained(f"{args.out}/text_encoder").to(args.device).eval()
    texts = [""] + [caption(n, s, c, form) for n in SUBJECTS for s in [None, *STYLES]
                    for c in [None, *COLOURS] for form in (0, 1)]
    rows = []
    for start in range(0, len(texts), 64):
        ids = tokenizer(texts[start:start + 64], padding="max_length", max_length=77, return_tensors="pt").input_ids
        rows.append(encoder(ids.to(args.device)).last_hidden_state.cpu().half())
    return {text: row for row, text in enumerate(texts)}, torch.cat(rows)


def pick(rng, row):
    """A random caption for one picture: parts dropped, or nothing at all."""
    subject, style, colour = row
    if rng.random() < 0.1:
        return ""
    return caption(subject, style if rng.random() < 0.85 else None, colour if rng.random() < 0.85 else None,
                   int(rng.random() < 0.25))


@torch.no_grad()
def draw(unet, vae, context, empty, steps=20, guidance=4.0, seed=1):
    """Pictures of the given caption embeddings, by DDIM with guidance."""
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    x = torch.randn(len(context), 4, 16, 16, generator=torch.Generator().manual_seed(seed)).to(context.device)
    both = torch.cat([empty.expand_as(context), context])
    for t in scheduler.timesteps:
        without, with_text = unet(torch.cat([x, x]), t, both).sample.chunk(2)
        x = scheduler.step(without + guidance * (with_text - without), t, x).prev_sample
    return torch.cat([vae.decode(part / vae.config.scaling_factor).sample for part in x.split(8)])


def show(args, unet, vae, ema, table, embeddings):
    """Draw held-out combinations with the averaged weights."""
    shown = new_unet().to(args.device).eval()
    shown.load_state_dict(dict(zip([n for n, _ in unet.named_parameters()], ema)))
    context = embeddings[[table[caption(*row)] for row in held_out()[::2]]].float().to(args.device)
    save_grid(draw(shown, vae, context, embeddings[:1].float().to(args.device)), 8, f"{args.out}/unet.png")
    shown.save_pretrained(f"{args.out}/unet")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data.npz")
    parser.add_argument("--out", default="run")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--variants", type=int, default=1, help="shifted and mirrored copies of each picture")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    vae = AutoencoderKL.from_pretrained(f"{args.out}/vae").to(args.device).eval()
    latents, rows = store_latents(args, vae)
    table, embeddings = store_captions(args)
    with open(f"{args.out}/held-out.json", "w", encoding="utf-8") as file:
        json.dump([list(row) for row in held_out()], file)
    unet = new_unet()
    linear_start_unet(unet)
    unet = unet.to(args.device)
    params, path = list(unet.parameters()), f"{args.out}/unet.pt"
    opt = torch.optim.AdamW(params, args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    ema, step, clock = [p.detach().clone() for p in params], 0, 0.0
    if args.resume and os.path.exists(path):
        state = torch.load(path, map_location=args.device)
        unet.load_state_dict(state["unet"])
        opt.load_state_dict(state["opt"])
        ema, step, clock = state["ema"], state["step"], state["clock"]
    rng = random.Random(args.seed + step)
    signal = DDIMScheduler(**SCHEDULE).alphas_cumprod
    last, saved, seen, end = time.time(), clock, [], args.minutes * 60
    while clock < end:
        rate = args.rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * clock / end) + 0.01)
        opt.param_groups[0]["lr"] = rate
        chosen = [rng.randrange(len(rows)) for _ in range(args.batch)]
        z = latents[chosen].to(args.device)
        context = embeddings[[table[pick(rng, rows[i])] for i in chosen]].to(args.device).float()
        t = torch.randint(0, 1000, (args.batch,))
        a = signal[t].view(-1, 1, 1, 1).to(args.device)
        noise = torch.randn_like(z)
        with torch.autocast("cuda", torch.bfloat16, enabled=args.device == "cuda"):
            guess = unet(a.sqrt() * z + (1 - a).sqrt() * noise, t.to(args.device), context).sample.float()
        error = (guess - noise).square().mean((1, 2, 3))
        snr = (a / (1 - a)).flatten()
        loss = (error * snr.clamp(max=5) / snr).mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        step, now = step + 1, time.time()
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - min(0.9995, (1 + step) / (10 + step)))
        clock, last = clock + now - last, now
        seen.append(error.mean().item())
        if step % 25 == 0:
            print(f"{step} {clock:.0f}s error {np.mean(seen):.4f} {step * args.batch / clock:.1f} images/s", flush=True)
            seen = []
        if clock - saved > 240 or clock >= end:
            saved = clock
            state = {"unet": unet.state_dict(), "opt": opt.state_dict(), "ema": ema, "step": step, "clock": clock}
            save_atomic(state, path)
            show(args, unet, vae, ema, table, embeddings)
            last = time.time()


if __name__ == "__main__":
    main()
