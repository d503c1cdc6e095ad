"""Adds to the matrix what today's trainers no longer write, or seldom: LyCORIS' `oft_diag` in both of its meanings and
the first layout of its GLoRA, by its own code of that time; the sparse residual of its extraction; and files for the
SDXL refiner. Everything else is as in `../matrix/make_matrix.py`.

    pip install torch diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 lycoris-lora==4.1.3 einops
    git clone https://github.com/KohakuBlueleaf/LyCORIS
    python tests/golden/adapter/rare/make_rare.py --lycoris LyCORIS
"""

import argparse
import importlib
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "matrix"))
import make_matrix as matrix  # noqa: E402
from make_matrix import CONV, DTYPE, TEXT, UNET, all_paths, changed, module_of, ours, parts, write  # noqa: E402

HERE = Path(__file__).parent
FAMILIES = ["sd1", "sdxl", "sdxl-refiner"]
# Commit, module, class. The first trains the difference from no rotation, the second stores the rotation itself.
RESIDUAL = ("701dd82", "diag_oft", "DiagOFTModule")  # 1.9, October 2023
ROTATION = ("4daf1b6", "diag_oft", "DiagOFTModule")  # 2.0, December 2023
# From July 2023 to May 2024 it multiplied by alpha / r twice while training; no reader did, and no file tells.
FIRST_GLORA = ("68b1957", "glora", "GLoRAModule")  # 1.8, June 2023


def old_class(repository, folder, commit, module, name):
    """A class of the package as it was; its other modules want libraries of that time."""
    package = folder / f"lycoris_{commit}"
    if not package.exists():
        archive = subprocess.run(["git", "-C", repository, "archive", commit, "lycoris/modules"], check=True, capture_output=True)
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        (folder / "lycoris").rename(package)
        (package / "__init__.py").touch()
        (package / "modules/__init__.py").write_text("")
    sys.path.insert(0, str(folder))
    return getattr(importlib.import_module(f"{package.name}.modules.{module}"), name)


def old_lycoris(family, name, source, paths, scale, **options):
    """Old modules on today's networks, named as that time's kohya wrapper named them."""
    cls = old_class(*source)
    models, bases = parts(family, torch.float32), parts(family, torch.float32)
    single = len(models) == 2
    generator = torch.Generator().manual_seed(8)
    tensors, paths = {}, all_paths(models, *paths)
    for component, path in paths:
        inner, layer = module_of(models[component], path)
        number = "" if single else {"text_encoder": "1", "text_encoder_2": "2"}.get(component, "")
        prefix = "lora_unet" if component == "unet" else f"lora_te{number}"
        # transformers had the outer module's name in both text models then.
        flat = ours(component, inner).split(".", 1)[1].replace(".", "_")
        module = cls(f"{prefix}_{flat}", layer, 1.0, 4 if "oft" in name else 2, 1.5, **options)
        module.apply_to()
        for n, p in sorted(module.named_parameters()):
            noise = torch.randn(p.shape, generator=generator) * scale
            p.data = (p.data * (1 + noise) if n == "rescale" else noise).to(DTYPE[family]).float()
        tensors |= {f"{prefix}_{flat}.{key}": value for key, value in module.state_dict().items()}
        layer.old = module.eval()
    # What the module computes on the way to its file is kept in full; only what is trained has the family's dtype.
    dtype = torch.float32 if name == "oft-diag" else DTYPE[family]
    facts = dict(family=family, dialect="kohya", algorithm=name, half=False, writer=f"LyCORIS@{source[2]}")
    matrix.EXPECTED.add(f"{family}_{name}", facts, changed(models, bases, paths))
    write(f"{family}_{name}", matrix.stored(tensors, dtype), {"ss_network_module": "lycoris.kohya"})


