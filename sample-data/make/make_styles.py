"""Draws the three sample styles: blueprint, stained glass, riso print.

Each style redraws 24 everyday subjects from permissively licensed vector icons (see ../README.md) so that nothing of
the icons' own look is left: only their shapes are used. Everything random comes from SEED and the subject's name.

    npm install && pip install -r requirements.txt
    python make_styles.py --icons node_modules/@iconify-json --out ..
"""
import argparse
import io
import json
import zlib
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image
from scipy import ndimage

SEED = 2026
SIZE = 256  # what is written
SUPER = 3  # drawn this many times larger, then shrunk: clean edges
FULL = SIZE * SUPER
YY, XX = np.mgrid[:FULL, :FULL].astype(np.float32)

# word in captions -> icon name. Cat, castle, sailboat, penguin, strawberry and others are left out on purpose:
# whoever trains on these folders can see whether the style carries over to subjects it never saw.
SUBJECTS = {
    "dog": "dog-face", "fox": "fox", "lion": "lion", "rabbit": "rabbit-face", "owl": "owl", "fish": "fish",
    "turtle": "turtle", "butterfly": "butterfly", "apple": "red-apple", "lemon": "lemon", "banana": "banana",
    "mushroom": "mushroom", "sunflower": "sunflower", "cactus": "cactus", "tree": "deciduous-tree", "star": "star",
    "moon": "crescent-moon", "house": "house", "car": "automobile", "rocket": "rocket", "airplane": "airplane",
    "umbrella": "umbrella", "cup": "hot-beverage", "guitar": "guitar",
}


