"""Train the autoencoder: first on crops of 32 and 64 px, then on whole 128 px pictures.

The run is measured in minutes of its own clock, kept in the checkpoint, so that
a stopped run goes on where it was: the same command with --resume.
"""
import argparse
import math
import os
import time

import numpy as np
import torch
from diffusers import AutoencoderKL

from common import PALETTE, SUBJECTS, load_pictures, on_colour, save_atomic, save_grid, to_tensor
from linear_start import linear_start
from patterns import colour, pattern, photograph


def new_vae():
    """A small AutoencoderKL: eight times smaller latents of four channels."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=128, layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 48, 96))


class Pictures:
    """Random training pictures: icons on colours, patterns, photographs."""

    def __init__(self, path, seed, pool):
        self.rng = np.random.default_rng(seed)
        self.icons, keys, photos = load_pictures(path)
        wanted = set(SUBJECTS.values())
        self.subjects = [i for i, (name, _) in enumerate(keys) if name in wanted]
        self.pool = [pattern(self.rng, self.icons) for _ in range(pool)]
        self.pool += [photograph(self.rng, photos) for _ in range(pool // 2)]

    def one(self, side):
        """One picture, or a crop of it, flipped and recoloured at random."""
        rng = self.rng
        if rng.random() < 0.3:
            picture = self.pool[rng.integers(len(self.pool))].astype(np.float32)
        else:
            subject = rng.random() < 0.5
            icon = self.icons[rng.choice(self.subjects) if subject else rng.integers(len(self.icons))]
            ground = list(PALETTE.values())[rng.integers(len(PALETTE))] if rng.random() < 0.8 else colour(rng)
            picture = on_colour(icon, ground)
        y, x = rng.integers(0, 128 - side + 1, 2)
        picture = picture[y:y + side, x:x + side]
        if rng.random() < 0.5:
            picture = picture[:, ::-1]
        return picture[..., rng.permutation(3)] if rng.random() < 0.15 else picture

    def batch(self, count, side):
        return to_tensor([self.one(side) for _ in range(count)])


def slopes(x):
    """Differences of neighbours along both axes."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def losses(vae, x, noise, square):
    """Absolute or squared error, error of the edges, and the KL term."""
    posterior = vae.encode(x).latent_dist
    z = posterior.mean + noise * posterior.std * torch.randn_like(posterior.mean)
    y = vae.decode(z).sample.float()
    error = (y - x).abs().mean() + square * (y - x).square().mean()
    edges = sum((a - b).abs().mean() for a, b in zip(slopes(y), slopes(x)))
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
    return error + 0.5 * edges + 3e-4 * kl, (y - x).abs().mean().item(), kl.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data.npz")
    parser.add_argument("--out", default="run")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--batch", type=int, default=2, help="whole pictures a step; more crops")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    path = f"{args.out}/vae.pt"
    torch.manual_seed(args.seed)
    vae = new_vae()
    linear_start(vae)
    vae = vae.to(args.device, memory_format=torch.channels_last)
    opt = torch.optim.AdamW(vae.parameters(), 2e-3, betas=(0.9, 0.98), weight_decay=0)
    step, clock = 0, 0.0
    if args.resume and os.path.exists(path):
        state = torch.load(path, map_location=args.device)
        vae.load_state_dict(state["vae"])
        step, clock = state["step"], state["clock"]
        opt.load_state_dict(state["opt"])
    pictures = Pictures(args.data, args.seed + step, 600)
    shown = pictures.batch(24, 128)
    last, saved, seen = time.time(), time.time(), []
    while clock < args.minutes * 60:
        part = clock / (args.minutes * 60)
        opt.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * part) + 0.01)
        side = 32 if part < 0.45 else 64 if part < 0.75 else 128
        count = args.batch * (128 // side) ** 2 // (2 if side == 32 else 1)
        x = pictures.batch(count, side).to(args.device, memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16, enabled=args.device == "cuda"):
            loss, l1, kl = losses(vae, x, min(1, step / 500), max(0, 2 - 6 * part))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        step, now = step + 1, time.time()
        clock, last = clock + now - last, now
        seen.append((l1, kl))
        if step % 50 == 0:
            mean = np.mean(seen, 0)
            print(f"{step} {clock:.0f}s l1 {mean[0]:.4f} kl {mean[1]:.2f}", flush=True)
            seen = []
        if now - saved > 180 or clock >= args.minutes * 60:
            saved = now
            save_atomic({"vae": vae.state_dict(), "opt": opt.state_dict(), "step": step, "clock": clock}, path)
            with torch.no_grad():
                y = torch.cat([vae(part.to(args.device)).sample.cpu() for part in shown.split(4)])
            pairs = [p for i in range(0, 24, 8) for p in (shown[i:i + 8], y[i:i + 8])]
            save_grid(torch.cat(pairs), 8, f"{args.out}/vae.png")
            last = time.time()
    with torch.no_grad():
        z = torch.cat([vae.encode(pictures.batch(8, 128).to(args.device)).latent_dist.mean for _ in range(32)])
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    vae.save_pretrained(f"{args.out}/vae")
    print("scaling factor", vae.config.scaling_factor)


if __name__ == "__main__":
    main()