def sparse(family):
    """LyCORIS' extraction with `use_bias`: two factors in f16, and the largest numbers of what they leave. Nothing of its
    own reads them; the expectation is their sum: alpha / r · up · down + residual."""
    from lycoris.utils import extract_diff

    tuned, bases = parts(family, torch.float32), parts(family, torch.float32)
    generator = torch.Generator().manual_seed(9)
    paths = all_paths(tuned, UNET + CONV[:4])
    for component, path in paths:
        weight = module_of(tuned[component], path)[1].weight
        weight.data += torch.randn(weight.shape, generator=generator) * 0.2
    texts = [c for c in tuned if c != "unet"]
    tensors = extract_diff([bases[c] for c in texts], [tuned[c] for c in texts], bases["unet"], tuned["unet"], mode="fixed",
                           linear_mode_param=2, conv_mode_param=2, use_bias=True, sparsity=0.8, small_conv=False)
    found = {}
    for component, path in paths:
        inner = module_of(tuned[component], path)[0]
        number = "" if len(texts) == 1 else str(1 + texts.index(component)) if component in texts else ""
        key = f"{'lora_unet' if component == 'unet' else 'lora_te' + number}_{inner.replace('.', '_')}"
        up, down = (tensors[f"{key}.lora_{end}.weight"].double().flatten(1) for end in ["up", "down"])
        rows, columns = tensors[f"{key}.bias_size"].tolist()
        places = tensors[f"{key}.bias_indices"].long()
        rest = torch.sparse_coo_tensor(places, tensors[f"{key}.bias_values"].double(), (rows, columns)).to_dense()
        base = bases[component].get_submodule(inner).weight.double()
        merged = base + (up @ down + rest).reshape(base.shape)
        goal = tuned[component].get_submodule(inner).weight.double()
        assert (merged - goal).norm() < (base + (up @ down).reshape(base.shape) - goal).norm()
        found[ours(component, inner)] = (merged, None)
    name = f"{family}_lycoris-sparse"
    facts = dict(family=family, dialect="kohya", algorithm="sparse residual", half=False,
                 writer="lycoris-lora 4.1.3, extract_diff; read by its rule")
    matrix.EXPECTED.add(name, facts, found)
    write(name, {k: v.contiguous() for k, v in tensors.items()})


def refiner():
    family = "sdxl-refiner"
    real, plain = matrix.peft_configs, matrix.plain_peft()
    matrix.peft_configs = lambda: {**real(), **plain}
    for name in ["lora", "locon", "dora-out", "loha", "lokr", "norm"]:
        matrix.lycoris(family, name, matrix.LYCORIS[name])
    for algorithm in ["lora", "dora-raw", "lora-raw"]:
        matrix.diffusers_files(family, algorithm)
    matrix.peft_folder(family, "lora")
    matrix.renamed(family)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--lycoris", required=True)
    options = options.parse_args()
    logging.disable(logging.WARNING)
    torch.manual_seed(3)
    for old in HERE.iterdir():
        if old.suffix == ".safetensors":
            old.unlink()
        elif old.is_dir():
            shutil.rmtree(old)
    matrix.HERE, matrix.EXPECTED = HERE, matrix.Expected()
    # The residual's module forgot the layer's bias, which no file can say: on layers that have none.
    unbiased = [n for n in UNET if n.endswith(("to_q", "to_k", "to_v"))]
    linear = [n for n in UNET + CONV[:3] if "conv1" not in n]
    with tempfile.TemporaryDirectory() as folder:
        at = (options.lycoris, Path(folder))
        for family in ["sd1", "sdxl"]:
            old_lycoris(family, "oft-diag-residual", (*at, *RESIDUAL), (unbiased, []), 0.1)
            old_lycoris(family, "oft-diag", (*at, *ROTATION), (UNET + CONV[:4], TEXT), 0.1)
            old_lycoris(family, "glora-first", (*at, *FIRST_GLORA), (linear, TEXT), 0.3)
            sparse(family)
        old_lycoris("sd1", "oft-diag-rescaled", (*at, *ROTATION), (UNET + CONV[:4], TEXT), 0.1, rescaled=True)
    refiner()
    matrix.EXPECTED.write({f: matrix.configs_of(f) for f in FAMILIES}, {})
    size = sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file() and f.suffix != ".py")
    print(f"{len(matrix.EXPECTED.fixtures)} fixtures, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
