"""Pictures far from icons (hatching, dots, leaded glass, blueprints, paint, strokes) so that the VAE decodes styles."""
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from common import PALETTE, on_colour

SIZE = 128
YY, XX = np.mgrid[:SIZE, :SIZE].astype(np.float32)


def colour(rng):
    """A random colour, palette colours more often."""
    if rng.random() < 0.5:
        return np.array(list(PALETTE.values())[rng.integers(len(PALETTE))], np.float32)
    return rng.integers(0, 256, 3).astype(np.float32)


def gradient(rng):
    """A slope between two colours."""
    angle = rng.random() * 2 * np.pi
    t = XX * np.cos(angle) + YY * np.sin(angle)
    t = (t - t.min()) / (t.max() - t.min())
    return colour(rng) * (1 - t[..., None]) + colour(rng) * t[..., None]


def waves(rng, low, high):
    """A sine grating with a random direction and a period of low to high pixels."""
    angle, period = rng.random() * np.pi, rng.uniform(low, high)
    return np.sin((XX * np.cos(angle) + YY * np.sin(angle)) * 2 * np.pi / period + rng.random() * 6)


def hatching(rng, base):
    """Ink lines, more of them where the picture is dark."""
    grey = base.mean(-1) / 255
    ink = (waves(rng, 4, 10) > grey * 2.2 - 1) | ((waves(rng, 4, 10) > 0.2) & (grey < 0.45))
    return np.where(ink[..., None], colour(rng) * 0.4, colour(rng) * 0.3 + 175)


def halftone(rng, base):
    """Dots whose size follows the picture."""
    dots = (waves(rng, 5, 12) + waves(rng, 5, 12)) / 2
    keep = dots > base.mean(-1) / 127.5 - 1
    return np.where(keep[..., None], base * 0.6, colour(rng) * 0.3 + 178)


def glass(rng, base):
    """Flat polygons in the picture's colours between dark lines."""
    seeds = rng.random((int(rng.integers(20, 90)), 2)).astype(np.float32) * SIZE
    d = np.sqrt((YY[..., None] - seeds[:, 0]) ** 2 + (XX[..., None] - seeds[:, 1]) ** 2)
    near = np.partition(d, 1, -1)[..., :2]
    out = base[seeds[:, 0].astype(int), seeds[:, 1].astype(int)][d.argmin(-1)]
    out[near[..., 1] - near[..., 0] < rng.uniform(1, 3.5)] = rng.integers(0, 60)
    return out


def lines(rng, base):
    """The picture's outlines, thin and light on a dark ground (or the reverse), at times with a grid."""
    grey = base.mean(-1)
    edge = np.hypot(*np.gradient(grey)).clip(0, 60)[..., None] / 60
    ground, ink = np.array([20, 40, 100], np.float32) * rng.uniform(0.4, 1.3), np.full(3, 235, np.float32)
    if rng.random() < 0.3:
        ground, ink = ink, colour(rng) * 0.4
    if rng.random() < 0.4:
        edge = np.maximum(edge, 0.25 * ((XX % 16 < 1) | (YY % 16 < 1))[..., None])
    return ground * (1 - edge) + ink * edge


def paint(rng, base):
    """Blurred, in few tones, on rough paper."""
    soft = Image.fromarray(base.clip(0, 255).astype(np.uint8)).filter(ImageFilter.MedianFilter(7))
    soft = np.asarray(soft.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2)))).astype(np.float32)
    levels = rng.uniform(20, 60)
    paper = rng.normal(0, rng.uniform(2, 14), (SIZE, SIZE, 1))
    return np.round(soft / levels) * levels * 0.5 + soft * 0.5 + paper


def strokes(rng, base):
    """Lines, ellipses and boxes of random colours over a slope."""
    image = Image.fromarray(gradient(rng).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 30))):
        box = [int(v) for v in np.sort(rng.integers(-10, SIZE + 10, (2, 2)), 0).ravel()]
        ink, width = tuple(int(v) for v in colour(rng)), int(rng.integers(1, 9))
        kind = rng.integers(3)
        if kind == 0:
            pen.line([int(v) for v in rng.integers(0, SIZE, 4)], ink, width)
        elif kind == 1:
            pen.ellipse(box, None if width > 4 else ink, ink, min(width, 4))
        else:
            pen.rectangle(box, None if width > 4 else ink, ink, min(width, 4))
    return np.asarray(image).astype(np.float32)


def pattern(rng, icons):
    """One random picture as 8-bit RGB."""
    back = gradient(rng) if rng.random() < 0.4 else colour(rng)
    base = on_colour(icons[rng.integers(len(icons))], back)
    kinds = [hatching, halftone, glass, lines, lines, paint, strokes]
    out = kinds[rng.integers(len(kinds))](rng, base) if rng.random() < 0.85 else base
    if rng.random() < 0.15:
        out = out + rng.normal(0, rng.uniform(3, 25), out.shape)
    return out.clip(0, 255).astype(np.uint8)


def photograph(rng, photos):
    """One random square of a photograph as 8-bit RGB of 128 px."""
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(SIZE, min(photo.shape[:2]) + 1))
    y, x = (int(rng.integers(0, n - side + 1)) for n in photo.shape[:2])
    square = Image.fromarray(np.ascontiguousarray(photo[y:y + side, x:x + side]))
    return np.asarray(square.resize((SIZE, SIZE), Image.LANCZOS))
