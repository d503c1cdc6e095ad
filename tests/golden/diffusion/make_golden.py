"""Writes solvers.json: what diffusers and k-diffusion do with a fixed analytic "network".

    pip install diffusers==0.42.1 torch numpy scipy pillow safetensors tqdm
    pip install --no-deps k-diffusion==0.1.1 torchsde==0.2.6 trampoline
    python make_golden.py

The network is linear in x and depends on the timestep, so that a wrong scale, timestep or order shows:
    epsilon: (t / 1000) x + 0.1 cos(t / 100) p        v: (0.3 - t / 2000) x + 0.1 cos(t / 100) p
A trajectory is every input the network saw (in its own, variance-preserving scale), then the final latents.
All arrays are flattened; solvers are elementwise. Noises are recorded and fed to both sides.
"""
import importlib
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import torch

import diffusers
from diffusers import (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
                       EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler, LCMScheduler,
                       UniPCMultistepScheduler)


def import_k_diffusion():
    """k_diffusion/__init__ pulls in training code; only its samplers are wanted."""
    root = next(Path(p) / "k_diffusion" for p in sys.path if (Path(p) / "k_diffusion").is_dir())
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(root)]
    sys.modules["k_diffusion"] = package
    for name in ["torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchdiffeq"]:
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision.transforms"].functional = None
    sys.modules["torchdiffeq"].odeint = None
    return importlib.import_module("k_diffusion.sampling"), importlib.import_module("k_diffusion.external")


K, KE = import_k_diffusion()
SHAPE = (2, 2, 2, 2)
GEN = torch.Generator().manual_seed(20)
START = torch.randn(SHAPE, generator=GEN)
PATTERN = torch.randn(SHAPE, generator=GEN)
NOISES = [torch.randn(SHAPE, generator=GEN) for _ in range(24)]
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
SD1 = dict(SD, steps_offset=1, set_alpha_to_one=False, timestep_spacing="leading")
ZERO = dict(SD, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")


def network(x, t, kind):
    t = float(t)
    slope = t / 1000 if kind == "epsilon" else 0.3 - t / 2000
    return slope * x + 0.1 * math.cos(t / 100) * PATTERN


def digits(tensor):
    return [float(f"{v:.7g}") for v in torch.as_tensor(tensor).double().flatten().tolist()]


def fractional_t(sigma, alphas_cumprod):
    log = np.log(((1 - alphas_cumprod) / alphas_cumprod) ** 0.5)
    return float(np.interp(math.log(sigma), log, np.arange(len(log))))


def via_diffusers(name, sampler, cls, config, steps, schedule="normal", eta=None, clip=None, **kwargs):
    """Runs a diffusers scheduler; noise number i of the run is NOISES[i]."""
    config = dict(config)
    kind = config.get("prediction_type", "epsilon")
    options = {k: v for k, v in config.items() if k in cls.__init__.__wrapped__.__code__.co_varnames}
    if cls in (DDIMScheduler, DDPMScheduler, LCMScheduler):
        options["clip_sample"] = False
    scheduler = cls(**options, **kwargs)
    scheduler.set_timesteps(steps)
    drawn = iter(NOISES)
    module = sys.modules[cls.__module__]
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda *a, **k: next(drawn).clone()
    variance_preserving = cls in (DDIMScheduler, DDPMScheduler, LCMScheduler, UniPCMultistepScheduler,
                                  DPMSolverMultistepScheduler)
    sigma0 = 0 if variance_preserving else float(scheduler.sigmas[0])
    x = START * math.sqrt(1 + sigma0**2)
    inputs, timesteps = [], []
    alphas = scheduler.alphas_cumprod.double().numpy().clip(2.0**-24)
    interpolated = schedule != "normal" or cls is KDPM2DiscreteScheduler
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t)
        if interpolated:  # diffusers rounds these timesteps; show the network where it really is
            sigma = scheduler.sigmas[i]
            if cls is KDPM2DiscreteScheduler and not scheduler.state_in_first_order:
                sigma = scheduler.sigmas_interpol[i]
            scaled = x if variance_preserving else x / (sigma**2 + 1) ** 0.5
            shown = fractional_t(float(sigma), alphas)
        else:
            shown = float(t)
        inputs.append(scaled)
        timesteps.append(shown)
        extra = {}
        if cls is DDIMScheduler and eta:
            extra = dict(eta=eta, variance_noise=NOISES[i])
        x = scheduler.step(network(scaled, shown, kind), t, x, **extra).prev_sample
    return dict(name=name, source=f"diffusers {cls.__name__}", sampler=sampler, schedule=schedule, steps=steps, eta=eta,
                config=config, timesteps=digits(timesteps), inputs=[digits(v) for v in inputs], final=digits(x))


