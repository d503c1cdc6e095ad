"""Merged adapters as PEFT's `add_weighted_adapter` makes them: run once, the result is committed.

    pip install peft==0.21.2 torch safetensors && python make_golden.py

A tiny module with the names and shapes of a few SD1-like layers; two adapters of equal rank and one of another.
The file holds the adapters' factors (`a.<layer>.A`, `.B`, scales as `a.scale`) and, for each case, what PEFT merged:
the factors where the arithmetic is on factors, their product where they come from an SVD (whose signs are free).
"""

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

LAYERS = {
    "down_blocks.0.attn1.to_q": lambda: torch.nn.Linear(12, 10, bias=False),
    "down_blocks.0.proj_in": lambda: torch.nn.Conv2d(6, 8, 1),
    "down_blocks.0.conv1": lambda: torch.nn.Conv2d(4, 6, 3),
}
ADAPTERS = {"a": (4, 8.0), "b": (4, 3.0), "c": (2, 2.0)}
CASES = {
    "cat": dict(combination_type="cat", adapters=["a", "b", "c"], weights=[0.7, -0.5, 1.5]),
    "linear": dict(combination_type="linear", adapters=["a", "b"], weights=[0.7, -0.5]),
    "svd": dict(combination_type="svd", adapters=["a", "b", "c"], weights=[0.7, -0.5, 1.5], svd_rank=3),
    "ties": dict(combination_type="ties", adapters=["a", "b"], weights=[0.7, 0.5], density=0.4),
    "ties_frequency": dict(
        combination_type="ties", adapters=["a", "b"], weights=[0.7, 0.5], density=0.6, majority_sign_method="frequency"
    ),
    "ties_svd": dict(combination_type="ties_svd", adapters=["a", "b", "c"], weights=[0.7, 0.5, -1.0], svd_rank=4, density=0.5),
    "magnitude_prune": dict(combination_type="magnitude_prune", adapters=["a", "b"], weights=[0.7, -0.5], density=0.3),
    "magnitude_prune_svd": dict(
        combination_type="magnitude_prune_svd", adapters=["a", "c"], weights=[1.0, 0.5], svd_rank=3, density=0.7
    ),
}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, make in LAYERS.items():
            parent = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, torch.nn.Module())
                parent = getattr(parent, part)
            parent.add_module(leaf, make())


def main():
    torch.manual_seed(7)
    targets = list(LAYERS)
    model = None
    for name, (rank, alpha) in ADAPTERS.items():
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
        model = get_peft_model(Net(), config, adapter_name=name) if model is None else model
        if name != "a":
            model.add_adapter(name, config)
    tensors = {}
    modules = {n: m for n, m in model.base_model.model.named_modules() if n in targets}
    for name, (rank, alpha) in ADAPTERS.items():
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
        for layer, module in modules.items():
            for side, part in ("A", module.lora_A), ("B", module.lora_B):
                weight = part[name].weight
                weight.data = torch.randn(weight.shape)
                tensors[f"{name}.{layer}.{side}"] = weight.data.clone()
    for case, arguments in CASES.items():
        model.base_model.add_weighted_adapter(adapter_name=case, **arguments)
        for layer, module in modules.items():
            down, up = module.lora_A[case].weight.data, module.lora_B[case].weight.data
            assert module.scaling[case] == 1.0
            if "svd" in case:
                product = up.flatten(1) @ down.flatten(1)
                tensors[f"{case}.{layer}.delta"] = product
            else:
                tensors[f"{case}.{layer}.A"] = down
                tensors[f"{case}.{layer}.B"] = up
    save_file({k: v.contiguous() for k, v in tensors.items()}, "peft.safetensors")


if __name__ == "__main__":
    main()
