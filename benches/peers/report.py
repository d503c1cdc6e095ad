"""Rows as lines of JSON, as lines for people, and as tables of a page."""

import json
import os
import pathlib
import platform
import re
import statistics

KEY = ("task", "model", "size", "batch", "dtype")
MARK = "benches/peers/run"


def of(row, seen, facts):
    """A line out of what was found: {side: [Found of each turn]}."""
    line = {**{key: getattr(row, key) for key in KEY}}
    for side, turns in seen.items():
        name = side.replace("-", "_")
        failed = next((turn.failed for turn in turns if turn.failed), None)
        if failed:
            line[f"{name}_failed"] = failed[-500:]
            continue
        line |= {f"{name}_s": statistics.median(s for turn in turns for s in turn.seconds),
                 f"{name}_runs": sum(len(turn.seconds) for turn in turns),
                 f"{name}_bound": any(turn.bound for turn in turns),
                 f"{name}_cpu_s": middle(turn.processor_seconds for turn in turns),
                 f"{name}_mib": max((turn.mib for turn in turns if turn.mib), default=None),
                 f"{name}_own_mib": max((turn.own_mib for turn in turns if turn.own_mib), default=None),
                 f"{name}_start_s": middle(turn.row.get("start_s") for turn in turns),
                 f"{name}_begin_s": middle(turn.row.get("begin_s") for turn in turns)}
        last = turns[-1].row
        if side == "ours" and "gflop" in last:
            line |= {"gflop": last["gflop"], "percent_of_peak": last["percent_of_peak"], "error": last["error"]}
        if side == "peer" and "error" in last:
            line["peer_error"] = last["error"]
    return {key: value for key, value in line.items() if value is not None} | facts


def middle(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def merged(lines):
    """One line for each row: what was measured later replaces what was measured earlier."""
    rows = {}
    for line in lines:
        rows.setdefault((*(line[key] for key in KEY), line.get("steps"), line.get("card")), {}).update(line)
    return [completed(line) for line in rows.values()]


def completed(line):
    """With ratios: against the better of the peer's ways of waiting, where both were measured."""
    line, peer = dict(line), way(line)
    for name, key in (("ratio", "s"), ("memory_ratio", "mib"), ("own_memory_ratio", "own_mib")):
        if line.get(f"ours_{key}") and line.get(f"{peer}_{key}"):
            line[name] = line[f"ours_{key}"] / line[f"{peer}_{key}"]
    if "gflop" in line and line.get("ours_s"):
        line["ours_gflops"] = line["gflop"] / line["ours_s"]
    return line


def way(line):
    """`peer`, whose threads wait passively, or `peer_default`: the faster."""
    ways = [way for way in ("peer", "peer_default") if f"{way}_s" in line]
    return min(ways, key=lambda way: line[f"{way}_s"], default="peer")


def cell(line, side, key, form):
    side = way(line) if side == "peer" else side
    value = line.get(f"{side}_{key}")
    if value is None:
        return "failed" if f"{side}_failed" in line and key == "s" else "-"
    bound = key != "cpu_s" and line.get(f"{side}_bound")
    return ("> " if bound else "") + form.format(value)


def ratio(line, name="ratio", side="peer"):
    side = way(line) if side == "peer" else side
    bounds = line.get("ours_bound", False), line.get(f"{side}_bound", False)
    # The memory of what was cut off says nothing.
    if line.get(name) is None or all(bounds) or ("memory" in name and any(bounds)):
        return "-"
    return ("> " if bounds[0] else "< " if bounds[1] else "") + f"{line[name]:.2f}"


def number(line, name, form):
    return form.format(line[name]) if line.get(name) is not None else "-"


# The table for people at a terminal: title, width, cell.
COLUMNS = (
    ("model", 5, lambda r: r["model"]), ("task", 19, lambda r: r["task"]), ("px", 4, lambda r: str(r["size"])),
    ("n", 1, lambda r: str(r["batch"])), ("dtype", 5, lambda r: r["dtype"]),
    ("ours s", 9, lambda r: cell(r, "ours", "s", "{:.3f}")), ("peer s", 9, lambda r: cell(r, "peer", "s", "{:.3f}")),
    ("ratio", 6, ratio), ("sd.cpp s", 8, lambda r: cell(r, "sdcpp", "s", "{:.1f}")),
    ("ours CPU", 8, lambda r: cell(r, "ours", "cpu_s", "{:.2f}")),
    ("peer CPU", 8, lambda r: cell(r, "peer", "cpu_s", "{:.2f}")),
    ("ours MiB", 8, lambda r: cell(r, "ours", "mib", "{:.0f}")),
    ("peer MiB", 8, lambda r: cell(r, "peer", "mib", "{:.0f}")),
    ("ratio", 6, lambda r: ratio(r, "memory_ratio")), ("% peak", 6, lambda r: number(r, "percent_of_peak", "{:.0f}")),
    ("error", 7, lambda r: number(r, "error", "{:.1e}")), ("peer's", 7, lambda r: number(r, "peer_error", "{:.1e}")),
)


def titles():
    return "  ".join(title.ljust(width) for title, width, _ in COLUMNS)


def text(line):
    return "  ".join(make(line).ljust(width) for _, width, make in COLUMNS)


def failures(line):
    return [f"  {key}: {line[key].splitlines()[-1]}" for key in line if key.endswith("_failed")]


def table(heads, rows):
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]