def via_k_diffusion(name, sampler, function, config, steps, schedule, eta=None, brownian=False):
    """Runs a k-diffusion sampler; step i draws NOISES[i] (and NOISES[steps + i] where a step needs two)."""
    kind = config.get("prediction_type", "epsilon")
    alphas = DDIMScheduler(**config).alphas_cumprod.clamp(min=2.0**-24)
    calls = []

    def model(x, t, **kwargs):
        calls.append((x.clone(), float(t[0])))
        return network(x, t[0], kind)

    wrapper = KE.DiscreteEpsDDPMDenoiser if kind == "epsilon" else KE.DiscreteVDDPMDenoiser
    denoiser = wrapper(model, alphas.double(), quantize=False)
    low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
    sigmas = {"normal": lambda: denoiser.get_sigmas(steps).double(),
              "karras": lambda: K.get_sigmas_karras(steps, low, high).double(),
              "exponential": lambda: K.get_sigmas_exponential(steps, low, high).double()}[schedule]()

    def noise(sigma, sigma_next):
        i = min(range(steps), key=lambda j: abs(float(sigmas[j]) - float(sigma)))
        if not brownian or abs(float(sigma_next) - float(sigmas[i + 1])) > 1e-6 * float(sigma):
            return NOISES[i].double()
        middle = math.sqrt(float(sigma) * float(sigma_next))
        a, b = float(sigma) - middle, middle - float(sigma_next)
        return (math.sqrt(a / (a + b)) * NOISES[i] + math.sqrt(b / (a + b)) * NOISES[steps + i]).double()

    kwargs = {}
    if eta is not None:
        kwargs = dict(eta=eta, noise_sampler=noise)
    x = START.double() * (1 + sigmas[0] ** 2) ** 0.5
    x = function(denoiser, x, sigmas, disable=True, **kwargs)
    return dict(name=name, source=f"k-diffusion {function.__name__}", sampler=sampler, schedule=schedule, steps=steps,
                eta=eta, config=config, timesteps=digits([t for _, t in calls]), inputs=[digits(v) for v, _ in calls],
                final=digits(x))


def trajectories():
    v = dict(SD1, prediction_type="v_prediction")
    d, k = via_diffusers, via_k_diffusion
    linspace = dict(SD, timestep_spacing="linspace")
    return [
        d("ddim", "ddim", DDIMScheduler, SD1, 20),
        d("ddim 7 steps", "ddim", DDIMScheduler, SD1, 7),
        d("ddim alpha to one", "ddim", DDIMScheduler, dict(SD1, set_alpha_to_one=True), 5),
        d("ddim eta", "ddim", DDIMScheduler, SD1, 6, eta=0.6),
        d("ddim v", "ddim", DDIMScheduler, v, 6),
        d("ddim zero snr", "ddim", DDIMScheduler, ZERO, 8),
        d("ddim cosine", "ddim", DDIMScheduler, dict(beta_schedule="squaredcos_cap_v2"), 10),
        d("ddpm", "ddpm", DDPMScheduler, SD1, 10),
        d("ddpm trailing", "ddpm", DDPMScheduler, dict(SD, timestep_spacing="trailing"), 8),
        d("euler diffusers", "euler", EulerDiscreteScheduler, linspace, 10),
        d("euler a diffusers", "euler_a", EulerAncestralDiscreteScheduler, linspace, 10, eta=1.0),
        d("heun diffusers", "heun", HeunDiscreteScheduler, linspace, 10),
        d("dpm2 diffusers", "dpm2", KDPM2DiscreteScheduler, linspace, 10),
        d("dpmpp_2m diffusers karras", "dpmpp_2m", DPMSolverMultistepScheduler, linspace, 8, "karras",
          use_karras_sigmas=True),
        d("unipc", "unipc", UniPCMultistepScheduler, SD1, 8),
        d("unipc linspace v", "unipc", UniPCMultistepScheduler, dict(linspace, prediction_type="v_prediction"), 9),
        d("unipc karras", "unipc", UniPCMultistepScheduler, SD1, 8, "karras", use_karras_sigmas=True),
        d("lcm", "lcm", LCMScheduler, SD1, 4),
        d("lcm 7", "lcm", LCMScheduler, SD1, 7),
        k("euler", "euler", K.sample_euler, SD, 7, "normal"),
        k("euler zero snr", "euler", K.sample_euler, dict(SD, prediction_type="v_prediction",
                                                          rescale_betas_zero_snr=True), 7, "normal"),
        k("euler exponential", "euler", K.sample_euler, SD, 6, "exponential"),
        k("euler_a", "euler_a", K.sample_euler_ancestral, SD, 7, "karras", eta=1.0),
        k("euler_a eta", "euler_a", K.sample_euler_ancestral, SD, 7, "normal", eta=0.4),
        k("heun", "heun", K.sample_heun, SD, 6, "karras"),
        k("dpm2", "dpm2", K.sample_dpm_2, SD, 6, "karras"),
        k("dpmpp_2m", "dpmpp_2m", K.sample_dpmpp_2m, SD, 8, "karras"),
        k("dpmpp_2m v", "dpmpp_2m", K.sample_dpmpp_2m, dict(SD, prediction_type="v_prediction"), 8, "normal"),
        k("dpmpp_2s_a", "dpmpp_2s_a", K.sample_dpmpp_2s_ancestral, SD, 6, "karras", eta=1.0),
        k("dpmpp_sde", "dpmpp_sde", K.sample_dpmpp_sde, SD, 6, "karras", eta=1.0, brownian=True),
        k("dpmpp_sde eta", "dpmpp_sde", K.sample_dpmpp_sde, SD, 5, "exponential", eta=0.5, brownian=True),
        k("dpmpp_2m_sde", "dpmpp_2m_sde", K.sample_dpmpp_2m_sde, SD, 8, "karras", eta=1.0),
        k("dpmpp_2m_sde eta", "dpmpp_2m_sde", K.sample_dpmpp_2m_sde, SD, 6, "normal", eta=0.3),
    ]


