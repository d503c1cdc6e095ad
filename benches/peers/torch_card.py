"""What PyTorch reaches on a card, as one JSON line: the best of several bf16 products of square matrices."""

import argparse
import json
import subprocess
import sys

import torch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--device", default="cuda")
parser.add_argument("--side", type=int, default=8192)
args = parser.parse_args()

if not torch.cuda.is_available():
    made = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    sys.exit("expected a card that PyTorch can use, but torch.cuda.is_available() is false "
             f"(torch {torch.__version__}, {made})")
device = torch.device(args.device)
if (device.index or 0) >= torch.cuda.device_count():
    sys.exit(f"expected a card of this index, found {torch.cuda.device_count()} card(s)")
torch.cuda.set_device(device)


def rate(products=20, times=8):
    """TFLOP/s. Normal values: a card draws less power, and runs faster, on zeros."""
    a, b = (torch.randn(args.side, args.side, device=device, dtype=torch.bfloat16) for _ in range(2))
    out, best = torch.empty_like(a), float("inf")
    for _ in range(times):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(products):
            torch.mm(a, b, out=out)
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / products)
    return 2 * args.side**3 / best / 1e12


def driver():
    asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                           capture_output=True, text=True)
    return asked.stdout.split("\n")[0].strip()


facts = torch.cuda.get_device_properties(device)
print(json.dumps({"card": f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB", "card_tflops": rate(),
                  "driver": driver(), "cuda": torch.version.cuda}))
