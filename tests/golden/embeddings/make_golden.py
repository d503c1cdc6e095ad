"""Makes the textual-inversion goldens: what diffusers' text encoders give for prompts that call embeddings, on the tiny
models of `tests/golden/pipeline` (run its script first).

    pip install torch diffusers==0.42.1 transformers==5.23.0 safetensors==0.8.0
    python tests/golden/embeddings/make_golden.py
"""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
MODELS = HERE.parent / "pipeline"
PROMPT, NEGATIVE = "a red house, inkwash on hill, trio", "blurry trio, dark"


def vectors(count, *widths):
    return [(torch.randn(count, width) * 0.5).half() for width in widths]


def sd1():
    pipe = StableDiffusionPipeline.from_pretrained(MODELS / "sd1", torch_dtype=torch.float32, safety_checker=None)
    save_file({"emb_params": vectors(1, 16)[0]}, HERE / "sd1/inkwash.safetensors")
    # Three vectors: in diffusers the words trio, trio_1, trio_2.
    save_file({"string_to_param.*": vectors(3, 16)[0]}, HERE / "sd1/trio.safetensors")
    for name in ["inkwash", "trio"]:
        (embedding,) = load_file(HERE / f"sd1/{name}.safetensors").values()
        pipe.load_textual_inversion({name: embedding.float()}, token=name)
    positive, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    return {"positive": positive, "negative": negative}


def sdxl():
    pipe = StableDiffusionXLPipeline.from_pretrained(MODELS / "sdxl", torch_dtype=torch.float32)
    for name, count in [("inkwash", 1), ("trio", 3)]:
        clip_l, clip_g = vectors(count, 16, 24)
        save_file({"clip_l": clip_l, "clip_g": clip_g}, HERE / f"sdxl/{name}.safetensors")
        for embedding, encoder, words in [(clip_l, pipe.text_encoder, pipe.tokenizer),
                                          (clip_g, pipe.text_encoder_2, pipe.tokenizer_2)]:
            pipe.load_textual_inversion({name: embedding.float()}, token=name, text_encoder=encoder, tokenizer=words)
    names = ["positive", "negative", "positive_pooled", "negative_pooled"]
    return dict(zip(names, pipe.encode_prompt(PROMPT, device="cpu", negative_prompt=NEGATIVE)))


if __name__ == "__main__":
    for family in [sd1, sdxl]:
        torch.manual_seed(5)
        folder = HERE / family.__name__
        folder.mkdir(exist_ok=True)
        with torch.no_grad():
            out = family()
        save_file({name: tensor.contiguous() for name, tensor in out.items()}, folder / "expected.safetensors")
        print(family.__name__, {name: (tuple(t.shape), t.abs().max().item()) for name, t in out.items()})