def schedules():
    """alphas_cumprod at a few timesteps, and the levels of every schedule."""
    out = []
    configs = [SD, SD1, dict(beta_schedule="linear"), dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=200),
               dict(trained_betas=[0.01 * (i + 1) for i in range(20)]), dict(SD, rescale_betas_zero_snr=True,
                                                                          prediction_type="v_prediction")]
    for config in configs:
        alphas = DDIMScheduler(**config).alphas_cumprod
        n = len(alphas)
        at = sorted({0, 1, n // 3, n // 2, n - 2, n - 1})
        denoiser = KE.DiscreteEpsDDPMDenoiser(None, alphas.double().clamp(min=2.0**-24), quantize=False)
        low, high, table = float(denoiser.sigma_min), float(denoiser.sigma_max), denoiser.sigmas
        levels = {}
        for steps in (1, 6, 13):
            timesteps = torch.linspace(n - 1, 0, steps + 1)[:-1]
            stride = n / steps
            levels[str(steps)] = dict(
                normal=digits(denoiser.get_sigmas(steps)),
                karras=digits(K.get_sigmas_karras(steps, low, high)),
                exponential=digits(K.get_sigmas_exponential(steps, low, high)),
                # ComfyUI's normal_scheduler(sgm=True) and simple_scheduler, transcribed
                sgm_uniform=digits(torch.cat([denoiser.t_to_sigma(timesteps), torch.zeros(1)])),
                simple=digits([float(table[-(1 + int(i * stride))]) for i in range(steps)] + [0.0]))
        out.append(dict(config=config, at=at, alphas_cumprod=digits(alphas[at]), levels=levels))
    return out


def training():
    """DDPMScheduler.add_noise and get_velocity, one timestep a sample."""
    scheduler = DDPMScheduler(**SD)
    timesteps = torch.tensor([17, 803])
    return dict(timesteps=timesteps.tolist(), noisy=digits(scheduler.add_noise(START, PATTERN, timesteps)),
                velocity=digits(scheduler.get_velocity(START, PATTERN, timesteps)))


golden = dict(versions=dict(diffusers=diffusers.__version__, torch=torch.__version__, k_diffusion="0.1.1"),
              shape=SHAPE, start=digits(START), pattern=digits(PATTERN), noises=[digits(n) for n in NOISES],
              schedules=schedules(), training=training(), trajectories=trajectories())
path = Path(__file__).parent / "solvers.json"
lines = json.dumps(golden, separators=(",", ":")).replace('{"name"', '\n{"name"').replace('{"config"', '\n{"config"')
path.write_text(lines + "\n")
print(path, path.stat().st_size, "bytes")