def bold(text):
    return f"**{text}**" if text != "-" else text


def markdown(lines):
    """Two tables: the work of a warm process, and whole processes."""
    warm = [line for line in lines if line["task"] not in ("process", "start", "busy")]
    whole = [line for line in lines if line not in warm]
    parts = [about(lines)]
    if warm:
        heads = ("model", "task", "px", "pictures", "dtype", "Scumble s", "PyTorch s", "ratio", "Scumble MiB",
                 "PyTorch MiB", "ratio", "GFLOP/s", "% of peak", "error", "PyTorch's")
        parts.append("\n".join(table(heads, [[
            r["model"], r["task"], str(r["size"]), str(r["batch"]), r["dtype"], cell(r, "ours", "s", "{:.3f}"),
            cell(r, "peer", "s", "{:.3f}"), bold(ratio(r)), cell(r, "ours", "mib", "{:.0f}"),
            cell(r, "peer", "mib", "{:.0f}"), ratio(r, "memory_ratio"), number(r, "ours_gflops", "{:.0f}"),
            number(r, "percent_of_peak", "{:.0f}"), number(r, "error", "{:.1e}"), number(r, "peer_error", "{:.1e}"),
        ] for r in warm])))
    if whole:
        heads = ("model", "whole process", "px", "dtype", "Scumble s", "PyTorch s", "ratio", "stable-diffusion.cpp s",
                 "CPU s", "PyTorch's", "MiB", "PyTorch's", "its own MiB", "PyTorch's")
        parts.append("\n".join(table(heads, [[
            r["model"], called(r), str(r["size"]), r["dtype"],
            waits(r, "ours"), waits(r, "peer"), bold(ratio(r)), cell(r, "sdcpp", "s", "{:.1f}"),
            cell(r, "ours", "cpu_s", "{:.1f}"), cell(r, "peer", "cpu_s", "{:.1f}"), cell(r, "ours", "mib", "{:.0f}"),
            cell(r, "peer", "mib", "{:.0f}"), cell(r, "ours", "own_mib", "{:.0f}"),
            cell(r, "peer", "own_mib", "{:.0f}"),
        ] for r in whole])))
    return "\n\n".join(parts)


def called(line):
    names = {"process": "start to PNG", "start": "start to first step", "busy": "picture, busy machine"}
    # The embedded model is too small for a process to say more than its start: its busy picture is a warm one.
    warm = ", warm" if (line["model"], line["task"]) == ("mini", "busy") else ""
    return names[line["task"]] + warm + (f", {line['steps']} steps" if line.get("steps", 20) != 20 else "")


def waits(line, side):
    """Seconds of a whole process; beside them the other way of waiting, or when the first step began."""
    shown = cell(line, side, "s", "{:.2f}")
    if line["task"] == "start" and f"{side}_begin_s" in line:
        return f"{shown} (begins at {line[f'{side}_begin_s']:.2f})"
    if side != "peer" or "peer_default_s" not in line or "peer_s" not in line:
        return shown
    other, name = ("peer", "passive") if way(line) == "peer_default" else ("peer_default", "default")
    more = "> " if line.get(f"{other}_bound") else ""
    return f"{shown} ({more}{line[f'{other}_s']:.2f} {name})"


def about(lines):
    last = lines[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last.get("versions", {}).items())
    runs = sorted({line[key] for line in lines for key in ("ours_runs", "peer_runs") if key in line})
    counts = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}" if runs else "no"
    return (f"{last['machine']}, {last['threads']} threads, {last['date']}; {versions}. Medians of {counts} runs. "
            f"`-`: not measured; `>`: not ended by then.")


def write(path, lines):
    """Puts the tables between the two marks of a page, and nothing else."""
    plot = "\n\n![Time and memory over pixels](growth.svg)" if path.with_name("growth.svg").exists() else ""
    put(path, MARK, markdown(lines) + plot)


def put(path, mark, made):
    begin, end = f"<!-- {mark} -->", f"<!-- {mark}: end -->"
    page = path.read_text(encoding="utf-8")
    marked = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not marked.search(page):
        raise SystemExit(f"{path}: expected the lines {begin} and {end}")
    whole = marked.sub(lambda _: f"{begin}\n\n{made}\n\n{end}", page, count=1)
    part = path.with_name(path.name + ".tmp")
    part.write_text(whole, encoding="utf-8")
    part.replace(path)


def read(paths):
    return [json.loads(line) for path in paths for line in pathlib.Path(path).read_text().splitlines() if line]


def machine():
    """The processor's name, what of it matters, and the memory."""
    facts = {}
    if os.path.exists("/proc/cpuinfo"):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    flags = facts.get("flags", "").split()
    level = next((level for flag, level in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16"),
                                            ("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join(part for part in (name, level, f"{os.cpu_count()} cores", f"{gib:.0f} GiB") if part)