def draw_icon(icons, name, share):
    """The icon as float RGBA (FULL, FULL, 4) in 0..1, its longer side filling `share` of the canvas, centred."""
    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=FULL, height=FULL))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > 20)).getbbox())
    scale = FULL * share / max(image.size)
    image = image.resize([max(1, round(s * scale)) for s in image.size], Image.LANCZOS)
    canvas = Image.new("RGBA", (FULL, FULL))
    canvas.paste(image, ((FULL - image.width) // 2, (FULL - image.height) // 2))
    return np.asarray(canvas, np.float32) / 255


def regions(rgba, colours, least):
    """Integer labels of the icon's flat areas (0 = outside); areas under `least` pixels join their neighbours."""
    flat = Image.fromarray((rgba[..., :3] * 255).astype(np.uint8)).quantize(colours, Image.Quantize.FASTOCTREE)
    inside = rgba[..., 3] > 0.5
    index = np.where(inside, np.asarray(flat, np.int32) + 1, 0)
    labels = np.zeros_like(index)
    count = 0
    for value in np.unique(index[inside]):
        found, n = ndimage.label(index == value)
        sizes = np.bincount(found.ravel(), minlength=n + 1)
        for part in np.flatnonzero(sizes[1:] >= least) + 1:
            count += 1
            labels[found == part] = count
    if count == 0:
        return inside.astype(np.int32)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.where(inside, labels[tuple(nearest)], 0)


def boundary(labels):
    """True where two labels meet."""
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return edge


def stroke(edge, width):
    """Coverage in 0..1 of a line of `width` (in written pixels) along the edge."""
    distance = ndimage.distance_transform_edt(~edge)
    return np.clip(width * SUPER / 2 + 0.5 - distance, 0, 1).astype(np.float32)


def noise(rng, scale):
    """Smooth noise with unit deviation; `scale` in written pixels."""
    small = rng.standard_normal((max(4, round(SIZE / scale)) + 3,) * 2).astype(np.float32)
    big = ndimage.zoom(small, FULL / (small.shape[0] - 3), order=3)[:FULL, :FULL]
    return big / big.std()


def warp(image, rng, amount, scale):
    """The image shifted a little everywhere, as by hand."""
    at = [YY + noise(rng, scale) * amount * SUPER, XX + noise(rng, scale) * amount * SUPER]
    return ndimage.map_coordinates(image, at, order=1, mode="nearest")


def over(base, ink, coverage):
    """Lays an opaque colour on a picture."""
    coverage = coverage[..., None]
    return base * (1 - coverage) + np.asarray(ink, np.float32) * coverage


def blueprint(rgba, rng):
    """Pale lines and a measuring grid on deep blue."""
    ground = np.array([0.055, 0.19, 0.47], np.float32)
    light = 1.06 - 0.28 * np.hypot(XX / FULL - 0.5, YY / FULL - 0.5) + 0.025 * noise(rng, 26)
    picture = ground * light[..., None]
    pitch = 32 * SUPER
    lines = lambda every, width: np.maximum(
        np.clip(width * SUPER / 2 + 0.5 - np.abs((XX + every / 2) % every - every / 2), 0, 1),
        np.clip(width * SUPER / 2 + 0.5 - np.abs((YY + every / 2) % every - every / 2), 0, 1))
    picture = over(picture, [0.45, 0.68, 0.95], 0.34 * lines(pitch, 1.4))
    labels = regions(rgba, 14, 60 * SUPER * SUPER)
    inner = stroke(boundary(labels), 2.3)
    outer = stroke(boundary(labels > 0), 4.0)
    hatch = np.clip(0.5 + 1.2 - np.abs((XX + YY) % (9 * SUPER) - 4.5 * SUPER) / SUPER, 0, 1)
    shades = np.zeros_like(XX)
    luma = rgba[..., :3] @ np.array([0.3, 0.59, 0.11], np.float32)
    for label in range(1, labels.max() + 1):
        area = labels == label
        if area.any() and luma[area].mean() < 0.45:
            shades[area] = 1
    ink = np.maximum(warp(np.maximum(inner * 0.85, outer), rng, 0.5, 40), 0.30 * hatch * shades)
    marks = dimension_lines(labels > 0)
    glow = ndimage.gaussian_filter(ink, 3 * SUPER)
    picture = picture + 0.10 * glow[..., None] * np.array([0.5, 0.8, 1.0], np.float32)
    picture = over(picture, [0.55, 0.85, 1.0], 0.75 * marks)
    return over(picture, [0.93, 0.98, 1.0], np.clip(ink, 0, 1))


def dimension_lines(inside):
    """Measured width below and height at the right: thin lines with arrow heads and end ticks."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    half = 0.75 * SUPER
    at_y, at_x = (bottom + FULL) / 2 + 1, (right + FULL) / 2 + 1
    marks = np.zeros_like(XX)

    def measure(across, along, at, start, end):
        line = (np.abs(across - at) < half) & (along >= start) & (along <= end)
        for tip, inward in ((start, 1), (end, -1)):
            depth = (along - tip) * inward
            line |= (depth >= 0) & (depth < 9 * SUPER) & (np.abs(across - at) < depth * 0.38)
            line |= (np.abs(along - tip) < half) & (np.abs(across - at) < 6 * SUPER)
        return line

    marks[measure(YY, XX, at_y, left, right)] = 1
    marks[measure(XX, YY, at_x, top, bottom)] = 1
    return marks


JEWELS = np.array([
    [0.80, 0.10, 0.16], [0.98, 0.62, 0.10], [0.99, 0.83, 0.25], [0.10, 0.55, 0.32], [0.50, 0.78, 0.30],
    [0.10, 0.30, 0.75], [0.22, 0.66, 0.88], [0.46, 0.20, 0.66], [0.90, 0.36, 0.55], [0.96, 0.93, 0.82],
    [0.52, 0.27, 0.12], [0.16, 0.18, 0.42],
], np.float32)


def stained_glass(rgba, rng):
    """Jewel-coloured cells between dark lead lines, lit from behind."""
    labels = regions(rgba, 9, 180 * SUPER * SUPER)
    inside = labels > 0
    seeds = rng.random((26, 2)).astype(np.float32) * FULL
    owner = np.argmin((YY[..., None] - seeds[:, 0]) ** 2 + (XX[..., None] - seeds[:, 1]) ** 2, -1)
    radius, angle = np.hypot(XX - FULL / 2, YY - FULL / 2), np.arctan2(YY - FULL / 2, XX - FULL / 2)
    turn, spokes = rng.random() * 6.28, int(rng.integers(9, 13))
    ring = np.digitize(radius, np.array([0.30, 0.46]) * FULL)
    wedge = np.floor((angle + turn) / (2 * np.pi) * spokes + 0.5 * (ring % 2)).astype(int) % spokes
    cells = np.where(inside, labels * 64 + owner, 100_000 + ring * 100 + wedge)
    _, cells = np.unique(cells, return_inverse=True)
    cells = merge_slivers(cells.reshape(FULL, FULL), inside, 150 * SUPER * SUPER)
    ground = JEWELS[[5, 6, 11, 7]] if rng.random() < 0.6 else JEWELS[[3, 6, 4, 5]]
    picture = np.zeros((FULL, FULL, 3), np.float32)
    for cell in range(cells.max() + 1):
        area = cells == cell
        if not area.any():
            continue
        if inside[area].mean() > 0.5:
            mean = rgba[..., :3][area].mean(0)
            colour = 0.35 * mean + 0.65 * JEWELS[np.argmin(((JEWELS - mean) ** 2).sum(1))]
        else:
            colour = ground[rng.integers(len(ground))]
        picture[area] = colour * rng.uniform(0.82, 1.12)
    lead = boundary(cells)
    depth = ndimage.distance_transform_edt(~lead) / SUPER
    glass = 0.72 + 0.42 * np.clip(depth / 14, 0, 1) + 0.05 * noise(rng, 5) + 0.05 * noise(rng, 18)
    sun = 0.22 * np.exp(-((XX / FULL - 0.5) ** 2 + (YY / FULL - 0.42) ** 2) / 0.10)
    picture = picture * glass[..., None] + picture * sun[..., None] * 1.2
    frame = (XX < 3 * SUPER) | (YY < 3 * SUPER) | (XX >= FULL - 3 * SUPER) | (YY >= FULL - 3 * SUPER)
    line = np.maximum.reduce([stroke(lead, 5.0), stroke(boundary(inside), 6.5), frame.astype(np.float32)])
    line = warp(line, rng, 0.6, 24)
    shine = np.clip(ndimage.gaussian_filter(line, SUPER) - np.roll(ndimage.gaussian_filter(line, SUPER), SUPER, 0), 0, 1)
    picture = over(picture, [0.07, 0.065, 0.075], line)
    return picture + 0.35 * (shine * line)[..., None]


def merge_slivers(cells, inside, least):
    """Cells below `least` pixels, or split off by the subject, join the nearest large one on their own side."""
    out = np.zeros_like(cells)
    count = 0
    for side in (True, False):
        parts = np.zeros_like(cells)
        for cell in np.unique(cells[inside == side]):
            found, n = ndimage.label((cells == cell) & (inside == side))
            sizes = np.bincount(found.ravel(), minlength=n + 1)
            for part in np.flatnonzero(sizes[1:] >= least) + 1:
                count += 1
                parts[found == part] = count
        nearest = ndimage.distance_transform_edt(parts == 0, return_distances=False, return_indices=True)
        out = np.where(inside == side, parts[tuple(nearest)], out)
    return out


PAPER = np.array([0.955, 0.935, 0.885], np.float32)
# Spot inks as light they let through.
INKS = {
    "pink": [1.00, 0.28, 0.42], "teal": [0.00, 0.51, 0.54], "yellow": [1.00, 0.85, 0.10],
    "blue": [0.20, 0.36, 0.70], "orange": [1.00, 0.45, 0.20],
}
SETS = [("pink", "teal", "yellow"), ("pink", "blue", "yellow"), ("orange", "teal", "yellow"), ("pink", "blue", "yellow")]


def separate(rgb, inks):
    """How much of each ink comes nearest to a colour on white paper, in 0..1 (projected gradient descent)."""
    inks = np.array([INKS[i] for i in inks], np.float32)
    density = -np.log(np.clip(inks, 0.06, 1))  # (inks, 3)
    wanted = -np.log(np.clip(rgb.reshape(-1, 3), 0.06, 1))
    amount = np.full((len(wanted), len(inks)), 0.3, np.float32)
    gram, target = density @ density.T, wanted @ density.T
    step = 1 / np.linalg.eigvalsh(gram)[-1]
    for _ in range(60):
        amount = np.clip(amount - step * (amount @ gram - target), 0, 1)
    return amount.reshape(*rgb.shape[:2], -1)


def riso(rgba, rng):
    """Two or three spot inks in coarse dots on grainy paper, never quite in register."""
    inks = SETS[rng.integers(len(SETS))]
    tone = ndimage.gaussian_filter(rgba, (SUPER, SUPER, 0))
    alpha = tone[..., 3]
    rgb = tone[..., :3] / np.maximum(alpha, 1e-3)[..., None]
    amounts = separate(np.clip(rgb, 0, 1) ** 0.9, inks) * alpha[..., None]
    # A disc and a sloping tint behind the subject, as such prints have.
    radius = np.hypot(XX - FULL * 0.5, YY - FULL * 0.5) / FULL
    disc = np.clip((0.44 - radius) * FULL / SUPER, 0, 1) * (1 - alpha)
    slope = np.clip(0.75 - YY / FULL * 0.65, 0.1, 0.7)
    amounts[..., 2 if rng.random() < 0.5 else 0] += disc * slope * 0.85
    outline = stroke(boundary(alpha > 0.5), 2.5)
    amounts[..., 1] = np.maximum(amounts[..., 1], outline)
    picture = np.ones((FULL, FULL, 3), np.float32) * PAPER
    picture *= (1 + 0.018 * noise(rng, 2.2) + 0.012 * noise(rng, 9))[..., None]
    for plane, (ink, degrees) in enumerate(zip(inks, (15, 75, 45))):
        shift = rng.uniform(-1, 1, 2)
        shift = shift / np.hypot(*shift) * rng.uniform(2.0, 4.0) * SUPER * (plane > 0)
        amount = ndimage.shift(amounts[..., plane], shift, order=1)
        printed = halftone(np.clip(amount, 0, 1), degrees, 9.0 * SUPER)
        wear = np.clip(1 - 0.10 * np.clip(noise(rng, 1.6) - 0.7, 0, 2) - 0.05 * np.clip(noise(rng, 12), -1, 2), 0, 1)
        coverage = (printed * wear)[..., None]
        picture *= 1 - coverage * (1 - np.array(INKS[ink], np.float32))
    return picture


def halftone(amount, degrees, pitch):
    """Round dots on a turned grid; their area is the amount, solid above 0.9."""
    turn = np.deg2rad(degrees)
    u = (XX * np.cos(turn) + YY * np.sin(turn)) * 2 * np.pi / pitch
    v = (YY * np.cos(turn) - XX * np.sin(turn)) * 2 * np.pi / pitch
    screen = 0.5 - (np.cos(u) + np.cos(v)) / 4  # 0 in a dot's middle, 1 between dots
    ranks = np.sort(screen[:: SUPER * 2, :: SUPER * 2].ravel())
    threshold = np.interp(amount, np.linspace(0, 1, len(ranks)), ranks)
    dots = np.clip((threshold - screen) * pitch / 2.5 + 0.5, 0, 1) * (amount > 0.03)
    return np.where(amount > 0.9, 1, dots).astype(np.float32)


STYLES = {  # folder -> (trigger, icon set, share of the canvas, how)
    "blueprint": ("blueprint style", "fluent-emoji-flat", 0.74, blueprint),
    "stained-glass": ("stained glass style", "fluent-emoji-flat", 0.80, stained_glass),
    "riso": ("riso print style", "noto", 0.78, riso),
}


def save(picture, path):
    """Shrinks and writes a JPEG of high quality (the riso grain and glass texture make PNG four times as large)."""
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))
    image.resize((SIZE, SIZE), Image.LANCZOS).save(path, quality=90, subsampling=0, optimize=True)


def contact_sheet(folder, columns=6):
    """All pictures of a folder on one sheet, to look at."""
    files = sorted(folder.glob("*.jpg"))
    sheet = Image.new("RGB", (columns * SIZE, -(-len(files) // columns) * SIZE), "white")
    for i, file in enumerate(files):
        sheet.paste(Image.open(file), (i % columns * SIZE, i // columns * SIZE))
    return sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icons", type=Path, required=True, help="node_modules/@iconify-json")
    parser.add_argument("--out", type=Path, required=True, help="where the three folders go")
    parser.add_argument("--sheets", type=Path, help="also write contact sheets here")
    parser.add_argument("--only", help="one style's folder name")
    args = parser.parse_args()
    for folder, (trigger, collection, share, paint) in STYLES.items():
        if args.only not in (None, folder):
            continue
        icons = json.loads((args.icons / collection / "icons.json").read_text())
        out = args.out / folder
        out.mkdir(parents=True, exist_ok=True)
        for word, name in SUBJECTS.items():
            rng = np.random.default_rng([SEED, zlib.crc32(f"{folder}/{word}".encode())])
            save(paint(draw_icon(icons, name, share), rng), out / f"{word}.jpg")
            (out / f"{word}.txt").write_text(f"{word}, {trigger}\n")
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            contact_sheet(out).save(args.sheets / f"{folder}.png")


if __name__ == "__main__":
    main()
