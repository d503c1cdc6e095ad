"""Rows measured on an NVIDIA card: whether there is one, what it can do, what was aimed at, and their table."""

import json
import pathlib
import shutil
import subprocess
import sys

import report

HERE = pathlib.Path(__file__).resolve().parent
MARK = "benches/peers/run --device cuda"
SIDES = ("ours", "peer", "peer-compiled")
# What is aimed at: our time over eager PyTorch's, our memory over its, our time over compiled PyTorch's.
GOALS = {("sd1", "train"): (0.5, 0.7, 0.9), ("sdxl", "train-checkpointing"): (0.7, 0.7, 0.95),
         ("sd1", "generate"): (0.4, None, 0.8), ("sdxl", "generate"): (0.6, None, 0.9)}


def on(device):
    return device.split(":")[0] == "cuda"


def expected():
    """Ends the program where no card can be, before anything is downloaded or built."""
    if not shutil.which("nvidia-smi"):
        sys.exit("--device cuda: expected an NVIDIA card, found no `nvidia-smi` on this machine")
    try:
        asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        sys.exit(f"--device cuda: expected an NVIDIA card, but `nvidia-smi -L` did not answer: {e}")
    if asked.returncode or "GPU" not in asked.stdout:
        words = (asked.stdout + asked.stderr).strip() or f"status {asked.returncode}"
        sys.exit(f"--device cuda: expected an NVIDIA card, but `nvidia-smi -L` found none: {words}")


def measured(python, device):
    """The card's name, and the bf16 matrix product it reaches; ends the program where PyTorch sees no card."""
    asked = subprocess.run([python, "-B", HERE / "torch_card.py", "--device", device], capture_output=True, text=True)
    said = [json.loads(line) for line in asked.stdout.splitlines() if line.startswith("{")]
    if said:
        return said[-1]
    words = asked.stderr.strip().splitlines() or [f"no answer (status {asked.returncode})"]
    sys.exit(f"--device {device}: {words[-1]}")


def completed(line):
    """With compiled PyTorch's ratios, and what the card's own rate says of the row."""
    if "card" not in line:
        return line
    line = dict(line)
    for name, key in (("compiled_ratio", "s"), ("compiled_memory_ratio", "mib")):
        if line.get(f"ours_{key}") and line.get(f"peer_compiled_{key}"):
            line[name] = line[f"ours_{key}"] / line[f"peer_compiled_{key}"]
    if line.get("gflop") and line.get("card_tflops"):
        line["floor_s"] = line["gflop"] / 1e3 / line["card_tflops"]
    for side in ("ours", "peer", "peer_compiled"):
        if line.get("gflop") and line.get(f"{side}_s") and not line.get(f"{side}_bound"):
            line[f"{side}_tflops"] = line["gflop"] / 1e3 / line[f"{side}_s"]
    return line


def reached(line, side):
    """TFLOP/s, and their share of the card's bf16 matrix product."""
    rate = line.get(f"{side}_tflops")
    if rate is None:
        return "-"
    return f"{rate:.0f}" + (f" ({100 * rate / line['card_tflops']:.0f} %)" if line.get("card_tflops") else "")


def against(line, name, which, side="peer"):
    """A ratio with what was aimed at."""
    shown, goal = report.ratio(line, name, side), GOALS.get((line["model"], line["task"]), (None,) * 3)[which]
    if goal is None:
        return shown
    missed = shown != "-" and not shown.startswith("<") and line[name] > goal
    return f"{shown} (≤ {goal}{': missed' if missed else ''})"


# Title, width at a terminal, cell.
ROW = (("model", 5, lambda r: r["model"]), ("task", 19, lambda r: r["task"]), ("px", 4, lambda r: str(r["size"])),
       ("n", 1, lambda r: str(r["batch"])))
BESIDE = (
    ("Scumble s", 9, lambda r: report.cell(r, "ours", "s", "{:.4f}")),
    ("eager s", 9, lambda r: report.cell(r, "peer", "s", "{:.4f}")),
    ("ratio", 20, lambda r: against(r, "ratio", 0)),
    ("compiled s", 10, lambda r: report.cell(r, "peer_compiled", "s", "{:.4f}")),
    ("ratio", 21, lambda r: against(r, "compiled_ratio", 2, "peer_compiled")),
    ("Scumble MiB", 11, lambda r: report.cell(r, "ours", "mib", "{:.0f}")),
    ("eager MiB", 9, lambda r: report.cell(r, "peer", "mib", "{:.0f}")),
    ("ratio", 20, lambda r: against(r, "memory_ratio", 1)),
    ("compiled MiB", 12, lambda r: report.cell(r, "peer_compiled", "mib", "{:.0f}")),
    ("ratio", 5, lambda r: report.ratio(r, "compiled_memory_ratio", "peer_compiled")),
)
ARITHMETIC = (
    ("TFLOP", 7, lambda r: f"{r['gflop'] / 1e3:.2f}" if "gflop" in r else "-"),
    ("floor s", 7, lambda r: report.number(r, "floor_s", "{:.4f}")),
    ("Scumble TFLOP/s", 15, lambda r: reached(r, "ours")), ("eager TFLOP/s", 13, lambda r: reached(r, "peer")),
    ("compiled TFLOP/s", 16, lambda r: reached(r, "peer_compiled")),
    ("error", 7, lambda r: report.number(r, "error", "{:.1e}")),
    ("PyTorch's", 9, lambda r: report.number(r, "peer_error", "{:.1e}")),
)


def titles():
    return "  ".join(title.ljust(width) for title, width, _ in (*ROW, *BESIDE, *ARITHMETIC))


def text(line):
    return "  ".join(make(line).ljust(width) for _, width, make in (*ROW, *BESIDE, *ARITHMETIC))


def called(facts):
    """The card in words."""
    rate = f"bf16 matrix product of 8192³ at {facts['card_tflops']:.0f} TFLOP/s" if facts.get("card_tflops") else ""
    more = (rate, f"driver {facts['driver']}" if facts.get("driver") else "",
            f"CUDA {facts['cuda']} in PyTorch" if facts.get("cuda") else "")
    return ", ".join(part for part in (facts["card"], *more) if part)


def write(path, lines):
    report.put(path, MARK, markdown(lines))


def markdown(lines):
    """Two tables, under the card and the machine it is in: beside PyTorch, and beside what the card can do."""
    parts = [f"{called(lines[-1])}. {report.about(lines)} Everything in bf16."]
    for columns in ((*ROW, *BESIDE), (*ROW, *ARITHMETIC)):
        rows = [[make(line) for _, _, make in columns] for line in lines]
        parts.append("\n".join(report.table([title for title, _, _ in columns], rows)))
    return "\n\n".join(parts)
