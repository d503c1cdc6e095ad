"""Stable Diffusion 1.5's and XL's networks in diffusers with random weights, the embedded model's with its own."""

import pathlib

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

MINI = pathlib.Path(__file__).parents[2] / "sample-data" / "mini"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
CPU = torch.device("cpu")


def unet(model, dtype, device=CPU):
    if model == "mini":
        return UNet2DConditionModel.from_pretrained(MINI / "unet", torch_dtype=dtype).to(device)
    if model == "sdxl":
        return random(sdxl_unet, dtype, device)
    down, up = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    return random(lambda: UNet2DConditionModel(sample_size=64, block_out_channels=(320, 640, 1280, 1280),
                                               cross_attention_dim=768, attention_head_dim=8,
                                               down_block_types=down, up_block_types=up), dtype, device)


def sdxl_unet():
    down, up = ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",)
    return UNet2DConditionModel(sample_size=128, block_out_channels=(320, 640, 1280), down_block_types=down,
                                up_block_types=up, transformer_layers_per_block=(1, 2, 10),
                                attention_head_dim=(5, 10, 20), cross_attention_dim=2048, use_linear_projection=True,
                                addition_embed_type="text_time", addition_time_embed_dim=256,
                                projection_class_embeddings_input_dim=2816)


def vae(model, dtype, device=CPU):
    if model == "mini":
        return AutoencoderKL.from_pretrained(MINI / "vae", torch_dtype=dtype).to(device)
    scale = {"sample_size": 1024, "scaling_factor": 0.13025} if model == "sdxl" else {"sample_size": 512}
    return random(lambda: AutoencoderKL(latent_channels=4, layers_per_block=2, **scale,
                                        block_out_channels=(128, 256, 512, 512),
                                        down_block_types=("DownEncoderBlock2D",) * 4,
                                        up_block_types=("UpDecoderBlock2D",) * 4), dtype, device)


def text(model, dtype, device=CPU):
    if model == "mini":
        return CLIPTextModel.from_pretrained(MINI / "text_encoder", torch_dtype=dtype).to(device)
    return random(lambda: CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)), dtype, device)


def text_2(model, dtype, device=CPU):
    """SDXL's second text encoder, OpenCLIP's bigG."""
    return random(lambda: CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
        projection_dim=1280, hidden_act="gelu", bos_token_id=49406, eos_token_id=49407, pad_token_id=0)), dtype, device)


def random(make, dtype, device):
    """Filled straight in the wanted dtype: no f32 copy counts towards the peak."""
    with torch.device("meta"):
        model = make()
    model = model.to(dtype).to_empty(device=device)
    pool = torch.randn(1_000_003, device=device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            flat, scale = p.reshape(-1), (p.numel() // p.shape[0]) ** -0.5
            for at in range(0, flat.numel(), pool.numel()):
                part = flat[at:at + pool.numel()]
                part.copy_(pool[:part.numel()] * scale)
        for name, b in model.named_buffers():
            if name.endswith("position_ids"):
                b.copy_(torch.arange(b.shape[-1], device=device).expand_as(b))
    return model
