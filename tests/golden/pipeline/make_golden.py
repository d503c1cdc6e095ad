"""Makes the pipeline goldens: tiny random models in diffusers' layout, shaped as SD1, SD2 (v-prediction) and SDXL, and
what diffusers draws with each from a given noise, with and without an adapter.

    pip install torch diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
    python tests/golden/pipeline/make_golden.py
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import (AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline,
                       UNet2DConditionModel)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

HERE = Path(__file__).parent
FAMILIES = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
PROMPT, NEGATIVE = "a red house on a hill, at dawn", "blurry, dark"
SIZE = 32  # pixels; 16 latent ones


def tokenizer(folder, pad):
    """Single letters and a few merges, in CLIP's format."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    merges = [("h", "o"), ("u", "s"), ("us", "e</w>"), ("ho", "use</w>"), ("r", "e"), ("re", "d</w>"), ("a", "t</w>")]
    tokens = letters + [c + "</w>" for c in letters] + [a + b for a, b in merges] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        "pad_token": pad, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}))
    return CLIPTokenizer.from_pretrained(folder), len(tokens)


def text_encoder(vocab, width, projects, act):
    cls = CLIPTextModelWithProjection if projects else CLIPTextModel
    return cls(CLIPTextConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=width, hidden_act=act, bos_token_id=vocab - 2,
        eos_token_id=vocab - 1, pad_token_id=vocab - 1))


def vae():
    return AutoencoderKL(block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                         up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
                         layers_per_block=1, sample_size=SIZE)


def unet(family, width):
    common = dict(sample_size=SIZE // 2, norm_num_groups=4, layers_per_block=1, cross_attention_dim=width,
                  block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=4)
    if family == "sdxl":
        common |= dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), use_linear_projection=True,
                       up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
                       addition_embed_type="text_time", addition_time_embed_dim=4,
                       projection_class_embeddings_input_dim=24 + 6 * 4)
    if family == "sd2":
        common |= dict(use_linear_projection=True)
    return UNet2DConditionModel(**common)


def louder(model):
    """Random weights barely react to text; make them."""
    for parameter in model.parameters():
        parameter.data = (parameter.data * 1.6).half().float()


def pipeline(family):
    torch.manual_seed({"sd1": 1, "sd2": 2, "sdxl": 3}[family])
    folder = HERE / family
    shutil.rmtree(folder, ignore_errors=True)
    pad = "!" if family == "sd2" else "<|endoftext|>"
    words, vocab = tokenizer(folder / "tokenizer", pad)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1,
                              prediction_type="v_prediction" if family == "sd2" else "epsilon")
    te = text_encoder(vocab, 16, False, "gelu" if family == "sd2" else "quick_gelu")
    parts = dict(vae=vae(), scheduler=scheduler, text_encoder=te, tokenizer=words)
    if family == "sdxl":
        second, _ = tokenizer(folder / "tokenizer_2", "!")
        te2 = text_encoder(vocab, 24, True, "gelu")
        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=te2, tokenizer_2=second, unet=unet(family, 40))
    else:
        pipe = StableDiffusionPipeline(**parts, unet=unet(family, 16), safety_checker=None, feature_extractor=None,
                                       requires_safety_checker=False)
    for component in [pipe.vae, pipe.text_encoder, pipe.unet, getattr(pipe, "text_encoder_2", None)]:
        if component is not None:
            louder(component)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, noise, output_type):
    more = dict(original_size=(SIZE, SIZE), target_size=(SIZE, SIZE)) if hasattr(pipe, "text_encoder_2") else {}
    picture = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=20, guidance_scale=5.0, height=SIZE,
                   width=SIZE, latents=noise.clone(), output_type=output_type, **more).images
    return picture if output_type == "latent" else torch.from_numpy(picture).permute(0, 3, 1, 2)


def adapter(pipe, file):
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "q_proj", "v_proj", "fc1"]
    state, configs = {}, {}
    for name in ["unet", "text_encoder", "text_encoder_2"]:
        model = getattr(pipe, name, None)
        if model is None:
            continue
        model.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=targets, init_lora_weights=False))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = (torch.randn_like(parameter) * 0.25).half().float()
        state[f"{name}_lora_layers"] = get_peft_model_state_dict(model)
        config = model.peft_config["default"].to_dict()
        configs[f"{name}_lora_adapter_metadata"] = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        (model.delete_adapters if name == "unet" else model.delete_adapter)("default")
    pipe.save_lora_weights(file.parent, **state, **configs, weight_name=file.name)


def family_files(family):
    pipe = pipeline(family)
    folder = HERE / family
    noise = torch.randn(1, 4, SIZE // 2, SIZE // 2)
    with torch.no_grad():
        out = {"noise": noise, "latents": draw(pipe, noise, "latent"), "picture": draw(pipe, noise, "np")}
        adapter(pipe, folder / "adapter.safetensors")
        pipe.load_lora_weights(folder, weight_name="adapter.safetensors")
        out["adapted_latents"] = draw(pipe, noise, "latent")
        pipe.unload_lora_weights()
        again = (draw(pipe, noise, "latent") - out["latents"]).abs().max() / out["latents"].abs().max()
        assert again < 1e-4, again  # threads make the last digits vary
    change = (out["adapted_latents"] - out["latents"]).abs().max() / out["latents"].abs().max()
    print(family, "latents up to", out["latents"].abs().max().item(), "adapter changes", change.item())
    save_file({k: v.float().contiguous() for k, v in out.items()}, folder / "expected.safetensors")
    pipe.to(torch.float16).save_pretrained(folder)
    for extra in folder.rglob("*"):
        if extra.name in ["tokenizer.json", "special_tokens_map.json", "README.md"]:
            extra.unlink()


if __name__ == "__main__":
    for family in FAMILIES:
        family_files(family)
    print(sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file()) / 1e6, "MB")
