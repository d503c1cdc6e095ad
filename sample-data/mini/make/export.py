"""Write the trained parts as an f16 diffusers folder, check that it loads, and draw the contact sheet."""
import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from train_text import caption
from train_unet import SCHEDULE, held_out

INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "requires_safety_checker": False,
    "feature_extractor": [None, None], "image_encoder": [None, None], "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
           "unk_token": "<|endoftext|>"}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def classic(name):
    """The text encoder's tensor names as Stable Diffusion checkpoints have them."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def write_model(source, target, file, rename=lambda name: name):
    """One part: its config without local paths, its tensors in f16."""
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    for key in ("_name_or_path", "dtype", "torch_dtype"):
        config.pop(key, None)
    write_json(target / "config.json", config)
    tensors = load_file(source / file)
    tensors = {rename(n): t.half().contiguous() for n, t in tensors.items() if not n.endswith("position_ids")}
    save_file(tensors, target / file, metadata={"format": "pt"})
    return sum(t.numel() for t in tensors.values())


def contact_sheet(pipe, path, steps, guidance):
    """The held-out combinations, each with its caption below it."""
    rows = held_out()
    sheet = Image.new("RGB", (8 * 136, (len(rows) + 7) // 8 * 158), "white")
    pen = ImageDraw.Draw(sheet)
    for start in range(0, len(rows), 8):
        texts = [caption(*row) for row in rows[start:start + 8]]
        seed = torch.Generator().manual_seed(1)
        images = pipe(texts, num_inference_steps=steps, guidance_scale=guidance, generator=seed).images
        for column, (image, row) in enumerate(zip(images, rows[start:start + 8])):
            sheet.paste(image, (column * 136 + 4, start // 8 * 158 + 4))
            pen.text((column * 136 + 5, start // 8 * 158 + 134), f"{row[0]}, {row[1]},\n{row[2]}", "black", font_size=10)
    sheet.save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="run", type=Path)
    parser.add_argument("--out", default="..", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    args = parser.parse_args()
    weights = "diffusion_pytorch_model.safetensors"
    counts = {
        "vae": write_model(args.run / "vae", args.out / "vae", weights),
        "unet": write_model(args.run / "unet", args.out / "unet", weights),
        "text_encoder": write_model(args.run / "text_encoder", args.out / "text_encoder", "model.safetensors", classic),
    }
    write_json(args.out / "model_index.json", INDEX)
    scheduler = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.42.1", **SCHEDULE}
    write_json(args.out / "scheduler/scheduler_config.json", scheduler)
    tokenizer = args.out / "tokenizer"
    write_json(tokenizer / "special_tokens_map.json", SPECIAL)
    write_json(tokenizer / "tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "add_prefix_space": False,
        **SPECIAL})
    for name in ("vocab.json", "merges.txt"):
        (tokenizer / name).write_bytes((args.run / "tokenizer" / name).read_bytes())
    write_json(args.out / "held-out.json", [{"subject": n, "style": s, "background": c} for n, s, c in held_out()])
    pipe = StableDiffusionPipeline.from_pretrained(args.out, torch_dtype=torch.float32)
    parts = [(pipe.vae, AutoencoderKL), (pipe.unet, UNet2DConditionModel), (pipe.scheduler, DDIMScheduler)]
    assert all(isinstance(part, kind) for part, kind in parts)
    stored = load_file(args.out / "text_encoder/model.safetensors")
    loaded = {classic(n): t for n, t in pipe.text_encoder.state_dict().items()}
    assert all(torch.equal(loaded[n], t.float()) for n, t in stored.items()), "text encoder did not load as written"
    contact_sheet(pipe, args.out / "contact-sheet.png", args.steps, args.guidance)
    print({name: f"{count / 1e6:.2f} M" for name, count in counts.items()})


if __name__ == "__main__":
    main()
