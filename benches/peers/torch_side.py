"""One measurement through PyTorch, diffusers and peft, as one JSON line: the same work as `scumble bench`.

sd1 and sdxl have random weights in the exact architectures of Stable Diffusion 1.5 and XL; mini is the model under
sample-data/mini. Attention is PyTorch's scaled_dot_product_attention, as diffusers has it by default.
Peak memory is this process's (ru_maxrss; on a GPU, the allocator's), so one task a process.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", choices=["sd1", "sdxl", "mini"], required=True)
parser.add_argument("--task", required=True)
parser.add_argument("--size", type=int, required=True)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--rank", type=int, default=8, help="of the adapter that is trained [8]")
parser.add_argument("--precision", choices=["f32", "bf16", "f16"], default="f32")
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--warmup", type=int, default=1)
parser.add_argument("--compile", action="store_true")
parser.add_argument("--error", action="store_true", help="how far the result is from the same in f32")
args = parser.parse_args()

os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch  # noqa: E402
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler  # noqa: E402
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: E402

import networks  # noqa: E402

torch.set_num_threads(args.threads)
torch.manual_seed(0)
DEVICE, CUDA = torch.device(args.device), args.device.startswith("cuda")
DTYPE = networks.DTYPES[args.precision]
STEPS, TOKENS = 20, 77
if CUDA:
    torch.cuda.set_device(DEVICE)


def network(which):
    return getattr(networks, which)(args.model, DTYPE, DEVICE)


def compiled(f):
    return torch.compile(f) if args.compile else f


def noise(*shape):
    return torch.randn(args.batch, *shape, device=DEVICE).to(DTYPE)


def latents(unet):
    side = args.size // 8
    return noise(4, side, side), noise(TOKENS, unet.config.cross_attention_dim), added(unet.config)


def added(config):
    """What SDXL's network is told beside the words: all of the text in one vector, and the picture's sizes."""
    if config.addition_embed_type is None:
        return None
    ids = torch.tensor([args.size, args.size, 0, 0, args.size, args.size], device=DEVICE).to(DTYPE)
    pooled = noise(config.projection_class_embeddings_input_dim - len(ids) * config.addition_time_embed_dim)
    return {"text_embeds": pooled, "time_ids": ids.expand(args.batch, len(ids))}


def inference(f):
    """What a single network computes comes back, so that precisions can be compared."""
    def run():
        with torch.inference_mode():
            return f()
    return run


def task_unet():
    unet = network("unet").eval()
    x, context, more = latents(unet)
    f, t = compiled(unet), torch.tensor([500], device=DEVICE)
    return inference(lambda: f(x, t, encoder_hidden_states=context, added_cond_kwargs=more, return_dict=False))


def task_train(checkpointing=False):
    from peft import LoraConfig

    unet = network("unet").train().requires_grad_(False)
    unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, init_lora_weights="gaussian",
                                target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    factors = [p for p in unet.parameters() if p.requires_grad]
    for p in factors:
        p.data = p.data.float()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(factors, lr=1e-4, weight_decay=1e-2)
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    z, context, more = latents(unet)
    f, mixed = compiled(unet), DTYPE != torch.float32

    def run():
        target = torch.randn_like(z)
        t = torch.randint(0, 1000, (args.batch,), device=DEVICE)
        with torch.autocast(DEVICE.type, dtype=DTYPE if mixed else torch.bfloat16, enabled=mixed):
            y = f(schedule.add_noise(z, target, t), t, encoder_hidden_states=context, added_cond_kwargs=more,
                  return_dict=False)[0]
        torch.nn.functional.mse_loss(y.float(), target.float()).backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return run


def task_train_checkpointing():
    return task_train(checkpointing=True)


def task_vae_decode():
    model = network("vae").eval()
    model.encoder = None
    z, f = noise(4, args.size // 8, args.size // 8), compiled(model.decode)
    return inference(lambda: f(z, return_dict=False))


def task_vae_encode():
    model = network("vae").eval()
    model.decoder = None
    x, f = noise(3, args.size, args.size), compiled(model.encode)
    return inference(lambda: (f(x, return_dict=False)[0].mean,))


def task_text():
    model = network("text").eval()
    ids, f = torch.arange(TOKENS, device=DEVICE).expand(args.batch, TOKENS), compiled(model)
    return inference(lambda: (f(ids)[0],))


def task_generate():
    """Text encoding is inside; splitting the prompt into tokens is not."""
    solver = DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts = {"vae": network("vae").eval(), "text_encoder": network("text").eval(), "tokenizer": None,
             "unet": network("unet").eval(), "scheduler": solver}
    pipe, encode = (sdxl if args.model == "sdxl" else sd)(parts)
    pipe.set_progress_bar_config(disable=True)
    if args.compile:
        pipe.unet, pipe.vae.decode = torch.compile(pipe.unet), torch.compile(pipe.vae.decode)

    def run():
        pipe(**encode(), height=args.size, width=args.size, num_inference_steps=STEPS, guidance_scale=7.0,
             generator=torch.Generator("cpu").manual_seed(1), output_type="pil")
    return inference(run)


def sd(parts):
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    ids = torch.arange(TOKENS, device=DEVICE).expand(2 * args.batch, TOKENS)

    def encode():
        states = pipe.text_encoder(ids)[0]
        return {"prompt_embeds": states[:args.batch], "negative_prompt_embeds": states[args.batch:]}
    return pipe, encode


def sdxl(parts):
    """Both encoders' last states but one, side by side; the empty negative prompt is zeros, as in the model's own."""
    pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=network("text_2").eval(), tokenizer_2=None,
                                     add_watermarker=False)
    ids = torch.arange(TOKENS, device=DEVICE).expand(args.batch, TOKENS)

    def encode():
        first, second = (f(ids, output_hidden_states=True) for f in (pipe.text_encoder, pipe.text_encoder_2))
        states, pooled = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds
        return {"prompt_embeds": states, "negative_prompt_embeds": torch.zeros_like(states),
                "pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": torch.zeros_like(pooled)}
    return pipe, encode


def error():
    global DTYPE
    outputs = []
    for DTYPE in (DTYPE, torch.float32):
        torch.manual_seed(0)
        outputs.append(globals()["task_" + args.task.replace("-", "_")]()())
    if not all(outputs):
        return None
    found, exact = (output[0].double() for output in outputs)
    return ((found - exact).norm() / exact.norm()).item()


def say(key, value):
    """What is known even if the time is up before the end."""
    print(json.dumps({key: value}), flush=True)


def main():
    work = globals()["task_" + args.task.replace("-", "_")]()
    wait = torch.cuda.synchronize if CUDA else (lambda: None)
    for _ in range(args.warmup):
        say("pass", True)
        work()
    wait()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    seconds, processor = [], time.process_time()
    for _ in range(args.runs):
        say("pass", True)
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
        say("run", seconds[-1])
    processor = (time.process_time() - processor) / args.runs
    peak = torch.cuda.max_memory_allocated() if CUDA else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    versions = {p: importlib.metadata.version(p) for p in ("torch", "diffusers", "transformers", "peft")}
    print(json.dumps({"seconds": statistics.median(seconds), "runs": seconds, "processor_seconds": processor,
                      "peak_mib": peak / 2**20, "error": error() if args.error else None, "threads": args.threads,
                      "versions": versions}))


main()
