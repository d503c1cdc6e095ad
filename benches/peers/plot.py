"""The plot of growth as SVG text: no library, and it follows the reader's light or dark page."""

import math

WIDTH, HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 380, 240, 70, 74, 90, 80
TASKS = (("unet", "a pass of the UNet"), ("train", "a training step"))
SIDES = (("ours", "Scumble"), ("peer", "PyTorch"))
DASHES = {1: "", 2: "7 4", 4: "2 4"}
STYLE = """<style>
  text { font-family: system-ui, sans-serif; font-size: 13px; fill: #1f2328 } .small { font-size: 11px; fill: #59636e }
  .title { font-size: 15px; font-weight: 600 } .grid { stroke: #d1d9e0; stroke-width: 1 }
  .key { stroke: #59636e } .line { fill: none; stroke-width: 2 } .ours { stroke: #0f766e }
  .peer { stroke: #c2410c } .dot.ours { fill: #0f766e }
  .dot.peer { fill: #c2410c } .page { fill: #ffffff }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #3d444d }
  .key { stroke: #9198a1 }
  .ours { stroke: #2dd4bf } .peer { stroke: #fb923c } .dot.ours { fill: #2dd4bf } .dot.peer { fill: #fb923c }
  .page { fill: #0d1117 } }
</style>"""


def growth(lines):
    """Time and memory over pixels, a line for each side and batch; a row of panels for each task."""
    tasks = [task for task in TASKS if any(line["task"] == task[0] for line in lines)]
    width = LEFT + 2 * WIDTH + GAP_X + 30
    height = TOP + len(tasks) * (HEIGHT + GAP_Y) + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
             f'aria-label="Time and memory over pixels, Scumble and PyTorch">', STYLE,
             f'<rect class="page" width="{width}" height="{height}"/>', *legend(), said(lines, height)]
    for i, (task, name) in enumerate(tasks):
        own = [line for line in lines if line["task"] == task]
        top = TOP + i * (HEIGHT + GAP_Y)
        parts += panel(own, "s", f"{name}: seconds", LEFT, top, log=True)
        parts += panel(own, "mib", f"{name}: peak memory, GiB", LEFT + WIDTH + GAP_X, top, log=False)
    return "\n".join([*parts, "</svg>", ""])


def legend():
    x = LEFT
    for side, name in SIDES:
        yield f'<path class="line {side}" d="M{x} 22h34"/><text x="{x + 42}" y="26">{name}</text>'
        x += 130
    for batch, dash in DASHES.items():
        yield f'<path class="key line" stroke-dasharray="{dash}" d="M{x} 22h34"/>'
        yield f'<text x="{x + 42}" y="26">{batch} picture{"s" if batch > 1 else ""}</text>'
        x += 130


def said(lines, height):
    last = lines[-1]
    torch = last.get("versions", {}).get("torch", "?")
    words = f"Stable Diffusion 1.5's size, {last['dtype']}; {last['machine']}; {last['threads']} threads; torch {torch}"
    return f'<text class="small" x="{LEFT}" y="{height - 8}">{escaped(words)}</text>'


def panel(lines, key, title, left, top, log):
    scale = 1 if key == "s" else 1 / 1024
    value = {(side, line["batch"], line["size"]): line[f"{side}_{key}"] * scale for line in lines for side, _ in SIDES
             if line.get(f"{side}_{key}") and not line.get(f"{side}_bound")}
    yield f'<text class="title" x="{left}" y="{top - 12}">{title}</text>'
    if not value:
        return
    sizes = sorted({size for _, _, size in value})
    marks = decades(value.values()) if log else even(max(value.values()))

    def x(size):
        return left + (math.log(size / sizes[0]) / math.log(max(sizes[-1] / sizes[0], 2))) * (WIDTH - 20) + 10

    def y(v):
        low, high = marks[0], marks[-1]
        share = math.log(v / low) / math.log(high / low) if log else (v - low) / (high - low)
        return top + HEIGHT * (1 - share)

    for mark in marks:
        yield f'<path class="grid" d="M{left} {y(mark):.1f}h{WIDTH}"/>'
        yield f'<text class="small" text-anchor="end" x="{left - 8}" y="{y(mark) + 4:.1f}">{mark:g}</text>'
    for size in sizes:
        yield f'<text class="small" text-anchor="middle" x="{x(size):.1f}" y="{top + HEIGHT + 18}">{size} px</text>'
    for side, _ in SIDES:
        for batch, dash in DASHES.items():
            at = [(x(size), y(value[side, batch, size])) for size in sizes if (side, batch, size) in value]
            if len(at) > 1:
                path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in at)
                yield f'<path class="line {side}" stroke-dasharray="{dash}" d="{path}"/>'
            for px, py in at:
                yield f'<circle class="dot {side}" cx="{px:.1f}" cy="{py:.1f}" r="3"/>'


def decades(values):
    """1, 2, 5, 10, … around the values."""
    steps = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
    low = max(step for step in steps if step <= min(values))
    high = min(step for step in steps if step >= max(values) and step > low)
    return [step for step in steps if low <= step <= high]


def even(most):
    """From 0 in at most eight round steps."""
    step = next(s for s in (0.5, 1, 2, 4, 8, 16, 32, 64, 128) if most / s <= 8)
    return [step * i for i in range(math.ceil(most / step) + 1)]


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")
